"""Which units of a conversion are done, and the stamps of what they wrote.

```
0/journal     a line for each finished unit: the digest of the rest of the line, and JSON
0/work/       what the units wrote: the item so far
```

A unit is a data file that was copied, or a commit to the database. A database is put back to where
it stood after a commit by the manifest of then: its other files are never changed.
"""

import base64
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import xxhash
from etils import epath

from nnxconv.tree import counted, format_bytes

NODES = "d"


@dataclass(frozen=True)
class Stamp:
    """What changes when a file does: its bytes, and their XXH3-128 or a bucket's generation."""

    nbytes: int
    digest: str


@dataclass(frozen=True)
class Unit:
    """A finished unit: its name, the files that it wrote, and the database's manifest after it."""

    name: str
    files: Mapping[str, Stamp] = field(default_factory=dict)
    manifest: bytes = b""

    def to_line(self) -> str:
        """The unit as it stands in a journal."""
        files = {name: [stamp.nbytes, stamp.digest] for name, stamp in self.files.items()}
        manifest = base64.b64encode(self.manifest).decode()
        text = json.dumps({"unit": self.name, "files": files, "manifest": manifest})
        return f"{_digest(text)} {text}\n"

    @classmethod
    def from_line(cls, line: str) -> "Unit | None":
        """The unit of a line; None where the line is not whole."""
        told, _, text = line.removesuffix("\n").partition(" ")
        if not line.endswith("\n") or told != _digest(text):
            return None
        entry = json.loads(text)
        files = {name: Stamp(*stamp) for name, stamp in entry["files"].items()}
        return cls(entry["unit"], files, base64.b64decode(entry["manifest"]))


def _digest(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


class JournalFolder(Protocol):
    """Where the journal of one item is kept, and the item so far: on a disk, or in a bucket."""

    @property
    def work(self) -> epath.Path:
        """Where the item is written."""
        ...

    @property
    def base_spec(self) -> dict[str, Any]:
        """The key-value store there, of which a database can be made."""
        ...

    def lines(self) -> Iterator[str]:
        """The journal."""
        ...

    def append(self, line: str, *, is_synced: bool) -> None:
        """Adds to the journal; what is synced is there for good when this returns."""
        ...

    def rewrite(self, lines: Sequence[str], manifest: bytes) -> None:
        """Puts other lines in the place of the journal, and a manifest, if any, in that of ours."""
        ...

    def look(self) -> Mapping[str, Stamp]:
        """The files of the work as they are now."""
        ...

    def committed(self) -> tuple[bytes, Mapping[str, Stamp]]:
        """The database's manifest, and the files among which are all that commits have written."""
        ...

    def stamp(self, file: str) -> Stamp:
        """One file of the work."""
        ...

    def remove(self, files: Sequence[str]) -> None:
        """Removes files of the work."""
        ...

    def give(self, target: epath.Path) -> None:
        """Puts the work into another directory; the journal stays right."""
        ...

    def check(self, *, surely: bool = False) -> None:
        """Makes sure that no other run writes here; `surely` asks whoever knows, now.

        Raises:
          StorageError: another run does.
        """
        ...


@dataclass(frozen=True)
class Commit:
    """A commit whose values may not be on disk yet: the manifest after it, and its new files."""

    name: str
    manifest: bytes
    new: Sequence[str]
    stamps: Mapping[str, Stamp]


class Journal:
    """The journal of one item, and the directory that the item is written to."""

    def __init__(self, folder: JournalFolder) -> None:
        self._folder = folder
        self._units: dict[str, Unit] = {}
        self._known: set[str] = set()
        self._entering = threading.Lock()
        self.notes: list[str] = []
        self._go_on()

    @property
    def work(self) -> epath.Path:
        """Where the item is written."""
        return self._folder.work

    @property
    def nbytes(self) -> int:
        """Bytes of what has been finished."""
        return sum(stamp.nbytes for unit in self._units.values() for stamp in unit.files.values())

    def __contains__(self, name: str) -> bool:
        return name in self._units

    @property
    def is_empty(self) -> bool:
        """True when no unit is finished."""
        return not self._units

    @property
    def base_spec(self) -> dict[str, Any]:
        """The key-value store of that directory, for a database or without one."""
        return self._folder.base_spec

    def check(self, *, surely: bool = False) -> None:
        """Makes sure that no other run goes on with this; `surely` asks whoever knows, now.

        Raises:
          StorageError: another run does.
        """
        self._folder.check(surely=surely)

    def forget(self) -> None:
        """Takes nothing for finished any more: what was written is not what it should be."""
        self._units.clear()
        self._write_kept()

    def give(self, target: epath.Path) -> None:
        """Puts what was written into the item itself."""
        self._folder.give(target)

    def enter_file(self, name: str, file: str) -> None:
        """Says that a file has been copied; the file is there for good."""
        self._enter(Unit(name, {file: self._folder.stamp(file)}))

    def enter_range(self, name: str, stamp: Stamp) -> None:
        """Says that a range of a file is filled; its digest tells whether it is there for good."""
        self._enter(Unit(name, {name: stamp}))

    def skip_file(self, file: str) -> None:
        """Says that a file is linked, which is done again when the run goes on."""
        with self._entering:
            self._known.add(file)

    def committed(self, name: str) -> Commit:
        """What a commit has changed, before the next one begins."""
        manifest, stamps = self._folder.committed()
        new = sorted(stamps.keys() - self._known)
        return Commit(name, manifest, new, stamps)

    def enter_commit(self, commit: Commit, values: Mapping[str, Stamp]) -> None:
        """Says that a commit's values, which may be other files than its nodes, are there too."""
        nodes = {file: commit.stamps[file] for file in commit.new}
        self._enter(Unit(commit.name, {**nodes, **values}, commit.manifest), is_synced=True)

    def _enter(self, unit: Unit, *, is_synced: bool = False) -> None:
        self._folder.append(unit.to_line(), is_synced=is_synced)
        self._remember(unit)

    def _remember(self, unit: Unit) -> None:
        with self._entering:
            self._units[unit.name] = unit
            self._known |= unit.files.keys()

    def _go_on(self) -> None:
        """Keeps the units that are whole up to the first that is not; removes everything else."""
        there = self._folder.look()
        for unit in self._read():
            wrong = next((f for f, stamp in unit.files.items() if there.get(f) != stamp), None)
            if wrong is not None:
                self.notes.append(
                    f"`{self.work / wrong}` is not as the interrupted run wrote it:"
                    " what came from there on was done again"
                )
                break
            self._remember(unit)
        self._folder.remove(sorted(there.keys() - self._known))
        self._write_kept()
        if self._units:
            self.notes.append(
                f"an interrupted run was continued: {counted(len(self._units), 'unit')} of work,"
                f" {format_bytes(self.nbytes)}, verified and kept"
            )

    def _read(self) -> Iterator[Unit]:
        for line in self._folder.lines():
            unit = Unit.from_line(line)
            if unit is None:  # the run ended while it was written
                return
            yield unit

    def _write_kept(self) -> None:
        """Puts journal and database back to where the last whole unit left them."""
        units = self._units.values()
        manifests = [b"", *(unit.manifest for unit in units if unit.manifest)]
        self._folder.rewrite([unit.to_line() for unit in units], manifests[-1])
