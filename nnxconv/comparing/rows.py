"""Read a checkpoint's arrays once, row by row in logical order, within a memory limit."""

import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnxconv.comparing.pairing import join_layers
from nnxconv.planning import check_fits, in_windows, is_last, region_bytes, regions
from nnxconv.running import Event, Watcher, check_memory, read_region
from nnxconv.state import LayerGroup
from nnxconv.storage import together
from nnxconv.storage.orbax import Item, Reader
from nnxconv.tree import Key, Piece, Region, Shape, View, dtype_of, item_bytes, pieces, size_bytes

ROW_COPIES = 4
_ROWS_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Joined:
    """A leaf, or the same leaf of several layers, which are on axis 0 of the view."""

    keys: tuple[Key, ...]
    view: View


def joined_layers(leaves: Mapping[Key, View], groups: Sequence[LayerGroup]) -> list[Joined]:
    """The leaves, those of layers that are stored together as one."""
    pairs = join_layers([(key, view, view) for key, view in leaves.items()], groups)
    return [Joined(pair.keys, pair.a) for pair in pairs]


@dataclass(frozen=True)
class Rows:
    """Some rows of a leaf, or of the same leaf of several layers.

    Attributes:
      keys: the leaves; with more than one, the layers are on axis 0 of the view.
      view: all of it.
      parts: the pieces of the view.
      region: where in the view the rows are.
      is_last: no more of them follow.
    """

    keys: tuple[Key, ...]
    view: View
    parts: tuple[Piece, ...]
    region: Region
    is_last: bool

    @property
    def block_bytes(self) -> int:
        """How large the rows are."""
        return region_bytes(self.region, dtype_of(self.view))

    def by_leaf(self, values: np.ndarray) -> Iterator[tuple[Key, np.ndarray]]:
        """What each leaf has of the rows' values."""
        if len(self.keys) == 1:
            yield self.keys[0], values
            return
        for layer in range(values.shape[0]):
            yield self.keys[self.region[0].start + layer], values[layer]


async def read_rows(
    joined: Sequence[Joined], item: Item, max_memory: int, watch: Watcher
) -> AsyncIterator[Sequence[tuple[Rows, np.ndarray]]]:
    """Every view, each leaf's rows in order, as many at once as fit in `max_memory`.

    Raises:
      DamagedCheckpoint: an array cannot be read.
      PlanError: one row of a stack of layers does not fit in `max_memory`.
    """
    reader = Reader(item.stores)
    leaves = sum(len(one.keys) for one in joined)
    total = sum(size_bytes(one.view) for one in joined)
    check_memory(min(max_memory, ROW_COPIES * total))
    done = done_bytes = 0
    for window in in_windows(_all_rows(joined, max_memory), max_memory // ROW_COPIES):
        reads = (read_region(reader, rows.parts, rows.region) for rows in window)
        values = await together(reads)
        yield list(zip(window, values, strict=True))
        done += sum(len(rows.keys) for rows in window if rows.is_last)
        done_bytes += sum(rows.block_bytes for rows in window)
        watch(Event(done, leaves, done_bytes, total))


def _all_rows(joined: Sequence[Joined], max_memory: int) -> Iterator[Rows]:
    """The views in runs of rows, each leaf's rows in order."""
    for one in joined:
        view, parts = one.view, tuple(pieces(one.view))
        shape = _rows_shape(one, parts, max_memory // ROW_COPIES)
        block_bytes = math.prod(shape) * item_bytes(dtype_of(view))
        check_fits(one.keys[0], view, block_bytes, ROW_COPIES, max_memory)
        for region in regions(view.shape, shape):
            yield Rows(one.keys, view, parts, region, is_last(region, view.shape))


def _rows_shape(joined: Joined, parts: Sequence[Piece], limit_bytes: int) -> Shape:
    """Whole rows of all layers: as many as a chunk has, several chunks where they are small.

    Rows too large for the limit are taken for fewer layers, and then fewer at a time, at the price
    of decoding chunks more than once.
    """
    shape = list(joined.view.shape)
    row_axis = 0 if len(joined.keys) == 1 else 1
    if len(shape) <= row_axis:
        return tuple(shape)
    chunk_rows = min(parts[0].image_of_chunks()[row_axis], shape[row_axis])
    item = item_bytes(dtype_of(joined.view))
    row_bytes = max(1, math.prod(shape) // max(1, shape[row_axis]) * item)
    fitting = min(limit_bytes, _ROWS_BYTES) // row_bytes
    block = list(shape)
    block[row_axis] = max(1, min(shape[row_axis], max(fitting // chunk_rows, 1) * chunk_rows))
    if math.prod(block) * item > limit_bytes and row_axis:
        block[0] = max(1, block[0] * limit_bytes // (math.prod(block) * item))
    if math.prod(block) * item > limit_bytes:
        block[row_axis] = max(1, block[row_axis] * limit_bytes // (math.prod(block) * item))
    return tuple(block)
