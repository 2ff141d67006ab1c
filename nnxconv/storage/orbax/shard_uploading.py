"""New safetensors in a bucket: shards are filled on a local disk, and go up one by one.

An object is written at once and in its order, but blocks come in that of the source. So a shard is
a temporary file until its last block is there, goes up in pieces, and gives its room back. Such a
file has no name: it is gone with the process, however that ends.
"""

import errno
import math
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from etils import epath

from nnxconv.errors import PlanError
from nnxconv.planning import Plan, written
from nnxconv.state import Tree
from nnxconv.storage.files import upload
from nnxconv.storage.gcs import is_remote
from nnxconv.storage.orbax.item import Item
from nnxconv.storage.orbax.raw_items import tensors_item
from nnxconv.storage.orbax.shard_writing import TensorsWriter
from nnxconv.storage.resume import Journal
from nnxconv.storage.safetensors import Shard, Tensor
from nnxconv.tree import Key, Region, dtype_of, format_bytes, item_bytes

_OPEN = Path("/dev/fd")


class UploadingWriter(TensorsWriter):
    """The shards in a folder of temporary files, and in a bucket those that are complete.

    The only shard, by which readers find a complete folder, stays here until `finish`.
    """

    def __init__(
        self, shards: Sequence[Shard], place: epath.Path, journal: Journal | None = None
    ) -> None:
        self._all = [shard.file for shard in shards]
        self._kept = journal
        self._place = place if journal is None else journal.work
        self._up = {file for file in self._all if journal is not None and _unit(file) in journal}
        with tempfile.TemporaryDirectory(prefix="nnxconv-") as folder:
            left = [shard for shard in shards if shard.file not in self._up]
            super().__init__(Path(folder), left)
        self.tensors = {name: one for shard in shards for name, one in shard.tensors.items()}
        self._left = Counter(
            {shard.file: sum(one.nbytes for one in shard.tensors.values()) for shard in shards}
        )
        self._counting = threading.Lock()

    def _has(self, tensor: Tensor, region: Region) -> bool:
        return tensor.file in self._up

    def put(self, key: Key, region: Region, values: np.ndarray) -> None:
        """Writes a region of an array; the last one of a shard sends it off."""
        file = self._tensor(key).file
        if file not in self._up:
            super().put(key, region, values)
            self._count(file, values.nbytes)

    def copy(self, name: str, descriptor: int, start: int) -> None:
        """The same of a whole array."""
        tensor = self.tensors[name]
        if tensor.file not in self._up:
            super().copy(name, descriptor, start)
            self._count(tensor.file, tensor.nbytes)

    def _count(self, file: str, nbytes: int) -> None:
        with self._counting:
            self._left[file] -= nbytes
            is_complete = not self._left[file]
        if is_complete and len(self._all) > 1:
            self._send(file)

    def _send(self, file: str) -> None:
        if self._kept is not None:
            self._kept.check()
        upload(self._here(file), self._place / file)
        if self._kept is not None:
            self._kept.enter_file(_unit(file), file)
        self._up.add(file)
        self._files[file].close()

    def _here(self, file: str) -> Path:
        """A path of a file without a name."""
        return _OPEN / str(self._files[file].fileno())

    def settle(self) -> None:
        """Sends what has no bytes, and so no last block."""
        for file in self._all if len(self._all) > 1 else ():
            if file not in self._up:
                self._send(file)

    def finish(self, place: epath.Path) -> None:
        """Sends the only shard."""
        if len(self._all) == 1:
            upload(self._here(self._all[0]), place / self._all[0])

    def read_back(self, tree: Tree) -> Item:
        """The item as it has been written so far."""
        if len(self._all) == 1:
            here = self._here(self._all[0]).name
            tensors = {name: one._replace(file=here) for name, one in self.tensors.items()}
            return tensors_item(self._place, epath.Path(_OPEN), tensors, {})
        return tensors_item(self._place, self._place, self.tensors, {})


def _unit(file: str) -> str:
    return f"shard {file}"


def tensors_writer(
    plan: Plan, shards: Sequence[Shard], directory: epath.Path, journal: Journal | None
) -> TensorsWriter:
    """What fills the shards: where they belong, or on the way to a bucket."""
    if is_remote(directory):
        _refuse_without_room(plan, shards, journal)
        return UploadingWriter(shards, directory, journal)
    folder = directory if journal is None else journal.work
    return TensorsWriter(Path(os.fspath(folder)), shards, journal)


def _refuse_without_room(plan: Plan, shards: Sequence[Shard], journal: Journal | None) -> None:
    """Refuses shards that are filled at the same time, and have no room as temporary files.

    Raises:
      PlanError: they have none.
    """
    folder = Path(tempfile.gettempdir())
    left = [one for one in shards if journal is None or _unit(one.file) not in journal]
    needed, free = _most_waiting_bytes(plan, left), shutil.disk_usage(folder).free
    if needed > free:
        raise PlanError(
            f"shards that are not complete yet need up to {format_bytes(needed)} of temporary"
            f" files, and {format_bytes(free)} are free",
            where=str(folder),
            hint="`TMPDIR` names another folder; smaller shards (`--shard_size`) need less where"
            " they are filled one after the other",
        )


@contextmanager
def temporary_files_told() -> Iterator[None]:
    """Says of temporary files that fill their disk what it is.

    Raises:
      PlanError: it is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise PlanError(
            "the file system of temporary files is full",
            where=tempfile.gettempdir(),
            hint="`TMPDIR` names another folder",
        ) from error


def _most_waiting_bytes(plan: Plan, shards: Sequence[Shard]) -> int:
    """How many bytes shards have at most that are begun and not complete, block by block."""
    files = {name: shard for shard in shards for name in shard.tensors}
    left = {shard.file: sum(one.nbytes for one in shard.tensors.values()) for shard in shards}
    begun: set[str] = set()
    now = most = 0
    for job in plan.jobs():
        for array, region in written(job):
            shard = files.get(array.name)
            if shard is None:
                continue
            if shard.file not in begun:
                begun.add(shard.file)
                now += shard.nbytes
                most = max(most, now)
            size = math.prod(part.stop - part.start for part in region)
            left[shard.file] -= size * item_bytes(dtype_of(array.view))
            if not left[shard.file]:
                now -= shard.nbytes
    return most
