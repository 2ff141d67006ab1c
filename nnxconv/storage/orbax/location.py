"""From the path a user gives to the directory that holds a checkpoint's arrays.

```
root/                  numeric steps, as `CheckpointManager` writes them
└── 100/               a step: its items, `_CHECKPOINT_METADATA`
    ├── items/         an item: `_METADATA` and the arrays
    └── iter/          another item, not arrays
```
"""

import os
import re
from dataclasses import dataclass
from typing import Any
from typing import Literal as OneOf

from etils import epath

from nnxconv.errors import BadInput, NotACheckpoint
from nnxconv.layouts import TUNIX_ITEMS
from nnxconv.storage import COMMITTED, STEP_METADATA, TREE_METADATA, UNFINISHED, USUAL_ITEMS
from nnxconv.storage.files import (
    Folder,
    free_metadata,
    mapping_in,
    open_folder,
    read_if_there,
    refuse_strangers,
)
from nnxconv.storage.gcs import is_remote, prepare


@dataclass(frozen=True)
class Location:
    """Where a checkpoint lies.

    Attributes:
      folder: the directory that holds the arrays.
      given_as: what the user's path is: the item itself, its step, or a root of steps.
      step_name: name of the step directory, unless the item was given.
      other_items: names of the step's other directories, which are carried over as they are.
      step_metadata: contents of the nearest `_CHECKPOINT_METADATA`.
      joined: the step's items that together are one tree, `folder` the first of them; empty where
        that is the whole tree.
    """

    folder: Folder
    given_as: OneOf["item", "step", "root"]
    step_name: str = ""
    other_items: tuple[str, ...] = ()
    step_metadata: dict[str, Any] | None = None
    joined: tuple[Folder, ...] = ()

    @property
    def item(self) -> epath.Path:
        """The path of that directory."""
        return self.folder.path

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
    step: int | None = None,
    *,
    has_step: bool = True,
    allow_uncommitted: bool = False,
) -> Location:
    """The checkpoint that a path and `--step` name; some commands have no `--step`.

    Raises:
      NotACheckpoint: there is nothing there that Orbax could read.
      BadInput: there are several steps or items to choose from, or the step is not there.
    """
    given = finished_directory(path)
    if TREE_METADATA in given.files:
        if step is not None:
            raise BadInput(f"`{path}` is one item of a checkpoint, so `--step` has no meaning")
        refuse_strangers(given.path, given.path)
        refuse_strangers(given.path.parent, given.path.parent / STEP_METADATA)
        metadata = _read_step_metadata(given.path, given.path.parent)
        _refuse_uncommitted(allow_uncommitted, given)
        return Location(given, "item", step_metadata=metadata)
    items = _items(given)
    if items:
        if step is not None and _step_number(given.path.name) != step:
            raise BadInput(f"`{path}` is one step of a checkpoint, and it is not step {step}")
        refuse_strangers(given.path, given.path)
        return _in_step(given, items, "step", allow_uncommitted)
    chosen = open_folder(choose_step(given, step, has_step, allow_uncommitted))
    refuse_strangers(given.path, chosen.path)
    return _in_step(chosen, _items(chosen), "root", allow_uncommitted)


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
        raise NotACheckpoint(f"`{path}` is a file, not a checkpoint directory") from error
    if UNFINISHED in given.name:
        raise NotACheckpoint(
            f"`{path}` is an unfinished save",
            hint="it was interrupted before it was committed; use a finished step",
        )
    return folder


def absolute(path: str) -> epath.Path:
    """The path that a user gives, absolute and without symbolic links, or as a gs:// path."""
    if is_remote(path):
        prepare()
        return epath.Path(path.rstrip("/"))
    return epath.Path(os.path.realpath(os.path.expanduser(path)))  # noqa: PTH111


