"""Views: what an array is, without its bytes.

A view describes how an array is made from stored ones. Views are kept in normal form, so that
describing a thing twice gives the same view, and undoing an operation gives back what was there:

>>> w = Source("w", (16, 3, 32), "float32", (16, 3, 32))
>>> stack([slot(w, 1, i) for i in range(3)], 1) == w
True
>>> stack([slot(w, 1, i) for i in range(3)], 0) == Moved(w, 1, 0)
True
>>> notation(slot(w, 1, 2))
'f32[16,32]'
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal as OneOf
from typing import TypeAlias, Union

import ml_dtypes  # noqa: F401  registers bfloat16, float8_* and int4 with numpy
import numpy as np

Shape: TypeAlias = tuple[int, ...]
View: TypeAlias = Union["Source", "Slot", "Stack", "Part", "Concat", "Moved", "Scaled", "Cast"]
Leaf: TypeAlias = Union[View, "Literal"]
"""What stands at a key: a view of stored arrays, or a value that the metadata holds itself."""


@dataclass(frozen=True)
class Source:
    """An array as it is stored.

    Attributes:
      name: its name in the store, for example `params.params.decoder.wi.kernel`.
      shape: of the stored array (typed PRNG keys: with the trailing axis of their key data).
        Where a size is smaller than what is stored, the end is padding and cut off; where it is
        larger, zeros follow.
      dtype: numpy or ml_dtypes name.
      chunks: shape of the piece that is decoded at once.
      store: path of the checkpoint item that holds it.
      kind: `array`, or `scalar` for a Python number that Orbax restores as such.
      prng_impl: for a typed PRNG key, its implementation (`threefry2x32`, `unsafe_rbg`, ...).
      encoding: how chunks are encoded; equal texts mean that equal values have equal bytes,
        given equal chunk shapes. Empty when it is not known.
    """

    name: str
    shape: Shape
    dtype: str
    chunks: Shape
    store: str = ""
    kind: OneOf["array", "scalar"] = "array"
    prng_impl: str | None = None
    encoding: str = ""


@dataclass(frozen=True)
class Slot:
    """`of[..., index, ...]`, taken at `axis`, which goes away."""

    of: View
    axis: int
    index: int
    shape: Shape = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", without_axis(self.of.shape, self.axis))


@dataclass(frozen=True)
class Stack:
    """Equally shaped views side by side along a new `axis`."""

    items: tuple[View, ...]
    axis: int
    shape: Shape = field(init=False)

    def __post_init__(self) -> None:
        shape = with_axis(self.items[0].shape, self.axis, len(self.items))
        object.__setattr__(self, "shape", shape)


@dataclass(frozen=True)
class Part:
    """`of[..., start:stop, ...]`, cut out along `axis`."""

    of: View
    axis: int
    start: int
    stop: int
    shape: Shape = field(init=False)

    def __post_init__(self) -> None:
        rest = without_axis(self.of.shape, self.axis)
        object.__setattr__(self, "shape", with_axis(rest, self.axis, self.stop - self.start))


@dataclass(frozen=True)
class Concat:
    """Views one after the other along an `axis` that they have; their other sizes are equal."""

    items: tuple[View, ...]
    axis: int
    shape: Shape = field(init=False)

    def __post_init__(self) -> None:
        rest = without_axis(self.items[0].shape, self.axis)
        size = sum(item.shape[self.axis] for item in self.items)
        object.__setattr__(self, "shape", with_axis(rest, self.axis, size))


@dataclass(frozen=True)
class Moved:
    """`of` with its axis `source` moved to position `target`, as `numpy.moveaxis` does."""

    of: View
    source: int
    target: int
    shape: Shape = field(init=False)

    def __post_init__(self) -> None:
        rest = without_axis(self.of.shape, self.source)
        object.__setattr__(self, "shape", with_axis(rest, self.target, self.of.shape[self.source]))


@dataclass(frozen=True)
class Scaled:
    """`of` with its elements multiplied by `factor`, in their own type."""

    of: View
    factor: float
    shape: Shape = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", self.of.shape)


@dataclass(frozen=True)
class Cast:
    """`of` with its elements converted to `dtype`."""

    of: View
    dtype: str
    shape: Shape = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", self.of.shape)


@dataclass(frozen=True)
class Literal:
    """A leaf without an array: its value stands in the checkpoint's metadata.

    `kind` is Orbax's value type: `None`; an empty `Dict`, `List` or `Tuple`; `string`; `scalar`.
    """

    kind: str
    value: str | int | float | None = None


NOTHING = Literal("None")
EMPTY_KINDS = ("None", "Dict", "List", "Tuple")
"""Kinds of literals that hold nothing."""


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
    whole = _whole_of_slots(views)
    if whole is not None:
        return moved(whole.of, whole.axis, axis)
    return _stack_of_parts(views, axis) or Stack(tuple(views), axis)


def _stack_of_parts(views: Sequence[View], axis: int) -> View | None:
    """Views that are all cut, or all put together, in the same way: the same done to their stack.

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


