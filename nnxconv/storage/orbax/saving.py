"""Write items as Orbax does: the arrays by the given work, then the files that describe them.

All of it is written under a temporary name, and committed at the end. Should anything fail before
that, nothing is left. Orbax itself is not needed for it.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etils import epath

from nnxconv.storage import COMMITTED, STEP_METADATA, TENSORS, run, to_the_end, together
from nnxconv.storage.files import Folder, copy_files, files_below, placed, write_files
from nnxconv.storage.gcs import is_remote
from nnxconv.storage.orbax.commit import nothing_left_on_failure
from nnxconv.storage.orbax.documents import PYTREE_HANDLER, item_documents, mark, step_metadata
from nnxconv.storage.orbax.item import array_name
from nnxconv.storage.orbax.location import Location, absolute
from nnxconv.storage.orbax.new_arrays import NewArray, write_scalars
from nnxconv.storage.orbax.witness import refuse_unread
from nnxconv.storage.orbax.writer import Work, Writer
from nnxconv.storage.zarr import Container
from nnxconv.tree import Key, Literal


@dataclass(frozen=True)
class Target:
    """Where an item is written, and what stands around it.

    Attributes:
      path: the item directory, or the step directory that will hold it.
      item_name: name of the item in its step; empty when `path` is the item itself.
      tensors: it is no item of Orbax but safetensors: a folder, or one file of that suffix.
      is_split: the step gets several items, which are the names at the root of the tree.
      carried: directories of other items that are copied into the step, by name.
      handlers: what `_CHECKPOINT_METADATA` calls the handlers of the carried items.
      files: files that are copied into the step, by name.
      may_replace: what is there, or comes to be there, is replaced.
    """

    path: epath.Path
    item_name: str = ""
    carried: Mapping[str, Folder] = field(default_factory=dict)
    handlers: Mapping[str, str] = field(default_factory=dict)
    custom_metadata: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, epath.Path] = field(default_factory=dict)
    may_replace: bool = False
    is_split: bool = False
    tensors: bool = False

    @property
    def tensors_file(self) -> str:
        """The name of the only file of safetensors; empty where they are a folder."""
        return self.path.name if self.tensors and self.path.suffix == TENSORS else ""

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
    tensors: bool = False,
) -> Target:
    """The target in the structure in which the source was given; one of several items is a step."""
    destination = absolute(target_path)
    if tensors:
        return Target(destination, tensors=True)
    if source.given_as == "item":
        return Target(destination, custom_metadata=custom_metadata, is_split=is_split)
    path = destination
    if source.given_as == "root":
        path = absolute((destination / source.step_name).as_posix())
    return Target(
        path,
        "" if is_split or source.is_bare_step else _item_name(source),
        {folder.path.name: folder for folder in source.other_items},
        source.item_handlers,
        custom_metadata,
        is_split=is_split,
    )


def _item_name(source: Location) -> str:
    """What the item is called in its step."""
    return _USUAL_ITEM if source.joined else source.item.name


_USUAL_ITEM = "default"
"""What `CheckpointManager` calls the item of a step that has one only."""


@dataclass(frozen=True)
class NewItem:
    """An item that is written: its leaves, its container, and the work that fills it."""

    name: str
    arrays: Sequence[NewArray]
    literals: Sequence[tuple[Key, Literal]]
    container: Container
    work: Work


def save(
    target: Target,
    items: Sequence[NewItem],
    *,
    custom_metadata: dict[str, Any],
    is_witnessed: bool = False,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Writes the items and commits them together; on any failure nothing is left of them.

    Args:
      target: where to.
      items: what is written.
      custom_metadata: of each item.
      is_witnessed: the installed Orbax is asked whether it reads what was written.
      check: is called between two steps, and last before the commit; it raises to stop.

    Raises:
      DamagedCheckpoint: `is_witnessed`, and the installed Orbax does not read what was written.
    """
    with nothing_left_on_failure(target.path, may_replace=target.may_replace) as place:
        begun = time.time_ns()
        if is_remote(place.directory):  # by which others see what is being written there
            text = step_metadata(None, {}, begun=begun)
            write_files({place.directory / STEP_METADATA: text})
            run(_fill_in_bucket(place.directory, target, items, custom_metadata))
        else:
            run(_fill(place.directory, target, items, custom_metadata))
        check()
        if is_witnessed:
            for item in items:
                refuse_unread(place.directory / item.name, item.arrays, item.literals)
        marks = _marks(place.directory, target, items, begun)
        run(together([asyncio.to_thread(write_files, marks), asyncio.to_thread(place.confirm)]))
        check()
        with to_the_end():
            place.commit()


