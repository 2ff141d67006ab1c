"""The plan: what moves, how, and what it costs, before anything moves. Integers only.

Arrays that are made from parts of one stored array are written while that stored array is read
once, chunk by chunk. Arrays that are put together from several are read block by block of the
target. Either way the chunks of the target are the image of the source's, so that no source chunk
is decoded twice; where that would give chunks under 1 MiB, neighbouring ones become one.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal as OneOf

from nnxconv.errors import PlanError
from nnxconv.planning.blocks import (
    MERGED_BYTES,
    block_shape,
    check_fits,
    in_windows,
    is_scattered,
    region_bytes,
    regions,
    target_chunks,
)
from nnxconv.planning.undecoded import why_rewrite
from nnxconv.tree import (
    Key,
    Leaf,
    Literal,
    Piece,
    Region,
    Shape,
    Source,
    View,
    dtype_of,
    first_source,
    is_computed,
    item_bytes,
    pieces,
    region_cost,
    size_bytes,
    sources_of,
    spell,
)

WORKING_COPIES = 4
"""How many times a block is in memory at once: encoded, decoded, rearranged, encoded again."""

WAITING_COPIES = 2
"""How many times what waits to be written is there besides: as encoded, and as it is written."""

How = OneOf["rename", "rewrite"]
Transfer = OneOf["copy", "link"]


@dataclass(frozen=True)
class TargetArray:
    """One array of the target: how it is made and why so, and its chunks.

    `rename`: the source's encoded chunks are right as they are, only their keys change.
    `rewrite`: they are decoded, rearranged and encoded.
    """

    key: Key
    view: View
    chunks: Shape
    how: How = "rewrite"
    why: str = ""

    @property
    def is_scalar(self) -> bool:
        """True for what Orbax restores as a Python number."""
        return first_source(self.view).kind == "scalar"

    @property
    def name(self) -> str:
        """Its name in the target's store."""
        return ".".join(map(str, self.key))


@dataclass(frozen=True)
class Scatter:
    """Read a region of one stored array, and write its parts to the arrays made of it."""

    source: Source
    region: Region
    into: tuple[tuple[TargetArray, Piece], ...]

    @property
    def block_bytes(self) -> int:
        """Bytes of the region in memory."""
        return region_bytes(self.region, self.source.dtype)


@dataclass(frozen=True)
class Gather:
    """Read all parts of a region of the target, and write it."""

    target: TargetArray
    region: Region
    parts: tuple[Piece, ...]

    @property
    def block_bytes(self) -> int:
        """Bytes of the region in memory; of what it is computed from as well."""
        if is_computed(self.target.view):
            return region_cost(self.target.view, self.region)
        return region_bytes(self.region, dtype_of(self.target.view))


Job = Scatter | Gather


def written(job: Job) -> Iterator[tuple[TargetArray, Region]]:
    """The regions that a block writes."""
    match job:
        case Scatter(_, region, into):
            for array, piece in into:
                where = piece.target_region(region)
                if where is not None:
                    yield array, where
        case Gather(array, region):
            yield array, region


