"""A campaign of damage: many mutations of small checkpoints, and what every command makes of each.

Worker processes do the cases, so that one that hangs or dies is told from the others, and is a
defect of its case.

```
campaign(sources, cases, work)          -> [Finding]
table(findings)                         how many of each kind ended how
```
"""

import ctypes
import hashlib
import io
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnxconv.running.memory import peak_memory_bytes
from tests.support import checkpoints
from tests.support.mutations import KINDS, mutate

SECONDS = 60
MEMORY_BYTES = 2 * 2**30
SCREEN = 30
"""Lines of a message."""

LAYERS = 2
"""Of every source; its parameters are `checkpoints.weights(LAYERS)`, in whatever layout."""

LEAVES = ("params.decoder.", "params.embed.")
"""How the keys of parameters begin, as messages spell them."""


@dataclass(frozen=True)
class Source:
    """A checkpoint to be damaged.

    Attributes:
      path: as it is given to the commands.
      manifest: digests of its values; a Pax checkpoint has none.
      options: of a conversion, one list to be drawn for each case.
      is_pax: it is imported; nothing else reads it.
    """

    path: str
    manifest: str
    options: list[list[str]]
    is_pax: bool = False


@dataclass(frozen=True)
class Case:
    """One mutation: its number is the seed."""

    number: int
    source: str
    kind: tuple[str, str]


@dataclass
class Finding:
    """What became of a case.

    Attributes:
      where: what was damaged; empty where the source has no such place, and nothing was done.
      outcomes: by command: `right`, `refused`, `different` (which is what `compare` and
        `checksum` have to say of values that are), or `changed`: a result with other values, of
        which `checksum --check` says so.
      defects: what must not be.
    """

    case: Case
    where: str = ""
    outcomes: dict[str, str] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)
    peak_bytes: int = 0
    seconds: float = 0.0


def cases(sources: Sequence[str], count: int, seed: int = 0) -> list[Case]:
    """So many cases, every kind on every source in turn."""
    pairs = [(source, kind) for kind in KINDS for source in sources]
    drawn = random.Random(seed)
    drawn.shuffle(pairs)
    return [Case(seed + n, *pairs[n % len(pairs)]) for n in range(count)]


# The parent


