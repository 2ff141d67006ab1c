"""Write an item within an Orbax save, so that Orbax names, merges and commits it.

Our arrays reach Orbax as leaves of our own classes, whose `TypeHandler` runs the given work
instead of writing values. Everything else is Orbax's: temporary directory, metadata, the merge of
the OCDBT databases, the rename that commits. Should anything fail before that, the temporary
directory is removed.
"""

import base64
import json
import logging
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from orbax.checkpoint import type_handlers
from orbax.checkpoint.path import atomicity

from nnxconv.keys import Key
from nnxconv.state import Tree
from nnxconv.storage.arrays import context, new_array_spec, new_kvstore_spec
from nnxconv.storage.exchange import exchange
from nnxconv.storage.formats import ZARR2_FILE, ZARR3_FILE, ArrayFormat, parse_format
from nnxconv.storage.item import Item, array_name
from nnxconv.storage.locate import UNFINISHED, Location, absolute
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
        return Item(self.directory, leaves, formats, self._use_ocdbt, is_zarr3)

    async def describe(self, arrays: Iterable[NewArray]) -> None:
        """Stores the metadata of arrays whose chunks get here by themselves."""
        arrays = list(arrays)
        self._created |= {array.key: array for array in arrays}
        spec = new_kvstore_spec(self.directory, self._use_ocdbt)
        store = await ts.KvStore.open(spec, context=context())
        async with self.commit() as transaction:
            into = store.with_transaction(transaction) if self._use_ocdbt else store
            for array in arrays:
                file = ZARR2_FILE if array.zarr_format == 2 else ZARR3_FILE
                text = json.dumps(array.metadata)
                await into.write(f"{array_name(array.key)}/{file}", text.encode())

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


Work = Callable[[Writer], Awaitable[None]]


class _Run:
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

    def __init__(self, typestr: str, run: _Run) -> None:
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


def _registry(run: _Run) -> Any:
    return type_handlers.create_type_handler_registry(
        (_Array, _Handler("np.ndarray", run)),
        (_PrngKey, _Handler("jax.Array", run)),
        (int, type_handlers.ScalarHandler()),
        (float, type_handlers.ScalarHandler()),
        (_Scalar, _Handler("scalar", run)),
        (str, type_handlers.StringHandler()),
    )


@dataclass(frozen=True)
class Target:
    """Where an item is written, and what stands around it.

    Attributes:
      path: the item directory, or the step directory that will hold it.
      item_name: name of the item in its step; empty when `path` is the item itself.
      carried: directories of other items that are copied into the step, by name.
      handlers: what `_CHECKPOINT_METADATA` calls the handlers of the carried items.
    """

    path: epath.Path
    item_name: str = ""
    carried: Mapping[str, epath.Path] = field(default_factory=dict)
    handlers: Mapping[str, str] = field(default_factory=dict)
    custom_metadata: Mapping[str, Any] = field(default_factory=dict)


def target_for(target_path: str, source: Location, custom_metadata: dict[str, Any]) -> Target:
    """The target in the structure in which the source was given."""
    destination = absolute(target_path)
    if source.given_as == "item":
        return Target(destination, custom_metadata=custom_metadata)
    path = destination
    if source.given_as == "root":
        path = absolute((destination / source.step_name).as_posix())
    step = source.item.parent
    return Target(
        path,
        source.item.name,
        {name: step / name for name in source.other_items},
        dict((source.step_metadata or {}).get("item_handlers") or {}),
        custom_metadata,
    )


def save(
    target: Target,
    arrays: Iterable[NewArray],
    literals: Iterable[tuple[Key, Literal]],
    *,
    use_ocdbt: bool,
    use_zarr3: bool,
    custom_metadata: dict[str, Any],
    work: Work,
) -> None:
    """Writes one item and commits it; on any failure nothing is left of it."""
    run = _Run(work, use_ocdbt)
    tree = _nested([*((a.key, _leaf(a)) for a in arrays), *((k, _plain(v)) for k, v in literals)])
    args: Any = ocp.args.PyTreeSave(tree, custom_metadata=custom_metadata or None)
    with _quiet_orbax(), _nothing_left_on_failure(target.path):
        handler: Any = ocp.PyTreeCheckpointHandler(
            use_ocdbt=use_ocdbt, use_zarr3=use_zarr3, type_handler_registry=_registry(run)
        )
        if target.item_name:
            handler, args = _in_step(target, handler, args)
        with ocp.Checkpointer(handler, temporary_path_class=_Swap) as checkpointer:
            checkpointer.save(
                _stand_in(target.path),
                args=args,
                custom_metadata=dict(target.custom_metadata) or None,
            )


