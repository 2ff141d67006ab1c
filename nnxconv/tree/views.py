"""Views: what an array is, without its bytes; each class is one way to make an array from others.

A view describes how an array is made from stored ones. Views are kept in normal form (see
`normal_form`), so that describing a thing twice gives the same view, and undoing an operation gives
back what was there.
"""

from dataclasses import dataclass, field
from typing import Literal as OneOf
from typing import TypeAlias, Union

import ml_dtypes  # noqa: F401  registers bfloat16, float8_* and int4 with numpy

from nnxconv.tree.operations import Operation
from nnxconv.tree.shapes import Shape

View: TypeAlias = Union[
    "Source", "Slot", "Stack", "Part", "Concat", "Moved", "Scaled", "Cast", "Formula"
]
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
class Over:
    """Division by a number."""

    by: float


@dataclass(frozen=True)
class Plus:
    """Addition of a number."""

    amount: float


Arithmetic: TypeAlias = float | Over | Plus
"""What is done to each element; a number multiplies it."""


@dataclass(frozen=True)
class Scaled:
    """`of` with each element multiplied by `factor`, divided by one, or added to.

    It is computed in the type of the elements, but at least in float32, and cast once.
    """

    of: View
    factor: Arithmetic
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
class Formula:
    """What an operation computes from its operands; its shape is that of the first.

    Attributes:
      operation: what is computed (see `operations`).
      operands: views without formulas.
      dtype: the element type that the result is cast to, once.
      precision: `float32` or `float64`, in which it is computed.
    """

    operation: Operation
    operands: tuple[View, ...]
    dtype: str
    precision: str = "float32"
    shape: Shape = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", self.operands[0].shape)


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


def with_axis(shape: Shape, axis: int, size: int) -> Shape:
    """`shape` with an axis of `size` inserted at position `axis`."""
    return (*shape[:axis], size, *shape[axis:])


def without_axis(shape: Shape, axis: int) -> Shape:
    """`shape` without its axis `axis`."""
    return (*shape[:axis], *shape[axis + 1 :])
