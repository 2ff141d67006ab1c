"""Read parts of views into this process's memory: each stored chunk once, a window at a time.

A stored array that several views are made of is read once for all of them; a view that is made of
several stored arrays waits for all of them. What hangs together so is read together, and what is
complete is handed out before the next is begun.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnxconv.assemble import converted
from nnxconv.events import Event, Watcher, ignore
from nnxconv.keys import Key, spell
from nnxconv.pieces import Piece, Region, pieces
from nnxconv.plan import MERGED_BYTES, block_shape, check_fits, in_windows
from nnxconv.storage.item import Item
from nnxconv.storage.read import Reader
from nnxconv.tasks import run, together
from nnxconv.views import Shape, Source, View, dtype_of, item_bytes

WORKING_COPIES = 3
"""How many times a block is in memory at once: encoded, decoded, converted."""

ALIGNMENT = 64
"""JAX takes arrays that begin at a multiple of it over on CPU, where it copies all others."""


@dataclass(frozen=True)
class Wanted:
    """The regions of a view that are to be read, each into an array of its own."""

    key: Key
    view: View
    regions: tuple[Region, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all regions."""
        size = sum(math.prod(_shape(region)) for region in self.regions)
        return size * item_bytes(dtype_of(self.view))


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
    merge_bytes = min(MERGED_BYTES, max_memory // WORKING_COPIES)
    bundles = _bundles(wanted)
    for bundle in bundles:
        bundle.check(merge_bytes, max_memory)
    reader = Reader(items)
    total_bytes = sum(one.nbytes for one in wanted)
    done, done_bytes = 0, 0
    window_bytes = max(max_memory // WORKING_COPIES // 2, 1)
    for batch in in_windows(bundles, window_bytes):
        places = [place for bundle in batch for place in bundle.places]
        arrays = {place: _empty(wanted[place]) for place in places}
        blocks = (block for bundle in batch for block in bundle.blocks(merge_bytes))
        for window in in_windows(blocks, window_bytes):
            run(_fill(reader, window, wanted, arrays))
            done_bytes += sum(block.wanted_bytes for block in window)
            watch(Event(done, len(wanted), done_bytes, total_bytes))
        for place in places:
            yield place, arrays.pop(place)
        done += len(places)
        watch(Event(done, len(wanted), done_bytes, total_bytes))


@dataclass(frozen=True)
class _Use:
    """Where a part of a stored array goes: which region of which wanted view, and through what."""

    place: int
    number: int
    piece: Piece
    part: Region
    dtype: str

    def within(self, block: Region) -> "_Use | None":
        """The same for what lies in a block; None when nothing does."""
        common = tuple(
            slice(max(a.start, b.start), min(a.stop, b.stop))
            for a, b in zip(self.part, block, strict=True)
        )
        if any(part.start >= part.stop for part in common):
            return None
        return _Use(self.place, self.number, self.piece, common, self.dtype)


@dataclass(frozen=True)
class _Block:
    """A region of a stored array, and what is made of it."""

    source: Source
    region: Region
    uses: tuple[_Use, ...]
    block_bytes: int

    @property
    def wanted_bytes(self) -> int:
        """Bytes that it adds to the arrays that are handed out."""
        return sum(math.prod(_shape(use.part)) * item_bytes(use.dtype) for use in self.uses)


@dataclass(frozen=True)
class _Bundle:
    """Wanted views that share stored arrays, directly or through each other."""

    places: tuple[int, ...]
    uses: Mapping[Source, tuple[_Use, ...]]
    block_bytes: int
    first: Wanted

    def check(self, merge_bytes: int, max_memory: int) -> None:
        """Refuses chunks that do not fit in `max_memory`."""
        for source, uses in self.uses.items():
            block = math.prod(block_shape(source, merge_bytes)) * _widest(source, uses)
            check_fits(self.first.key, self.first.view, block, WORKING_COPIES, max_memory)

    def blocks(self, merge_bytes: int) -> Iterator[_Block]:
        """The blocks of all its stored arrays: whole chunks, several where they are small."""
        for source, uses in self.uses.items():
            shape = block_shape(source, merge_bytes)
            for region in _grid(_hull(use.part for use in uses), shape, source.shape):
                found = tuple(inside for use in uses if (inside := use.within(region)))
                if found:
                    nbytes = math.prod(_shape(region)) * _widest(source, uses)
                    yield _Block(source, _hull(use.part for use in found), found, nbytes)


def _bundles(wanted: Sequence[Wanted]) -> list[_Bundle]:
    """The wanted views, bundled by the stored arrays that they share; in order."""
    uses_of = [_uses(place, one) for place, one in enumerate(wanted)]
    users: dict[Source, list[int]] = defaultdict(list)
    for place, uses in enumerate(uses_of):
        for source in uses:
            users[source].append(place)
    bundles: list[_Bundle] = []
    seen: set[int] = set()
    for place in range(len(wanted)):
        if place not in seen:
            places = _reached(place, uses_of, users)
            seen |= places
            bundles.append(_bundle(sorted(places), uses_of, wanted))
    return bundles


def _uses(place: int, wanted: Wanted) -> dict[Source, list[_Use]]:
    """What a wanted view takes from each stored array; nothing of one that has no elements."""
    found: dict[Source, list[_Use]] = defaultdict(list)
    dtype = dtype_of(wanted.view)
    for piece in pieces(wanted.view):
        for number, region in enumerate(wanted.regions):
            part = piece.source_region(region)
            if part is not None and all(p.start < p.stop for p in part):
                found[piece.source].append(_Use(place, number, piece, part, dtype))
    return found


def _reached(
    place: int, uses_of: Sequence[Mapping[Source, object]], users: Mapping[Source, list[int]]
) -> set[int]:
    """The places that share stored arrays with one, itself included."""
    reached, waiting, looked_at = {place}, [place], set()
    while waiting:
        for source in uses_of[waiting.pop()].keys() - looked_at:
            looked_at.add(source)
            new = set(users[source]) - reached
            reached |= new
            waiting += new
    return reached


def _bundle(
    places: Sequence[int],
    uses_of: Sequence[Mapping[Source, Sequence[_Use]]],
    wanted: Sequence[Wanted],
) -> _Bundle:
    uses: dict[Source, list[_Use]] = defaultdict(list)
    for place in places:
        for source, found in uses_of[place].items():
            uses[source] += found
    nbytes = sum(wanted[place].nbytes for place in places)
    joined = {source: tuple(found) for source, found in uses.items()}
    return _Bundle(tuple(places), joined, nbytes, wanted[places[0]])


async def _fill(
    reader: Reader,
    window: Sequence[_Block],
    wanted: Sequence[Wanted],
    arrays: Mapping[int, list[np.ndarray]],
) -> None:
    """Reads the blocks of a window and puts their values into their places."""

    async def move(block: _Block) -> None:
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
    return [_aligned(_shape(region), dtype) for region in wanted.regions]


def _aligned(shape: Shape, dtype: np.dtype) -> np.ndarray:
    nbytes = math.prod(shape) * dtype.itemsize
    room = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + nbytes].view(dtype).reshape(shape)


def _widest(source: Source, uses: Sequence[_Use]) -> int:
    """Bytes of one element, as stored or as wanted."""
    return max(item_bytes(dtype) for dtype in {source.dtype, *(use.dtype for use in uses)})


def _shape(region: Region) -> Shape:
    return tuple(part.stop - part.start for part in region)


def _shifted(region: Region, origin: Region) -> Region:
    """A region as it stands within another one."""
    return tuple(
        slice(part.start - whole.start, part.stop - whole.start)
        for part, whole in zip(region, origin, strict=True)
    )


def _hull(regions: Iterator[Region]) -> Region:
    """The smallest region that contains all.

    >>> _hull(iter([(slice(0, 2),), (slice(5, 6),)]))
    (slice(0, 6, None),)
    """
    return tuple(
        slice(min(part.start for part in parts), max(part.stop for part in parts))
        for parts in zip(*regions, strict=True)
    )


def _grid(hull: Region, block: Shape, shape: Shape) -> Iterator[Region]:
    """The blocks of a grid over `shape` that touch a region, in C order.

    >>> list(_grid((slice(3, 5),), (2,), (9,)))
    [(slice(2, 4, None),), (slice(4, 6, None),)]
    """
    ranges = [
        [
            slice(start, min(start + step, size))
            for start in range(part.start // step * step, part.stop, step)
        ]
        for part, step, size in zip(hull, block, shape, strict=True)
    ]
    yield from itertools.product(*ranges)
