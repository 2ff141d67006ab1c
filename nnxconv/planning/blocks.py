"""Blocks: which regions are read and written at once, and the chunks of what is written.

Everything here is integers. Blocks are whole chunks of a source, several where they are small, and
the chunks of a target are their images, so that no chunk is decoded or written twice.
"""

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from nnxconv.errors import PlanError
from nnxconv.tree import (
    Cast,
    Formula,
    Key,
    Piece,
    Region,
    Shape,
    Source,
    Stack,
    View,
    dtype_of,
    first_source,
    format_bytes,
    is_computed,
    item_bytes,
    notation,
    pieces,
    spell,
    stack,
)

MIB = 2**20
SMALL_CHUNK_BYTES = MIB
MERGED_BYTES = 16 * MIB
LARGE_CHUNK_BYTES = 64 * MIB


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


def regions(shape: Shape, block: Shape) -> Iterator[Region]:
    """The regions of a regular grid over `shape`, in C order; none where it has no elements.

    >>> list(regions((3,), (2,)))
    [(slice(0, 2, None),), (slice(2, 3, None),)]
    """
    if 0 in shape:  # its other axes may be said to have any size
        return
    ranges = [
        [slice(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in zip(shape, block, strict=True)
    ]
    yield from itertools.product(*ranges)


def is_last(region: Region, shape: Shape) -> bool:
    """True for the last of the `regions` of this shape."""
    return all(part.stop == size for part, size in zip(region, shape, strict=True))


def chunk_grid(region: Region, chunks: Shape) -> tuple[range, ...]:
    """Along each axis, the numbers of the chunks that a region touches.

    >>> chunk_grid((slice(4, 9),), (4,))
    (range(1, 3),)
    """
    return tuple(
        range(part.start // max(chunk, 1), -(-part.stop // max(chunk, 1)))
        for part, chunk in zip(region, chunks, strict=True)
    )


def are_whole_chunks(region: Region, chunks: Shape, shape: Shape) -> bool:
    """True for a region within an array of this shape that cuts none of its chunks.

    >>> are_whole_chunks((slice(4, 9),), (4,), (9,)), are_whole_chunks((slice(4, 6),), (4,), (9,))
    (True, False)
    """
    return all(
        part.start % max(chunk, 1) == 0
        and (part.stop % max(chunk, 1) == 0 or part.stop == size)
        and part.stop <= size
        for part, chunk, size in zip(region, chunks, shape, strict=True)
    )


def region_bytes(region: Region, dtype: str) -> int:
    """Bytes of a region in memory."""
    return math.prod(part.stop - part.start for part in region) * item_bytes(dtype)


def block_shape(source: Source, merge_bytes: int, fixed: Collection[int] = ()) -> Shape:
    """The region that is read at once: whole chunks, several where they are small.

    Axes that are `fixed` in what is made of it are the last along which chunks are put together:
    a block then has more of fewer layers, which are the chunks of the target.
    """
    item = item_bytes(source.dtype)
    if _is_vast(source.shape, item):
        return (1,) * len(source.shape)
    block = [max(1, min(c, s)) for c, s in zip(source.chunks, source.shape, strict=True)]
    last_first = reversed(range(len(block)))
    for axis in sorted(last_first, key=lambda axis: axis in fixed):
        room = merge_bytes // max(1, math.prod(block) * item)
        if room > 1 and block[axis] < source.shape[axis]:
            block[axis] = min(source.shape[axis], block[axis] * room)
    return tuple(block)


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


def target_chunks(view: View, merge_bytes: int) -> Shape:
    """The image of the source's chunks, merged while they are small, divided while they are large.

    What is put together from several arrays is not divided: a source's chunk would be decoded for
    every part of it.
    """
    if is_computed(view):
        return target_chunks(_leading(view), merge_bytes)
    if _is_vast(view.shape, item_bytes(dtype_of(view))):
        return (1,) * len(view.shape)
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


def _is_vast(shape: Shape, item: int) -> bool:
    """True for an array without elements whose other sizes are too large for a chunk."""
    return 0 in shape and math.prod(max(1, size) for size in shape) * item > LARGE_CHUNK_BYTES


def _leading(view: View) -> View:
    """The operand whose chunks a computed view takes after; of a stack, layer by layer."""
    match view:
        case Formula(operands=operands):
            return operands[0]
        case Stack(items, axis):
            return stack([_leading(item) for item in items], axis)
        case Cast(of):
            return _leading(of)
    return view


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


def check_fits(key: Key, view: View, block_bytes: int, copies: int, max_memory: int) -> None:
    """Refuses a block whose working copies do not fit in `max_memory` bytes.

    Raises:
      PlanError: it does not fit.
    """
    needed = block_bytes * copies
    if needed <= max_memory or 0 in view.shape:
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
