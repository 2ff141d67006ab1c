"""Views taken to pieces: which part of which stored array ends up where in a new one.

Every view is a set of pieces. A piece is a stored array, some of its axes fixed at an index, the
others each becoming an axis of the new array, or a part of one, placed at fixed indices of the new
array's remaining axes:

>>> from nnxconv.tree import Source, Stack, slot
>>> w = Source("w", (16, 3, 32), "float32", (16, 3, 32))
>>> [piece] = pieces(slot(w, 1, 2))
>>> piece.axes, piece.fixed, piece.placed
((0, None, 1), {1: 2}, {})
>>> b = Source("b", (16,), "float32", (16,))
>>> [first, second] = pieces(Stack((b, b), axis=1))
>>> second.axes, second.placed
((0,), {1: 1})
"""

import itertools
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from nnxconv.tree.shapes import Region, Shape
from nnxconv.tree.views import (
    Cast,
    Concat,
    Formula,
    Moved,
    Part,
    Scaled,
    Slot,
    Source,
    Stack,
    View,
)


@dataclass(frozen=True)
class Span:
    """Source indices `start` to `stop` of an axis stand at `at` and after in the view."""

    start: int
    stop: int
    at: int


@dataclass(frozen=True)
class Piece:
    """One stored array inside a view.

    Attributes:
      source: the stored array.
      axes: for each axis of the source, the axis of the view it becomes, or None where fixed.
      fixed: source axes that are fixed, and at which index.
      placed: view axes that do not come from the source, and the index of the piece there.
      spans: source axes of which only a part is in the view, or which do not start at its start.
    """

    source: Source
    axes: tuple[int | None, ...]
    fixed: Mapping[int, int] = field(default_factory=dict)
    placed: Mapping[int, int] = field(default_factory=dict)
    spans: Mapping[int, Span] = field(default_factory=dict)

    def span(self, source_axis: int) -> Span:
        """Which part of a source axis is in the view, and where."""
        whole = Span(0, self.source.shape[source_axis], 0)
        return self.spans.get(source_axis, whole)

    @property
    def rank(self) -> int:
        """The number of axes of the view."""
        return len(self.placed) + sum(axis is not None for axis in self.axes)

    @property
    def is_whole_source(self) -> bool:
        """True when the view is the stored array itself, with its axes in their order."""
        is_whole = not (self.fixed or self.placed or self.spans)
        return is_whole and self.axes == tuple(range(len(self.source.shape)))

    def image_of_chunks(self) -> Shape:
        """The shape that one chunk of the source has in the view."""
        image = [1] * self.rank
        for source_axis, (axis, size) in enumerate(zip(self.axes, self.source.chunks, strict=True)):
            if axis is not None:
                image[axis] = size
                span = self.spans.get(source_axis)
                if span and (span.start % max(size, 1) or span.at % max(size, 1)):
                    image[axis] = min(size, span.stop - span.start)
        return tuple(image)

    def is_whole_chunks(self, shape: Shape) -> bool:
        """True when no chunk is cut, and each is a chunk of a view of this shape."""
        return all(
            span.start % chunk == span.at % chunk == 0
            and ((span.stop - span.start) % chunk == 0 or self._ends_both(source_axis, shape))
            for source_axis, span in self.spans.items()
            if (chunk := max(self.source.chunks[source_axis], 1))
        )

    def _ends_both(self, source_axis: int, shape: Shape) -> bool:
        """True when a span ends where the source and the view do."""
        span, axis = self.spans[source_axis], self.axes[source_axis]
        is_last = axis is None or span.at + span.stop - span.start == shape[axis]
        return is_last and span.stop == self.source.shape[source_axis]

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
                inside = self._inside(source_axis, part)
                if inside is None:
                    return None
                target[axis] = _shifted(inside, self._offset(source_axis))
            elif not part.start <= self.fixed[source_axis] < part.stop:
                return None
        for axis, index in self.placed.items():
            target[axis] = slice(index, index + 1)
        return tuple(target)

    def source_region(self, region: Region) -> Region | None:
        """The region of the source that lies in a region of the view; None when none does."""
        if not all(region[a].start <= i < region[a].stop for a, i in self.placed.items()):
            return None
        wanted: list[slice] = []
        for source_axis, axis in enumerate(self.axes):
            if axis is None:
                wanted.append(slice(self.fixed[source_axis], self.fixed[source_axis] + 1))
                continue
            there = _shifted(region[axis], -self._offset(source_axis))
            inside = self._inside(source_axis, there)
            if inside is None:
                return None
            wanted.append(inside)
        return tuple(wanted)

    def _inside(self, source_axis: int, wanted: slice) -> slice | None:
        """What of a run of source indices is in the view; None when nothing is."""
        span = self.spans.get(source_axis)
        if span is None:
            return wanted
        start, stop = max(wanted.start, span.start), min(wanted.stop, span.stop)
        return slice(start, stop) if start < stop else None

    def _offset(self, source_axis: int) -> int:
        span = self.spans.get(source_axis)
        return 0 if span is None else span.at - span.start

    def turn(self, values: np.ndarray, region: Region) -> np.ndarray:
        """The values of a source region as far as they stand in the view, and as they do (no copy).

        The region must have something of the piece.
        """
        index: list[slice | int] = []
        for place, axis in enumerate(self.axes):
            if axis is None:
                index.append(self.fixed[place] - region[place].start)
            else:
                inside = self._inside(place, region[place])
                assert inside is not None
                index.append(_shifted(inside, -region[place].start))
        kept = [axis for axis in self.axes if axis is not None]
        turned = values[tuple(index)].transpose(sorted(range(len(kept)), key=kept.__getitem__))
        return np.expand_dims(turned, tuple(self.placed))


