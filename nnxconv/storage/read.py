"""Read regions of stored arrays."""

import asyncio
from collections.abc import Mapping

import numpy as np
import tensorstore as ts

from nnxconv.storage.arrays import array_spec, context, damaged
from nnxconv.storage.item import Item
from nnxconv.views import Source, View, first_source


class Reader:
    """The arrays of one or more opened items."""

    def __init__(self, items: Mapping[str, Item]) -> None:
        self._items = items
        self._open: dict[Source, ts.TensorStore] = {}

    async def read(self, source: Source, region: tuple[slice, ...]) -> np.ndarray:
        """The values of a region.

        Raises:
          DamagedCheckpoint: a chunk is missing or cannot be decoded.
        """
        item = self._items[source.store]
        try:
            store = self._open.get(source)
            if store is None:
                spec = array_spec(item.path, item.use_ocdbt, source.name, item.formats[source.name])
                store = await ts.open(spec, open=True, read=True, context=context())
                self._open[source] = store
            return await store[region].read()
        except (ValueError, OSError) as error:
            raise damaged(item.path, source.name, error) from error


def read_number(item: Item, view: View) -> int:
    """The value of a stored scalar, such as the step."""
    source = first_source(view)
    return int(asyncio.run(Reader({source.store: item}).read(source, ())))
