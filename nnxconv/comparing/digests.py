"""Read a checkpoint's values in logical order, and digest them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from nnxconv.comparing.checksums import LeafDigest
from nnxconv.comparing.pairing import Pair, join_layers
from nnxconv.layouts import Survey
from nnxconv.planning import check_fits, in_windows, regions
from nnxconv.running import Event, Watcher, check_memory, ignore, read_region
from nnxconv.storage import run, together
from nnxconv.storage.orbax import Item, Reader
from nnxconv.tree import (
    Key,
    Literal,
    Piece,
    Region,
    Shape,
    View,
    dtype_of,
    item_bytes,
    notation,
    pieces,
    size_bytes,
    spell,
)

WORKING_COPIES = 4
INTEGER = "integer"


def digest_leaves(
    survey: Survey, item: Item, max_memory: int, watch: Watcher = ignore
) -> dict[str, LeafDigest]:
    """The digest of every leaf of a checkpoint, by its canonical key as it is spelled.

    Raises:
      DamagedCheckpoint: an array cannot be read.
      PlanError: one row of a stack of layers does not fit in `max_memory`.
    """
    leaves = survey.leaves()
    digests = {
        spell(key): LeafDigest(leaf.kind, (), notation(leaf))
        for key, leaf in leaves.items()
        if isinstance(leaf, Literal)
    }
    views = [(k, leaf, leaf) for k, leaf in leaves.items() if not isinstance(leaf, Literal)]
    joined = join_layers(views, survey.groups())
    hashes = run(_digest(joined, item, max_memory, watch))
    for key, view, _ in views:
        is_integer = _is_integer_scalar(view)
        dtype = INTEGER if is_integer else dtype_of(view)
        digests[spell(key)] = LeafDigest(dtype, view.shape, hashes[key])
    return digests


@dataclass(frozen=True)
class _Block:
    keys: tuple[Key, ...]
    view: View
    parts: tuple[Piece, ...]
    region: Region

    @property
    def block_bytes(self) -> int:
        size = math.prod(part.stop - part.start for part in self.region)
        return size * item_bytes(dtype_of(self.view))


async def _digest(
    joined: Sequence[Pair], item: Item, max_memory: int, watch: Watcher
) -> dict[Key, str]:
    """Reads every view in rows, in order, and feeds each leaf's hash."""
    reader = Reader(item.stores)
    hashers = {key: xxhash.xxh3_128() for pair in joined for key in pair.keys}
    total = sum(size_bytes(pair.a) for pair in joined)
    check_memory(min(max_memory, WORKING_COPIES * total))
    done = 0
    for window in in_windows(_blocks(joined, max_memory), max_memory // WORKING_COPIES):
        reads = (read_region(reader, block.parts, block.region) for block in window)
        for block, values in zip(window, await together(reads), strict=True):
            _feed(hashers, block, values)
            done += block.block_bytes
        watch(Event(len(hashers), len(hashers), done, total))
    return {key: hasher.hexdigest() for key, hasher in hashers.items()}


def _feed(hashers: Mapping[Key, Any], block: _Block, values: np.ndarray) -> None:
    if _is_integer_scalar(block.view):
        values = values.astype(np.int64)
    if len(block.keys) == 1:
        hashers[block.keys[0]].update(_bytes(values))
        return
    for layer in range(values.shape[0]):
        hashers[block.keys[block.region[0].start + layer]].update(_bytes(values[layer]))


def _bytes(values: np.ndarray) -> memoryview:
    """The elements in C order, little-endian."""
    ordered = np.ascontiguousarray(values)
    if ordered.dtype.byteorder == ">":
        ordered = ordered.astype(ordered.dtype.newbyteorder("<"))
    return ordered.reshape(-1).view(np.uint8).data


def _is_integer_scalar(view: View) -> bool:
    return view.shape == () and np.dtype(dtype_of(view)).kind in "iu"


def _blocks(joined: Sequence[Pair], max_memory: int) -> Iterator[_Block]:
    """The views in runs of rows, each leaf's rows in order."""
    for pair in joined:
        parts = tuple(pieces(pair.a))
        shape = _rows(pair, parts, max_memory // WORKING_COPIES)
        block_bytes = math.prod(shape) * item_bytes(dtype_of(pair.a))
        check_fits(pair.keys[0], pair.a, block_bytes, WORKING_COPIES, max_memory)
        for region in regions(pair.a.shape, shape):
            yield _Block(pair.keys, pair.a, parts, region)


def _rows(pair: Pair, parts: Sequence[Piece], limit_bytes: int) -> Shape:
    """Whole rows of all layers: as many as a chunk has, several chunks where they are small.

    Rows too large for the limit are taken for fewer layers, and then fewer at a time, at the price
    of decoding chunks more than once.
    """
    shape = list(pair.a.shape)
    row_axis = 0 if len(pair.keys) == 1 else 1
    if len(shape) <= row_axis:
        return tuple(shape)
    chunk_rows = min(parts[0].image_of_chunks()[row_axis], shape[row_axis])
    item = item_bytes(dtype_of(pair.a))
    row_bytes = max(1, math.prod(shape) // max(1, shape[row_axis]) * item)
    fitting = min(limit_bytes, 64 * 2**20) // row_bytes
    block = list(shape)
    block[row_axis] = max(1, min(shape[row_axis], max(fitting // chunk_rows, 1) * chunk_rows))
    if math.prod(block) * item > limit_bytes and row_axis:
        block[0] = max(1, block[0] * limit_bytes // (math.prod(block) * item))
    if math.prod(block) * item > limit_bytes:
        block[row_axis] = max(1, block[row_axis] * limit_bytes // (math.prod(block) * item))
    return tuple(block)
