"""Large checkpoints, written chunk by chunk and never held in memory."""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorstore as ts

TYPES = {"float32": "<f4", "bfloat16": "bfloat16"}


class Builder:
    """An item whose arrays are written chunk by chunk, never held in memory."""

    def __init__(self, item: Path) -> None:
        item.mkdir()
        self._item = item
        self._base = {"driver": "file", "path": f"{item}/"}
        self._names: list[str] = []

    def add(self, name, shape, chunks, block=None, dtype="float32") -> None:
        """An array whose chunks are all `block`; without one, nothing but its metadata."""
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "ocdbt", "base": self._base, "path": f"{name}/"},
            "metadata": {
                "shape": shape,
                "chunks": chunks,
                "dtype": TYPES[dtype],
                "compressor": {"id": "zstd", "level": 1},
            },
        }
        self._names.append(name)
        store = ts.open(spec, create=True).result()
        if block is None:
            return
        for start in itertools.product(*map(range, (0,) * len(shape), shape, chunks)):
            store[tuple(map(slice, start, np.add(start, chunks)))].write(block).result()

    def finish(self) -> Path:
        """Writes what Orbax says about the tree."""
        self.describe(self._item, self._names)
        return self._item

    @staticmethod
    def describe(item: Path, names: Iterable[str]) -> None:
        """Says what arrays an item has."""
        tree = {
            name: {
                "key_metadata": [{"key": part, "key_type": 2} for part in name.split(".")],
                "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
            }
            for name in names
        }
        metadata = {"tree_metadata": tree, "use_ocdbt": True, "use_zarr3": False}
        (item / "_METADATA").write_text(json.dumps(metadata))

    def repeat(self, model, *names) -> None:
        """Gives further arrays the chunk of another one, all in one data file."""
        spec = {"driver": "ocdbt", "base": self._base}
        store = ts.KvStore.open(spec).result()
        value = store.read(f"{model}/0.0").result().value
        with ts.Transaction(atomic=True) as transaction:
            for name in names:
                store.with_transaction(transaction).write(f"{name}/0.0", value).result()
