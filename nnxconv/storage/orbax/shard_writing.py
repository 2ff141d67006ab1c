"""The arrays of new safetensors files, written where each of them lies."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath

from nnxconv.state import Tree
from nnxconv.storage.files import placed
from nnxconv.storage.orbax.item import Item
from nnxconv.storage.orbax.raw_items import tensors_item
from nnxconv.storage.resume import Journal, Stamp
from nnxconv.storage.safetensors import (
    Shard,
    Tensor,
    begin,
    copy_bytes,
    digest_range,
    digest_values,
    range_of,
    whole,
    write_region,
)
from nnxconv.tree import Key, Region


class TensorsWriter:
    """The shards in a folder, each at its whole size from the beginning.

    With a journal, every range that is filled is entered, and those that an interrupted run has
    filled stay.
    """

    def __init__(
        self, folder: Path, shards: Sequence[Shard], journal: Journal | None = None
    ) -> None:
        self.tensors = {name: one for shard in shards for name, one in shard.tensors.items()}
        self._folder = folder
        self._journal = journal
        for shard in shards:
            begin(folder, shard)
        self._files = {shard.file: (folder / shard.file).open("r+b", 0) for shard in shards}

    def has(self, key: Key, region: Region) -> bool:
        """True for a region that an interrupted run has written."""
        return self._has(self._tensor(key), region)

    def has_all(self, name: str) -> bool:
        """The same of a whole array."""
        return self._has(self.tensors[name], whole(self.tensors[name]))

    def _has(self, tensor: Tensor, region: Region) -> bool:
        return self._journal is not None and range_of(tensor, region).name in self._journal

    def puts(self, key: Key, region: Region) -> bool:
        """Each region of each array is written where it belongs."""
        del key, region
        return True

    def put(self, key: Key, region: Region, values: np.ndarray) -> None:
        """Writes a region of an array, unless it is there: of a block that is done in part."""
        tensor = self._tensor(key)
        if self._has(tensor, region):
            return
        file = self._files[tensor.file]
        with placed(str(file.name)):
            write_region(file.fileno(), tensor.start, tensor.shape, region, values)
        if self._journal is not None:
            self._enter(self._journal, tensor, region, digest_values(values))

    def copy(self, name: str, descriptor: int, start: int) -> None:
        """Fills a whole array with bytes of an open file, from `start` on.

        Raises:
          ValueError: the file ends before.
        """
        tensor = self.tensors[name]
        file = self._files[tensor.file]
        copy_bytes(descriptor, start, file.fileno(), tensor.start, tensor.nbytes)
        if self._journal is not None:
            region = whole(tensor)
            digest = digest_range(file.fileno(), range_of(tensor, region))
            self._enter(self._journal, tensor, region, digest)

    def _enter(self, journal: Journal, tensor: Tensor, region: Region, digest: str) -> None:
        found = range_of(tensor, region)
        journal.enter_range(found.name, Stamp(found.nbytes, digest))

    def _tensor(self, key: Key) -> Tensor:
        return self.tensors[".".join(map(str, key))]

    def finish(self, place: epath.Path) -> None:
        """What is left to do when all else is; nothing."""

    def settle(self) -> None:
        """Waits until all is on disk."""
        for file in self._files.values():
            with placed(str(file.name)):
                os.fsync(file.fileno())

    def __enter__(self) -> "TensorsWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    def read_back(self, tree: Tree) -> Item:
        """The item as it has been written so far."""
        del tree
        return tensors_item(epath.Path(self._folder), epath.Path(self._folder), self.tensors, {})
