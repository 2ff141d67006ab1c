"""New arrays of an item: what each is, what describes it on disk, and numbers as arrays."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorstore as ts
from etils import epath

from nnxconv.storage.orbax.item import array_name
from nnxconv.storage.zarr import (
    OCDBT_CONFIG,
    ZARR2_FILE,
    ZARR3_FILE,
    ArrayFormat,
    Container,
    compressed,
    kvstore_spec,
    new_array_spec,
    new_context,
    target_metadata,
)
from nnxconv.tree import Key, Leaf, Literal, Source


@dataclass(frozen=True)
class NewArray:
    """An array of the target: what Orbax shall restore it as, and its metadata on disk."""

    key: Key
    value_type: str
    zarr_format: int
    metadata: Mapping[str, Any]
    prng_impl: str | None = None


def metadata_entry(array: NewArray) -> tuple[str, bytes]:
    """Where the metadata of an array is stored, and its text."""
    file = ZARR2_FILE if array.zarr_format == 2 else ZARR3_FILE
    return f"{array_name(array.key)}/{file}", json.dumps(array.metadata).encode()


def stored_leaf(
    key: Key,
    leaf: Leaf,
    formats: Mapping[str, ArrayFormat],
    store: str,
    arrays: Mapping[Key, NewArray],
) -> Leaf:
    """A leaf of a new tree as it is stored."""
    if isinstance(leaf, Literal):
        return leaf
    stored = formats[array_name(key)]
    kind = "scalar" if arrays[key].value_type == "scalar" else "array"
    impl = arrays[key].prng_impl
    return Source(array_name(key), stored.shape, stored.dtype, stored.chunks, store, kind, impl)


async def write_scalars(
    directory: epath.Path, values: Mapping[str, int | float], container: Container
) -> None:
    """Writes numbers as arrays without axes, of 8 bytes as Python has them, in an item."""
    kvstore = kvstore_spec(directory, container.use_ocdbt)
    if container.use_ocdbt:
        kvstore["config"] = OCDBT_CONFIG
    transaction, own = ts.Transaction(atomic=False), new_context()
    for name, value in values.items():
        dtype = "float64" if isinstance(value, float) else "int64"
        zarr_format = container.model.zarr_format
        metadata = target_metadata(container.model, (), dtype, ())
        if container.compression is not None:
            metadata = compressed(metadata, container.compression)
        file = ZARR2_FILE if zarr_format == 2 else ZARR3_FILE
        store = await ts.KvStore.open(kvstore, context=own)
        into = store.with_transaction(transaction) if container.use_ocdbt else store
        await into.write(f"{name}/{file}", json.dumps(metadata).encode())
        spec = new_array_spec(kvstore, name, zarr_format, metadata)
        array = await ts.open(spec, transaction=transaction, context=own)
        await array.write(value)
    await transaction.commit_async()
