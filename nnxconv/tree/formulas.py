"""Views that are computed: which of them are, what they are made of, and what a region costs."""

import math
from collections.abc import Iterator, Sequence

from nnxconv.tree.elements import dtype_of, item_bytes
from nnxconv.tree.operations import operand_regions
from nnxconv.tree.piece import pieces
from nnxconv.tree.shapes import Region
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


def is_computed(view: View) -> bool:
    """True for a formula, or a stack of them."""
    match view:
        case Formula():
            return True
        case Stack(items):
            return any(map(is_computed, items))
        case Cast(of):
            return is_computed(of)
    return False


def computed_in(precision: str, operands: Sequence[View]) -> str:
    """In which precision a formula of these operands is computed: no value of them is rounded.

    >>> computed_in("float32", [Source("w", (2,), "float64", (2,))])
    'float64'
    """
    return "float64" if any(dtype_of(one) == "float64" for one in operands) else precision


def sources_of(view: View) -> Iterator[Source]:
    """The stored arrays that a view is made of; one may come several times."""
    match view:
        case Formula(operands=operands):
            for operand in operands:
                yield from sources_of(operand)
        case Stack(items):
            for item in items:
                yield from sources_of(item)
        case Cast(of) if is_computed(of):
            yield from sources_of(of)
        case _:
            found = set(_stored(view, set()))
            yield from found if len(found) == 1 else (piece.source for piece in pieces(view))


def _stored(view: View, seen: set[int]) -> Iterator[Source]:
    """The stored arrays within a view, of which a slot or a part may leave some out."""
    if id(view) in seen:
        return
    seen.add(id(view))
    match view:
        case Source():
            yield view
        case Stack(items) | Concat(items):
            for item in items:
                yield from _stored(item, seen)
        case Slot(of) | Part(of) | Moved(of) | Scaled(of) | Cast(of):
            yield from _stored(of, seen)


def region_cost(view: View, region: Region) -> int:
    """Bytes in memory while a region is computed: operands stored and widened, and the result."""
    size = math.prod(part.stop - part.start for part in region)
    match view:
        case Formula(operation, operands, dtype, precision):
            shapes = [operand.shape for operand in operands]
            needed = operand_regions(operation, shapes, region)
            wide = item_bytes(precision)
            sizes = [math.prod(part.stop - part.start for part in one) for one in needed]
            read = sum(
                count * (item_bytes(dtype_of(operand)) + wide)
                for count, operand in zip(sizes, operands, strict=True)
            )
            return read + size * (wide + item_bytes(dtype))
        case Stack(items, axis):
            inner = tuple(part for place, part in enumerate(region) if place != axis)
            layers = region[axis]
            return sum(region_cost(item, inner) for item in items[layers])
        case Cast(of):
            return region_cost(of, region)
    return size * item_bytes(dtype_of(view))
