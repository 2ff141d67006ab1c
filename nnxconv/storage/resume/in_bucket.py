"""What `--resume` keeps in a bucket, where nothing is appended to, and nothing is renamed.

```
gs://bucket/out/7.orbax-checkpoint-tmp-resume/
├── begun          of which source, by which options and which plan
├── lock           held by the run that works: see `gcs/lock.py`
├── writing        what is at the target without `commit_success.txt` is of a run with `--resume`
├── 0/journal/     for the run that writes it, lines in objects that are counted
├── 0/manifest/    for that run, the manifest of the database
└── 0/work/        the item so far, but for the manifest
```

A run that was silent for long, and is taken for dead, may wake up while it writes. What it writes
then has names of its own: those of a run that nobody goes on with.
"""

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from itertools import count, takewhile
from typing import Any

from etils import epath

from nnxconv.errors import StorageError
from nnxconv.storage import MANIFEST
from nnxconv.storage.files import (
    copy_files,
    files_below,
    generations_below,
    is_complete,
    locked_in_bucket,
    read_if_there,
    read_objects,
    remove_files,
    remove_objects,
    remove_tree,
)
from nnxconv.storage.gcs import Lease, filesystem, object_at, plain_reason
from nnxconv.storage.resume.journal import Stamp
from nnxconv.storage.zarr import directory_spec


class BucketResumeStore:
    """A folder beside the target."""

    def __init__(self, path: epath.Path, target: epath.Path) -> None:
        self.path = path
        self._target = target
        self._lease = Lease(path / "lock", target, "run with `--resume`")

    @property
    def removal(self) -> str:
        """The command that removes it."""
        return f"gcloud storage rm -r {self.path}"

    def held(self) -> AbstractContextManager[None]:
        """Lets one run at a time work on a target; the lock of a killed one is stale in a minute.

        Raises:
          BadInput: another run has it, or was killed a moment ago.
        """
        return self._lease.held()

    def read_begun(self) -> bytes | None:
        """What is begun here, if anything."""
        return read_if_there(self.path / "begun")

    def begin(self, text: str) -> None:
        """Says what is begun here; what is there of which nothing is said is removed."""
        remove_tree(self.path, but=["lock"])
        _write(self.path / "begun", text.encode())

    @property
    def has_remains(self) -> bool:
        """True where what is at the target was left there by a run that was killed."""
        if read_if_there(self.path / "writing") is None:
            return False
        return not is_complete(files_below(self._target))

    def start(self, *, may_replace: bool) -> None:
        """Removes what a killed run left at the target, and says that this one writes there.

        What is to be replaced stays until then; and so does what may be somebody else's.
        """
        if may_replace:
            return
        with locked_in_bucket(self._target):
            if self.has_remains:
                remove_tree(self._target)
            _write(self.path / "writing", b"")

    def folder(self, number: int, *, has_ranges: bool = False) -> "BucketJournalFolder":
        """Where an item is kept; an object is written at once, so that all units are objects."""
        del has_ranges
        return BucketJournalFolder(self.path / str(number), self._lease)

    def stop(self, *, is_empty: bool) -> None:
        """Removes everything after a failure, if nothing was finished."""
        with suppress(Exception):  # what failed is told, and this may fail of the same
            self._lease.confirm()
            if is_empty:
                remove_objects(self.path, but=["lock"])
            elif not files_below(self._target):
                remove_files([self.path / "writing"])

    def remove(self) -> None:
        """Removes everything but the lock, which goes last.

        Raises:
          StorageError: it could not be removed, beside a target that is complete.
        """
        try:
            remove_tree(self.path, but=["lock"])
        except Exception as error:
            raise StorageError(
                f"`{self._target}` is complete, but what `--resume` kept could not be removed",
                details=[plain_reason(error)],
                hint=f"`{self.removal}` removes it",
            ) from error


class BucketJournalFolder:
    """The journal of one item, and the item so far, in a bucket.

    Stamps have the objects' generations, which a listing tells: nothing is read to verify it.
    """

    def __init__(self, path: epath.Path, lease: Lease) -> None:
        self._journals = path / "journal"
        self._path = self._journals / lease.run
        self._work = path / "work"
        self._manifests = path / "manifest"
        self._manifest = self._manifests / lease.run
        self._lease = lease
        self._count = 0
        self._waiting: deque[str] = deque()
        self._writing = threading.Lock()

    @property
    def work(self) -> epath.Path:
        return self._work

    @property
    def base_spec(self) -> dict[str, Any]:
        *_, name = self._manifest.parts
        own = directory_spec(self._manifests)
        own["path"] += name
        layers = [{"base": directory_spec(self._work)}, {"prefix": MANIFEST, "base": own}]
        return {"driver": "kvstack", "layers": layers}

    def lines(self) -> Iterator[str]:
        """Those of the last run, as far as no object is missing; the most, should two be left."""
        there = files_below(self._journals).keys()
        found: list[list[str]] = [[]]
        for run in sorted({name.partition("/")[0] for name in there}):
            names = list(takewhile(there.__contains__, (f"{run}/{_name(n)}" for n in count(1))))
            text = b"".join(read_objects([self._journals / name for name in names]))
            found.append(text.decode(errors="replace").splitlines(keepends=True))
        yield from max(found, key=len)

    def append(self, line: str, *, is_synced: bool) -> None:
        """Lines that come while others are being written wait, and become one object."""
        self._waiting.append(line)
        while self._waiting and self._writing.acquire(blocking=is_synced):
            try:
                lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
                if lines:
                    self._lease.check()
                    self._count += 1
                    _write(self._path / _name(self._count), "".join(lines).encode())
            finally:
                self._writing.release()

    def rewrite(self, lines: Sequence[str], manifest: bytes) -> None:
        """The first object gets all lines; if the others are not removed, they say nothing new."""
        self._lease.check()
        first, folders = self._path / _name(1), (self._journals, self._manifests)
        there = [folder / name for folder in folders for name in files_below(folder)]
        others = [path for path in there if path != first]
        _write(first, "".join(lines).encode())
        remove_files(others)
        self._count = 1
        if manifest:
            _write(self._manifest, manifest)

    def look(self) -> Mapping[str, Stamp]:
        found = generations_below(self._work)
        return {name: Stamp(nbytes, generation) for name, (nbytes, generation) in found.items()}

    def committed(self) -> tuple[bytes, Mapping[str, Stamp]]:
        with ThreadPoolExecutor(1) as pool:
            manifest = pool.submit(read_if_there, self._manifest)
            found = self.look()
            return manifest.result() or b"", found

    def stamp(self, file: str) -> Stamp:
        found = object_at(self._work / file)
        if found is None:
            raise FileNotFoundError(2, "there is no such object", str(self._work / file))
        return Stamp(found.nbytes, found.generation)

    def remove(self, files: Sequence[str]) -> None:
        remove_files([self._work / file for file in files])

    def give(self, target: epath.Path) -> None:
        """The server copies it."""
        files = [(self._work / name, target / name) for name in files_below(self._work)]
        if files_below(self._manifests):
            files.append((self._manifest, target / MANIFEST))
        copy_files(files)

    def check(self, *, surely: bool = False) -> None:
        self._lease.check(surely=surely)


def _name(number: int) -> str:
    """Of an object of the journal; their order is that of the numbers."""
    return f"{number:08}"


def _write(path: epath.Path, content: bytes) -> None:
    filesystem().pipe_file(path.as_posix(), content)
