"""Which arrays can be taken over without being decoded: their encoded chunks only change keys."""

import itertools
import math
from collections.abc import Iterator

from nnxconv.planning.blocks import SMALL_CHUNK_BYTES
from nnxconv.tree import (
    Piece,
    Shape,
    Source,
    View,
    counted,
    dtype_of,
    is_computed,
    item_bytes,
    pieces,
    sources_of,
    told_arithmetic,
)


def why_rewrite(view: View, store: str | None = None) -> str:
    """Why the stored chunks cannot be taken over as they are; empty when they can.

    They can when each chunk of a source is, element by element in C order, one chunk of the view:
    for a stored array itself, for a stack whose layers become one chunk each, and for a slot of
    such a stack.
    """
    if is_computed(view):
        return f"computed from {counted(len(set(sources_of(view))), 'array')}"
    parts = pieces(view)
    first = parts[0]
    if any(not piece.is_whole_chunks(view.shape) for piece in parts):
        return "its parts are not whole chunks"
    if dtype_of(view) != first.source.dtype:
        return f"cast to {dtype_of(view)}"
    if told := told_arithmetic(view):
        return told
    if store is not None and any(piece.source.store != store for piece in parts):
        return "it comes from another checkpoint" if store else "the container is another one"
    if not first.source.encoding:
        return "its chunks are not stored in C order, one by one"
    image = first.image_of_chunks()
    for piece in parts:
        if piece.source.encoding != first.source.encoding:
            return "its layers are encoded differently"
        if piece is not first and piece.image_of_chunks() != image:
            return "its layers have different chunks"
        if any(piece.source.chunks[axis] != 1 for axis in piece.fixed):
            return "one chunk holds several layers"
        order = [axis for axis, _ in piece.chunk_order()]
        if order != sorted(order, key=lambda axis: axis or 0):
            return "its axes change their order within a chunk"
    chunk_bytes = math.prod(image) * item_bytes(first.source.dtype)
    if len(parts) > 1 and chunk_bytes < SMALL_CHUNK_BYTES:
        return "its chunks would be small: they are merged"
    return ""


def renamed_chunks(view: View) -> Iterator[tuple[Source, Shape, Shape]]:
    """For a view that is renamed: each stored array, the index of a chunk, and its new index."""
    for piece in pieces(view):
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
