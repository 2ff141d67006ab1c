"""The work of a conversion that may be interrupted, kept beside its target until that is complete.

```
out/7.orbax-checkpoint-tmp-resume/    an unfinished save to Orbax, and to ourselves
├── begun                             of which source, by which options and which plan
├── lock                              held by the run that works on it
└── 0/                                the journal of the first item, and its files
```
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Protocol

from etils import epath

from nnxconv.errors import BadInput
from nnxconv.storage import UNFINISHED, last_resort
from nnxconv.storage.files import stamps_below
from nnxconv.storage.gcs import LeaseLost, is_remote
from nnxconv.storage.resume.in_bucket import BucketResumeStore
from nnxconv.storage.resume.journal import Journal, JournalFolder
from nnxconv.storage.resume.on_disk import DiskResumeStore

FORMAT = 2


@dataclass(frozen=True)
class Begun:
    """What a run has begun; another one goes on with it only if it would do the same.

    Attributes:
      version: of nnxconv.
      options: those that change what is written, or how, by the names that they have on a command.
      plan: a digest of everything that is written, and in which windows.
      source: the stamps of all files that are read, by directory.
    """

    version: str
    options: Mapping[str, Any]
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
            found = _other_options(before["options"], self.options)
            found = found or ["the same options make another plan, as other rules or files do"]
        return found


def _other_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each option that has another value; one that is not given has none."""
    return [
        f"`--{name}` was {_value(before.get(name))}, and is {_value(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _value(value: Any) -> str:
    match value:
        case None | []:
            return "not given"
        case bool():
            return "on" if value else "off"
        case list():
            return ", ".join(map(str, value))
        case _:
            return str(value)


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


def begun(plan: str, source: Sequence[epath.Path], options: Mapping[str, Any]) -> Begun:
    """What a run of this plan begins, of the source as it is now."""
    stamps = {path.as_posix(): stamps_below(path) for path in source}
    return Begun(version("nnxconv"), json.loads(json.dumps(options)), plan, stamps)


class ResumeStore(Protocol):
    """Where the work on a target is kept: on a disk, or in a bucket."""

    path: epath.Path

    @property
    def removal(self) -> str:
        """The command that removes it."""
        ...

    @property
    def has_remains(self) -> bool:
        """True where what is at the target was left there by a run that was killed."""
        ...

    def held(self) -> AbstractContextManager[None]:
        """Lets one run at a time work on a target.

        Raises:
          BadInput: another run works on it.
        """
        ...

    def read_begun(self) -> bytes | None:
        """What is begun here, if anything."""
        ...

    def begin(self, text: str) -> None:
        """Says what is begun here; what is there of which nothing is said is removed."""
        ...

    def start(self, *, may_replace: bool) -> None:
        """Removes what a killed run left at the target itself, before this one writes there."""
        ...

    def folder(self, number: int, *, has_ranges: bool = False) -> JournalFolder:
        """Where an item is kept; on a disk, units are ranges of files where it says so."""
        ...

    def stop(self, *, is_empty: bool) -> None:
        """Removes everything after a failure, if nothing was finished."""
        ...

    def remove(self) -> None:
        """Removes everything, when the target is complete."""
        ...


def _resume_store(target: epath.Path) -> ResumeStore:
    """Where the work on a target is kept."""
    path = target.parent / f"{target.name}{UNFINISHED}-resume"
    return BucketResumeStore(path, target) if is_remote(path) else DiskResumeStore(path, target)


def has_remains(target: epath.Path) -> bool:
    """True where what is at a target was left there by a run with `--resume` that was killed."""
    return _resume_store(target).has_remains


@contextmanager
def resumable_work(
    target: epath.Path,
    asked: Begun,
    items: Sequence[str],
    *,
    may_replace: bool,
    has_ranges: bool = False,
) -> Iterator[dict[str, Journal]]:
    """The journals of the items, as an interrupted run left them, or new ones.

    They are removed when all goes well, and when nothing was finished; else what goes wrong has a
    note of where they are.

    Raises:
      BadInput: another run works on the target, or began to write something else there.
    """
    keep = _resume_store(target)
    with keep.held():
        text = keep.read_begun()
        if text is not None:
            _refuse_other(keep, target, asked, text)
        journals: dict[str, Journal] = {}

        def stop() -> str | None:
            is_all = text is None or len(journals) == len(items)
            is_empty = is_all and all(journal.is_empty for journal in journals.values())
            keep.stop(is_empty=is_empty)
            return None if is_empty else _kept_note(keep)

        try:
            with last_resort(stop):
                if text is None:
                    keep.begin(json.dumps(asdict(asked)))
                keep.start(may_replace=may_replace)
                for number, name in enumerate(items):
                    journals[name] = Journal(keep.folder(number, has_ranges=has_ranges))
                yield journals
        except LeaseLost:  # another run goes on with it already
            raise
        except BaseException as error:
            note = stop()
            if note is not None:
                error.add_note(note)
            raise
        keep.remove()


def _kept_note(keep: ResumeStore) -> str:
    return (
        f"kept: `{keep.path}` has what is finished;"
        " the same command with `--resume` goes on with it"
    )


def _refuse_other(keep: ResumeStore, target: epath.Path, asked: Begun, text: bytes) -> None:
    """Refuses to go on with something else.

    Raises:
      BadInput: another thing was begun before.
    """
    try:
        different = asked.differences(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError):
        different = ["it does not say what was begun"]
    if different:
        raise BadInput(
            f"the interrupted run to `{target}` cannot be continued: it was not the same",
            where=str(keep.path),
            details=different,
            hint=f"`{keep.removal}` removes its work; leave `--resume` out to keep it aside",
        )
