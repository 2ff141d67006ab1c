"""Regions of an array whose elements lie in C order in a file: runs of bytes, read and written."""

import errno
import math
import os
from collections.abc import Iterator, Sequence

import numpy as np

from nnxconv.tree import Region, Shape, contiguous


class OpenFiles:
    """Files that are open for reading, each once; they are closed when nobody reads any more."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}

    def descriptor(self, path: str) -> int:
        """An open file.

        Raises:
          OSError: it cannot be opened.
        """
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._files[path]

    def __del__(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)


def runs(shape: Shape, region: Region, itemsize: int) -> Iterator[tuple[int, int]]:
    """Offset and length in bytes of each run of a region, in C order.

    >>> list(runs((4, 8), (slice(1, 3), slice(0, 8)), 4))
    [(32, 64)]
    >>> list(runs((4, 8), (slice(1, 3), slice(2, 4)), 1))
    [(10, 2), (18, 2)]
    """
    inner, axis = itemsize, len(shape) - 1
    while axis >= 0 and region[axis] == slice(0, shape[axis]):
        inner *= shape[axis]
        axis -= 1
    if axis < 0:
        yield 0, inner
        return
    length = (region[axis].stop - region[axis].start) * inner
    starts = np.array([region[axis].start * inner])
    for outer in range(axis):
        stride = itemsize * math.prod(shape[outer + 1 :])
        steps = np.arange(region[outer].start, region[outer].stop) * stride
        starts = (starts.reshape(-1, 1) + steps).reshape(-1)
    for start in starts.tolist():
        yield start, length


Parts = Sequence[tuple[int, int]]
"""Offset and length of each run of an array's bytes in a file, in C order; most have one."""


def read_region(
    descriptor: int, parts: Parts, dtype: np.dtype, shape: Shape, region: Region
) -> np.ndarray:
    """The values of a region of an array whose bytes are in these parts of an open file.

    Raises:
      OSError: they cannot be read.
      ValueError: the file ends before.
    """
    values = np.empty([part.stop - part.start for part in region], dtype)
    if not values.size:
        return values
    whole = values.reshape(-1).view(np.uint8).data
    done = 0
    for offset, nbytes in runs(shape, region, dtype.itemsize):
        for start, length in within(parts, offset, nbytes):
            end = done + length
            while done < end:
                count = os.preadv(descriptor, [whole[done:end]], start + length - (end - done))
                if not count:
                    raise ValueError("the file ends before its arrays")
                done += count
    return values


def within(parts: Parts, offset: int, nbytes: int) -> Iterator[tuple[int, int]]:
    """Where bytes of an array lie in the file, part by part."""
    for start, length in parts:
        taken = min(length - offset, nbytes)
        if taken > 0:
            yield start + offset, taken
            offset, nbytes = 0, nbytes - taken
            if not nbytes:
                return
        else:
            offset -= length


def write_region(
    descriptor: int, start: int, shape: Shape, region: Region, values: np.ndarray
) -> None:
    """Writes the values of a region of an array that begins at `start` in an open file.

    Raises:
      OSError: they cannot be written.
    """
    if not values.size:
        return
    whole = contiguous(values).reshape(-1).view(np.uint8).data
    done = 0
    for offset, nbytes in runs(shape, region, values.dtype.itemsize):
        end = done + nbytes
        done += os.pwrite(descriptor, whole[done:end], start + offset)
        while done < end:
            done += os.pwrite(descriptor, whole[done:end], start + offset + nbytes - (end - done))


def copy_bytes(source: int, start: int, target: int, at: int, nbytes: int) -> None:
    """Copies bytes from one open file into another, within the kernel where that is possible.

    Raises:
      OSError: they cannot be written.
      ValueError: the file ends before.
    """
    done = 0
    while done < nbytes:
        try:
            count = os.copy_file_range(source, target, nbytes - done, start + done, at + done)
        except OSError as error:
            if error.errno not in _NOT_IN_THE_KERNEL:
                raise
            block = os.pread(source, min(nbytes - done, _BLOCK_BYTES), start + done)
            count = os.pwrite(target, block, at + done)
        if not count:
            raise ValueError("the file ends before its arrays")
        done += count


_BLOCK_BYTES = 2**22
_NOT_IN_THE_KERNEL = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