class _Worker:
    def __init__(self, work: Path, sources: dict[str, Source]) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self._arguments = json.dumps(
            [str(work), {name: asdict(source) for name, source in sources.items()}]
        )
        self._log = work / "stderr"
        self.case: Case | None = None
        self._process: subprocess.Popen | None = None

    def start(self, case: Case) -> None:
        if self._process is None:
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", "from tests.support.campaign import work; work()"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    cwd=Path(__file__).parents[2],
                    env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
                )
            self._write(self._arguments)
            assert self._process.stdout is not None
            self._process.stdout.readline()  # ready
        self.case, self.started = case, time.monotonic()
        self._write(json.dumps([case.number, case.source, case.kind]))

    def _write(self, line: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    @property
    def output(self) -> Any:
        assert self._process is not None
        return self._process.stdout

    def finding(self) -> Finding:
        """What the worker has to say, or how it died."""
        assert self.case is not None and self._process is not None
        line = self.output.readline()
        case, self.case = self.case, None
        if line:
            found = json.loads(line)
            return Finding(case, **found)
        code = self._process.wait()
        tail = self._log.read_text()[-2000:]
        self._process = None
        return Finding(case, "?", defects=[f"the process died with exit code {code}: {tail}"])

    def stop_if_late(self) -> None:
        if time.monotonic() - self.started > SECONDS and self._process is not None:
            self._process.kill()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


def campaign(
    sources: dict[str, Source], wanted: Sequence[Case], work: Path, processes: int = 2
) -> list[Finding]:
    """Does every case; those whose source has no such place are left out of the answer."""
    left = iter(wanted)
    workers = [_Worker(work / str(n), sources) for n in range(processes)]
    found: list[Finding] = []
    try:
        for worker in workers:
            _give(worker, left)
        while busy := [worker for worker in workers if worker.case is not None]:
            ready, _, _ = select.select([worker.output for worker in busy], [], [], 1.0)
            for worker in busy:
                if worker.output in ready:
                    found.append(worker.finding())
                    _give(worker, left)
                else:
                    worker.stop_if_late()
    finally:
        for worker in workers:
            worker.close()
        shutil.rmtree(work, ignore_errors=True)
    return [finding for finding in found if finding.where]


def _give(worker: _Worker, left: Iterator[Case]) -> None:
    case = next(left, None)
    if case is not None:
        worker.start(case)


OUTCOMES = ("right", "refused", "different", "changed")


def table(findings: Sequence[Finding]) -> str:
    """How the commands ended, for each kind of mutation."""
    rows: dict[str, Counter[str]] = {}
    for finding in findings:
        row = rows.setdefault(": ".join(finding.case.kind), Counter())
        row["mutations"] += 1
        row["defects"] += len(finding.defects)
        row.update(finding.outcomes.values())
    columns = ("mutations", *OUTCOMES, "defects")
    total = sum(rows.values(), Counter())
    lines = [f"{'':44}" + "".join(f"{name:>11}" for name in columns)]
    for name, row in [*rows.items(), ("all", total)]:
        lines.append(f"{name:44}" + "".join(f"{row[column]:>11,}" for column in columns))
    peak = max((finding.peak_bytes for finding in findings), default=0)
    slowest = max((finding.seconds for finding in findings), default=0.0)
    lines.append(f"peak memory {peak / 2**20:,.0f} MiB; the slowest mutation took {slowest:.1f} s")
    return "\n".join(lines)


# The worker


def work() -> None:
    """Does the cases that stand on stdin, one a line, and answers each with a line."""
    arguments = json.loads(sys.stdin.readline())
    folder = Path(arguments[0])
    sources = {name: Source(**source) for name, source in arguments[1].items()}
    _warm(sources, folder)
    _limit_memory()
    answers = sys.stdout
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        number, source, kind = json.loads(line)
        found = _done(sources[source], Case(number, source, tuple(kind)), folder / "case")
        print(json.dumps(found), file=answers, flush=True)


def _limit_memory() -> None:
    """Makes a request for far too much memory fail here, rather than on the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 4 * MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _warm(sources: dict[str, Source], folder: Path) -> None:
    """Imports what the commands import, so that the first case is not charged with it."""
    for source in (one for one in sources.values() if not one.is_pax):
        _command("inspect", source.path)
        _command("convert", source.path, str(folder / "warm"), "--dry_run")
        return


def _done(source: Source, case: Case, folder: Path) -> dict[str, Any]:
    started = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    outside = folder / "outside"
    outside.mkdir(parents=True)
    checkpoint = folder / "in" / Path(source.path).name
    shutil.copytree(source.path, checkpoint)
    drawn = random.Random(f"{case.number} {case.source} {case.kind}")
    found = Finding(case)
    found.where = mutate(checkpoint, outside, case.kind, drawn) or ""
    if found.where:
        names = {path.name for path in Path(source.path).rglob("*")}
        before = snapshot(folder)
        with Watched(outside) as watched:
            if source.is_pax:
                _imported(source, checkpoint, drawn, found, names)
            else:
                _read(source, checkpoint, drawn, found, names)
        if watched.opened():
            found.defects.append(f"read outside of the checkpoint: {watched.opened()}")
        if snapshot(folder) != before:
            found.defects.append("files were changed or left")
    found.peak_bytes = peak_memory_bytes()
    found.seconds = time.monotonic() - started
    if found.peak_bytes > MEMORY_BYTES:
        found.defects.append(f"took {found.peak_bytes:,} bytes of memory")
    answer = asdict(found)
    del answer["case"]
    return answer


def _read(
    source: Source, checkpoint: Path, drawn: random.Random, found: Finding, names: set[str]
) -> None:
    """Every command on a damaged checkpoint."""
    target = checkpoint.parent.parent / "out" / "converted"
    path = str(checkpoint)
    checks = ("checksum", "--check", path, "--manifest", source.manifest)
    everything = ("--compare_values", "--compare_only", "all", "--atol", "0", "--rtol", "0")
    options = drawn.choice(source.options)
    told = {
        "inspect": _command("inspect", path, drawn.choice(("--tree", "--json"))),
        "compare": _command("compare", source.path, path, *everything),
        "checksum": _command(*checks),
        "convert": _command("convert", path, str(target), *options),
    }
    for name, command in told.items():
        _judge(name, command, checkpoint, found, names)
    checksum = told["checksum"].code
    if told["convert"].code == 0:
        _hold_target(target, _expected(source, options), checksum, found)
    values = _load(path, found, names)
    if values == "changed" and told["compare"].code == 0:
        found.defects.append("compare says that they match, but load gives other values")
    if values == "changed" and checksum == 0:
        found.defects.append("load gives other values, and checksum says that they are right")
    shutil.rmtree(target.parent, ignore_errors=True)


def _imported(
    source: Source, checkpoint: Path, drawn: random.Random, found: Finding, names: set[str]
) -> None:
    target = checkpoint.parent.parent / "out" / "imported"
    options = drawn.choice(source.options)
    command = _command("gpt3-from-paxml", str(checkpoint), str(target), *options)
    _judge("convert", command, checkpoint, found, names)
    if command.code == 0:
        _hold_target(target, _expected(source, options), None, found)
    shutil.rmtree(target.parent, ignore_errors=True)


def _expected(source: Source, options: Sequence[str]) -> str:
    """The manifest of what the undamaged source is converted to."""
    name = hashlib.md5(" ".join([source.path, *options]).encode()).hexdigest()
    manifest = Path(source.path).parent / f"{name}.json"
    if not manifest.exists():
        target = Path(source.path).parent / f"{name}.{os.getpid()}"
        command = "gpt3-from-paxml" if source.is_pax else "convert"
        done = _command(command, source.path, str(target), *options)
        assert done.code == 0, done
        _command("checksum", str(target), "--manifest", f"{target}.json")
        values = json.loads(Path(f"{target}.json").read_text()) | {"files": {}}
        Path(f"{target}.json").write_text(json.dumps(values))
        Path(f"{target}.json").rename(manifest)
        shutil.rmtree(target)
    return str(manifest)


def _hold_target(target: Path, manifest: str, checksum: int | None, found: Finding) -> None:
    """What was written has the values that the manifest tells, or the manifest tells of it."""
    check = _command("checksum", "--check", str(target), "--manifest", manifest)
    if check.code == 1 and checksum != 0:
        found.outcomes["convert"] = "changed"
    elif check.code == 1:
        found.defects.append(f"checksum finds the source right, but not its conversion: {check}")
    elif check.code != 0:
        found.outcomes["convert"] = "changed"
        if checksum == 0:
            found.defects.append(f"the conversion of a right source cannot be read: {check}")


def _load(path: str, found: Finding, names: set[str]) -> str:
    """Loads the parameters, and says whether they are what they were."""
    import jax

    import nnxconv

    out = io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(out):
            right = {"params": checkpoints.weights(LAYERS)}
            like = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), right)
            loaded = nnxconv.load(
                path, like=like, without=("opt_state", "step", "aux"), note=lambda _: None
            )
    except nnxconv.NnxconvError as error:
        outcome = "refused"
        _judge_message("load", error.render(), Path(path), found, names)
    except OSError as error:
        outcome = "refused"
        _judge_message("load", f"{error} {error.filename}", Path(path), found, names)
    except BaseException as error:
        outcome = "defect"
        found.defects.append(f"load raised {type(error).__name__}: {str(error)[:300]}")
    else:
        pairs = zip(jax.tree.leaves(right), jax.tree.leaves(loaded), strict=True)
        is_right = all(a.tobytes() == np.asarray(b).tobytes() for a, b in pairs)
        outcome = "right" if is_right else "changed"
    found.outcomes["load"] = outcome
    return outcome


@dataclass(frozen=True)
class Told:
    """Exit code and output of a command."""

    code: int
    stdout: str
    stderr: str


def _command(*arguments: str) -> Told:
    """Runs the command in this process, as the program itself does."""
    from nnxconv.cli.app import run

    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["nnxconv", *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            run()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    finally:
        sys.argv = before
    return Told(code, out.getvalue(), err.getvalue())


def _judge(name: str, told: Told, checkpoint: Path, found: Finding, names: set[str]) -> None:
    """Notes the outcome of a command, and whatever about it must not be."""
    may_differ = name in ("compare", "checksum")
    if told.code == 0:
        found.outcomes[name] = "right"
    elif told.code == 1 and may_differ:
        found.outcomes[name] = "different"
    elif told.code == 2:
        found.outcomes[name] = "refused"
        _judge_message(name, told.stderr, checkpoint, found, names)
    else:
        found.defects.append(f"{name} ended with {told.code}: {told.stderr[-1500:]}")
    unsafe = {c for c in told.stdout + told.stderr if unicodedata.category(c) in ("Cc", "Cs")}
    if unsafe - {"\n"}:
        found.defects.append(f"{name} printed {unsafe!r}")
    if "Traceback" in told.stderr and told.code != 70:
        found.defects.append(f"{name} printed a traceback: {told.stderr[-1500:]}")


def _judge_message(name: str, text: str, checkpoint: Path, found: Finding, names: set[str]) -> None:
    """One screen, which names the file or the leaf."""
    if len(text.splitlines()) > SCREEN or len(text) > 5000:
        found.defects.append(f"{name} said more than a screen: {text[:500]}")
    if checkpoint.name not in text and not any(name in text for name in (*names, *LEAVES)):
        found.defects.append(f"{name} did not say where: {text}")


def snapshot(folder: Path) -> dict[str, Any]:
    """Everything under a folder: kinds, times of change, and digests of files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if "out" in path.relative_to(folder).parts[:1]:
            continue
        status = path.lstat()
        is_file = path.is_file() and not path.is_symlink()
        digest = hashlib.md5(path.read_bytes()).hexdigest() if is_file else ""
        found[path.relative_to(folder).as_posix()] = (status.st_mode, status.st_mtime_ns, digest)
    return found


class Watched:
    """Whether anything in a directory, or in those below it, is opened; Linux tells."""

    _OPENED = 0x20

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: list[str] = []

    def __enter__(self) -> "Watched":
        library = ctypes.CDLL(None)
        self._watch = library.inotify_init1(os.O_NONBLOCK)
        for path in (self._folder, *self._folder.rglob("*")):
            library.inotify_add_watch(self._watch, os.fsencode(path), self._OPENED)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            events = os.read(self._watch, 65536)
        except BlockingIOError:
            events = b""
        os.close(self._watch)
        while events:
            length = int.from_bytes(events[12:16], sys.byteorder)
            name = events[16 : 16 + length].rstrip(b"\0").decode()
            self._names.append(name or self._folder.name)
            events = events[16 + length :]

    def opened(self) -> list[str]:
        return sorted(set(self._names))
