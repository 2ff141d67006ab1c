"""Values of views: read from one stored array or put together from several, then converted."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from nnxconv.errors import BadInput
from nnxconv.running.strided import copies
from nnxconv.storage import in_thread, together
from nnxconv.tree import (
    Arithmetic,
    Cast,
    Formula,
    Over,
    Piece,
    Plus,
    Region,
    Source,
    Stack,
    View,
    arithmetic_of,
    compute,
    dtype_of,
    is_computed,
    operand_regions,
    pieces,
)


class Reads(Protocol):
    """What reads stored arrays."""

    async def read(self, source: Source, region: Region) -> np.ndarray:
        """The values of a region."""
        ...


async def read_region(reader: Reads, parts: Sequence[Piece], region: Region) -> np.ndarray:
    """The values of a region of the view that consists of `parts`, in their stored type."""
    if len(parts) == 1:
        [piece] = parts
        wanted = piece.source_region(region)
        assert wanted is not None
        return piece.turn(await reader.read(piece.source, wanted), wanted)
    values = np.empty([p.stop - p.start for p in region], np.dtype(parts[0].source.dtype))
    by_source: dict[Source, list[tuple[Piece, Region]]] = defaultdict(list)
    for piece in parts:
        wanted = piece.source_region(region)
        if wanted is not None:
            by_source[piece.source].append((piece, wanted))
    await together(
        _place(reader, source, reads, region, values)
        for source, found in by_source.items()
        for reads in _read_together(found)
    )
    return values


async def read_view(reader: Reads, view: View, region: Region) -> np.ndarray:
    """The values of a region of a view, computed where it is a formula, in its element type."""
    match view:
        case Formula(operation, operands, dtype, precision):
            shapes = [operand.shape for operand in operands]
            needed = operand_regions(operation, shapes, region)
            values = await together(
                read_view(reader, operand, one)
                for operand, one in zip(operands, needed, strict=True)
            )

            def computed() -> np.ndarray:
                found = compute(operation, values, region, precision)
                return found.astype(np.dtype(dtype), copy=False)

            return await in_thread(sum(one.nbytes for one in values), computed)
        case Stack(items, axis) if is_computed(view):
            inner = tuple(part for place, part in enumerate(region) if place != axis)
            layers = await together(read_view(reader, one, inner) for one in items[region[axis]])
            return np.stack(layers, axis)
        case Cast(of, dtype) if is_computed(view):
            values = await read_view(reader, of, region)
            return await in_thread(values.nbytes, values.astype, np.dtype(dtype))
    values = await read_region(reader, pieces(view), region)
    return await in_thread(values.nbytes, as_viewed, values, view)


def as_viewed(values: np.ndarray, view: View) -> np.ndarray:
    """Stored values as the view has them: computed with, then in its element type."""
    numbers = arithmetic_of(view)
    if numbers:
        wide = np.promote_types(values.dtype, np.float32) if values.itemsize < 4 else values.dtype
        values = values.astype(wide, copy=False)
        with np.errstate(all="ignore"):
            for number in numbers:
                values = _computed(values, number)
    return values.astype(np.dtype(dtype_of(view)), copy=False)


def _computed(values: np.ndarray, what: Arithmetic) -> np.ndarray:
    match what:
        case Over(by):
            return values / values.dtype.type(by)
        case Plus(amount):
            return values + values.dtype.type(amount)
        case factor:
            return values * values.dtype.type(factor)


def converted(values: np.ndarray, view: View, where: str) -> np.ndarray:
    """Stored values as the view has them; integers must keep their value, and numbers be finite.

    Raises:
      BadInput: a number does not fit in the view's element type; the message names `where`.
    """
    try:
        with np.errstate(over="raise"):
            viewed = as_viewed(values, view)
    except FloatingPointError:
        largest = np.abs(values[np.isfinite(values)].astype(float)).max()
        raise BadInput(
            f"{largest:g} does not fit in {dtype_of(view)}, of which it would be infinite",
            where=where,
            hint="`--dtype bfloat16` has the range of float32",
        ) from None
    if values.dtype.kind in "iu" and viewed.dtype != values.dtype and not _same(viewed, values):
        worst = values.flat[int(np.argmax(np.abs(values.astype(float))))]
        raise BadInput(f"{worst} does not fit in {viewed.dtype.name}", where=where)
    return viewed


def _same(viewed: np.ndarray, values: np.ndarray) -> bool:
    """True when a cast kept every integer; -1 comes back from uint32, but is not the same there."""
    is_back = np.array_equal(viewed.astype(values.dtype), values)
    return is_back and np.array_equal(viewed < 0, values < 0)


def _read_together(
    found: Sequence[tuple[Piece, Region]],
) -> list[Sequence[tuple[Piece, Region]]]:
    """The pieces of one source in groups: all, where they lie side by side, else one by one.

    A chunk that holds several pieces is then decoded once.
    """
    if len(found) > 1 and _size(_around(found)) <= sum(_size(wanted) for _, wanted in found):
        return [found]
    return [[one] for one in found]


def _around(found: Sequence[tuple[Piece, Region]]) -> Region:
    """The smallest region that holds all regions."""
    axes = zip(*(wanted for _, wanted in found), strict=True)
    return tuple(slice(min(r.start for r in runs), max(r.stop for r in runs)) for runs in axes)


def _size(region: Region) -> int:
    return math.prod(run.stop - run.start for run in region)


async def _place(
    reader: Reads,
    source: Source,
    reads: Sequence[tuple[Piece, Region]],
    region: Region,
    values: np.ndarray,
) -> None:
    """Reads what some pieces have in the region, and puts it into its places."""
    around = _around(reads)
    stored = await reader.read(source, around)

    def place() -> None:
        for one in copies(reads):
            one.carry(stored, around, values, region)

    await in_thread(stored.nbytes, place)
