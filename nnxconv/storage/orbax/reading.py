"""Read regions of stored arrays."""

import math
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import tensorstore as ts

from nnxconv.errors import DamagedCheckpoint
from nnxconv.planning import region_bytes
from nnxconv.storage import in_thread, run
from nnxconv.storage.gcs import is_remote
from nnxconv.storage.ocdbt import Contents
from nnxconv.storage.orbax.chunk_reading import ChunkReader
from nnxconv.storage.orbax.item import Item
from nnxconv.storage.safetensors import OpenFiles, read_object_region, read_region
from nnxconv.storage.zarr import RAW, array_spec, damaged, new_context
from nnxconv.tree import Source, View, first_source, notation

_FEW = 16
"""Keys of an array; one of a single chunk has two."""


class Reader:
    """The arrays of one or more opened items."""

    def __init__(self, items: Mapping[str, Item]) -> None:
        self._items = items
        self._context = new_context()
        self._open: dict[Source, ts.TensorStore] = {}
        self._raw = OpenFiles()
        self._local = {  # what was written is proved by TensorStore, its metadata included
            store: ChunkReader(item)
            for store, item in items.items()
            if item.seen and not is_remote(item.path)
        }

    async def read(self, source: Source, region: tuple[slice, ...]) -> np.ndarray:
        """The values of a region; zeros where the source's shape exceeds what is stored.

        Raises:
          DamagedCheckpoint: a chunk is missing or cannot be decoded.
        """
        item = self._items[source.store]
        if item.formats[source.name].zarr_format == RAW:
            return await self._read_raw(item, source, region)
        values = await self._decoded(source, region)
        return await self._read_by_tensorstore(item, source, region) if values is None else values

    async def _decoded(self, source: Source, region: tuple[slice, ...]) -> np.ndarray | None:
        """The values of a region of whole chunks on a disk; None where TensorStore has to read it,
        which also says what is wrong with a chunk."""
        local = self._local.get(source.store)
        found = None if local is None else local.find(source.name, region)
        if local is None or found is None:
            return None
        with suppress(ValueError, OSError):
            return await in_thread(found.nbytes, local.read, found)
        return None

    async def _read_by_tensorstore(
        self, item: Item, source: Source, region: tuple[slice, ...]
    ) -> np.ndarray:
        try:
            store = self._open.get(source)
            if store is None:
                spec = array_spec(item.path, item.use_ocdbt, source.name, item.formats[source.name])
                if is_remote(item.path) and item.contents is not None:
                    spec["kvstore"] = await self._known(item.contents, source) or spec["kvstore"]
                store = await ts.open(spec, open=True, read=True, context=self._context)
                self._open[source] = store
            stored = tuple(
                slice(min(part.start, size), min(part.stop, size))
                for part, size in zip(region, store.shape, strict=True)
            )
            values = await store[stored].read()
            return values if stored == region else _with_zeros(values, region)
        except (ValueError, OSError) as error:
            raise damaged(item.path, source.name, error) from error

    async def _known(self, contents: Contents, source: Source) -> dict[str, Any] | None:
        """A store of an array whose values stand in nodes that have been read already."""
        values, places = contents.values, contents.values.below(source.name)
        if len(places) > _FEW or any(values.file_numbers[place] >= 0 for place in places):
            return None
        spec = {"driver": "memory", "path": f"{uuid.uuid4().hex}/"}
        memory = await ts.KvStore.open(spec, context=self._context)
        for place in places:
            key = values.names[place].removeprefix(f"{source.name}/")
            await memory.write(key, values.at(place).inline)
        return spec

    async def _read_raw(self, item: Item, source: Source, region: tuple[slice, ...]) -> np.ndarray:
        """The values of a region of an array that lies in C order in a file."""
        stored, dtype = item.formats[source.name], np.dtype(item.formats[source.name].dtype)
        told = stored.metadata
        if "value" in told:
            return np.array(told["value"], dtype)
        try:
            file, nbytes = told["file"], region_bytes(region, stored.dtype)
            where = told["parts"], dtype, stored.shape, region
            if is_remote(file):
                return await in_thread(nbytes, read_object_region, file, *where)
            return await in_thread(nbytes, read_region, self._raw.descriptor(file), *where)
        except (ValueError, OSError) as error:
            raise damaged(item.path, source.name, error) from error


def _with_zeros(values: np.ndarray, region: tuple[slice, ...]) -> np.ndarray:
    """The values at the start of a region's shape."""
    whole = np.zeros([part.stop - part.start for part in region], values.dtype)
    whole[tuple(slice(size) for size in values.shape)] = values
    return whole


MOST_NUMBERS = 2**20
"""In an array of counters."""


def read_numbers(item: Item, source: Source) -> list[int]:
    """The values of a stored scalar or of a short array of integers."""
    if math.prod(source.shape) > MOST_NUMBERS:
        raise _no_number(source)
    region = tuple(slice(0, size) for size in source.shape)
    values = run(Reader(item.stores).read(source, region))
    return [int(value) for value in values.reshape(-1)]


def read_number(item: Item, view: View) -> int:
    """The value of a stored scalar, such as the step."""
    source = first_source(view)
    numbers = read_numbers(item, source)
    if len(numbers) != 1:
        raise _no_number(source)
    return numbers[0]


def _no_number(source: Source) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"array `{source.name}` is {notation(source)}, where a number was expected",
        where=source.store,
    )
