"""Views in normal form: slots, stacks, parts, runs end to end, moved axes; each undoes another.

>>> from nnxconv.tree import Source
>>> w = Source("w", (16, 3, 32), "float32", (16, 3, 32))
>>> stack([slot(w, 1, i) for i in range(3)], 1) == w
True
>>> stack([slot(w, 1, i) for i in range(3)], 0) == Moved(w, 1, 0)
True
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import ml_dtypes  # noqa: F401  registers bfloat16, float8_* and int4 with numpy

from nnxconv.tree.elements import cast, dtype_of, scaled
from nnxconv.tree.operations import operand_axes, stacked
from nnxconv.tree.shapes import Shape
from nnxconv.tree.views import Cast, Concat, Formula, Moved, Part, Scaled, Slot, Stack, View


def slot(view: View, axis: int, index: int) -> View:
    """The view of one index along one axis, in normal form."""
    match view:
        case Stack(items, a) if a == axis:
            return items[index]
        case Moved(of, source, target) if target == axis:
            return slot(of, source, index)
        case Part(of, a, start, stop) if a != axis:
            return part(slot(of, axis, index), a - (a > axis), start, stop)
        case Concat(items, a) if a != axis:
            return concat([slot(item, axis, index) for item in items], a - (a > axis))
        case Scaled(of, factor):
            return scaled(slot(of, axis, index), factor)
        case Cast(of, dtype):
            return cast(slot(of, axis, index), dtype)
    return Slot(view, axis, index)


def stack(views: Sequence[View], axis: int) -> View:
    """The views side by side along a new axis, in normal form; their shapes must be equal."""
    first = views[0]
    if isinstance(first, Cast) and all(
        isinstance(v, Cast) and v.dtype == first.dtype for v in views
    ):
        return cast(stack([v.of for v in views if isinstance(v, Cast)], axis), first.dtype)
    if isinstance(first, Scaled) and all(
        isinstance(v, Scaled) and v.factor == first.factor for v in views
    ):
        return scaled(stack([v.of for v in views if isinstance(v, Scaled)], axis), first.factor)
    if isinstance(first, Formula):
        return _stack_of_formulas(views, axis) or Stack(tuple(views), axis)
    whole = _whole_of_slots(views)
    if whole is not None:
        return moved(whole.of, whole.axis, axis)
    return _stack_of_parts(views, axis) or Stack(tuple(views), axis)


def _stack_of_parts(views: Sequence[View], axis: int) -> View | None:
    """Views that are all cut, or all put together, in the same way: the same done to their stack.

    >>> from nnxconv.tree import Source
    >>> a, b = (Source(name, (6,), "float32", (6,)) for name in "ab")
    >>> stack([part(a, 0, 2, 6), part(b, 0, 2, 6)], 0) == Part(Stack((a, b), 0), 1, 2, 6)
    True
    """
    first = views[0]
    if isinstance(first, Part):
        alike = [v for v in views if isinstance(v, Part) and _cut_of(v) == _cut_of(first)]
        if len(alike) == len(views):
            whole = stack([v.of for v in alike], axis)
            return part(whole, first.axis + (axis <= first.axis), first.start, first.stop)
    if isinstance(first, Concat):
        rows = [v.items for v in views if isinstance(v, Concat) and _sizes(v) == _sizes(first)]
        if len(rows) == len(views):
            items = [stack(column, axis) for column in zip(*rows, strict=True)]
            return concat(items, first.axis + (axis <= first.axis))
    return None


def _stack_of_formulas(views: Sequence[View], axis: int) -> View | None:
    """Layers that are all computed in the same way: the same computed from their stacks."""
    alike = [view for view in views if isinstance(view, Formula)]
    if len(alike) < len(views) or len({(v.dtype, v.precision, len(v.operands)) for v in alike}) > 1:
        return None
    operation = stacked([view.operation for view in alike], axis)
    if operation is None:
        return None
    columns = zip(*(view.operands for view in alike), strict=True)
    axes = operand_axes(operation, len(alike[0].operands), axis)
    operands = tuple(stack(list(column), at) for column, at in zip(columns, axes, strict=True))
    return replace(alike[0], operation=operation, operands=operands)


def _cut_of(view: Part) -> tuple[int, int, int, Shape]:
    return view.axis, view.start, view.stop, view.of.shape


def _sizes(view: Concat) -> tuple[int, list[int]]:
    return view.axis, [item.shape[view.axis] for item in view.items]


def part(view: View, axis: int, start: int, stop: int) -> View:
    """The view from `start` to `stop` along one axis, in normal form.

    >>> from nnxconv.tree import Source
    >>> w = Source("w", (16, 6), "float32", (16, 6))
    >>> concat([part(w, 1, 0, 2), part(w, 1, 2, 6)], 1) == w
    True
    """
    if start == 0 and stop == view.shape[axis]:
        return view
    match view:
        case Part(of, a, before) if a == axis:
            return part(of, axis, before + start, before + stop)
        case Concat(items, a) if a == axis:
            return concat(list(_cut_items(items, axis, start, stop)), axis)
        case Scaled(of, factor):
            return scaled(part(of, axis, start, stop), factor)
        case Cast(of, dtype):
            return cast(part(of, axis, start, stop), dtype)
    return Part(view, axis, start, stop)


def _cut_items(items: Sequence[View], axis: int, start: int, stop: int) -> Iterator[View]:
    """What lies between `start` and `stop` of items that stand one after the other."""
    at = 0
    for item in items:
        size = item.shape[axis]
        first, last = max(start - at, 0), min(stop - at, size)
        if first < last:
            yield part(item, axis, first, last)
        at += size


def concat(views: Sequence[View], axis: int) -> View:
    """The views one after the other along an axis, in normal form; other sizes must be equal."""
    first = views[0]
    if len(views) == 1:
        return first
    if isinstance(first, Cast):
        inner = [v.of for v in views if isinstance(v, Cast) and v.dtype == first.dtype]
        if len(inner) == len(views) and len({dtype_of(v) for v in inner}) == 1:
            return cast(concat(inner, axis), first.dtype)
    if isinstance(first, Scaled):
        inner = [v.of for v in views if isinstance(v, Scaled) and v.factor == first.factor]
        if len(inner) == len(views):
            return scaled(concat(inner, axis), first.factor)
    items: list[View] = []
    for view in views:
        for item in view.items if isinstance(view, Concat) and view.axis == axis else (view,):
            joined = _joined(items[-1], item, axis) if items else None
            items[-1:] = [joined] if joined is not None else [*items[-1:], item]
    return items[0] if len(items) == 1 else Concat(tuple(items), axis)


def _joined(a: View, b: View, axis: int) -> View | None:
    """Two neighbouring parts of one view as one part; None when they are none."""
    match a, b:
        case Part(of, x, start, middle), Part(other, y, again, stop):
            if x == y == axis and middle == again and of == other:
                return part(of, axis, start, stop)
        case Cast(of, dtype), Cast(other, same) if dtype == same:
            joined = _joined(of, other, axis)
            return None if joined is None else cast(joined, dtype)
        case Scaled(of, factor), Scaled(other, same) if factor == same:
            joined = _joined(of, other, axis)
            return None if joined is None else scaled(joined, factor)
    return None


def _whole_of_slots(views: Sequence[View]) -> Slot | None:
    """The first slot, when the views are all slots of one array, in order."""
    first = views[0]
    if not isinstance(first, Slot) or first.of.shape[first.axis] != len(views):
        return None
    for index, view in enumerate(views):
        if not (
            isinstance(view, Slot)
            and view.index == index
            and view.axis == first.axis
            and (view.of is first.of or view.of == first.of)
        ):
            return None
    return first


def moved(view: View, source: int, target: int) -> View:
    """The view with one axis moved, in normal form."""
    if source == target:
        return view
    match view:
        case Moved(of, first, last) if last == source:
            return moved(of, first, target)
        case Stack(items, axis) if axis == source:
            return stack(items, target)
        case Part(of, axis, start, stop):
            return part(moved(of, source, target), _place_of(axis, source, target), start, stop)
        case Concat(items, axis):
            there = _place_of(axis, source, target)
            return concat([moved(item, source, target) for item in items], there)
        case Scaled(of, factor):
            return scaled(moved(of, source, target), factor)
        case Cast(of, dtype):
            return cast(moved(of, source, target), dtype)
    return Moved(view, source, target)


def _place_of(axis: int, source: int, target: int) -> int:
    """Where an axis stands once the axis `source` is moved to `target`."""
    if axis == source:
        return target
    axis -= axis > source
    return axis + (axis >= target)