@dataclass(frozen=True)
class Plan:
    """Everything that a conversion does to arrays.

    Attributes:
      arrays: the arrays of the target, in the order of their keys.
      literals: leaves that hold no array.
      max_memory: how many bytes blocks may take.
      largest_block_bytes: the largest block, in memory.
      merge_bytes: up to how many bytes small chunks are read or made together.
    """

    arrays: tuple[TargetArray, ...]
    literals: tuple[tuple[Key, Literal], ...]
    max_memory: int
    largest_block_bytes: int
    merge_bytes: int = MERGED_BYTES

    @property
    def total_bytes(self) -> int:
        """Bytes of all arrays of the target, uncompressed."""
        return sum(size_bytes(array.view) for array in self.arrays)

    @property
    def peak_bytes(self) -> int:
        """The most memory that blocks take at once."""
        return self._held_bytes * 3 // 2 if self.keeps_blocks else self._held_bytes

    @property
    def keeps_blocks(self) -> bool:
        """True when there is memory to keep freed blocks for the next ones, with gaps in between.

        That is much faster than to take new memory for each.
        """
        return self._held_bytes * 3 // 2 <= self.max_memory

    @property
    def _held_bytes(self) -> int:
        rewritten = sum(size_bytes(array.view) for array in self.rewritten)
        return held_bytes(rewritten, self.largest_block_bytes, self.max_memory)

    @property
    def window_bytes(self) -> int:
        """How many bytes of blocks are written together."""
        return window_bytes(self.max_memory)

    @property
    def flight_bytes(self) -> int:
        """How many bytes of blocks are under way at once where none waits for others."""
        return self._held_bytes // WORKING_COPIES

    @property
    def renamed(self) -> list[TargetArray]:
        """The arrays whose chunks are taken over as they are."""
        return [array for array in self.arrays if array.how == "rename"]

    @property
    def rewritten(self) -> list[TargetArray]:
        """The arrays whose chunks are decoded and encoded."""
        return [array for array in self.arrays if array.how == "rewrite"]

    def jobs(self) -> Iterator[Job]:
        """The blocks to move, those of one stored array or one target in a row."""
        by_source: dict[Source, list[tuple[TargetArray, Piece]]] = defaultdict(list)
        for array in self.rewritten:
            parts = [] if is_computed(array.view) else pieces(array.view)
            if is_scattered(parts, array.chunks):
                for piece in parts:
                    by_source[piece.source].append((array, piece))
            else:
                for region in regions(array.view.shape, array.chunks):
                    yield Gather(array, region, tuple(parts))
        for source, into in by_source.items():
            fixed = {axis for _, piece in into for axis in piece.fixed}
            for region in regions(source.shape, block_shape(source, self.merge_bytes, fixed)):
                if any(piece.target_region(region) is not None for _, piece in into):
                    yield Scatter(source, region, tuple(into))

    def windows(
        self,
        numbers: Collection[int] | None = None,
        under_way: int = 1,
        is_wanted: Callable[[Job], bool] = lambda job: True,
    ) -> Iterator[list[Job]]:
        """The jobs, or those of these numbers, in groups of at most `window_bytes`, or of one.

        Where several groups are under way at once, that is what all of them have together.
        """
        mine = (job for n, job in enumerate(self.jobs()) if numbers is None or n in numbers)
        return in_windows(filter(is_wanted, mine), self.window_bytes // under_way)


def window_bytes(max_memory: int) -> int:
    """How many bytes of blocks are written together: half the memory is enough for them.

    More than the most would be slower: what is written while the next blocks are encoded has to be
    encoded first, into memory that is fresh each time.
    """
    return min(max(max_memory // (WORKING_COPIES + WAITING_COPIES) // 2, 1), MOST_WINDOW_BYTES)


MOST_WINDOW_BYTES = 2**28


def held_bytes(total: int, largest: int, max_memory: int) -> int:
    """The most bytes that blocks take at once when they are moved window by window.

    A window is written to files while the next is moved, but a block that is larger is alone.
    """
    window = window_bytes(max_memory)
    moved = min(window, total)
    waiting = min(window, total - moved)
    alone = min(largest, total)
    return max(WORKING_COPIES * alone, WORKING_COPIES * moved + WAITING_COPIES * waiting)


def make_plan(
    leaves: Iterable[tuple[Key, Leaf]], max_memory: int, store: str | None = None
) -> Plan:
    """The plan for a target tree within `max_memory` bytes.

    Only what lies in `store`, the item whose container the target copies, can be renamed; with an
    empty one, nothing can.

    Raises:
      PlanError: a chunk of the source is too large for the memory; or two keys of the target
        have the same name on disk.
    """
    merge_bytes = min(MERGED_BYTES, max_memory // WORKING_COPIES)
    arrays: list[TargetArray] = []
    literals: list[tuple[Key, Literal]] = []
    for key, leaf in leaves:
        if isinstance(leaf, Literal):
            literals.append((key, leaf))
        else:
            why = why_rewrite(leaf, store)
            how: How = "rewrite" if why else "rename"
            chunks = target_chunks(leaf, merge_bytes) if why else pieces(leaf)[0].image_of_chunks()
            arrays.append(TargetArray(key, leaf, chunks, how, why))
    _refuse_equal_names(arrays)
    rewritten = [array for array in arrays if array.how == "rewrite"]
    blocks = [(_array_block_bytes(array, merge_bytes), array) for array in rewritten]
    largest_bytes, largest = max(blocks, key=lambda block: block[0], default=(0, None))
    if largest is not None:
        check_fits(largest.key, largest.view, largest_bytes, WORKING_COPIES, max_memory)
    return Plan(
        tuple(arrays),
        tuple(literals),
        max_memory,
        largest_bytes,
        merge_bytes,
    )


def _array_block_bytes(array: TargetArray, merge_bytes: int) -> int:
    """The largest block that making the array takes."""
    if is_computed(array.view):
        first = tuple(slice(0, size) for size in array.chunks)
        chunks = [math.prod(s.chunks) * item_bytes(s.dtype) for s in sources_of(array.view)]
        return max(region_cost(array.view, first), *chunks)
    parts = pieces(array.view)
    if is_scattered(parts, array.chunks):
        return max(
            math.prod(block_shape(piece.source, merge_bytes, piece.fixed))
            * item_bytes(piece.source.dtype)
            for piece in parts
        )
    cut = [piece.source for piece in parts if piece.spans]
    decoded = [math.prod(source.chunks) * item_bytes(source.dtype) for source in cut]
    return max(math.prod(array.chunks) * item_bytes(dtype_of(array.view)), *decoded, 0)


def _refuse_equal_names(arrays: Sequence[TargetArray]) -> None:
    keys: dict[str, list[Key]] = defaultdict(list)
    for array in arrays:
        keys[array.name].append(array.key)
    clashes = {name: same for name, same in keys.items() if len(same) > 1}
    if clashes:
        raise PlanError(
            "different arrays would have the same name on disk",
            details=[f"{name}: {' and '.join(map(spell, same))}" for name, same in clashes.items()],
        )
