"""Values of views: read from one stored array or put together from several, then converted."""

from collections.abc import Sequence

import numpy as np

from nnxconv.errors import BadInput
from nnxconv.pieces import Piece, Region
from nnxconv.storage.read import Reader
from nnxconv.tasks import together
from nnxconv.views import View, dtype_of, factor_of


async def read_region(reader: Reader, parts: Sequence[Piece], region: Region) -> np.ndarray:
    """The values of a region of the view that consists of `parts`, in their stored type."""
    if len(parts) == 1:
        [piece] = parts
        wanted = piece.source_region(region)
        assert wanted is not None
        return piece.turn(await reader.read(piece.source, wanted), wanted)
    values = np.empty([p.stop - p.start for p in region], np.dtype(parts[0].source.dtype))
    await together(_place(reader, piece, region, values) for piece in parts)
    return values


def as_viewed(values: np.ndarray, view: View) -> np.ndarray:
    """Stored values as the view has them: multiplied, then in its element type."""
    factor = factor_of(view)
    if factor != 1:
        with np.errstate(all="ignore"):
            values = values * values.dtype.type(factor)
    return values.astype(np.dtype(dtype_of(view)), copy=False)


def converted(values: np.ndarray, view: View, where: str) -> np.ndarray:
    """Stored values as the view has them; integers must keep their value.

    Raises:
      BadInput: an integer does not fit in the view's element type; the message names `where`.
    """
    viewed = as_viewed(values, view)
    is_integer = values.dtype.kind in "iu" and viewed.dtype != values.dtype
    if is_integer and not np.array_equal(viewed.astype(values.dtype), values):
        worst = values.flat[int(np.argmax(np.abs(values.astype(float))))]
        raise BadInput(f"{worst} does not fit in {viewed.dtype.name}", where=where)
    return viewed


async def _place(reader: Reader, piece: Piece, region: Region, values: np.ndarray) -> None:
    """Reads what a piece has in the region, and puts it into its place."""
    wanted = piece.source_region(region)
    if wanted is None:
        return
    where = piece.target_region(wanted)
    assert where is not None
    inside = tuple(
        slice(part.start - whole.start, part.stop - whole.start)
        for part, whole in zip(where, region, strict=True)
    )
    values[inside] = piece.turn(await reader.read(piece.source, wanted), wanted)