def _cut_of(view: Part) -> tuple[int, int, int, Shape]:
    return view.axis, view.start, view.stop, view.of.shape


def _sizes(view: Concat) -> tuple[int, list[int]]:
    return view.axis, [item.shape[view.axis] for item in view.items]


def part(view: View, axis: int, start: int, stop: int) -> View:
    """The view from `start` to `stop` along one axis, in normal form.

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


def permuted(view: View, order: Sequence[int]) -> View:
    """The view whose axis k is the former axis `order[k]`, as `numpy.transpose` does.

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


def cast(view: View, dtype: str) -> View:
    """The view with another element type; the same view when it has that type already."""
    return view if dtype_of(view) == dtype else Cast(view, dtype)


def scaled(view: View, factor: float) -> View:
    """The view with its elements multiplied; the same view for a factor of 1."""
    return view if factor == 1 else Scaled(view, factor)


def factor_of(view: View) -> float:
    """What the elements are multiplied by."""
    match view:
        case Scaled(of, factor):
            return factor * factor_of(of)
        case Cast(of):
            return factor_of(of)
    return 1.0


def with_kind(view: View, kind: OneOf["array", "scalar"]) -> View:
    """A stored number, cast or not, as Orbax shall restore it: an array or a Python number."""
    match view:
        case Source():
            return replace(view, kind=kind)
        case Cast(of, dtype):
            return Cast(with_kind(of, kind), dtype)
    return view


def dtype_of(view: View) -> str:
    """numpy or ml_dtypes name of the element type."""
    match view:
        case Source(dtype=dtype) | Cast(dtype=dtype):
            return dtype
        case Slot(of) | Part(of) | Moved(of) | Scaled(of):
            return dtype_of(of)
        case Stack(items) | Concat(items):
            return dtype_of(items[0])


def prng_impl_of(view: View) -> str | None:
    """The PRNG implementation when the view is of typed keys, else None."""
    return first_source(view).prng_impl


def first_source(view: View) -> Source:
    """The stored array that gives the view its kind, codec and container format."""
    while not isinstance(view, Source):
        view = view.items[0] if isinstance(view, Stack | Concat) else view.of
    return view


def with_axis(shape: Shape, axis: int, size: int) -> Shape:
    """`shape` with an axis of `size` inserted at position `axis`."""
    return (*shape[:axis], size, *shape[axis:])


def without_axis(shape: Shape, axis: int) -> Shape:
    """`shape` without its axis `axis`."""
    return (*shape[:axis], *shape[axis + 1 :])


_SHORT = {"bfloat16": "bf16", "complex64": "c64", "complex128": "c128", "bool": "bool"}
_PREFIXES = (("float", "f"), ("uint", "u"), ("int", "i"))


def short_dtype(dtype: str) -> str:
    """`float32` as `f32`, `float8_e4m3fn` as `f8_e4m3fn`."""
    for long, short in _PREFIXES:
        if dtype.startswith(long) and dtype not in _SHORT:
            return short + dtype.removeprefix(long)
    return _SHORT.get(dtype, dtype)


def notation(leaf: Leaf) -> str:
    """Element type and shape as `bf16[2048,8192]`; literals by their value."""
    if isinstance(leaf, Literal):
        empties = {"None": "None", "Dict": "{}", "List": "[]", "Tuple": "()"}
        return empties.get(leaf.kind, repr(leaf.value))
    return f"{short_dtype(dtype_of(leaf))}[{','.join(map(str, leaf.shape))}]"


def item_bytes(dtype: str) -> int:
    """Bytes of one element in memory (4-bit types take one)."""
    return np.dtype(dtype).itemsize


def size_bytes(view: View) -> int:
    """Bytes of the whole array in memory."""
    return math.prod(view.shape) * item_bytes(dtype_of(view))
