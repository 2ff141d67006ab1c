"""Write an item within an Orbax save, so that Orbax names, merges and commits it.

Our arrays reach Orbax as leaves of our own classes, whose `TypeHandler` runs the given work
instead of writing values. Everything else is Orbax's: temporary directory, metadata, the merge of
the OCDBT databases, the rename that commits. Should anything fail before that, the temporary
directory is removed.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from nnxconv.storage import COMMITTED
from nnxconv.storage.files import copy_files, files_below
from nnxconv.storage.gcs import is_remote
from nnxconv.storage.orbax.commit import nothing_left_on_failure
from nnxconv.storage.orbax.leaves import Run, leaf_of, nested_tree, plain_value, registry
from nnxconv.storage.orbax.location import Location, absolute
from nnxconv.storage.orbax.writer import NewArray, Work, Writer
from nnxconv.tree import Key, Literal


@dataclass(frozen=True)
class Target:
    """Where an item is written, and what stands around it.

    Attributes:
      path: the item directory, or the step directory that will hold it.
      item_name: name of the item in its step; empty when `path` is the item itself.
      is_split: the step gets several items, which are the names at the root of the tree.
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
    is_split: bool = False

    @property
    def item_path(self) -> epath.Path:
        """The item; the step where there are several."""
        return self.path / self.item_name if self.item_name else self.path


def target_for(
    target_path: str,
    source: Location,
    custom_metadata: dict[str, Any],
    *,
    is_split: bool = False,
) -> Target:
    """The target in the structure in which the source was given; one of several items is a step."""
    destination = absolute(target_path)
    if source.given_as == "item":
        return Target(destination, custom_metadata=custom_metadata, is_split=is_split)
    path = destination
    if source.given_as == "root":
        path = absolute((destination / source.step_name).as_posix())
    step = source.item.parent
    return Target(
        path,
        "" if is_split else _USUAL_ITEM if source.joined else source.item.name,
        {name: step / name for name in source.other_items},
        source.item_handlers,
        custom_metadata,
        is_split=is_split,
    )


_USUAL_ITEM = "default"
"""What `CheckpointManager` calls the item of a step that has one only."""


@dataclass(frozen=True)
class NewItem:
    """An item that is written: its leaves, its container, and the work that fills it."""

    name: str
    arrays: Iterable[NewArray]
    literals: Iterable[tuple[Key, Literal]]
    use_ocdbt: bool
    use_zarr3: bool
    work: Work


def save(target: Target, items: Sequence[NewItem], *, custom_metadata: dict[str, Any]) -> None:
    """Writes the items and commits them together; on any failure nothing is left of them."""
    may_replace = target.may_replace
    with _quiet_orbax(), nothing_left_on_failure(target.path, may_replace=may_replace) as place:
        savers = {item.name: _saver(item, target, custom_metadata) for item in items}
        handler, args = savers[""] if "" in savers else _in_step(target, savers)
        with ocp.Checkpointer(
            handler, temporary_path_class=place.temporary_path_class
        ) as checkpointer:
            checkpointer.save(
                place.path,
                args=args,
                custom_metadata=dict(target.custom_metadata) or None,
            )


def _saver(item: NewItem, target: Target, custom_metadata: dict[str, Any]) -> tuple[Any, Any]:
    """Handler and arguments that make Orbax write an item."""
    run = Run(_with_files(item.work, target.files), item.use_ocdbt)
    tree = nested_tree(
        [
            *((array.key, leaf_of(array)) for array in item.arrays),
            *((key, plain_value(literal)) for key, literal in item.literals),
        ]
    )
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=item.use_ocdbt,
        use_zarr3=item.use_zarr3,
        type_handler_registry=registry(run),
    )
    args: Any = ocp.args.PyTreeSave(tree, custom_metadata=custom_metadata or None)
    return handler, args


def _with_files(work: Work, files: Mapping[str, epath.Path]) -> Work:
    """The work, and after it the files that stand beside the item in its step."""

    async def both(writer: Writer) -> None:
        await work(writer)
        for name, file in files.items():
            (writer.directory.parent / name).write_bytes(file.read_bytes())

    return both


def _in_step(target: Target, savers: Mapping[str, tuple[Any, Any]]) -> tuple[Any, Any]:
    """Handler and arguments for a whole step: the new items, and those carried over."""
    handlers = {name: _CopyHandler(target.handlers.get(name)) for name in target.carried}
    copies = {name: _CopySave(path) for name, path in target.carried.items()}
    composite: Any = ocp.CompositeCheckpointHandler
    return (
        composite(
            composite_options=_IN_ORDER,
            **handlers,
            **{name: handler for name, (handler, _) in savers.items()},
        ),
        ocp.args.Composite(**copies, **{name: args for name, (_, args) in savers.items()}),
    )


@contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Keeps off the screen what Orbax says of handlers that we left out on purpose, and of errors.

    It prints the traceback of an error in one of its threads, and raises the error too.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
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
    """Copies files and folders, but not their permissions: a source may be read-only.

    The mark that the item is complete stays behind; in a bucket Orbax writes it when it is.
    """
    if is_remote(source) or is_remote(target):
        names = [name for name in files_below(source) if name != COMMITTED]
        copy_files((source / name, target / name) for name in names)
        return
    target.mkdir(parents=True, exist_ok=True)
    for child in source.iterdir():
        if child.is_dir():
            _copy_tree(child, target / child.name)
        elif child.name != COMMITTED:
            child.copy(target / child.name)


@ocp.args.register_with_handler(_CopyHandler, for_save=True)
@dataclass
class _CopySave(ocp.args.CheckpointArgs):
    source: epath.Path


@ocp.args.register_with_handler(_CopyHandler, for_restore=True)
@dataclass
class _CopyRestore(ocp.args.CheckpointArgs):
    pass
