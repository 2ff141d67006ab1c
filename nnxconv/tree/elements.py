"""The elements of a view: their type, their bytes, and views that convert or scale them."""

import math
from dataclasses import replace
from typing import Literal as OneOf

import ml_dtypes  # noqa: F401  registers bfloat16, float8_* and int4 with numpy
import numpy as np

from nnxconv.tree.views import (
    Arithmetic,
    Cast,
    Concat,
    Formula,
    Moved,
    Over,
    Part,
    Plus,
    Scaled,
    Slot,
    Source,
    Stack,
    View,
)


def cast(view: View, dtype: str) -> View:
    """The view with another element type; the same view when it has that type already."""
    if dtype_of(view) == dtype:
        return view
    return replace(view, dtype=dtype) if isinstance(view, Formula) else Cast(view, dtype)


def scaled(view: View, factor: Arithmetic) -> View:
    """The view with its elements multiplied; the same view for a factor of 1."""
    return view if factor in (1, Over(1), Plus(0)) else Scaled(view, factor)


def arithmetic_of(view: View) -> list[Arithmetic]:
    """What is done to each element, in order.

    Raises:
      TypeError: it differs from part to part.
    """
    match view:
        case Scaled(of, factor):
            return [*arithmetic_of(of), factor]
        case Cast(of):
            return arithmetic_of(of)
        case Stack(items) | Concat(items) if any(map(arithmetic_of, items)):
            raise TypeError("parts of one array are computed in different ways")
    return []


def told_arithmetic(view: View) -> str:
    """`times 0.25, plus 1`; empty for none."""
    told = {float: "times", Over: "over", Plus: "plus"}
    numbers = ((told.get(type(a), "times"), _number(a)) for a in arithmetic_of(view))
    return ", ".join(f"{what} {number:.6g}" for what, number in numbers)


def _number(what: Arithmetic) -> float:
    match what:
        case Over(by):
            return by
        case Plus(amount):
            return amount
        case factor:
            return factor


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
        case Source(dtype=dtype) | Cast(dtype=dtype) | Formula(dtype=dtype):
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
        if isinstance(view, Formula):
            view = view.operands[0]
        else:
            view = view.items[0] if isinstance(view, Stack | Concat) else view.of
    return view


def item_bytes(dtype: str) -> int:
    """Bytes of one element in memory (4-bit types take one)."""
    return np.dtype(dtype).itemsize


def size_bytes(view: View) -> int:
    """Bytes of the whole array in memory."""
    return math.prod(view.shape) * item_bytes(dtype_of(view))
