"""Regions of whole chunks, decoded from where they lie on a local disk."""

import itertools
import math
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from nnxconv.planning import are_whole_chunks, chunk_grid
from nnxconv.storage.orbax.extents import Extent, Extents
from nnxconv.storage.orbax.item import Item
from nnxconv.storage.zarr import ChunkCodec, chunk_key, codec_of
from nnxconv.tree import Region, Shape

_SMALL_BYTES, _FEW = 2**18, 8
"""Many small chunks are quicker read by TensorStore, which asks Python for nothing between them."""


@dataclass(frozen=True)
class StoredRegion:
    """A region of whole chunks: `shape` is its shape, and the keys' order is that of `grid`."""

    codec: ChunkCodec
    shape: Shape
    grid: tuple[range, ...]
    keys: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the region, decoded."""
        return math.prod(self.shape) * self.codec.dtype.itemsize


class ChunkReader:
    """Decodes chunks of one item; several threads may ask at once."""

    def __init__(self, item: Item) -> None:
        self._item = item
        self._extents = Extents(item)
        self._codecs: dict[str, ChunkCodec | None] = {}

    def find(self, name: str, region: Region) -> StoredRegion | None:
        """What a region of an array consists of; None where TensorStore has to read it."""
        array = self._item.formats[name]
        if name not in self._codecs:
            self._codecs[name] = codec_of(array)
        codec = self._codecs[name]
        if codec is None or not are_whole_chunks(region, array.chunks, array.shape):
            return None
        grid = chunk_grid(region, array.chunks)
        count = math.prod(map(len, grid))
        if not count or (count > _FEW and codec.nbytes < _SMALL_BYTES):
            return None
        keys = tuple(
            f"{name}/{chunk_key(array.zarr_format, array.metadata, index)}"
            for index in itertools.product(*grid)
        )
        return StoredRegion(codec, tuple(part.stop - part.start for part in region), grid, keys)

    def read(self, stored: StoredRegion) -> np.ndarray:
        """The values of the region.

        Raises:
          OSError, ValueError: a chunk is missing, or not what is expected.
        """
        if len(stored.keys) == 1:
            return self._decoded(stored.codec, stored.keys[0])[tuple(map(slice, stored.shape))]
        values = np.empty(stored.shape, stored.codec.dtype)
        indices = itertools.product(*(range(len(part)) for part in stored.grid))
        for index, key in zip(indices, stored.keys, strict=True):
            starts = [nth * size for nth, size in zip(index, stored.codec.shape, strict=True)]
            place = values[
                tuple(slice(at, at + n) for at, n in zip(starts, stored.codec.shape, strict=True))
            ]
            place[...] = self._decoded(stored.codec, key)[tuple(map(slice, place.shape))]
        return values

    def _decoded(self, codec: ChunkCodec, key: str) -> np.ndarray:
        match self._extents.of(key):
            case bytes() as encoded:
                return codec.decode(memoryview(encoded))
            case Extent() as extent:
                with _mapped(extent) as encoded:
                    return codec.decode(encoded)
        raise ValueError(f"`{key}` is missing")


@contextmanager
def _mapped(extent: Extent) -> Iterator[memoryview]:
    """The bytes of a stored value, which are not copied."""
    with extent.path.open("rb", buffering=0) as file:
        if not extent.nbytes or os.fstat(file.fileno()).st_size < extent.offset + extent.nbytes:
            raise ValueError(f"`{extent.path}` ends before its values")
        before = extent.offset % mmap.ALLOCATIONGRANULARITY
        with (
            mmap.mmap(
                file.fileno(),
                before + extent.nbytes,
                access=mmap.ACCESS_READ,
                offset=extent.offset - before,
            ) as mapped,
            memoryview(mapped) as whole,
            whole[before:] as found,
        ):
            yield found
