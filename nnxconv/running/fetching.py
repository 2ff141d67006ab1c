"""Read parts of views into this process's memory: each stored chunk once, a window at a time.

What hangs together is read together, and what is complete is handed out before more is begun.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from nnxconv.planning import (
    MERGED_BYTES,
    READ_COPIES,
    Block,
    Wanted,
    extents,
    in_windows,
    read_groups,
)
from nnxconv.running.events import Event, Watcher, ignore
from nnxconv.running.memory import check_memory
from nnxconv.running.values import converted
from nnxconv.storage import run, together
from nnxconv.storage.orbax import Item, Reader
from nnxconv.tree import Region, Shape, dtype_of, spell

ALIGNMENT = 64
"""JAX takes arrays that begin at a multiple of it over on CPU, where it copies all others."""


def fetch(
    wanted: Sequence[Wanted],
    items: Mapping[str, Item],
    max_memory: int,
    watch: Watcher = ignore,
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yields the place of each wanted view in `wanted`, and its arrays in the order of its regions.

    Blocks in flight stay within `max_memory`, besides the arrays that are handed out.

    Raises:
      PlanError: a chunk does not fit; nothing has been read.
      DamagedCheckpoint: a stored array cannot be read.
      BadInput: an integer does not fit in the type that it is wanted in.
    """
    merge_bytes = min(MERGED_BYTES, max_memory // READ_COPIES)
    groups = read_groups(wanted)
    for group in groups:
        group.check(merge_bytes, max_memory)
    reader = Reader(items)
    total_bytes = sum(one.nbytes for one in wanted)
    check_memory(total_bytes + min(max_memory, READ_COPIES * total_bytes))
    done, done_bytes = 0, 0
    window_bytes = max(max_memory // READ_COPIES // 2, 1)
    for batch in in_windows(groups, window_bytes):
        places = [place for group in batch for place in group.places]
        arrays = {place: _empty(wanted[place]) for place in places}
        blocks = (block for group in batch for block in group.blocks(merge_bytes))
        for window in in_windows(blocks, window_bytes):
            run(_fill(reader, window, wanted, arrays))
            done_bytes += sum(block.wanted_bytes for block in window)
            watch(Event(done, len(wanted), done_bytes, total_bytes))
        for place in places:
            yield place, arrays.pop(place)
        done += len(places)
        watch(Event(done, len(wanted), done_bytes, total_bytes))


async def _fill(
    reader: Reader,
    window: Sequence[Block],
    wanted: Sequence[Wanted],
    arrays: Mapping[int, list[np.ndarray]],
) -> None:
    """Reads the blocks of a window and puts their values into their places."""

    async def move(block: Block) -> None:
        values = await reader.read(block.source, block.region)
        for use in block.uses:
            one = wanted[use.place]
            where = use.piece.target_region(use.part)
            assert where is not None
            turned = use.piece.turn(values[_shifted(use.part, block.region)], use.part)
            inside = _shifted(where, one.regions[use.number])
            arrays[use.place][use.number][inside] = converted(turned, one.view, spell(one.key))

    await together(move(block) for block in window)


def _empty(wanted: Wanted) -> list[np.ndarray]:
    """Arrays to be filled, each where JAX can take it over."""
    dtype = np.dtype(dtype_of(wanted.view))
    return [_aligned(extents(region), dtype) for region in wanted.regions]


def _aligned(shape: Shape, dtype: np.dtype) -> np.ndarray:
    nbytes = math.prod(shape) * dtype.itemsize
    room = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + nbytes].view(dtype).reshape(shape)


def _shifted(region: Region, origin: Region) -> Region:
    """A region as it stands within another one."""
    return tuple(
        slice(part.start - whole.start, part.stop - whole.start)
        for part, whole in zip(region, origin, strict=True)
    )
