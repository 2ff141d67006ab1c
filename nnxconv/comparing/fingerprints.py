"""Fingerprints of a checkpoint's arrays, which are read once."""

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np

from nnxconv.comparing.rows import Joined, Rows, joined_layers, read_rows
from nnxconv.matching import Fingerprint, fingerprint
from nnxconv.running import Watcher, ignore
from nnxconv.state import LayerGroup
from nnxconv.storage import run, together
from nnxconv.storage.orbax import Item
from nnxconv.tree import Key, View


def fingerprint_leaves(
    leaves: Mapping[Key, View],
    groups: Sequence[LayerGroup],
    item: Item,
    max_memory: int,
    dtype: str | None = None,
    watch: Watcher = ignore,
) -> dict[Key, Fingerprint]:
    """The fingerprint of each array; of its elements cast to `dtype`, where one is given.

    Raises:
      DamagedCheckpoint: an array cannot be read.
      PlanError: one row of a stack of layers does not fit in `max_memory`.
    """
    return run(_fingerprints(joined_layers(leaves, groups), item, max_memory, dtype, watch))


async def _fingerprints(
    joined: Sequence[Joined], item: Item, max_memory: int, dtype: str | None, watch: Watcher
) -> dict[Key, Fingerprint]:
    found: dict[Key, Fingerprint] = {}
    async for window in read_rows(joined, item, max_memory, watch):
        tasks = (asyncio.to_thread(_of_rows, rows, values, dtype) for rows, values in window)
        for some in await together(tasks):
            for key, one in some:
                found[key] = found[key] + one if key in found else one
    return found


def _of_rows(rows: Rows, values: np.ndarray, dtype: str | None) -> list[tuple[Key, Fingerprint]]:
    with np.errstate(all="ignore"):
        cast = values if dtype is None else values.astype(np.dtype(dtype))
    return [(key, fingerprint(some)) for key, some in rows.by_leaf(cast)]
