"""Regions of an array whose bytes lie in an object of a bucket, asked for by ranges."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath

from nnxconv.storage.gcs import read_part
from nnxconv.storage.safetensors.regions import Parts, runs, within
from nnxconv.tree import Region, Shape

_GAP_BYTES = 2**16
"""What lies between two runs is read as well, where it is less than another request costs."""
_RANGE_BYTES = 2**23
"""About how much one request asks for."""
_REQUESTS_AT_ONCE = 4


def read_object_region(
    path: str, parts: Parts, dtype: np.dtype, shape: Shape, region: Region
) -> np.ndarray:
    """The values of a region of an array whose bytes are in these parts of an object.

    Raises:
      OSError: it cannot be read.
      ValueError: the object ends before.
    """
    values = np.empty([part.stop - part.start for part in region], dtype)
    if not values.size:
        return values
    whole = values.reshape(-1).view(np.uint8)

    def read(group: list[tuple[int, int, int]]) -> None:
        first, (start, nbytes, _) = group[0][0], group[-1]
        content = np.frombuffer(
            read_part(epath.Path(path), first, start + nbytes - first), np.uint8
        )
        for start, nbytes, at in group:
            whole[at : at + nbytes] = content[start - first : start - first + nbytes]

    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        for done in [
            pool.submit(read, group)
            for group in _requests(_pieces(parts, shape, region, dtype.itemsize))
        ]:
            done.result()
    return values


def _pieces(
    parts: Parts, shape: Shape, region: Region, itemsize: int
) -> Iterator[tuple[int, int, int]]:
    """Start and length of each run in the object, and where its bytes go."""
    at = 0
    for offset, nbytes in runs(shape, region, itemsize):
        for start, length in within(parts, offset, nbytes):
            for done in range(0, length, _RANGE_BYTES):
                taken = min(_RANGE_BYTES, length - done)
                yield start + done, taken, at + done
            at += length


def _requests(pieces: Iterable[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Runs that are near each other, asked for together.

    >>> _requests([(0, 4, 0), (10, 4, 4), (2**20, 4, 8)])
    [[(0, 4, 0), (10, 4, 4)], [(1048576, 4, 8)]]
    """
    found: list[list[tuple[int, int, int]]] = []
    for piece in pieces:
        start, nbytes, _ = piece
        if found:
            first, (last, length, _) = found[-1][0][0], found[-1][-1]
            is_near = 0 <= start - (last + length) <= _GAP_BYTES
            if is_near and start + nbytes - first <= _RANGE_BYTES:
                found[-1].append(piece)
                continue
        found.append([piece])
    return found
