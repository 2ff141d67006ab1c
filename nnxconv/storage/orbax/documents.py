"""The JSON files of an item and of a step, as Orbax writes them. Values in, texts out.

`_METADATA` describes the tree and `_strings.json` holds its texts; `_sharding` and
`array_metadatas/` are about `jax.Array` leaves, which in our targets are typed PRNG keys alone.
`_CHECKPOINT_METADATA` stands in the step, or in an item that is in none.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from nnxconv.storage import ARRAY_METADATAS, STRINGS, TREE_METADATA
from nnxconv.storage.orbax.item import array_name
from nnxconv.storage.orbax.new_arrays import NewArray
from nnxconv.tree import EMPTY_KINDS, Key, Literal

PYTREE_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"
"""What Orbax calls the reader of our items; it knows it by this name wherever its classes move."""


def item_documents(
    arrays: Sequence[NewArray],
    literals: Sequence[tuple[Key, Literal]],
    *,
    use_ocdbt: bool,
    use_zarr3: bool,
    custom_metadata: Mapping[str, Any],
) -> dict[str, str]:
    """The text of each file of an item besides its arrays, by its path in the item."""
    values = {array.key: _array_value(array) for array in arrays}
    values |= {key: _value(literal.kind) for key, literal in literals}
    tree = {
        "tree_metadata": {
            str(tuple(map(str, key))): {
                "key_metadata": [_key_part(part) for part in key],
                "value_metadata": values[key],
            }
            for key in sorted(values)
        },
        "use_ocdbt": use_ocdbt,
        "use_zarr3": use_zarr3,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": dict(custom_metadata) or None,
    }
    documents: dict[str, Any] = {TREE_METADATA: tree}
    texts = {array_name(key): literal.value for key, literal in literals if literal.kind == _TEXT}
    if texts:
        documents[STRINGS] = pointed_at(texts)
    keys = [array for array in arrays if array.prng_impl is not None]
    if keys:
        documents["_sharding"] = {_base64(array_name(key.key)): _ON_DEVICE_0 for key in keys}
        entries = [{"array_metadata": _array_metadata(key)} for key in keys]
        documents[f"{ARRAY_METADATAS}/process_0"] = {ARRAY_METADATAS: entries}
    return {name: json.dumps(document) for name, document in documents.items()}


_TEXT = "string"
_SEQUENCE_KEY, _MAPPING_KEY = 1, 2


def _key_part(part: str | int) -> dict[str, Any]:
    kind = _SEQUENCE_KEY if isinstance(part, int) else _MAPPING_KEY
    return {"key": str(part), "key_type": kind}


def _value(kind: str) -> dict[str, Any]:
    return {"value_type": kind, "skip_deserialize": kind in EMPTY_KINDS}


def _array_value(array: NewArray) -> dict[str, Any]:
    told = _value(array.value_type)
    return told if array.prng_impl is None else {**told, "write_shape": array.metadata["shape"]}


def _array_metadata(key: NewArray) -> dict[str, Any]:
    """What tells a typed PRNG key from the plain numbers that it is stored as."""
    return {
        "param_name": array_name(key.key),
        "write_shape": key.metadata["shape"],
        "chunk_shape": key.metadata["shape"],
        "ext_metadata": {"random_key_impl": key.prng_impl},
    }


_ON_DEVICE_0 = json.dumps(
    {
        "sharding_type": "NamedSharding",
        "shape": [1],
        "axis_names": ["x"],
        "axis_types": ["AxisType.Auto"],
        "partition_spec": [],
        "device_mesh": {"mesh": [{"id": 0}]},
    }
)
"""A sharding that every machine can satisfy; without one Orbax does not restore typed keys."""


def _base64(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def pointed_at(values: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON document in which each value stands where its name points, as a JSON pointer.

    Orbax stores texts so: a name with a slash leads into a mapping (RFC 6901).
    """
    document: dict[str, Any] = {}
    for name, value in values.items():
        *outer, last = name.split("/")
        place = document
        for part in outer:
            place = place.setdefault(_unescaped(part), {})
        place[_unescaped(last)] = value
    return document


def _unescaped(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")


def step_metadata(
    item_handlers: str | dict[str, str] | None,
    custom_metadata: Mapping[str, Any],
    *,
    begun: int,
    committed: int | None = None,
) -> str:
    """The text of `_CHECKPOINT_METADATA`.

    Args:
      item_handlers: what reads the items, by their names; or what reads the one item; None for a
        save that has only begun.
      custom_metadata: what programs keep there.
      begun: when the save began, in nanoseconds since 1970.
      committed: when it was complete; None until then.
    """
    return json.dumps(
        {
            "item_handlers": item_handlers,
            "metrics": {},
            "performance_metrics": {},
            "init_timestamp_nsecs": begun,
            "commit_timestamp_nsecs": committed,
            "custom_metadata": dict(custom_metadata),
        }
    )


def mark(path: object) -> str:
    """The text of `commit_success.txt` in an item or a step."""
    return f"Checkpoint commit was successful to {path}"