async def _fill(
    directory: epath.Path,
    target: Target,
    items: Sequence[NewItem],
    custom_metadata: Mapping[str, Any],
) -> None:
    """Everything but what says that it is complete."""
    for name, source in target.carried.items():
        await asyncio.to_thread(copy_item, source, directory / name)
    for item in items:
        folder = directory / item.name
        folder.mkdir(exist_ok=True)
        await _fill_item(folder, item, custom_metadata)
    for name, file in target.files.items():
        content = file.read_bytes()
        with placed(directory / name):
            (directory / name).write_bytes(content)


async def _fill_in_bucket(
    directory: epath.Path,
    target: Target,
    items: Sequence[NewItem],
    custom_metadata: Mapping[str, Any],
) -> None:
    """The same, with several requests at once."""

    async def one_by_one() -> None:
        for item in items:
            await _fill_item(directory / item.name, item, custom_metadata)

    items_beside = [(source, directory / name) for name, source in target.carried.items()]
    copies = [asyncio.to_thread(copy_item, old, new) for old, new in items_beside]
    files = [(file, directory / name) for name, file in target.files.items()]
    await together([*copies, asyncio.to_thread(copy_files, files), one_by_one()])


async def _fill_item(folder: epath.Path, item: NewItem, custom_metadata: Mapping[str, Any]) -> None:
    """Arrays, what describes them, and the numbers that no array of a source holds."""

    def documents() -> dict[str, str]:
        return item_documents(
            item.arrays,
            item.literals,
            use_ocdbt=item.container.use_ocdbt,
            use_zarr3=item.container.use_zarr3,
            custom_metadata=custom_metadata,
        )

    await item.work(Writer(folder, item.container.use_ocdbt, documents=documents))
    numbers = {array_name(key): one.value for key, one in item.literals if one.kind == "scalar"}
    if numbers:
        await write_scalars(folder, numbers, item.container)  # type: ignore[arg-type]


def _marks(
    directory: epath.Path, target: Target, items: Sequence[NewItem], begun: int
) -> dict[epath.Path, str | bytes]:
    """What says that the items are complete, and what they are."""
    names = [*target.carried, *(item.name for item in items if item.name)]
    handlers: str | dict[str, str] = PYTREE_HANDLER
    if names:
        handlers = {name: target.handlers[name] for name in names if name in target.handlers}
        handlers |= {item.name: PYTREE_HANDLER for item in items}
    told = step_metadata(handlers, target.custom_metadata, begun=begun, committed=time.time_ns())
    marks = {directory / name / COMMITTED: mark(target.path / name) for name in names}
    return {**marks, directory / STEP_METADATA: told}


def copy_item(folder: Folder, target: epath.Path) -> None:
    """Copies an item, whatever is in it, but not the permissions: a source may be read-only.

    The mark that it is complete stays behind; it is written anew when the copy is.
    """
    source = folder.path
    if is_remote(source) or is_remote(target):
        found = files_below(source) if folder.objects is None else folder.objects
        names = [name for name in found if name != COMMITTED]
        copy_files((source / name, target / name) for name in names)
        return
    _copy_folder(source, target)


def _copy_folder(source: epath.Path, target: epath.Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for child in source.iterdir():
        if child.is_dir():
            _copy_folder(child, target / child.name)
        elif child.name != COMMITTED:
            child.copy(target / child.name)
