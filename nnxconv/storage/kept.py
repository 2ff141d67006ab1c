"""The work of a conversion that may be interrupted, kept beside its target until that is complete.

```
out/7.orbax-checkpoint-tmp-resume/    an unfinished save to Orbax, and to ourselves
├── begun                             of which source, by which plan
├── lock                              held by the run that works on it
└── 0/                                the journal of the first item, and its files
```
"""

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from etils import epath

from nnxconv.errors import BadInput
from nnxconv.storage.commit import parents_made
from nnxconv.storage.journal import Journal
from nnxconv.storage.locate import UNFINISHED
from nnxconv.storage.remote import is_remote, stamps_below
from nnxconv.version import __version__

FORMAT = 1


@dataclass(frozen=True)
class Begun:
    """What a run has begun; another one goes on with it only if it would do the same.

    Attributes:
      version: of nnxconv.
      plan: a digest of everything that is written, and in which windows.
      source: the stamps of all files that are read, by directory.
    """

    version: str
    plan: str
    source: Mapping[str, Mapping[str, str]]
    format: int = FORMAT

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """Why what was begun before is something else."""
        if before.get("format") != self.format:
            return [f"it was begun by nnxconv {before.get('version')}, which keeps it otherwise"]
        found = []
        if before["version"] != self.version:
            found.append(f"nnxconv was {before['version']}, and is {self.version}")
        found += _changes(before["source"], self.source)
        if not found and before["plan"] != self.plan:
            found.append("the options were others")
        return found


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    if before.keys() != now.keys():
        return [f"it reads {', '.join(sorted(before))}, and not {', '.join(sorted(now))}"]
    return [
        f"{folder}/{file} {_change(before[folder].get(file), files.get(file))}"
        for folder, files in sorted(now.items())
        for file in sorted(files.keys() | before[folder].keys())
        if files.get(file) != before[folder].get(file)
    ]


def _change(before: str | None, now: str | None) -> str:
    if before is None:
        return "is new"
    return "is gone" if now is None else "has changed"


def begun(plan: str, source: Sequence[epath.Path]) -> Begun:
    """What a run of this plan begins, of the source as it is now."""
    return Begun(__version__, plan, {path.as_posix(): stamps_below(path) for path in source})


def kept_directory(target: epath.Path) -> epath.Path:
    """Where the work on a target is kept.

    Raises:
      BadInput: the target is in a bucket.
    """
    if is_remote(target):
        raise BadInput(
            "`--resume` does not go on with what is written to a bucket",
            where=str(target),
            hint="leave `--resume` out, or write to a disk and copy the result",
        )
    return target.parent / f"{target.name}{UNFINISHED}-resume"


@contextmanager
def kept_work(
    target: epath.Path, asked: Begun, items: Sequence[str]
) -> Iterator[dict[str, Journal]]:
    """The journals of the items, as an interrupted run left them, or new ones.

    They are removed when all goes well, and when nothing was finished.

    Raises:
      BadInput: another run works on the target, or began to write something else there.
    """
    folder = Path(kept_directory(target))
    with parents_made(epath.Path(folder)):
        folder.mkdir(exist_ok=True)
        with _locked(folder, target):
            _begin(folder, target, asked)
            journals = {name: Journal(folder / str(n)) for n, name in enumerate(items)}
            try:
                yield journals
            except BaseException:
                if all(journal.is_empty for journal in journals.values()):
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path, target: epath.Path) -> Iterator[None]:
    """Lets one run at a time work on a target; the lock of a killed one is gone with it.

    Raises:
      BadInput: another run has it, or had it a moment ago.
    """
    with ExitStack() as stack:
        try:
            lock = stack.enter_context((folder / "lock").open("a"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = (folder / "lock").exists()
        except (BlockingIOError, FileNotFoundError):
            is_there = False
        if not is_there:
            raise BadInput(
                f"another run with `--resume` is writing `{target}`",
                hint="wait until it has ended, or choose another target",
            )
        yield


def _begin(folder: Path, target: epath.Path, asked: Begun) -> None:
    """Says what is begun here, or makes sure that it is what was begun before.

    Raises:
      BadInput: it is not.
    """
    file = folder / "begun"
    if not file.exists():
        new = folder / "begun.new"
        new.write_text(json.dumps(asdict(asked)))
        new.replace(file)
        return
    try:
        before = json.loads(file.read_text())
        different = asked.differences(before)
    except (ValueError, KeyError, TypeError, AttributeError):
        different = ["it does not say what was begun"]
    if different:
        raise BadInput(
            f"the interrupted run to `{target}` cannot be continued: it was not the same",
            where=str(folder),
            details=different,
            hint=f"`rm -r {folder}` removes its work; leave `--resume` out to keep it aside",
        )
