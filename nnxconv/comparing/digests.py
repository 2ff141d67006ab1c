"""Read a checkpoint's values in logical order, and digest them."""

from collections.abc import Sequence

import numpy as np
import xxhash

from nnxconv.comparing.checksums import LeafDigest
from nnxconv.comparing.rows import Joined, joined_layers, read_rows
from nnxconv.layouts import Survey
from nnxconv.running import Watcher, ignore
from nnxconv.state import arrays_of
from nnxconv.storage import run
from nnxconv.storage.orbax import Item
from nnxconv.tree import Key, Literal, View, dtype_of, notation, spell

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
    views = arrays_of(leaves)
    hashes = run(_digest(joined_layers(views, survey.groups()), item, max_memory, watch))
    for key, view in views.items():
        is_integer = _is_integer_scalar(view)
        dtype = INTEGER if is_integer else dtype_of(view)
        digests[spell(key)] = LeafDigest(dtype, view.shape, hashes[key])
    return digests


async def _digest(
    joined: Sequence[Joined], item: Item, max_memory: int, watch: Watcher
) -> dict[Key, str]:
    """Feeds each leaf's hash with its rows, in their order."""
    hashers = {key: xxhash.xxh3_128() for one in joined for key in one.keys}
    async for window in read_rows(joined, item, max_memory, watch):
        for rows, values in window:
            whole = values.astype(np.int64) if _is_integer_scalar(rows.view) else values
            for key, some in rows.by_leaf(whole):
                hashers[key].update(_bytes(some))
    return {key: hasher.hexdigest() for key, hasher in hashers.items()}


def _bytes(values: np.ndarray) -> memoryview:
    """The elements in C order, little-endian."""
    ordered = np.ascontiguousarray(values)
    if ordered.dtype.byteorder == ">":
        ordered = ordered.astype(ordered.dtype.newbyteorder("<"))
    return ordered.reshape(-1).view(np.uint8).data


def _is_integer_scalar(view: View) -> bool:
    return view.shape == () and np.dtype(dtype_of(view)).kind in "iu"
