"""Runs the everyday tests with each supported set of Python, JAX, Flax and Orbax.

```console
$ python -m tests.compatibility                 # every set, and the table for docs/
$ python -m tests.compatibility oldest newest   # these alone
$ python -m tests.compatibility pre-releases    # what is to come; it may fail
```

Each set gets a virtual environment in a cache folder (`NNXCONV_COMPATIBILITY`, by default
`~/.cache/nnxconv/compatibility`), which later runs use again. An interpreter that is not there is
named, and its sets are skipped. What old libraries warn of each other is no error here. What fails
beside other tests is tried once more, alone. `.ci/run` runs the oldest and the newest set.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
CACHE = Path(
    os.environ.get("NNXCONV_COMPATIBILITY", Path.home() / ".cache" / "nnxconv" / "compatibility")
)
QUIET = "ignore::DeprecationWarning"
"""What old libraries warn of each other."""
NEWEST = ""
"""A version that is not pinned."""


@dataclass(frozen=True)
class Set:
    """A Python, and versions of what nnxconv stands on; "" for the newest."""

    name: str
    python: str
    jax: str = NEWEST
    flax: str = NEWEST
    orbax: str = NEWEST
    is_pre: bool = False
    """With pre-releases, whatever bounds nnxconv sets: that it fails is news, and no failure."""

    @property
    def pins(self) -> list[str]:
        """What pip is asked for besides nnxconv."""
        wanted = {
            "jax": self.jax,
            "jaxlib": self.jax,
            "flax": self.flax,
            "orbax-checkpoint": self.orbax,
        }
        return [f"{name}=={version}" for name, version in wanted.items() if version]


SETS = (
    Set("oldest", "3.11", "0.8.0", "0.12.0", "0.12.0"),
    Set("newest", "3.13"),
    Set("old JAX, new Orbax", "3.12", "0.8.0", "0.12.0", NEWEST),
    Set("new JAX of 3.11, old Orbax", "3.11", "0.10.2", "0.12.8", "0.12.0"),
    Set("middle", "3.12", "0.9.0", "0.12.2", "0.12.0"),
    Set("middle on 3.13", "3.13", "0.10.0", "0.12.4", "0.12.4"),
    Set("newest of 3.11", "3.11"),
    Set("newest of 3.12", "3.12"),
    Set("pre-releases", "3.12", is_pre=True),
)
"""Chosen so that each two of old, middle and new occur together, and the ends of all.

Flax from 0.12.1 does not import beside JAX 0.8.0; 0.11 has no `nnx.List`, which the tests use.
"""


def interpreter(version: str) -> str | None:
    """The Python of a version, on the path or where pyenv keeps it; None where there is none."""
    found = shutil.which(f"python{version}")
    if found is not None and _runs(found):
        return found
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    installed = sorted(versions.glob(f"{version}.*/bin/python"))
    return str(installed[-1]) if installed else None


def _runs(python: str) -> bool:
    """True unless it only stands for one that is not chosen, as pyenv's do."""
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


def environment(one: Set, python: str) -> Path:
    """A virtual environment with the set and nnxconv's tests, made now if it is not there."""
    folder = CACHE / re.sub(r"\W+", "-", one.name)
    wheel = f"{REPOSITORY}[test]"
    if not (folder / "bin" / "python").exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, wheel, *one.pins], check=True)
    if one.is_pre:
        newer = ["--pre", "--upgrade", "jax", "flax", "orbax-checkpoint"]
        subprocess.run([*pip, *newer], check=True)
    return folder


def run(folder: Path, *, workers: int) -> tuple[bool, str]:
    """Whether the everyday tests pass, and pytest's last line."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [folder / "bin" / "python", "-m", "pytest", "-q"]
        command += ["-W", QUIET, "-o", f"cache_dir={temporary}/cache"]
        command += ["--basetemp", f"{temporary}/tests"]
        passed, told = _pytest([*command, "-n", str(workers)])
        if passed:
            return True, told
        passed, alone = _pytest([*command, "--last-failed", "--last-failed-no-failures", "none"])
        return passed, f"{told}, and alone {alone}"


def _pytest(command: Sequence[str | Path]) -> tuple[bool, str]:
    """Whether all tests pass, and the last line; what fails is printed."""
    environment = os.environ | {"PYTHONWARNINGS": QUIET}  # of what the tests start
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]]
    if done.returncode:
        print("\n".join(lines[-40:]), file=sys.stderr)
    return done.returncode == 0, lines[-1].strip("= ")


def versions(folder: Path) -> list[str]:
    """What is installed: Python, JAX, Flax, Orbax, TensorStore."""
    code = (
        "import sys, importlib.metadata as m; print(sys.version.split()[0], *map(m.version,"
        " ['jax', 'flax', 'orbax-checkpoint', 'tensorstore']))"
    )
    done = subprocess.run(
        [folder / "bin" / "python", "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def main(names: Sequence[str]) -> int:
    """Runs the named sets, or all, and prints the table; 1 when one fails."""
    chosen = [one for one in SETS if one.name in names] if names else list(SETS)
    if len(chosen) < len(names):
        known = ", ".join(one.name for one in SETS)
        print(f"the sets are: {known}", file=sys.stderr)
        return 2
    rows, failed = [], False
    for one in chosen:
        python = interpreter(one.python)
        if python is None:
            print(f"{one.name}: skipped, there is no Python {one.python}", file=sys.stderr)
            continue
        folder = environment(one, python)
        passed, told = run(folder, workers=os.cpu_count() or 1)
        failed |= not passed and not one.is_pre
        counts = re.sub(r" in [0-9.]+s( \([0-9:]+\))?", "", told)
        rows.append([one.name, *versions(folder), "yes" if passed else "no", counts])
        print(f"{one.name}: {told}", file=sys.stderr)
    print("| set | Python | JAX | Flax | Orbax | TensorStore | passes | |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
