"""What a `Formula` computes: each operation is data, and says which regions it needs.

```
Average(w)            w[0] * x[0] + w[1] * x[1] + ..., where the weights add up to 1
Multiply(f, shape)    x * f, where f has few elements and is broadcast over x
LowRank(f, n)         w + f * (a @ b): a has the first n axes of w and the rank, b the others
```

An operation is computed in float32 or float64 and cast once, by whoever runs it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, Union

import numpy as np

from nnxconv.tree.shapes import Region, Shape

Operation: TypeAlias = Union["Average", "Multiply", "LowRank"]


@dataclass(frozen=True)
class Average:
    """The mean of equally shaped operands, by weights that add up to 1.

    It is computed as `x[0] + w[1] * (x[1] - x[0]) + ...`, so that the average of equal arrays is
    that array, bit for bit.
    """

    weights: tuple[float, ...]

    def __str__(self) -> str:
        return f"averaged by {', '.join(f'{weight:.6g}' for weight in self.weights)}"


@dataclass(frozen=True)
class Multiply:
    """One operand times factors that are broadcast over it.

    Attributes:
      factors: in C order.
      shape: of the factors: as many axes as the operand, each of its size or of 1.
    """

    factors: tuple[float, ...]
    shape: Shape

    def __str__(self) -> str:
        low, high = min(self.factors), max(self.factors)
        if low == high:
            return f"times {low:.6g}"
        return f"times {len(self.factors)} factors of {low:.6g} to {high:.6g}"


@dataclass(frozen=True)
class LowRank:
    """The first operand plus `factor` times the product of two of low rank.

    Operands are `w` (in..., out...), `a` (in..., rank) and `b` (rank, out...). With a `layer_axis`
    all have layers: `w` on that axis, `a` and `b` on axis 0.

    Attributes:
      factor: of the product: alpha / rank, or with the other sign to take it out again.
      in_axes: how many of the axes of `w`, layers not counted, are those of `a`.
      layer_axis: where `w` has its layers; None where it has none.
    """

    factor: float
    in_axes: int
    layer_axis: int | None = None

    def __str__(self) -> str:
        return f"plus {self.factor:.6g} times a product of low rank"


def operand_regions(operation: Operation, shapes: Sequence[Shape], region: Region) -> list[Region]:
    """The regions of all operands that a region of the result needs."""
    match operation:
        case Average() | Multiply():
            return [region] * len(shapes)
        case LowRank(_, in_axes, layer_axis):
            own = [part for axis, part in enumerate(region) if axis != layer_axis]
            layers = [] if layer_axis is None else [region[layer_axis]]
            rank = slice(0, shapes[1][-1])
            return [
                region,
                (*layers, *own[:in_axes], rank),
                (*layers, rank, *own[in_axes:]),
            ]


def compute(
    operation: Operation, values: Sequence[np.ndarray], region: Region, precision: str
) -> np.ndarray:
    """The values of a region of the result, in the precision, from those of the operands."""
    wide = [value.astype(precision) for value in values]
    with np.errstate(all="ignore"):
        match operation:
            case Average(weights):
                first, *others = wide
                total = first.copy()
                for value, weight in zip(others, weights[1:], strict=True):
                    away = np.where(value == first, 0, value - first)
                    total += away * np.dtype(precision).type(weight)
                return total
            case Multiply(factors, shape):
                whole = np.array(factors, precision).reshape(shape)
                inside = tuple(
                    slice(0, 1) if size == 1 else part
                    for size, part in zip(shape, region, strict=True)
                )
                return wide[0] * whole[inside]
            case LowRank(factor, in_axes, layer_axis):
                return wide[0] + np.dtype(precision).type(factor) * _product(
                    wide[1], wide[2], in_axes, layer_axis
                )


def _product(a: np.ndarray, b: np.ndarray, in_axes: int, layer_axis: int | None) -> np.ndarray:
    """`a @ b` over the rank: the axes of both beside each other, layers where `w` has them."""
    lead = 0 if layer_axis is None else 1
    rows, columns = a.shape[lead : lead + in_axes], b.shape[lead + 1 :]
    rank = a.shape[-1]
    left = a.reshape(*a.shape[:lead], math.prod(rows), rank)
    right = b.reshape(*b.shape[:lead], rank, math.prod(columns))
    product = (left @ right).reshape(*a.shape[:lead], *rows, *columns)
    return product if layer_axis is None else np.moveaxis(product, 0, layer_axis)


def stacked(operations: Sequence[Operation], axis: int) -> Operation | None:
    """The one operation that does to stacks what each does to a layer; None where there is none.

    Operands are then stacked as `operand_axes` says.
    """
    first = operations[0]
    match first:
        case Average():
            return first if all(one == first for one in operations) else None
        case LowRank(factor, in_axes, None):
            is_same = all(one == first for one in operations)
            return LowRank(factor, in_axes, axis) if is_same else None
        case Multiply(_, shape):
            alike = [o for o in operations if isinstance(o, Multiply) and o.shape == shape]
            if len(alike) != len(operations):
                return None
            layers = [np.array(one.factors).reshape(shape) for one in alike]
            whole = np.stack(layers, axis)
            return Multiply(tuple(whole.reshape(-1).tolist()), whole.shape)
    return None


def operand_axes(operation: Operation, count: int, axis: int) -> list[int]:
    """On which axis each operand of a layer's operation is stacked."""
    return [axis, 0, 0] if isinstance(operation, LowRank) else [axis] * count
