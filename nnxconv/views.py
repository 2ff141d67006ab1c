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
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal as OneOf
from typing import TypeAlias, Union

import ml_dtypes  # noqa: F401  registers bfloat16, float8_* and int4 with numpy
import numpy as np

Shape: TypeAlias = tuple[int, ...]
View: TypeAlias = Union["Source", "Slot", "Stack", "Moved", "Scaled", "Cast"]
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
    return Stack(tuple(views), axis)


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
        case Scaled(of, factor):
            return scaled(moved(of, source, target), factor)
        case Cast(of, dtype):
            return cast(moved(of, source, target), dtype)
    return Moved(view, source, target)


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
        case Slot(of) | Moved(of) | Scaled(of):
            return dtype_of(of)
        case Stack(items):
            return dtype_of(items[0])


def prng_impl_of(view: View) -> str | None:
    """The PRNG implementation when the view is of typed keys, else None."""
    return first_source(view).prng_impl


def first_source(view: View) -> Source:
    """The stored array that gives the view its kind, codec and container format."""
    while not isinstance(view, Source):
        view = view.items[0] if isinstance(view, Stack) else view.of
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
