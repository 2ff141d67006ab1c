"""Values of views: read from one stored array or put together from several, then converted."""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from nnxconv.pieces import Piece, Region
from nnxconv.storage.read import Reader
from nnxconv.tasks import together
from nnxconv.views import Source, View, dtype_of, factor_of


async def read_region(reader: Reader, parts: Sequence[Piece], region: Region) -> np.ndarray:
    """The values of a region of the view that consists of `parts`, in their stored type."""
    if len(parts) == 1:
        [piece] = parts
        wanted = piece.source_region(region)
        assert wanted is not None
        return piece.turn(await reader.read(piece.source, wanted), wanted)
    values = np.empty([p.stop - p.start for p in region], np.dtype(parts[0].source.dtype))
    by_source: dict[Source, list[Piece]] = defaultdict(list)
    for piece in parts:
        if piece.source_region(region) is not None:
            by_source[piece.source].append(piece)
    await together(
        _place(reader, group, region, values)
        for alike in by_source.values()
        for group in _read_at_once(alike, region)
    )
    return values


def as_viewed(values: np.ndarray, view: View) -> np.ndarray:
    """Stored values as the view has them: multiplied, then in its element type."""
    factor = factor_of(view)
    if factor != 1:
        with np.errstate(all="ignore"):
            values = values * values.dtype.type(factor)
    return values.astype(np.dtype(dtype_of(view)), copy=False)


def _read_at_once(parts: list[Piece], region: Region) -> list[list[Piece]]:
    """Parts of one source in groups: all of them, unless there is more between them than in them.

    Slots of one stored array would otherwise decode its chunks once for each of them.
    """
    wanted = [found for piece in parts if (found := piece.source_region(region)) is not None]
    needed = sum(map(_size, wanted))
    return [parts] if _size(_around(wanted)) <= 2 * needed else [[piece] for piece in parts]


def _around(wanted: Sequence[Region]) -> Region:
    """The smallest region that holds all of these."""
    return tuple(
        slice(min(part.start for part in axis), max(part.stop for part in axis))
        for axis in zip(*wanted, strict=True)
    )


def _size(region: Region) -> int:
    return math.prod(part.stop - part.start for part in region)


def _within(inner: Region, outer: Region) -> Region:
    """A region, counted from the start of another one that holds it."""
    return tuple(
        slice(part.start - whole.start, part.stop - whole.start)
        for part, whole in zip(inner, outer, strict=True)
    )


async def _place(
    reader: Reader, parts: Sequence[Piece], region: Region, values: np.ndarray
) -> None:
    """Reads what some parts of one source have in the region, and puts it into its place."""
    wanted = [(piece, piece.source_region(region)) for piece in parts]
    around = _around([part for _, part in wanted if part is not None])
    read = await reader.read(parts[0].source, around)
    for piece, part in wanted:
        assert part is not None
        where = piece.target_region(part)
        assert where is not None
        values[_within(where, region)] = piece.turn(read[_within(part, around)], part)
