"""Which units of a conversion are done, and the digests of what they wrote.

```
0/journal     a line for each finished unit: the digest of the rest of the line, and JSON
0/work/       what the units wrote: the item so far
```

A unit is a data file that was copied, or a commit to the database. A database is put back to where
it stood after a commit by the manifest of then: its other files are never changed.
"""

import base64
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash
from etils import epath

from nnxconv.sizes import counted, format_bytes
from nnxconv.storage.files import digest_file
from nnxconv.storage.remote import files_below

_MANIFEST = "manifest.ocdbt"
_NODES = "d"


@dataclass(frozen=True)
class Stamp:
    """The bytes of a file, and their XXH3-128."""

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


@dataclass(frozen=True)
class Commit:
    """A commit whose values are not on disk yet: the manifest after it, and its new nodes."""

    name: str
    manifest: bytes
    nodes: Sequence[str]


class Journal:
    """The journal of one item, and the directory that the item is written to."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "journal"
        self._work = folder / "work"
        self._units: dict[str, Unit] = {}
        self._known: set[str] = set()
        self._writing = threading.Lock()
        self.notes: list[str] = []
        self._work.mkdir(parents=True, exist_ok=True)
        self._go_on()

    @property
    def work(self) -> epath.Path:
        """Where the item is written."""
        return epath.Path(self._work)

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

    def forget(self) -> None:
        """Takes nothing for finished any more: what was written is not what it should be."""
        self._units.clear()
        self._write_kept()

    def enter_file(self, name: str, file: str) -> None:
        """Says that a file has been copied; the file is on disk."""
        self._enter(Unit(name, {file: self._stamp(file)}))

    def skip_file(self, file: str) -> None:
        """Says that a file is linked, which is done again when the run goes on."""
        with self._writing:
            self._known.add(file)

    def committed(self, name: str) -> Commit:
        """What a commit has changed, before the next one begins."""
        manifest = self._work / _MANIFEST
        if not manifest.exists():  # without OCDBT
            return Commit(name, b"", ())
        found = {f"{_NODES}/{file.name}" for file in (self._work / _NODES).iterdir()}
        return Commit(name, manifest.read_bytes(), sorted(found - self._known))

    def enter_commit(self, commit: Commit, values: Mapping[str, Stamp]) -> None:
        """Says that a commit's values are on disk."""
        nodes = {file: self._stamp(file) for file in commit.nodes}
        self._enter(Unit(commit.name, {**nodes, **values}, commit.manifest), is_synced=True)

    def _enter(self, unit: Unit, *, is_synced: bool = False) -> None:
        with self._writing, self._path.open("a") as journal:
            journal.write(unit.to_line())
            journal.flush()
            if is_synced:
                os.fsync(journal.fileno())
            self._remember(unit)

    def _remember(self, unit: Unit) -> None:
        self._units[unit.name] = unit
        self._known |= unit.files.keys()

    def _stamp(self, file: str) -> Stamp:
        path = epath.Path(self._work / file)
        return Stamp(path.stat().length, digest_file(path))

    def _go_on(self) -> None:
        """Keeps the units that are whole up to the first that is not; removes everything else."""
        for unit in self._read():
            wrong = next((file for file in unit.files if not self._is_whole(unit, file)), None)
            if wrong is not None:
                self.notes.append(
                    f"`{self._work / wrong}` is not as the interrupted run wrote it:"
                    " what came from there on was done again"
                )
                break
            self._remember(unit)
        for file in files_below(self.work).keys() - self._known:
            (self._work / file).unlink()
        self._write_kept()
        if self._units:
            self.notes.append(
                f"an interrupted run was continued: {counted(len(self._units), 'unit')} of work,"
                f" {format_bytes(self.nbytes)}, verified and kept"
            )

    def _read(self) -> Iterator[Unit]:
        if self._path.exists():
            with self._path.open(errors="replace") as journal:
                for line in journal:
                    unit = Unit.from_line(line)
                    if unit is None:  # the run ended while it was written
                        return
                    yield unit

    def _is_whole(self, unit: Unit, file: str) -> bool:
        path = self._work / file
        return path.is_file() and self._stamp(file) == unit.files[file]

    def _write_kept(self) -> None:
        """Puts journal and database back to where the last whole unit left them."""
        kept = self._path.with_name("journal.new")
        with kept.open("w") as journal:
            journal.writelines(unit.to_line() for unit in self._units.values())
            journal.flush()
            os.fsync(journal.fileno())
        kept.replace(self._path)
        manifests = [unit.manifest for unit in self._units.values() if unit.manifest]
        if manifests:
            (self._work / _MANIFEST).write_bytes(manifests[-1])
