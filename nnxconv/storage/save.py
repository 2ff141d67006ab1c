"""Write an item within an Orbax save, so that Orbax names, merges and commits it.

Our arrays reach Orbax as leaves of our own classes, whose `TypeHandler` runs the given work
instead of writing values. Everything else is Orbax's: temporary directory, metadata, the merge of
the OCDBT databases, the rename that commits. Should anything fail before that, the temporary
directory is removed.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from nnxconv.keys import Key
from nnxconv.storage.commit import nothing_left_on_failure, stand_in, temporary_path_class
from nnxconv.storage.leaves import Run, leaf_of, nested_tree, plain_value, registry
from nnxconv.storage.locate import Location, absolute
from nnxconv.storage.writer import NewArray, Work, Writer
from nnxconv.views import Literal


@dataclass(frozen=True)
class Target:
    """Where an item is written, and what stands around it.

    Attributes:
      path: the item directory, or the step directory that will hold it.
      item_name: name of the item in its step; empty when `path` is the item itself.
      carried: directories of other items that are copied into the step, by name.
      handlers: what `_CHECKPOINT_METADATA` calls the handlers of the carried items.
      files: files that are copied into the step, by name.
      may_replace: what is there, or comes to be there, is replaced.
    """

    path: epath.Path
    item_name: str = ""
    carried: Mapping[str, epath.Path] = field(default_factory=dict)
    handlers: Mapping[str, str] = field(default_factory=dict)
    custom_metadata: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, epath.Path] = field(default_factory=dict)
    may_replace: bool = False


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
        source.item_handlers,
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
    run = Run(_with_files(work, target.files), use_ocdbt)
    tree = nested_tree(
        [*((a.key, leaf_of(a)) for a in arrays), *((k, plain_value(v)) for k, v in literals)]
    )
    args: Any = ocp.args.PyTreeSave(tree, custom_metadata=custom_metadata or None)
    may_replace = target.may_replace
    with _quiet_orbax(), nothing_left_on_failure(target.path, may_replace=may_replace):
        handler: Any = ocp.PyTreeCheckpointHandler(
            use_ocdbt=use_ocdbt, use_zarr3=use_zarr3, type_handler_registry=registry(run)
        )
        if target.item_name:
            handler, args = _in_step(target, handler, args)
        with ocp.Checkpointer(
            handler,
            temporary_path_class=temporary_path_class(target.path, may_replace=may_replace),
        ) as checkpointer:
            checkpointer.save(
                stand_in(target.path),
                args=args,
                custom_metadata=dict(target.custom_metadata) or None,
            )


def _with_files(work: Work, files: Mapping[str, epath.Path]) -> Work:
    """The work, and after it the files that stand beside the item in its step."""

    async def both(writer: Writer) -> None:
        await work(writer)
        for name, file in files.items():
            (writer.directory.parent / name).write_bytes(file.read_bytes())

    return both


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
def _quiet_orbax() -> Iterator[None]:
    """Keeps Orbax's remarks about handlers that we left out on purpose off the user's screen."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


_IN_ORDER = ocp.CompositeOptions(
    async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False)
)
"""Our handlers write at once, so the items' directories must be there before they are called."""


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
