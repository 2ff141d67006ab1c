"""What `--resume` keeps in a bucket, where nothing is appended to, and nothing is renamed.

```
gs://bucket/out/7.orbax-checkpoint-tmp-resume/
├── begun          of which source, by which plan
├── lock           held by the run that works: see `lease`
├── writing        what is at the target without `commit_success.txt` is of a run with `--resume`
├── 0/journal/     lines, in objects that are counted
└── 0/work/
```
"""

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress

from etils import epath

from nnxconv.errors import StorageError
from nnxconv.storage.commit import remove_objects
from nnxconv.storage.journal import MANIFEST, Stamp
from nnxconv.storage.lease import Lease
from nnxconv.storage.remote import (
    COMMITTED,
    copy_files,
    files_below,
    filesystem,
    generations_below,
    object_at,
    read_if_there,
    read_objects,
    remove_files,
    remove_tree,
)
from nnxconv.storage.server_errors import plain_reason


class BucketKeep:
    """A folder beside the target."""

    def __init__(self, path: epath.Path, target: epath.Path) -> None:
        self.path = path
        self._target = target
        self._lease = Lease(path / "lock", target)

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
        return read_if_there(self._target / COMMITTED) is None

    def start(self, *, may_replace: bool) -> None:
        """Removes what a killed run left at the target, and says that this one writes there.

        What is to be replaced stays until then; and so does what may be somebody else's.
        """
        if may_replace:
            return
        if self.has_remains:
            remove_tree(self._target)
        _write(self.path / "writing", b"")

    def folder(self, number: int) -> "BucketFolder":
        """Where an item is kept."""
        return BucketFolder(self.path / str(number), self._lease)

    def stop(self, *, is_empty: bool) -> None:
        """Removes everything after a failure, if nothing was finished."""
        with suppress(Exception):  # what failed is told, and this may fail of the same
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


class BucketFolder:
    """The journal of one item, and the item so far, in a bucket.

    Stamps have the objects' generations, which a listing tells: nothing is read to verify it.
    """

    def __init__(self, path: epath.Path, lease: Lease) -> None:
        self._path = path / "journal"
        self._work = path / "work"
        self._lease = lease
        self._count = 0
        self._waiting: deque[str] = deque()
        self._writing = threading.Lock()

    @property
    def work(self) -> epath.Path:
        return self._work

    def lines(self) -> Iterator[str]:
        """As far as no object is missing."""
        there = files_below(self._path).keys()
        names = []
        while _name(len(names) + 1) in there:
            names.append(_name(len(names) + 1))
        for text in read_objects([self._path / name for name in names]):
            yield from text.decode(errors="replace").splitlines(keepends=True)

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
        others = files_below(self._path).keys() - {_name(1)}
        _write(self._path / _name(1), "".join(lines).encode())
        remove_files([self._path / name for name in others])
        self._count = 1
        if manifest:  # which makes another one that is still under way too late
            _write(self._work / MANIFEST, manifest)

    def look(self) -> Mapping[str, Stamp]:
        found = generations_below(self._work)
        return {name: Stamp(nbytes, generation) for name, (nbytes, generation) in found.items()}

    def committed(self) -> tuple[bytes, Mapping[str, Stamp]]:
        with ThreadPoolExecutor(1) as pool:
            manifest = pool.submit(read_if_there, self._work / MANIFEST)
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
        copy_files((self._work / name, target / name) for name in files_below(self._work))

    def check(self) -> None:
        self._lease.check()


def _name(number: int) -> str:
    """Of an object of the journal; their order is that of the numbers."""
    return f"{number:08}"


def _write(path: epath.Path, content: bytes) -> None:
    filesystem().pipe_file(path.as_posix(), content)
