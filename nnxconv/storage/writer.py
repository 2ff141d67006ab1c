"""The arrays of an item while it is being written."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import tensorstore as ts
from etils import epath

from nnxconv.keys import Key
from nnxconv.state import Tree, below
from nnxconv.storage.arrays import all_done, context, new_array_spec, new_kvstore_spec
from nnxconv.storage.formats import ZARR2_FILE, ZARR3_FILE, ArrayFormat, parse_format
from nnxconv.storage.item import Item, array_name, joined_items
from nnxconv.storage.ocdbt import read_contents
from nnxconv.views import Leaf, Literal, Source


@dataclass(frozen=True)
class NewArray:
    """An array of the target: what Orbax shall restore it as, and its metadata on disk."""

    key: Key
    value_type: str
    zarr_format: int
    metadata: Mapping[str, Any]
    prng_impl: str | None = None


class Writer:
    """The arrays of one target item, while it is being written."""

    def __init__(self, directory: epath.Path, use_ocdbt: bool) -> None:
        self.directory = directory
        self._use_ocdbt = use_ocdbt
        self._created: dict[Key, NewArray] = {}

    @asynccontextmanager
    async def commit(self) -> AsyncIterator[ts.Transaction]:
        """A transaction that becomes one commit, and with OCDBT one data file, at the end."""
        transaction = ts.Transaction(atomic=False)
        try:
            yield transaction
        except BaseException:
            transaction.abort()
            raise
        await transaction.commit_async()

    def read_back(self, tree: Tree) -> Item:
        """The item as it has been written so far, before Orbax merges and commits it."""
        formats = {
            array_name(key): parse_format(array.zarr_format, dict(array.metadata))
            for key, array in self._created.items()
        }
        path = self.directory.as_posix()
        leaves = {
            key: _stored(key, leaf, formats, path, self._created) for key, leaf in tree.items()
        }
        is_zarr3 = any(array.zarr_format == 3 for array in formats.values())
        contents = read_contents(self.directory) if self._use_ocdbt else None
        return Item(self.directory, leaves, formats, self._use_ocdbt, is_zarr3, contents=contents)

    async def describe(self, arrays: Iterable[NewArray]) -> None:
        """Stores the metadata of arrays whose chunks get here by themselves."""
        arrays = list(arrays)
        self._created |= {array.key: array for array in arrays}
        spec = new_kvstore_spec(self.directory, self._use_ocdbt)
        store = await ts.KvStore.open(spec, context=context())
        async with self.commit() as transaction:
            into = store.with_transaction(transaction) if self._use_ocdbt else store
            writes = [into.write(*_metadata_entry(array)) for array in arrays]
            await all_done(writes)
            for write in writes:
                write.result()

    async def open(self, array: NewArray, transaction: ts.Transaction) -> ts.TensorStore:
        """The array, created when it is opened for the first time."""
        spec = new_array_spec(
            self.directory,
            self._use_ocdbt,
            array_name(array.key),
            array.zarr_format,
            dict(array.metadata),
        )
        is_new = array.key not in self._created
        self._created[array.key] = array
        if not is_new:
            spec["assume_metadata"] = True
        return await ts.open(
            spec, create=is_new, open=not is_new, transaction=transaction, context=context()
        )


def _metadata_entry(array: NewArray) -> tuple[str, bytes]:
    """Where the metadata of an array is stored, and its text."""
    file = ZARR2_FILE if array.zarr_format == 2 else ZARR3_FILE
    return f"{array_name(array.key)}/{file}", json.dumps(array.metadata).encode()


def _stored(
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


@dataclass(frozen=True)
class Writers:
    """The items of a step that together are one tree, by name, while they are being written."""

    step: epath.Path
    writers: Mapping[str, Writer]

    def read_back(self, tree: Tree) -> Item:
        """The items as they have been written so far, as one."""
        return joined_items(
            self.step,
            {name: w.read_back(below(tree, (name,))) for name, w in self.writers.items()},
        )


Work = Callable[[Writer], Awaitable[None]]
Proof = Callable[[Writer | Writers], Awaitable[None]]
"""A check of what has been written."""
