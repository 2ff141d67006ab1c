"""Views taken to pieces: which part of which stored array ends up where in a new one.

Every view is a set of pieces. A piece is a stored array, some of its axes fixed at an index, the
others each becoming an axis of the new array, placed at fixed indices of the new array's
remaining axes:

>>> from nnxconv.views import Source, Stack, slot
>>> w = Source("w", (16, 3, 32), "float32", (16, 3, 32))
>>> [piece] = pieces(slot(w, 1, 2))
>>> piece.axes, piece.fixed, piece.placed
((0, None, 1), {1: 2}, {})
>>> b = Source("b", (16,), "float32", (16,))
>>> [first, second] = pieces(Stack((b, b), axis=1))
>>> second.axes, second.placed
((0,), {1: 1})
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from nnxconv.views import Cast, Moved, Scaled, Shape, Slot, Source, Stack, View

Region = tuple[slice, ...]


@dataclass(frozen=True)
class Piece:
    """One stored array inside a view.

    Attributes:
      source: the stored array.
      axes: for each axis of the source, the axis of the view it becomes, or None where fixed.
      fixed: source axes that are fixed, and at which index.
      placed: view axes that do not come from the source, and the index of the piece there.
    """

    source: Source
    axes: tuple[int | None, ...]
    fixed: Mapping[int, int] = field(default_factory=dict)
    placed: Mapping[int, int] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The number of axes of the view."""
        return len(self.placed) + sum(axis is not None for axis in self.axes)

    def image_of_chunks(self) -> Shape:
        """The shape that one chunk of the source has in the view."""
        image = [1] * self.rank
        for axis, size in zip(self.axes, self.source.chunks, strict=True):
            if axis is not None:
                image[axis] = size
        return tuple(image)

    def chunk_order(self) -> list[tuple[int | None, int]]:
        """The view's axes in the order of a chunk's elements, and its extents; axes of 1 left out.

        Two pieces with equal orders have equal values in the view where their chunks are equal.
        """
        extents = zip(self.axes, self.source.chunks, strict=True)
        return [(axis, size) for axis, size in extents if size != 1]

    def target_region(self, region: Region) -> Region | None:
        """Where a region of the source lies in the view; None when it is outside the piece."""
        target = [slice(0, 1)] * self.rank
        for source_axis, part in enumerate(region):
            axis = self.axes[source_axis]
            if axis is not None:
                target[axis] = part
            elif not part.start <= self.fixed[source_axis] < part.stop:
                return None
        for axis, index in self.placed.items():
            target[axis] = slice(index, index + 1)
        return tuple(target)

    def source_region(self, region: Region) -> Region | None:
        """The region of the source that lies in a region of the view; None when none does."""
        if not all(region[a].start <= i < region[a].stop for a, i in self.placed.items()):
            return None
        return tuple(
            slice(self.fixed[source_axis], self.fixed[source_axis] + 1)
            if axis is None
            else region[axis]
            for source_axis, axis in enumerate(self.axes)
        )

    def turn(self, values: np.ndarray, region: Region) -> np.ndarray:
        """The values of a source region as they stand in the view (no copy)."""
        index = tuple(
            slice(None) if axis is not None else self.fixed[place] - region[place].start
            for place, axis in enumerate(self.axes)
        )
        kept = [axis for axis in self.axes if axis is not None]
        turned = values[index].transpose(sorted(range(len(kept)), key=kept.__getitem__))
        return np.expand_dims(turned, tuple(self.placed))


def pieces(view: View) -> list[Piece]:
    """The pieces of a view; together they cover it, and no two overlap."""
    match view:
        case Source(shape=shape):
            return [Piece(view, tuple(range(len(shape))))]
        case Scaled(of) | Cast(of):
            return pieces(of)
        case Slot(of, axis, index):
            found = [_take(piece, axis, index) for piece in pieces(of)]
            return [piece for piece in found if piece is not None]
        case Stack(items, axis):
            return [_place(p, axis, i) for i, item in enumerate(items) for p in pieces(item)]
        case Moved(of, source, target):
            rank = len(view.shape)
            order = [axis for axis in range(rank) if axis != source]
            order.insert(target, source)
            return [_permute(piece, order) for piece in pieces(of)]


def _take(piece: Piece, axis: int, index: int) -> Piece | None:
    """The piece in `view[..., index, ...]`."""
    placed = dict(piece.placed)
    fixed = dict(piece.fixed)
    axes = list(piece.axes)
    if axis in placed:
        if placed.pop(axis) != index:
            return None
    else:
        place = axes.index(axis)
        axes[place] = None
        fixed[place] = index

    def down(a: int) -> int:
        return a - (a > axis)

    return Piece(
        piece.source,
        tuple(None if a is None else down(a) for a in axes),
        fixed,
        {down(a): i for a, i in placed.items()},
    )


def _place(piece: Piece, axis: int, index: int) -> Piece:
    """The piece in a stack, where its view is item `index`."""

    def up(a: int) -> int:
        return a + (a >= axis)

    return Piece(
        piece.source,
        tuple(None if a is None else up(a) for a in piece.axes),
        piece.fixed,
        {**{up(a): i for a, i in piece.placed.items()}, axis: index},
    )


def _permute(piece: Piece, order: list[int]) -> Piece:
    """The piece in a view whose axis k is the former axis `order[k]`."""
    new = {old: k for k, old in enumerate(order)}
    return Piece(
        piece.source,
        tuple(None if a is None else new[a] for a in piece.axes),
        piece.fixed,
        {new[a]: i for a, i in piece.placed.items()},
    )
