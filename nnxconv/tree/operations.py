"""What a `Formula` computes: each operation is data, and says which regions it needs.

```
Average(w)            w[0] * x[0] + w[1] * x[1] + ..., where the weights add up to 1
Multiply(f, shape)    x * f, where f has few elements and is broadcast over x
LowRank(f, n)         w + f * (a @ b): a has the first n axes of w and the rank, b the others
Dequantize(blocks)    w * s, where each element of s is for a block of w
```

An operation is computed in float32 or float64 and cast once, by whoever runs it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, Union

import numpy as np

from nnxconv.tree.copying import contiguous
from nnxconv.tree.shapes import Region, Shape

Operation: TypeAlias = Union["Average", "Multiply", "LowRank", "Dequantize"]


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

    Operands are `w` (batch..., in..., out...), `a` (batch..., in..., rank) and `b` (batch..., rank,
    out...). With a `layer_axis` all have layers: `w` on that axis, `a` and `b` on axis 0.

    Attributes:
      factor: of the product: alpha / rank, or with the other sign to take it out again.
      in_axes: how many of the axes of `w`, layers not counted, are those of `a`.
      layer_axis: where `w` has its layers; None where it has none.
      batch: how many leading axes all three share, layers not counted.
      first: how many axes of `b` stand before those of `a` in `w`.
    """

    factor: float
    in_axes: int
    layer_axis: int | None = None
    batch: int = 0
    first: int = 0

    def __str__(self) -> str:
        return f"plus {self.factor:.6g} times a product of low rank"


