"""What hangs together: views that are made of the same stored arrays, and the blocks to read.

A stored array that several views are made of is read once for all of them; a view that is made of
several stored arrays waits for all of them.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nnxconv.planning.blocks import block_shape, check_fits
from nnxconv.tree import Key, Piece, Region, Shape, Source, View, dtype_of, item_bytes, pieces

READ_COPIES = 3
"""How many times a block is in memory at once: encoded, decoded, converted."""


@dataclass(frozen=True)
class Wanted:
    """The regions of a view that are to be read, each into an array of its own."""

    key: Key
    view: View
    regions: tuple[Region, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all regions."""
        size = sum(math.prod(extents(region)) for region in self.regions)
        return size * item_bytes(dtype_of(self.view))


@dataclass(frozen=True)
class Use:
    """Where a part of a stored array goes: which region of which wanted view, and through what."""

    place: int
    number: int
    piece: Piece
    part: Region
    dtype: str

    def within(self, block: Region) -> "Use | None":
        """The same for what lies in a block; None when nothing does."""
        common = tuple(
            slice(max(a.start, b.start), min(a.stop, b.stop))
            for a, b in zip(self.part, block, strict=True)
        )
        if any(part.start >= part.stop for part in common):
            return None
        return Use(self.place, self.number, self.piece, common, self.dtype)


@dataclass(frozen=True)
class Block:
    """A region of a stored array, and what is made of it."""

    source: Source
    region: Region
    uses: tuple[Use, ...]
    block_bytes: int

    @property
    def wanted_bytes(self) -> int:
        """Bytes that it adds to the arrays that are handed out."""
        return sum(math.prod(extents(use.part)) * item_bytes(use.dtype) for use in self.uses)


@dataclass(frozen=True)
class ReadGroup:
    """Wanted views that share stored arrays, directly or through each other."""

    places: tuple[int, ...]
    uses: Mapping[Source, tuple[Use, ...]]
    block_bytes: int
    first: Wanted

    def check(self, merge_bytes: int, max_memory: int) -> None:
        """Refuses chunks that do not fit in `max_memory`."""
        for source, uses in self.uses.items():
            block = math.prod(block_shape(source, merge_bytes)) * _widest(source, uses)
            check_fits(self.first.key, self.first.view, block, READ_COPIES, max_memory)

    def blocks(self, merge_bytes: int) -> Iterator[Block]:
        """The blocks of all its stored arrays: whole chunks, several where they are small."""
        for source, uses in self.uses.items():
            shape = block_shape(source, merge_bytes)
            for region in _grid(_hull(use.part for use in uses), shape, source.shape):
                found = tuple(inside for use in uses if (inside := use.within(region)))
                if found:
                    nbytes = math.prod(extents(region)) * _widest(source, uses)
                    yield Block(source, _hull(use.part for use in found), found, nbytes)


def read_groups(wanted: Sequence[Wanted]) -> list[ReadGroup]:
    """The wanted views, bundled by the stored arrays that they share; in order."""
    uses_of = [_uses(place, one) for place, one in enumerate(wanted)]
    users: dict[Source, list[int]] = defaultdict(list)
    for place, uses in enumerate(uses_of):
        for source in uses:
            users[source].append(place)
    groups: list[ReadGroup] = []
    seen: set[int] = set()
    for place in range(len(wanted)):
        if place not in seen:
            places = _reached(place, uses_of, users)
            seen |= places
            groups.append(_read_group(sorted(places), uses_of, wanted))
    return groups


def _uses(place: int, wanted: Wanted) -> dict[Source, list[Use]]:
    """What a wanted view takes from each stored array; nothing of one that has no elements."""
    found: dict[Source, list[Use]] = defaultdict(list)
    dtype = dtype_of(wanted.view)
    for piece in pieces(wanted.view):
        for number, region in enumerate(wanted.regions):
            part = piece.source_region(region)
            if part is not None and all(p.start < p.stop for p in part):
                found[piece.source].append(Use(place, number, piece, part, dtype))
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


def _read_group(
    places: Sequence[int],
    uses_of: Sequence[Mapping[Source, Sequence[Use]]],
    wanted: Sequence[Wanted],
) -> ReadGroup:
    uses: dict[Source, list[Use]] = defaultdict(list)
    for place in places:
        for source, found in uses_of[place].items():
            uses[source] += found
    nbytes = sum(wanted[place].nbytes for place in places)
    joined = {source: tuple(found) for source, found in uses.items()}
    return ReadGroup(tuple(places), joined, nbytes, wanted[places[0]])


def _widest(source: Source, uses: Sequence[Use]) -> int:
    """Bytes of one element, as stored or as wanted."""
    return max(item_bytes(dtype) for dtype in {source.dtype, *(use.dtype for use in uses)})


def extents(region: Region) -> Shape:
    return tuple(part.stop - part.start for part in region)


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