def _shifted(run: slice, by: int) -> slice:
    return slice(run.start + by, run.stop + by) if by else run


def pieces(view: View) -> list[Piece]:
    """The pieces of a view; together they cover it, and no two overlap.

    Those of the views that were asked for last are kept while the views are, for a plan asks for
    the same ones often.

    Raises:
      TypeError: the view is computed, which is done in `formulas`.
    """
    found = _KEPT.get(view)
    if found is None:
        found = _pieces(view, {})
        if len(found) > 1:
            _KEPT.put(view, found)
    return found


class _Kept:
    """Views of several pieces, and those, by the view's identity; the oldest goes first.

    A view's pieces go when the view does, so that nothing is left of a plan that is done. Threads
    share them; the lock may be taken anew within, where a view goes meanwhile.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._total = 0
        self._found: dict[int, tuple[weakref.ref[View], list[Piece]]] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return self._total

    def get(self, view: View) -> list[Piece] | None:
        found = self._found.get(id(view))
        return found[1] if found is not None and found[0]() is view else None

    def put(self, view: View, found: list[Piece]) -> None:
        if len(found) > self._most:
            return
        with self._lock:
            self._drop(id(view))
            while self._total + len(found) > self._most:
                self._drop(next(iter(self._found)))
            number = id(view)
            gone = weakref.ref(view, lambda own: self._forget(number, own))
            self._found[number] = gone, found
            self._total += len(found)

    def _forget(self, number: int, own: weakref.ref[View]) -> None:
        with self._lock:
            if number in self._found and self._found[number][0] is own:
                self._drop(number)

    def _drop(self, number: int) -> None:
        known = self._found.pop(number, None)
        self._total -= 0 if known is None else len(known[1])


_KEPT = _Kept(2**15)
"""Some 30 MB at most."""


def _pieces(view: View, known: dict[int, list[Piece]]) -> list[Piece]:
    """The same; `known` are those of views within, which may stand there many times."""
    if id(view) not in known:
        known[id(view)] = _made(view, known)
    return known[id(view)]


def _made(view: View, known: dict[int, list[Piece]]) -> list[Piece]:
    match view:
        case Source(shape=shape):
            return [Piece(view, tuple(range(len(shape))))]
        case Scaled(of) | Cast(of):
            return _pieces(of, known)
        case Slot(of, axis, index):
            found = [_take(piece, axis, index) for piece in _pieces(of, known)]
            return [piece for piece in found if piece is not None]
        case Stack(items, axis):
            both = enumerate(items)
            return [_place(piece, axis, i) for i, of in both for piece in _pieces(of, known)]
        case Part(of, axis, start, stop):
            cut = [_cut(piece, axis, start, stop) for piece in _pieces(of, known)]
            return [piece for piece in cut if piece is not None]
        case Concat(items, axis):
            starts = itertools.accumulate((item.shape[axis] for item in items), initial=0)
            both = zip(items, starts, strict=False)
            return [_pushed(piece, axis, at) for of, at in both for piece in _pieces(of, known)]
        case Moved(of, source, target):
            rank = len(view.shape)
            order = [axis for axis in range(rank) if axis != source]
            order.insert(target, source)
            return [_permute(piece, order) for piece in _pieces(of, known)]
        case Formula():
            raise TypeError("a formula has no pieces")


def _take(piece: Piece, axis: int, index: int) -> Piece | None:
    """The piece in `view[..., index, ...]`."""
    placed = dict(piece.placed)
    fixed = dict(piece.fixed)
    axes = list(piece.axes)
    spans = dict(piece.spans)
    if axis in placed:
        if placed.pop(axis) != index:
            return None
    else:
        place = axes.index(axis)
        axes[place] = None
        span = spans.pop(place, None) or piece.span(place)
        fixed[place] = index - span.at + span.start
        if not span.start <= fixed[place] < span.stop:
            return None

    def down(a: int) -> int:
        return a - (a > axis)

    return Piece(
        piece.source,
        tuple(None if a is None else down(a) for a in axes),
        fixed,
        {down(a): i for a, i in placed.items()},
        spans,
    )


def _cut(piece: Piece, axis: int, start: int, stop: int) -> Piece | None:
    """The piece in `view[..., start:stop, ...]`."""
    if axis in piece.placed:
        is_in = start <= piece.placed[axis] < stop
        return _pushed(piece, axis, -start) if is_in else None
    place = piece.axes.index(axis)
    span = piece.span(place)
    first = max(span.start, span.start + start - span.at)
    last = min(span.stop, span.start + stop - span.at)
    if first >= last:
        return None
    moved = Span(first, last, span.at + first - span.start - start)
    return replace(piece, spans={**piece.spans, place: moved})


def _pushed(piece: Piece, axis: int, by: int) -> Piece:
    """The piece in a view that has it `by` indices further along an axis."""
    if axis in piece.placed:
        return replace(piece, placed={**piece.placed, axis: piece.placed[axis] + by})
    place = piece.axes.index(axis)
    span = piece.span(place)
    return replace(piece, spans={**piece.spans, place: replace(span, at=span.at + by)})


def _place(piece: Piece, axis: int, index: int) -> Piece:
    """The piece in a stack, where its view is item `index`."""

    def up(a: int) -> int:
        return a + (a >= axis)

    return Piece(
        piece.source,
        tuple(None if a is None else up(a) for a in piece.axes),
        piece.fixed,
        {**{up(a): i for a, i in piece.placed.items()}, axis: index},
        piece.spans,
    )


def _permute(piece: Piece, order: list[int]) -> Piece:
    """The piece in a view whose axis k is the former axis `order[k]`."""
    new = {old: k for k, old in enumerate(order)}
    return Piece(
        piece.source,
        tuple(None if a is None else new[a] for a in piece.axes),
        piece.fixed,
        {new[a]: i for a, i in piece.placed.items()},
        piece.spans,
    )