@dataclass(frozen=True)
class Dequantize:
    """Quantised weights times their scales, each of which is for one block of the weights.

    Operands are `w` and `s`. The axes of `s` are the last ones of `w`, unless it has layers: those
    it has on axis 0.

    Attributes:
      blocks: for each axis of `s`, layers not counted, how long a block is along it.
      layer_axis: where `w` has its layers; None where it has none.
    """

    blocks: Shape
    layer_axis: int | None = None

    def __str__(self) -> str:
        sizes = [str(size) for size in self.blocks if size > 1]
        return f"dequantised, scales of blocks of {' x '.join(sizes) or '1'}"

    @staticmethod
    def of(weights: Shape, scales: Shape) -> "Dequantize | None":
        """The operation for weights and scales of these shapes, without layers; None if none fits.

        An axis that no number of equal blocks fills has blocks of 128, as DeepSeek has, or fits
        none.

        >>> Dequantize.of((256, 576), (2, 5)).blocks, Dequantize.of((16, 32), (1, 32)).blocks
        ((128, 128), (16, 1))
        """
        if len(scales) > len(weights):
            return Dequantize(()) if math.prod(scales) == 1 else None
        blocks = []
        for size, count in zip(weights[len(weights) - len(scales) :], scales, strict=True):
            block = size // count if count and size % count == 0 else _USUAL_BLOCK
            if -(-size // block) != count:
                return None
            blocks.append(block)
        return Dequantize(tuple(blocks))


_USUAL_BLOCK = 128


def operand_regions(operation: Operation, shapes: Sequence[Shape], region: Region) -> list[Region]:
    """The regions of all operands that a region of the result needs."""
    match operation:
        case Average() | Multiply():
            return [region] * len(shapes)
        case LowRank(_, in_axes, layer_axis, batch, first):
            own = [part for axis, part in enumerate(region) if axis != layer_axis]
            lead = [*([] if layer_axis is None else [region[layer_axis]]), *own[:batch]]
            rank = slice(0, shapes[1][-1])
            start, stop = batch + first, batch + first + in_axes
            return [
                region,
                (*lead, *own[start:stop], rank),
                (*lead, rank, *own[batch:start], *own[stop:]),
            ]
        case Dequantize(blocks, layer_axis):
            own = [part for axis, part in enumerate(region) if axis != layer_axis]
            layers = [] if layer_axis is None else [region[layer_axis]]
            own = own[len(own) - len(blocks) :]
            covered = [
                slice(part.start // block, -(-part.stop // block))
                for part, block in zip(own, blocks, strict=True)
            ]
            ones = [slice(0, 1)] * (len(shapes[1]) - len(layers) - len(blocks))
            return [region, (*layers, *ones, *covered)]


def compute(
    operation: Operation, values: Sequence[np.ndarray], region: Region, precision: str
) -> np.ndarray:
    """The values of a region of the result, in the precision, from those of the operands."""
    wide = [value.astype(precision, copy=False) for value in values]
    with np.errstate(all="ignore"):
        match operation:
            case Average(weights):
                return _average(wide, weights)
            case Multiply(factors, shape):
                whole = np.array(factors, precision).reshape(shape)
                inside = tuple(
                    slice(0, 1) if size == 1 else part
                    for size, part in zip(shape, region, strict=True)
                )
                return wide[0] * whole[inside]
            case LowRank(factor):
                product = _product(wide[1], wide[2], operation)
                product *= product.dtype.type(factor)
                product += wide[0]
                return product
            case Dequantize(blocks, layer_axis):
                return wide[0] * _spread(wide[1], region, blocks, layer_axis)


def _average(values: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """The first one where all are equal, infinities and the sign of zero included.

    It is computed in strips that a processor's cache holds.
    """
    total = np.array(values[0], order="C")
    first, *others = [contiguous(value).reshape(-1) for value in values]
    flat, away = total.reshape(-1), np.empty(min(_STRIP, total.size), total.dtype)
    for start in range(0, total.size, _STRIP):
        strip = slice(start, start + _STRIP)
        old, new = first[strip], flat[strip]
        for value, weight in zip(others, weights[1:], strict=True):
            by = away[: len(old)]
            np.subtract(value[strip], old, out=by)
            by *= by.dtype.type(weight)
            np.add(new, by, out=new, where=value[strip] != old)
    return total


_STRIP = 2**15
"""Elements."""


def _product(a: np.ndarray, b: np.ndarray, how: LowRank) -> np.ndarray:
    """`a @ b` over the rank: the axes of both beside each other, layers where `w` has them."""
    layer_axis = how.layer_axis
    lead = how.batch + (layer_axis is not None)
    rows, columns = a.shape[lead : lead + how.in_axes], b.shape[lead + 1 :]
    rank = a.shape[-1]
    left = a.reshape(*a.shape[:lead], math.prod(rows), rank)
    right = b.reshape(*b.shape[:lead], rank, math.prod(columns))
    product = (left @ right).reshape(*a.shape[:lead], *rows, *columns)
    inner = range(lead, lead + how.in_axes)
    product = np.moveaxis(product, inner, [axis + how.first for axis in inner])
    return product if layer_axis is None else np.moveaxis(product, 0, layer_axis)


def _spread(
    scales: np.ndarray, region: Region, blocks: Shape, layer_axis: int | None
) -> np.ndarray:
    """The scales that belong to a region, each as often as its block is in it."""
    own = [part for axis, part in enumerate(region) if axis != layer_axis]
    lead = 0 if layer_axis is None else 1
    scales = scales.reshape(*scales.shape[:lead], *scales.shape[scales.ndim - len(blocks) :])
    for axis, (part, block) in enumerate(zip(own[len(own) - len(blocks) :], blocks, strict=True)):
        first = part.start // block * block
        scales = np.repeat(scales, block, axis + lead)
        within = (slice(None),) * (axis + lead)
        scales = scales[*within, slice(part.start - first, part.stop - first)]
    if layer_axis is None:
        return scales
    ones = (1,) * (len(own) - len(blocks))
    scales = scales.reshape(scales.shape[0], *ones, *scales.shape[1:])
    return np.moveaxis(scales, 0, layer_axis)


def stacked(operations: Sequence[Operation], axis: int) -> Operation | None:
    """The one operation that does to stacks what each does to a layer; None where there is none.

    Operands are then stacked as `operand_axes` says.
    """
    first = operations[0]
    match first:
        case Average():
            return first if all(one == first for one in operations) else None
        case LowRank(layer_axis=None):
            is_same = all(one == first for one in operations)
            return replace(first, layer_axis=axis) if is_same else None
        case Dequantize(blocks, None):
            is_same = all(one == first for one in operations)
            return Dequantize(blocks, axis) if is_same else None
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
    if isinstance(operation, LowRank | Dequantize):
        return [axis, *[0] * (count - 1)]
    return [axis] * count
