"""Few encoded values of a new database, in memory until its other files are written."""

import uuid
from typing import Any

import tensorstore as ts

from nnxconv.storage.ocdbt import Columns
from nnxconv.storage.zarr import OCDBT_CONFIG

MOST_KEPT_BYTES = 2**24
_INLINE_BYTES = OCDBT_CONFIG["max_inline_value_bytes"]


class KeptValues:
    """A store in memory; its `spec` is that of any other store."""

    def __init__(self, context: ts.Context) -> None:
        self.spec: dict[str, Any] = {"driver": "memory", "path": f"{uuid.uuid4().hex}/"}
        self._context = context

    def take_into(self, columns: Columns) -> dict[str, bytes]:
        """Adds the values to a database; the data file of those that its nodes do not hold."""
        store = ts.KvStore.open(self.spec, context=self._context).result()
        file, content = f"d/{uuid.uuid4().hex}", bytearray()
        for key in store.list().result():
            value = store.read(key).result().value
            is_inline = len(value) <= _INLINE_BYTES
            where = "" if is_inline else file
            columns.extend([key.decode()], [where], [len(content)], [len(value)], [value])
            if not is_inline:
                content += value
        return {file: bytes(content)} if content else {}
