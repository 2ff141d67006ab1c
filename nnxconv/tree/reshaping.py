"""Axes of a view in another order, one axis as two, two as one, and any other shape."""

import math
from collections.abc import Iterator, Sequence

import ml_dtypes  # noqa: F401  registers bfloat16, float8_* and int4 with numpy

from nnxconv.tree.elements import cast, scaled
from nnxconv.tree.normal_form import concat, moved, part, slot, stack
from nnxconv.tree.views import Cast, Concat, Moved, Part, Scaled, Stack, View


def permuted(view: View, order: Sequence[int]) -> View:
    """The view whose axis k is the former axis `order[k]`, as `numpy.transpose` does.

    >>> from nnxconv.tree import Source
    >>> w = Source("w", (2, 3, 4), "float32", (2, 3, 4))
    >>> permuted(w, (2, 0, 1)).shape
    (4, 2, 3)
    >>> permuted(permuted(w, (2, 1, 0)), (2, 1, 0)) == w
    True
    """
    match view:
        case Part(of, axis, start, stop):
            return part(permuted(of, order), order.index(axis), start, stop)
        case Concat(items, axis):
            return concat([permuted(item, order) for item in items], order.index(axis))
        case Stack(items, axis):
            inner = [a - (a > axis) for a in order if a != axis]
            return stack([permuted(item, inner) for item in items], order.index(axis))
        case Scaled(of, factor):
            return scaled(permuted(of, order), factor)
        case Cast(of, dtype):
            return cast(permuted(of, order), dtype)
    before, total = view, list(order)
    while isinstance(before, Moved) and total != sorted(total):
        axes = [axis for axis in range(len(total)) if axis != before.source]
        axes.insert(before.target, before.source)
        before, total = before.of, [axes[axis] for axis in total]
    if total == sorted(total):
        return before
    now = list(range(len(order)))
    for place, axis in enumerate(order):
        at = now.index(axis)
        view = moved(view, at, place)
        now.insert(place, now.pop(at))
    return view


def divided(view: View, axis: int, sizes: tuple[int, int]) -> View:
    """The view with one axis as two, the second within the first, as `numpy.reshape` does.

    >>> from nnxconv.tree import Source
    >>> w = Source("w", (5, 12), "float32", (5, 12))
    >>> divided(w, 1, (3, 4)).shape
    (5, 3, 4)
    >>> merged(divided(w, 1, (3, 4)), 1) == w
    True
    """
    count, size = sizes
    return stack([part(view, axis, i * size, (i + 1) * size) for i in range(count)], axis)


def merged(view: View, axis: int) -> View:
    """The view with its axes `axis` and `axis + 1` as one, as `numpy.reshape` does."""
    return concat([slot(view, axis, i) for i in range(view.shape[axis])], axis)


def reshaped(view: View, shape: Sequence[int]) -> View:
    """The view with its elements, in their order, in another shape, as `numpy.reshape` does.

    Both shapes must have as many elements. Axes that neither shape cuts across stay whole.

    >>> from nnxconv.tree import Source
    >>> w = Source("w", (1, 6, 4, 5), "float32", (1, 6, 4, 5))
    >>> reshaped(w, (24, 5, 1)).shape, reshaped(reshaped(w, (24, 5, 1)), w.shape) == w
    ((24, 5, 1), True)
    """
    for axis in reversed(range(len(view.shape))):
        if view.shape[axis] == 1:
            view = slot(view, axis, 0)
    axis = 0
    for old, new in _parts_of_equal_size(view.shape, [size for size in shape if size != 1]):
        for _ in range(len(old) - 1 if old != new else 0):
            view = merged(view, axis)
        for place, size in enumerate(new[:-1] if old != new else ()):
            view = divided(view, axis + place, (size, math.prod(new[place + 1 :])))
        axis += len(new)
    for axis, size in enumerate(shape):
        if size == 1:
            view = stack([view], axis)
    return view


def _parts_of_equal_size(
    old: Sequence[int], new: Sequence[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """Runs of axes, as short as can be, that have as many elements on both sides.

    >>> list(_parts_of_equal_size((6, 4, 5), (24, 5)))
    [([6, 4], [24]), ([5], [5])]
    """
    left, right = list(old), list(new)
    while left or right:
        a, b = [left.pop(0)], [right.pop(0)]
        while math.prod(a) != math.prod(b):
            if math.prod(a) < math.prod(b):
                a.append(left.pop(0))
            else:
                b.append(right.pop(0))
        yield a, b
