"""What `--resume` keeps on a local disk.

```
out/7.orbax-checkpoint-tmp-resume/
├── begun          of which source, by which options and which plan
├── lock           the system's lock on it is held by the run that works
└── 0/journal, 0/work/
```
"""

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from etils import epath

from nnxconv.errors import BadInput
from nnxconv.storage import MANIFEST
from nnxconv.storage.files import (
    digest_file,
    files_below,
    parents_made,
    placed,
    refuse_links,
    write_files,
)
from nnxconv.storage.resume.journal import NODES, Stamp
from nnxconv.storage.safetensors import OpenFiles, Range, digest_range
from nnxconv.storage.zarr import directory_spec

_WRITTEN_IN_PLACE = frozenset({"lock", "begun", "begun.new", "journal", "journal.new"})


class DiskResumeStore:
    """A directory beside the target."""

    def __init__(self, path: epath.Path, target: epath.Path) -> None:
        self.path = path
        self._folder = Path(path)
        self._target = target

    @property
    def removal(self) -> str:
        """The command that removes it."""
        return f"rm -r {self.path}"

    @property
    def has_remains(self) -> bool:
        """Never: what is unfinished has another name than the target."""
        return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lets one run at a time work on a target; the lock of a killed one is gone with it.

        Raises:
          BadInput: another run has it, or had it a moment ago; there are links in it.
        """
        refuse_links(self._folder, _WRITTEN_IN_PLACE)
        with parents_made(self.path), ExitStack() as stack:
            self._folder.mkdir(exist_ok=True)
            try:
                lock = stack.enter_context((self._folder / "lock").open("a"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_there = (self._folder / "lock").exists()
            except (BlockingIOError, FileNotFoundError):
                is_there = False
            except OSError:
                with suppress(OSError):  # there is something in it
                    self._folder.rmdir()
                raise
            if not is_there:
                raise BadInput(
                    f"another run with `--resume` is writing `{self._target}`",
                    hint="wait until it has ended, or choose another target",
                )
            yield

    def read_begun(self) -> bytes | None:
        """What is begun here, if anything."""
        file = self._folder / "begun"
        return file.read_bytes() if file.exists() else None

    def begin(self, text: str) -> None:
        """Says what is begun here; what is there of which nothing is said is removed."""
        for left in self._folder.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
        new = self._folder / "begun.new"
        with placed(new):
            new.write_text(text)
        new.replace(self._folder / "begun")

    def start(self, *, may_replace: bool) -> None:
        """Nothing: there are no remains."""

    def folder(self, number: int, *, has_ranges: bool = False) -> "DiskJournalFolder":
        """Where an item is kept; units are files, or ranges of files that stay where they are."""
        kind = DiskRangesFolder if has_ranges else DiskJournalFolder
        return kind(self._folder / str(number))

    def stop(self, *, is_empty: bool) -> None:
        """Removes everything after a failure, if nothing was finished."""
        if is_empty:
            self.remove()

    def remove(self) -> None:
        """Removes everything."""
        shutil.rmtree(self._folder, ignore_errors=True)


class DiskJournalFolder:
    """The journal of one item, and the item so far, on a disk; stamps have digests of the bytes."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "journal"
        self._work = folder / "work"
        self._writing = threading.Lock()
        self._work.mkdir(parents=True, exist_ok=True)

    @property
    def work(self) -> epath.Path:
        return epath.Path(self._work)

    @property
    def base_spec(self) -> dict[str, Any]:
        return directory_spec(self.work)

    def lines(self) -> Iterator[str]:
        if self._path.exists():
            with self._path.open(errors="replace") as journal:
                yield from journal

    def append(self, line: str, *, is_synced: bool) -> None:
        with self._writing, placed(self._path), self._path.open("a") as journal:
            journal.write(line)
            journal.flush()
            if is_synced:
                os.fsync(journal.fileno())

    def rewrite(self, lines: Sequence[str], manifest: bytes) -> None:
        kept = self._path.with_name("journal.new")
        with placed(kept), kept.open("w") as journal:
            journal.writelines(lines)
            journal.flush()
            os.fsync(journal.fileno())
        kept.replace(self._path)
        if manifest:
            write_files({self.work / MANIFEST: manifest})

    def look(self) -> Mapping[str, Stamp]:
        return _Digests(self._work, files_below(self.work))

    def committed(self) -> tuple[bytes, Mapping[str, Stamp]]:
        """Without OCDBT nothing: who writes the values knows their files."""
        manifest = self._work / MANIFEST
        if not manifest.exists():
            return b"", {}
        names = [f"{NODES}/{file.name}" for file in (self._work / NODES).iterdir()]
        return manifest.read_bytes(), _Digests(self._work, names)

    def stamp(self, file: str) -> Stamp:
        return _stamp(self._work / file)

    def remove(self, files: Sequence[str]) -> None:
        for file in files:
            (self._work / file).unlink()

    def give(self, target: epath.Path) -> None:
        """By hard links; where there are none the files are moved."""
        for name in files_below(self.work):
            source, new = self._work / name, target / name
            new.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, new)
            except OSError:
                source.rename(new)

    def check(self, *, surely: bool = False) -> None:
        """Nothing: the system keeps the lock for as long as the process lives."""


class DiskRangesFolder(DiskJournalFolder):
    """The same for files that are filled range by range, and stay where they are."""

    def look(self) -> Mapping[str, Stamp]:
        return _RangeDigests(self._work)


class _RangeDigests(Mapping[str, Stamp]):
    """Ranges by name; each is read when its stamp is asked for. None has to be removed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files = OpenFiles()

    def __getitem__(self, name: str) -> Stamp:
        try:
            found = Range.from_name(name)
            descriptor = self._files.descriptor(str(self._root / found.file))
        except (ValueError, OSError) as error:
            raise KeyError(name) from error
        return Stamp(found.nbytes, digest_range(descriptor, found))

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _stamp(file: Path) -> Stamp:
    return Stamp(file.stat().st_size, digest_file(epath.Path(file)))


class _Digests(Mapping[str, Stamp]):
    """Files by name; each is read when its stamp is asked for."""

    def __init__(self, root: Path, names: Sequence[str] | Mapping[str, int]) -> None:
        self._root = root
        self._names = frozenset(names)

    def __getitem__(self, name: str) -> Stamp:
        if name not in self._names:
            raise KeyError(name)
        return _stamp(self._root / name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
