"""From the path a user gives to the directory that holds a checkpoint's arrays.

```
root/                  steps, called as `CheckpointManager` or flax.training.checkpoints does
└── 100/               a step (`ckpt_00000100`, `checkpoint_0.5`), which may itself be the item
    ├── items/         an item: `_METADATA` and the arrays
    └── iter/          another item, not arrays
```
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from typing import Literal as OneOf

from etils import epath

from nnxconv.errors import BadInput, NotACheckpoint
from nnxconv.layouts import TUNIX_ITEMS
from nnxconv.storage import (
    ADAPTER_CONFIG,
    ARRAY_METADATAS,
    COMMITTED,
    DELETION,
    MANIFEST,
    STEP_METADATA,
    STRINGS,
    TENSORS,
    TREE_METADATA,
    UNFINISHED,
    USUAL_ITEMS,
)
from nnxconv.storage.files import (
    Folder,
    SmallFiles,
    free_metadata,
    mapping_in,
    open_folder,
    refuse_strangers,
)
from nnxconv.storage.gcs import is_remote, object_at, prepare
from nnxconv.storage.msgpack import OLD_TREE, is_msgpack, newest_file
from nnxconv.storage.npz import SUFFIX as NPZ
from nnxconv.storage.orbax.deletion import deleted_item, refuse_deleted
from nnxconv.storage.orbax.foreign import looks_like, seems_to_be
from nnxconv.storage.orbax.steps import (
    Step,
    choose_step,
    holding_steps,
    is_called,
    step_number,
    steps_in,
)
from nnxconv.storage.safetensors import CONFIG, beside_index, has_tensors, home_of, root_of


@dataclass(frozen=True)
class Location:
    """Where a checkpoint lies.

    Attributes:
      folder: the directory that holds the arrays.
      given_as: what the user's path is: the item itself, its step, or a root of steps.
      step_name: name of the step directory, unless the item was given.
      other_items: the step's other directories, which are carried over as they are.
      step_metadata: contents of the nearest `_CHECKPOINT_METADATA`.
      joined: the step's items that together are one tree, `folder` the first of them; empty where
        that is the whole tree.
      newest_of: how many steps the root has, where none was asked for and the newest was taken.
      container: what holds the arrays.
      beside: files of safetensors in the folder that are not of the checkpoint.
      small: reads what is small; from a bucket it has come already.
    """

    folder: Folder
    given_as: OneOf["item", "step", "root"]
    step_name: str = ""
    other_items: tuple[Folder, ...] = ()
    step_metadata: dict[str, Any] | None = None
    joined: tuple[Folder, ...] = ()
    newest_of: int = 0
    container: OneOf["orbax", "safetensors", "msgpack", "npz"] = "orbax"
    beside: tuple[str, ...] = ()
    small: SmallFiles = field(default_factory=SmallFiles, repr=False, compare=False)

    @property
    def choice(self) -> str:
        """How the step was chosen, where there were several: `the newest of 3 steps`.

        Of safetensors, what is in the folder and not read.
        """
        if self.beside:
            return f"without {', '.join(self.beside)}, not in the index"
        return f"the newest of {self.newest_of:,} steps" if self.newest_of > 1 else ""

    @property
    def item(self) -> epath.Path:
        """The path of that directory."""
        return self.folder.path

    @property
    def is_bare_step(self) -> bool:
        """True where the step of a root is itself the item."""
        return self.given_as == "root" and self.item.name == self.step_name

    @property
    def item_handlers(self) -> dict[str, str]:
        """What Orbax calls the handlers of a step's items; an item alone has one handler."""
        told = (self.step_metadata or {}).get("item_handlers")
        if not isinstance(told, dict):
            return {}
        return {name: handler for name, handler in told.items() if isinstance(handler, str)}

    @property
    def custom_metadata(self) -> dict[str, Any]:
        """What the writer attached to the step, for example MaxText's `scan_layers`."""
        return dict((self.step_metadata or {}).get("custom_metadata", {}))


