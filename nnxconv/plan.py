"""The plan: what moves, how, and what it costs, before anything moves. Integers only.

Arrays that are made from parts of one stored array are written while that stored array is read
once, chunk by chunk. Arrays that are put together from several are read block by block of the
target. Either way the chunks of the target are the image of the source's, so that no source chunk
is decoded twice; where that would give chunks under 1 MiB, neighbouring ones become one.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal as OneOf
from typing import Protocol, TypeVar

from nnxconv.errors import PlanError
from nnxconv.keys import Key, spell
from nnxconv.pieces import Piece, Region, pieces
from nnxconv.sizes import format_bytes
from nnxconv.views import (
    Leaf,
    Literal,
    Shape,
    Source,
    View,
    dtype_of,
    factor_of,
    first_source,
    item_bytes,
    notation,
    size_bytes,
)

MIB = 2**20
SMALL_CHUNK_BYTES = MIB
MERGED_BYTES = 16 * MIB
LARGE_CHUNK_BYTES = 64 * MIB
WORKING_COPIES = 4
"""How many times a block is in memory at once: encoded, decoded, rearranged, encoded again."""

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
        return _region_bytes(self.region, self.source.dtype)


@dataclass(frozen=True)
class Gather:
    """Read all parts of a region of the target, and write it."""

    target: TargetArray
    region: Region
    parts: tuple[Piece, ...]

    @property
    def block_bytes(self) -> int:
        """Bytes of the region in memory."""
        return _region_bytes(self.region, dtype_of(self.target.view))


Job = Scatter | Gather


@dataclass(frozen=True)
class Plan:
    """Everything that a conversion does to arrays.

    Attributes:
      arrays: the arrays of the target, in the order of their keys.
      literals: leaves that hold no array.
      window_bytes: how many bytes of blocks are written together.
      largest_block_bytes: the largest block, in memory.
      merge_bytes: up to how many bytes small chunks are read or made together.
    """

    arrays: tuple[TargetArray, ...]
    literals: tuple[tuple[Key, Literal], ...]
    window_bytes: int
    largest_block_bytes: int
    merge_bytes: int = MERGED_BYTES

    @property
    def total_bytes(self) -> int:
        """Bytes of all arrays of the target, uncompressed."""
        return sum(size_bytes(array.view) for array in self.arrays)

    @property
    def peak_bytes(self) -> int:
        """The most memory that blocks take at once."""
        rewritten = sum(size_bytes(array.view) for array in self.rewritten)
        held = min(max(self.window_bytes, self.largest_block_bytes), rewritten)
        return WORKING_COPIES * held

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
            parts = pieces(array.view)
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

    def windows(self) -> Iterator[list[Job]]:
        """The jobs in groups of at most `window_bytes`, or of one job."""
        return in_windows(self.jobs(), self.window_bytes)


class Sized(Protocol):
    """A piece of work that holds a block in memory."""

    @property
    def block_bytes(self) -> int:
        """Bytes of the block."""
        ...


AnySized = TypeVar("AnySized", bound=Sized)


def in_windows(blocks: Iterable[AnySized], window_bytes: int) -> Iterator[list[AnySized]]:
    """The blocks in groups of at most `window_bytes`, or of one block."""
    window: list[AnySized] = []
    held = 0
    for block in blocks:
        if window and held + block.block_bytes > window_bytes:
            yield window
            window, held = [], 0
        window.append(block)
        held += block.block_bytes
    if window:
        yield window


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
            chunks = _target_chunks(leaf, merge_bytes) if why else pieces(leaf)[0].image_of_chunks()
            arrays.append(TargetArray(key, leaf, chunks, how, why))
    _refuse_equal_names(arrays)
    rewritten = [array for array in arrays if array.how == "rewrite"]
    blocks = [(_array_block_bytes(array, merge_bytes), array) for array in rewritten]
    largest_bytes, largest = max(blocks, key=lambda block: block[0], default=(0, None))
    if largest is not None:
        check_fits(largest.key, largest.view, largest_bytes, WORKING_COPIES, max_memory)
    window_bytes = max(max_memory // WORKING_COPIES // 2, 1)
    return Plan(
        tuple(arrays),
        tuple(literals),
        window_bytes,
        largest_bytes,
        merge_bytes,
    )


def why_rewrite(view: View, store: str | None = None) -> str:
    """Why the stored chunks cannot be taken over as they are; empty when they can.

    They can when each chunk of a source is, element by element in C order, one chunk of the view:
    for a stored array itself, for a stack whose layers become one chunk each, and for a slot of
    such a stack.
    """
    parts = pieces(view)
    first = parts[0]
    if any(not piece.is_whole_chunks(view.shape) for piece in parts):
        return "its parts are not whole chunks"
    if dtype_of(view) != first.source.dtype:
        return f"cast to {dtype_of(view)}"
    if factor_of(view) != 1:
        return f"multiplied by {factor_of(view):.6g}"
    if store is not None and any(piece.source.store != store for piece in parts):
        return "it comes from another checkpoint" if store else "the container is another one"
    if not first.source.encoding:
        return "its chunks are not stored in C order, one by one"
    for piece in parts:
        if piece.source.encoding != first.source.encoding:
            return "its layers are encoded differently"
        if piece.image_of_chunks() != first.image_of_chunks():
            return "its layers have different chunks"
        if any(piece.source.chunks[axis] != 1 for axis in piece.fixed):
            return "one chunk holds several layers"
        order = [axis for axis, _ in piece.chunk_order()]
        if order != sorted(order, key=lambda axis: axis or 0):
            return "its axes change their order within a chunk"
    chunk_bytes = math.prod(first.image_of_chunks()) * item_bytes(first.source.dtype)
    if len(parts) > 1 and chunk_bytes < SMALL_CHUNK_BYTES:
        return "its chunks would be small: they are merged"
    return ""


def renamed_chunks(array: TargetArray) -> Iterator[tuple[Source, Shape, Shape]]:
    """For an array that is renamed: each stored array, the index of a chunk, and its new index."""
    for piece in pieces(array.view):
        source = piece.source
        counts = [
            range(span.start // max(1, chunk), -(-span.stop // max(1, chunk)))
            for span, chunk in zip(
                map(piece.span, range(len(source.shape))), source.chunks, strict=True
            )
        ]
        for index in itertools.product(*counts):
            if any(index[axis] != at for axis, at in piece.fixed.items()):
                continue
            new = [0] * piece.rank
            for place, axis in enumerate(piece.axes):
                if axis is not None:
                    new[axis] = index[place] + chunks_further(piece, place)
            for axis, at in piece.placed.items():
                new[axis] = at
            yield source, index, tuple(new)


def chunks_further(piece: Piece, source_axis: int) -> int:
    """How many chunks further along an axis a piece of whole chunks stands in its view."""
    span = piece.span(source_axis)
    return (span.at - span.start) // max(1, piece.source.chunks[source_axis])


def _common_image(parts: Sequence[Piece]) -> Shape:
    """The largest shape of which the images of all pieces' chunks, where they stand, are multiples.

    It is the image itself where no piece is a part of its source.
    """
    image = list(parts[0].image_of_chunks())
    for piece in parts if any(piece.spans for piece in parts) else ():
        image = list(map(math.gcd, image, piece.image_of_chunks()))
        for source_axis, span in piece.spans.items():
            axis = piece.axes[source_axis]
            if axis is not None:
                image[axis] = math.gcd(image[axis], span.at)
    return tuple(image)


def _target_chunks(view: View, merge_bytes: int) -> Shape:
    """The image of the source's chunks, merged while they are small, divided while they are large.

    What is put together from several arrays is not divided: a source's chunk would be decoded for
    every part of it.
    """
    parts = pieces(view)
    image = _common_image(parts) if parts else view.shape
    chunks = [max(1, min(c, s)) for c, s in zip(image, view.shape, strict=True)]
    item = item_bytes(dtype_of(view))
    is_small = math.prod(chunks) * item < SMALL_CHUNK_BYTES
    if is_small and len(parts) == 1 and not parts[0].spans:
        return _image_of_block(parts[0], view.shape, merge_bytes)
    if math.prod(chunks) * item > LARGE_CHUNK_BYTES and len(parts) == 1:
        return _divided(chunks, item)
    if math.prod(chunks) * item >= SMALL_CHUNK_BYTES:
        return tuple(chunks)
    placed = list(parts[0].placed) if parts else []
    others = [axis for axis in reversed(range(len(chunks))) if axis not in placed]
    for axis in placed + others:
        room = merge_bytes // (math.prod(chunks) * item)
        if chunks[axis] < view.shape[axis] and room > 1:
            chunks[axis] = min(view.shape[axis], chunks[axis] * room)
    return tuple(chunks)


def _image_of_block(piece: Piece, shape: Shape, merge_bytes: int) -> Shape:
    """The shape that one block of the source has in the view, so that it is written once."""
    image = [1] * piece.rank
    block = block_shape(piece.source, merge_bytes, piece.fixed)
    for axis, size in zip(piece.axes, block, strict=True):
        if axis is not None:
            image[axis] = size
    return tuple(max(1, min(size, whole)) for size, whole in zip(image, shape, strict=True))


def _divided(chunks: Sequence[int], item: int) -> Shape:
    """Equal parts of a large chunk, cut along its longest axis.

    >>> _divided((192, 96, 2048), 4)
    (192, 96, 512)
    """
    parts = list(chunks)
    while math.prod(parts) * item > LARGE_CHUNK_BYTES:
        longest = parts.index(max(parts))
        parts[longest] //= next(n for n in range(2, parts[longest] + 1) if parts[longest] % n == 0)
    return tuple(parts)


def is_scattered(parts: Sequence[Piece], chunks: Shape) -> bool:
    """True when an array is best written while its sources are read, one after another.

    That is so when it is made of one source; and when several of its parts come from one, but no
    chunk of it from two.
    """
    if len(parts) < 2:
        return bool(parts)
    sources = {piece.source for piece in parts}
    if len(sources) == 1 and any(piece.spans for piece in parts):
        return True
    if len(sources) == len(parts):
        return False
    alike = len({piece.image_of_chunks() for piece in parts}) == 1
    return alike and all(chunks[axis] == 1 for piece in parts for axis in piece.placed)


def block_shape(source: Source, merge_bytes: int, fixed: Collection[int] = ()) -> Shape:
    """The region that is read at once: whole chunks, several where they are small.

    Axes that are `fixed` in what is made of it are the last along which chunks are put together:
    a block then has more of fewer layers, which are the chunks of the target.
    """
    block = [max(1, min(c, s)) for c, s in zip(source.chunks, source.shape, strict=True)]
    item = item_bytes(source.dtype)
    last_first = reversed(range(len(block)))
    for axis in sorted(last_first, key=lambda axis: axis in fixed):
        room = merge_bytes // max(1, math.prod(block) * item)
        if room > 1 and block[axis] < source.shape[axis]:
            block[axis] = min(source.shape[axis], block[axis] * room)
    return tuple(block)


def regions(shape: Shape, block: Shape) -> Iterator[Region]:
    """The regions of a regular grid over `shape`, in C order.

    >>> list(regions((3,), (2,)))
    [(slice(0, 2, None),), (slice(2, 3, None),)]
    """
    ranges = [
        [slice(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in zip(shape, block, strict=True)
    ]
    yield from itertools.product(*ranges)


def _region_bytes(region: Region, dtype: str) -> int:
    return math.prod(part.stop - part.start for part in region) * item_bytes(dtype)


def _array_block_bytes(array: TargetArray, merge_bytes: int) -> int:
    """The largest block that making the array takes."""
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


def check_fits(key: Key, view: View, block_bytes: int, copies: int, max_memory: int) -> None:
    """Refuses a block whose working copies do not fit in `max_memory` bytes.

    Raises:
      PlanError: it does not fit.
    """
    needed = block_bytes * copies
    if needed <= max_memory:
        return
    source = first_source(view)
    chunk_bytes = math.prod(source.chunks) * item_bytes(source.dtype)
    raise PlanError(
        f"the plan needs {format_bytes(needed)}, but --max_memory is {format_bytes(max_memory)}",
        where=f"{spell(key)}  {notation(view)}",
        details=[
            f"one source chunk is {format_bytes(chunk_bytes)}, and up to {copies} copies"
            " of a block are held at once"
        ],
        hint=f"`--max_memory {math.ceil(needed / MIB)}MiB`",
    )
