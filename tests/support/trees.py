"""Read a whole item with TensorStore alone, independently of the package's own reader."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  numpy needs its names
import numpy as np
import tensorstore as ts

Entry = tuple[str, str, tuple[int, ...] | None, str | None]


def entries(item: Path) -> dict[tuple[str, ...], tuple[str, str]]:
    """Path to (container kinds such as `dsd`, value type) for every leaf in `_METADATA`."""
    metadata = json.loads((item / "_METADATA").read_text())
    found = {}
    for entry in metadata["tree_metadata"].values():
        parts = entry["key_metadata"]
        kinds = "".join({1: "s", 2: "d"}[part["key_type"]] for part in parts)
        path = tuple(part["key"] for part in parts)
        found[path] = (kinds, entry["value_metadata"]["value_type"])
    return found


def values(item: Path) -> dict[tuple[str, ...], np.ndarray]:
    """Path to values for every array."""
    metadata = json.loads((item / "_METADATA").read_text())
    base = {"driver": "file", "path": f"{item.resolve()}/"}
    kvstore = {"driver": "ocdbt", "base": base} if metadata["use_ocdbt"] else base
    driver = "zarr3" if metadata["use_zarr3"] else "zarr"
    opened = {}
    for path, (_, value_type) in entries(item).items():
        if value_type in ("jax.Array", "np.ndarray", "scalar"):
            prefix = kvstore.get("path", "") + ".".join(path) + "/"
            spec: dict[str, Any] = {"driver": driver, "kvstore": {**kvstore, "path": prefix}}
            opened[path] = ts.open(spec, open=True)
    reads = {path: future.result().read() for path, future in opened.items()}
    return {path: np.asarray(read.result()) for path, read in reads.items()}


def shape_tree(item: Path) -> dict[tuple[str, ...], Entry]:
    """Path to (containers, kind, shape, dtype); every way to hold an array counts as `array`."""
    arrays = values(item)
    tree = {}
    for path, (kinds, value_type) in entries(item).items():
        kind = "array" if value_type in ("jax.Array", "np.ndarray") else value_type
        array = arrays.get(path)
        shape = None if array is None else array.shape
        tree[path] = (kinds, kind, shape, None if array is None else array.dtype.name)
    return tree


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """True for equal shapes, types and bytes; NaNs count by their bits."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