def locate(
    path: str,
    step: Step | None = None,
    *,
    has_step: bool = True,
    allow_uncommitted: bool = False,
) -> Location:
    """The checkpoint that a path and `--step` name; some commands have no `--step`.

    Of several steps the newest is taken, unless `step` is a number or name.

    Raises:
      NotACheckpoint: there is nothing there that Orbax could read.
      BadInput: there are several steps or items to choose from, or the step is not there.
    """
    file = _named_file(path)
    given = Folder(file, frozenset(), frozenset()) if file else finished_directory(path)
    if TREE_METADATA not in given.files and (given.path.suffix == TENSORS or has_tensors(given)):
        return _of_tensors(path, given, step)
    of_flax = (file, 0) if file else _file_of_flax(path, given, step)
    if of_flax is not None:
        return _of_one_file(*of_flax)
    if holds_tree(given):
        if step is not None and not is_called(given.path.name, step):
            raise BadInput(f"`{path}` is one item of a checkpoint, so `--step` has no meaning")
        refuse_strangers(given.path, given.path)
        refuse_strangers(given.path.parent, given.path.parent / STEP_METADATA)
        small = _small_files_of_item(given)
        _refuse_if_deleted(given, small)
        metadata = _read_step_metadata(small, given.path, given.path.parent)
        _refuse_uncommitted(allow_uncommitted, given)
        return Location(given, "item", step_metadata=metadata, small=small)
    items = _items(given)
    if items:
        if step is not None and not is_called(given.path.name, step):
            raise BadInput(f"`{path}` is one step of a checkpoint, and it is not step {step}")
        refuse_strangers(given.path, given.path)
        return _in_step(given, items, "step", allow_uncommitted)
    given = holding_steps(given)
    name = choose_step(given, step, has_step, allow_uncommitted, takes_newest=True).name
    chosen = given.inner(name)
    refuse_strangers(given.path, chosen.path)
    if holds_tree(chosen):
        _refuse_uncommitted(allow_uncommitted, chosen)
        small = _small_files_of_item(chosen)
        metadata = _read_step_metadata(small, chosen.path)
        location = Location(chosen, "root", name, step_metadata=metadata, small=small)
    else:
        location = _in_step(chosen, _items(chosen), "root", allow_uncommitted)
    return replace(location, newest_of=0 if step is not None else len(steps_in(given)))


def _named_file(path: str) -> epath.Path | None:
    """A safetensors, npz or msgpack file that a user names."""
    given = absolute(path)
    if is_remote(given):
        is_object = given.suffix == TENSORS and object_at(given) is not None
        return given if is_object else None
    if not given.is_file() or given.name.startswith("streaming_"):
        return None
    return given if given.suffix in (TENSORS, NPZ) or is_msgpack(given) else None


def _file_of_flax(path: str, given: Folder, step: Step | None) -> tuple[epath.Path, int] | None:
    """The newest file of flax.training.checkpoints or the one of a step, and of how many."""
    found = None if given.folders or holds_tree(given) else newest_file(given)
    if found is None:
        is_there = "flax_model.msgpack" in given.files
        return (given.path / "flax_model.msgpack", 1) if is_there else None
    if step is None:
        return found
    file = given.path / f"checkpoint_{step}"
    if file.name not in given.files:
        raise BadInput(f"`{path}` has no step {step}", hint="it has one file for each step")
    return file, 0


def _of_one_file(file: epath.Path, count: int) -> Location:
    refuse_strangers(file.parent, file)
    container = "npz" if file.suffix == NPZ else "msgpack"
    folder = Folder(file, frozenset(), frozenset())
    return Location(folder, "item", container=container, newest_of=count)


def holds_tree(folder: Folder) -> bool:
    """True for an item: of today's Orbax, or of that of 2023, which had no `_METADATA`."""
    if TREE_METADATA in folder.files:
        return True
    is_other = any(name.startswith("target.") for name in folder.folders)  # a checkpoint of T5X
    return OLD_TREE in folder.files and not is_other and is_msgpack(folder.path / OLD_TREE)


def _of_tensors(path: str, given: Folder, step: Step | None) -> Location:
    if step is not None:
        raise BadInput(f"`{path}` holds safetensors, so `--step` has no meaning")
    home = home_of(given.path)
    paths = [given.path] if home == given.path else [given.path, home / CONFIG]
    refuse_strangers(root_of(home), *paths)
    beside = beside_index(given) if home == given.path else ()
    return Location(given, "item", container="safetensors", beside=beside)


def _refuse_uncommitted(is_allowed: bool, *folders: Folder) -> None:
    """Refuses what Orbax, too, takes for an unfinished save in a bucket.

    Raises:
      NotACheckpoint: the item or its step has no `commit_success.txt`.
    """
    for folder in folders:
        if is_remote(folder.path) and not is_allowed and COMMITTED not in folder.files:
            raise NotACheckpoint(
                f"`{folder.path}` has no `{COMMITTED}`: it is an unfinished save, or a copy of a"
                " checkpoint from a local disk",
                hint="`--allow_uncommitted` reads it all the same",
            )


