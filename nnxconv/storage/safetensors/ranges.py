"""Ranges of files: their names in a journal, and the digests of what they are filled with."""

import json
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from nnxconv.storage.safetensors.header import Tensor
from nnxconv.storage.safetensors.regions import runs
from nnxconv.tree import Region, Shape, contiguous, item_bytes

_BLOCK_BYTES = 2**22


@dataclass(frozen=True)
class Range:
    """The bytes of a region of an array that begins at `start` in a file."""

    file: str
    start: int
    itemsize: int
    shape: Shape
    region: Region

    @property
    def nbytes(self) -> int:
        """How many there are."""
        return self.itemsize * math.prod(part.stop - part.start for part in self.region)

    @property
    def name(self) -> str:
        """What tells it from all others, and says where it is."""
        sides = [[part.start, part.stop] for part in self.region]
        return json.dumps([self.file, self.start, self.itemsize, list(self.shape), sides])

    @classmethod
    def from_name(cls, name: str) -> "Range":
        """The range of this name.

        Raises:
          ValueError: it is the name of something else.
        """
        match json.loads(name):
            case [str(file), int(start), int(itemsize), list(shape), list(sides)]:
                region = tuple(slice(*side) for side in sides)
                return cls(file, start, itemsize, tuple(shape), region)
        raise ValueError(f"`{name}` is no range")


def range_of(tensor: Tensor, region: Region) -> Range:
    """Where the bytes of a region of an array are."""
    return Range(tensor.file, tensor.start, item_bytes(tensor.dtype), tensor.shape, region)


def whole(tensor: Tensor) -> Region:
    """All of an array."""
    return tuple(slice(0, size) for size in tensor.shape)


def digest_values(values: np.ndarray) -> str:
    """XXH3-128 of values in C order."""
    if not values.size:
        return xxhash.xxh3_128_hexdigest(b"")
    content: Any = contiguous(values).reshape(-1).view(np.uint8).data
    return xxhash.xxh3_128_hexdigest(content)


def digest_range(descriptor: int, of: Range) -> str:
    """The same of what an open file holds; of less where it ends before."""
    hasher = xxhash.xxh3_128()
    for offset, nbytes in runs(of.shape, of.region, of.itemsize) if of.nbytes else ():
        at, end = of.start + offset, of.start + offset + nbytes
        while at < end and (block := os.pread(descriptor, min(_BLOCK_BYTES, end - at), at)):
            hasher.update(block)
            at += len(block)
    return hasher.hexdigest()