def _in_step(
    step: Folder, items: list[Folder], given_as: OneOf["step", "root"], allow_uncommitted: bool
) -> Location:
    path, names = step.path, sorted(item.path.name for item in items)
    if not items:
        raise NotACheckpoint(f"step `{path}` has no item with arrays", hint=_looks_like(step))
    usual = [item for item in items if item.path.name in USUAL_ITEMS]
    joined = [item for name in TUNIX_ITEMS for item in items if item.path.name == name]
    if joined and joined[0].path.name == TUNIX_ITEMS[0] and not usual:
        usual = joined[:1]
    else:
        joined = []
    if len(items) > 1 and len(usual) != 1:
        raise BadInput(
            f"`{path}` holds {len(items)} items with arrays: {', '.join(names)}",
            hint=f"name one of them, for example `{path / names[0]}`",
        )
    item = usual[0] if usual else items[0]
    own = joined or [item]
    others = {name for name in step.folders if UNFINISHED not in name}
    others -= {one.path.name for one in own}
    _refuse_uncommitted(allow_uncommitted, *own, step)
    metadata = _read_step_metadata(path)
    return Location(item, given_as, path.name, tuple(sorted(others)), metadata, tuple(joined))


def _items(step: Folder) -> list[Folder]:
    """The directories under a step that hold a tree of arrays."""
    names = [n for n in step.folders if _step_number(n) is None and UNFINISHED not in n]
    children = [open_folder(step.path / name) for name in names]
    return [child for child in children if TREE_METADATA in child.files]


def _step_number(name: str) -> int | None:
    """The number in `100`, `checkpoint_100` or `step_100`; None for any other name."""
    match = re.fullmatch(r"(?:[^.]*_)?([0-9]+)", name)
    return int(match[1]) if match else None


def steps_in(root: Folder) -> dict[int, epath.Path]:
    """The steps under a root, by number; in a bucket also those that are being saved."""
    numbers = {_step_number(name): root.path / name for name in root.folders}
    return {number: numbers[number] for number in sorted(n for n in numbers if n is not None)}


def _finished(steps: dict[int, epath.Path]) -> dict[int, epath.Path]:
    """The steps without those that are being saved, which outside of buckets have other names."""
    return {
        number: path
        for number, path in steps.items()
        if not is_remote(path) or read_if_there(path / COMMITTED) is not None
    }


def choose_step(
    root: Folder, step: int | None, has_step: bool = True, allow_uncommitted: bool = False
) -> epath.Path:
    """The step that `--step` names, or the only one.

    Raises:
      NotACheckpoint: there are no steps.
      BadInput: there are several to choose from, or not the one that is asked for.
    """
    steps, path = steps_in(root), root.path
    if not steps:
        raise NotACheckpoint(f"`{path}` is not an Orbax checkpoint", hint=_looks_like(root))
    if step is None and len(steps) > 1 and not allow_uncommitted:
        steps = _finished(steps) or steps
    listed = ", ".join(map(str, steps))
    if step is None and len(steps) > 1:
        name_it = f"name one of them, for example `{steps[max(steps)]}`"
        hint = "choose one with `--step N`" if has_step else name_it
        raise BadInput(f"`{path}` holds {len(steps)} steps: {listed}", hint=hint)
    if step is not None and step not in steps:
        raise BadInput(f"`{path}` has no step {step}", hint=f"it has {listed}")
    return steps[next(iter(steps)) if step is None else step]


def _looks_like(folder: Folder) -> str:
    """What a directory that is no checkpoint seems to be, and what to try."""
    names = folder.names
    if any(UNFINISHED in name for name in names):
        return "it holds only unfinished saves, which were interrupted before they were committed"
    if "metadata" in names and "state" in names:
        return "it looks like a Pax checkpoint: `nnxconv gpt3-from-paxml` imports those of GPT-3"
    if any(name.endswith(".safetensors") for name in names):
        return "it holds safetensors files, which are not Orbax checkpoints"
    if "checkpoint" in names:
        return "it looks like a checkpoint of flax.training.checkpoints; save it with Orbax first"
    if not names:
        return "it is empty"
    return "expected `_METADATA`, an item that has it, or numbered steps"


def _read_step_metadata(*paths: epath.Path) -> dict[str, Any] | None:
    for file in (path / STEP_METADATA for path in paths):
        text = read_if_there(file)
        if text is not None:
            metadata = mapping_in(text, file, NotACheckpoint)
            custom = free_metadata(metadata, "custom_metadata", file)
            return {**metadata, "custom_metadata": custom}
    return None