def finished_directory(path: str) -> Folder:
    """The directory that a user names.

    Raises:
      NotACheckpoint: it is not there, or is what an interrupted save left.
    """
    given = absolute(path)
    try:
        folder = open_folder(given)
    except FileNotFoundError as error:
        raise NotACheckpoint(f"`{path}` does not exist") from error
    except NotADirectoryError as error:
        known = seems_to_be(given.name)
        raise NotACheckpoint(
            f"`{path}` is a file, not a checkpoint directory",
            hint="" if known is None else known.hint,
        ) from error
    if UNFINISHED in given.name:
        raise NotACheckpoint(
            f"`{path}` is an unfinished save",
            hint="it was interrupted before it was committed; use a finished step",
        )
    return folder


_COPIED_BY = {"s3": "aws s3 cp --recursive", "hf": "hf download", "az": "azcopy copy --recursive"}
"""What brings a folder from there to a local disk."""


def absolute(path: str) -> epath.Path:
    """The path that a user gives, absolute and without symbolic links, or as a gs:// path.

    Raises:
      BadInput: it names a place that is neither a local disk nor a bucket of GCS.
    """
    if "\0" in path:
        raise BadInput(f"`{path}` is no path: it has a character that no file name has")
    scheme = re.match(r"([a-z][a-z0-9+.-]*)://", path)
    if scheme is not None and not is_remote(path):
        by = _COPIED_BY.get(scheme[1])
        raise BadInput(
            f"`{path}`: nnxconv reads and writes local disks and gs:// buckets, not {scheme[1]}://",
            hint=f"copy it to a local disk first{f', with `{by}`' if by else ''}",
        )
    if is_remote(path):
        prepare()
        return epath.Path(path.rstrip("/"))
    return epath.Path(os.path.realpath(os.path.expanduser(path)))  # noqa: PTH111


def _in_step(
    step: Folder, items: list[Folder], given_as: OneOf["step", "root"], allow_uncommitted: bool
) -> Location:
    path = step.path
    if not items:
        raise NotACheckpoint(f"step `{path}` has no item with arrays", hint=looks_like(step))
    usual = [item for item in items if item.path.name in USUAL_ITEMS]
    joined = [item for name in TUNIX_ITEMS for item in items if item.path.name == name]
    if joined and joined[0].path.name == TUNIX_ITEMS[0] and not usual:
        usual = joined[:1]
    else:
        joined = []
    if len(items) > 1 and len(usual) != 1:
        joined = items
    item = joined[0] if joined else usual[0] if usual else items[0]
    own = joined or [item]
    others = {name for name in step.folders if UNFINISHED not in name}
    others -= {one.path.name for one in own} | {deleted_item(step) or ""}
    _refuse_uncommitted(allow_uncommitted, *own, step)
    small = _small_files(step, own)
    metadata = _read_step_metadata(small, path)
    other_items = tuple(step.inner(name) for name in sorted(others))
    return Location(item, given_as, path.name, other_items, metadata, tuple(joined), small=small)


def _items(step: Folder) -> list[Folder]:
    """The directories under a step that hold a tree of arrays."""
    names = [n for n in step.folders if step_number(n) is None and UNFINISHED not in n]
    children = [step.inner(name) for name in names]
    found = [child for child in children if holds_tree(child)]
    gone = deleted_item(step)
    left = [child for child in found if child.path.name != gone]
    if gone is not None and not left:
        refuse_deleted(step, gone)
    return left


def _small_files_of_item(item: Folder) -> SmallFiles:
    """What is read for an item that was given by its own path."""
    step = item.path.parent
    return _small_files(item, [item], step / DELETION, step / STEP_METADATA)


def _small_files(given: Folder, items: Sequence[Folder], *further: epath.Path) -> SmallFiles:
    """What is read for items before their arrays: their metadata, and what stands around them."""
    names = (TREE_METADATA, MANIFEST, STRINGS)
    ahead = [item.path / name for item in items for name in names]
    if given.objects is not None:
        inner = [item.inner(ARRAY_METADATAS) for item in items]
        ahead += [folder.path / name for folder in inner for name in folder.files]
    around = [given.path / STEP_METADATA, given.path.parent / ADAPTER_CONFIG]
    return SmallFiles([given, *items], [*ahead, *around, *further])


def _refuse_if_deleted(item: Folder, small: SmallFiles) -> None:
    """Refuses an item, given by its own path, that is being deleted from its step."""
    if small.read(item.path.parent / DELETION) is not None:
        refuse_deleted(open_folder(item.path.parent), item.path.name)


def _read_step_metadata(small: SmallFiles, *paths: epath.Path) -> dict[str, Any] | None:
    for file in (path / STEP_METADATA for path in paths):
        text = small.read(file)
        if text is not None:
            metadata = mapping_in(text, file, NotACheckpoint)
            custom = free_metadata(metadata, "custom_metadata", file)
            return {**metadata, "custom_metadata": custom}
    return None