def _in_step(target: Target, handler: Any, args: Any) -> tuple[Any, Any]:
    """Handler and arguments for a whole step: the new item, and those carried over."""
    handlers = {name: _CopyHandler(target.handlers.get(name)) for name in target.carried}
    copies = {name: _CopySave(path) for name, path in target.carried.items()}
    name = target.item_name
    composite: Any = ocp.CompositeCheckpointHandler
    return (
        composite(composite_options=_IN_ORDER, **handlers, **{name: handler}),
        ocp.args.Composite(**copies, **{name: args}),
    )


@contextmanager
def _nothing_left_on_failure(path: epath.Path) -> Iterator[None]:
    """Removes the temporary directory, and the parents made for it, unless all goes well."""
    _undo(path)  # what a killed run left
    made = [parent for parent in (path.parent, *path.parent.parents) if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        _undo(path)
        for parent in made:
            with suppress(OSError):  # somebody else uses it by now
                parent.rmdir()
        raise


def _undo(path: epath.Path) -> None:
    """Removes what an unfinished save left; a target that was set aside comes back."""
    temporary, aside = path.parent / (path.name + UNFINISHED), _aside(path)
    if aside.exists() and not path.exists():
        aside.rename(path)
    for leftover in (temporary, aside):
        if leftover.exists():
            _remove(leftover)


def _remove(path: epath.Path) -> None:
    """Removes a directory into which writes that were under way may still fall."""
    quiet = 0
    for _ in range(200):
        if path.exists():
            quiet = 0
            with suppress(OSError):
                path.rmtree()
        else:
            quiet += 1
            if quiet == 5:
                return
        time.sleep(0.01)


def _aside(path: epath.Path) -> epath.Path:
    """Where the new target stands before it takes the old one's place, and the old one after."""
    return path.parent / f"{path.name}{UNFINISHED}-replaced"


@contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Keeps Orbax's remarks about handlers that we left out on purpose off the user's screen."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _leaf(array: NewArray) -> Any:
    kinds = {"np.ndarray": _Array, "scalar": _Scalar, "jax.Array": _PrngKey}
    return kinds[array.value_type](array)


def _plain(literal: Literal) -> Any:
    empties: dict[str, Any] = {"None": None, "Dict": {}, "List": [], "Tuple": ()}
    return empties.get(literal.kind, literal.value)


def _nested(leaves: Sequence[tuple[Key, Any]]) -> Any:
    """A tree of dicts and lists; ints are positions in lists."""
    if len(leaves) == 1 and leaves[0][0] == ():
        return leaves[0][1]
    groups: dict[str | int, list[tuple[Key, Any]]] = {}
    for key, leaf in leaves:
        groups.setdefault(key[0], []).append((key[1:], leaf))
    if all(isinstance(part, int) for part in groups):
        return [_nested(groups[index]) for index in range(len(groups))]
    return {part: _nested(inner) for part, inner in groups.items()}


_IN_ORDER = ocp.CompositeOptions(
    async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False)
)
"""Our handlers write at once, so the items' directories must be there before they are called."""

_STAND_IN = ".nnxconv-final"


def _stand_in(path: epath.Path) -> epath.Path:
    """A name that never exists: Orbax would refuse, or delete first, a target that does."""
    return path.parent / (path.name + _STAND_IN)


class _Swap(atomicity.AtomicRenameTemporaryPath):
    """Orbax's atomic rename; an existing target is replaced when the new one is complete."""

    @classmethod
    def from_final(cls, final_path: epath.Path, **options: Any) -> "_Swap":
        real = final_path.parent / final_path.name.removesuffix(_STAND_IN)
        return super().from_final(real, **options)  # type: ignore[return-value]

    async def finalize(self) -> None:
        final = self.get_final()
        if not final.exists():
            return await super().finalize()
        self._final_path = _aside(final)
        await super().finalize()
        exchange(self._final_path, final)
        self._final_path.rmtree()
        return None


class _CopyHandler(ocp.CheckpointHandler):
    """Saves an item by copying its directory, whatever is in it."""

    def __init__(self, typestr: str | None = None) -> None:
        if typestr:  # what the source's metadata calls the handler of this item
            self.typestr = lambda: typestr

    def save(self, directory: epath.Path, args: "_CopySave") -> None:
        _copy_tree(args.source, directory)

    def restore(self, directory: epath.Path, args: Any = None) -> Any:
        raise TypeError("carried items are only written")

    def finalize(self, directory: epath.Path) -> None:
        pass


def _copy_tree(source: epath.Path, target: epath.Path) -> None:
    """Copies files and folders, but not their permissions: a source may be read-only."""
    target.mkdir(parents=True, exist_ok=True)
    for child in source.iterdir():
        if child.is_dir():
            _copy_tree(child, target / child.name)
        else:
            child.copy(target / child.name)


@ocp.args.register_with_handler(_CopyHandler, for_save=True)
@dataclass
class _CopySave(ocp.args.CheckpointArgs):
    source: epath.Path


@ocp.args.register_with_handler(_CopyHandler, for_restore=True)
@dataclass
class _CopyRestore(ocp.args.CheckpointArgs):
    pass
