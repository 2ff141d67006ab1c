"""Where stored values lie on a local disk, and whether two of them are the same bytes."""

import os
from dataclasses import dataclass
from pathlib import Path

from nnxconv.storage.gcs import is_remote
from nnxconv.storage.orbax.item import Item

BLOCK_BYTES = 2**18
"""Small enough for a processor's cache: larger blocks take longer."""


@dataclass(frozen=True)
class Extent:
    """A run of bytes in a file."""

    path: Path
    offset: int
    nbytes: int


class Extents:
    """Where an item's stored values are."""

    def __init__(self, item: Item) -> None:
        self._item = item
        self._is_local = not is_remote(item.path)

    def of(self, key: str) -> Extent | bytes | None:
        """The place of a value, or the value itself where a database's node holds it.

        None where it is missing or not on this machine.
        """
        if not self._is_local:
            return None
        folder = Path(self._item.path.as_posix())
        if self._item.contents is not None:
            value = self._item.contents.values.get(key)
            if value is None or not value.file:
                return None if value is None else value.inline
            return Extent(folder / value.file, value.offset, value.nbytes)
        file = folder / key
        return Extent(file, 0, file.stat().st_size) if file.is_file() else None


def have_same_bytes(a: Extent, b: Extent) -> bool:
    """True when both are there, whole, and byte for byte the same; one file is not read twice."""
    if a.nbytes != b.nbytes:
        return False
    try:
        with a.path.open("rb", buffering=0) as file_a, b.path.open("rb", buffering=0) as file_b:
            first, second = file_a.fileno(), file_b.fileno()
            stat_a, stat_b = os.fstat(first), os.fstat(second)
            if stat_a.st_size < a.offset + a.nbytes or stat_b.st_size < b.offset + b.nbytes:
                return False
            if os.path.samestat(stat_a, stat_b) and a.offset == b.offset:
                return True
            return _are_equal(first, a.offset, second, b.offset, a.nbytes)
    except OSError:
        return False


def _are_equal(first: int, start: int, second: int, other_start: int, nbytes: int) -> bool:
    """Compares two open files' bytes, block by block in two buffers that are used again."""
    buffers = bytearray(min(nbytes, BLOCK_BYTES)), bytearray(min(nbytes, BLOCK_BYTES))
    for done in range(0, nbytes, BLOCK_BYTES):
        left = nbytes - done
        if left < len(buffers[0]):
            buffers = bytearray(left), bytearray(left)
        if not _fill(first, start + done, buffers[0]):
            return False
        if not _fill(second, other_start + done, buffers[1]):
            return False
        if buffers[0] != buffers[1]:
            return False
    return True


def _fill(file: int, offset: int, buffer: bytearray) -> bool:
    """Reads as many bytes as the buffer is long; False when the file ends before."""
    done = 0
    while done < len(buffer):
        count = os.preadv(file, [memoryview(buffer)[done:]], offset + done)
        if count == 0:
            return False
        done += count
    return True
