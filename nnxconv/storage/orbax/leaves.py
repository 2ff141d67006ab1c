"""How arrays reach an Orbax save without being loaded.

They are leaves of our own classes, whose `TypeHandler` runs the given work instead of writing
values; `typestr` says what Orbax shall restore them as.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath
from orbax.checkpoint import type_handlers

from nnxconv.storage.orbax.item import array_name
from nnxconv.storage.orbax.writer import NewArray, Work, Writer
from nnxconv.tree import Key, Literal


class Run:
    """The work of one save; it runs once, whichever handler Orbax calls first."""

    def __init__(self, work: Work, use_ocdbt: bool) -> None:
        self._work = work
        self._use_ocdbt = use_ocdbt
        self._is_done = False

    async def once(self, directory: epath.Path) -> None:
        if not self._is_done:
            self._is_done = True
            await self._work(Writer(directory, self._use_ocdbt))


@dataclass
class _Array:
    new: NewArray


@dataclass
class _Scalar:
    new: NewArray


@dataclass
class _PrngKey:
    new: NewArray


class _Handler(type_handlers.TypeHandler):
    """Runs the work when Orbax asks for the leaves to be serialized."""

    def __init__(self, typestr: str, run: Run) -> None:
        self._typestr = typestr
        self._run = run

    def typestr(self) -> str:
        return self._typestr

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        raise TypeError("leaves of a conversion are only written")

    async def serialize(
        self, values: Sequence[Any], infos: Sequence[Any], args: Any = None
    ) -> Sequence[Any]:
        del args
        await infos[0].await_path_creation()
        directory = infos[0].parent_dir
        await self._run.once(directory)
        keys = [value.new for value in values if isinstance(value, _PrngKey)]
        if keys:
            _write_key_metadata(directory, keys)
        return []

    async def deserialize(self, infos: Sequence[Any], args: Any = None) -> Sequence[Any]:
        raise TypeError("leaves of a conversion are only written")


def _write_key_metadata(directory: epath.Path, keys: Sequence[NewArray]) -> None:
    """What Orbax needs to restore typed PRNG keys: their implementation, and a sharding.

    The sharding names device 0 alone, which every machine has.
    """
    entries = []
    shardings = {}
    for key in keys:
        name = array_name(key.key)
        shape = key.metadata["shape"]
        entry = {
            "param_name": name,
            "write_shape": shape,
            "chunk_shape": shape,
            "ext_metadata": {"random_key_impl": key.prng_impl},
        }
        entries.append({"array_metadata": entry})
        sharding = {
            "sharding_type": "NamedSharding",
            "shape": [1],
            "axis_names": ["x"],
            "axis_types": ["AxisType.Auto"],
            "partition_spec": [],
            "device_mesh": {"mesh": [{"id": 0}]},
        }
        shardings[base64.b64encode(name.encode()).decode()] = json.dumps(sharding)
    folder = directory / "array_metadatas"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "process_0").write_text(json.dumps({"array_metadatas": entries}))
    (directory / "_sharding").write_text(json.dumps(shardings))


def registry(run: Run) -> Any:
    return type_handlers.create_type_handler_registry(
        (_Array, _Handler("np.ndarray", run)),
        (_PrngKey, _Handler("jax.Array", run)),
        (int, type_handlers.ScalarHandler()),
        (float, type_handlers.ScalarHandler()),
        (_Scalar, _Handler("scalar", run)),
        (str, type_handlers.StringHandler()),
    )


def leaf_of(array: NewArray) -> Any:
    kinds = {"np.ndarray": _Array, "scalar": _Scalar, "jax.Array": _PrngKey}
    return kinds[array.value_type](array)


def plain_value(literal: Literal) -> Any:
    empties: dict[str, Any] = {"None": None, "Dict": {}, "List": [], "Tuple": ()}
    return empties.get(literal.kind, literal.value)


def nested_tree(leaves: Sequence[tuple[Key, Any]]) -> Any:
    """A tree of dicts and lists; ints are positions in lists."""
    if len(leaves) == 1 and leaves[0][0] == ():
        return leaves[0][1]
    groups: dict[str | int, list[tuple[Key, Any]]] = {}
    for key, leaf in leaves:
        groups.setdefault(key[0], []).append((key[1:], leaf))
    if all(isinstance(part, int) for part in groups):
        return [nested_tree(groups[index]) for index in range(len(groups))]
    return {part: nested_tree(inner) for part, inner in groups.items()}
