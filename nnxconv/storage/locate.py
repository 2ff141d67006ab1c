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
from nnxconv.storage.contained import refuse_strangers
from nnxconv.storage.documents import free_metadata, read_json
from nnxconv.storage.remote import COMMITTED, is_remote, prepare

TREE_METADATA = "_METADATA"
STEP_METADATA = "_CHECKPOINT_METADATA"
UNFINISHED = ".orbax-checkpoint-tmp"
USUAL_ITEMS = ("items", "default", "state", "pytree")


@dataclass(frozen=True)
class Location:
    """Where a checkpoint lies.

    Attributes:
      item: the directory that holds the arrays.
      given_as: what the user's path is: the item itself, its step, or a root of steps.
      step_name: name of the step directory, unless the item was given.
      other_items: names of the step's other directories, which are carried over as they are.
      step_metadata: contents of the nearest `_CHECKPOINT_METADATA`.
    """

    item: epath.Path
    given_as: OneOf["item", "step", "root"]
    step_name: str = ""
    other_items: tuple[str, ...] = ()
    step_metadata: dict[str, Any] | None = None

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
    location = _locate(path, step, has_step)
    if not allow_uncommitted:
        _refuse_uncommitted(location)
    return location


def _refuse_uncommitted(location: Location) -> None:
    """Refuses what Orbax, too, takes for an unfinished save in a bucket.

    Raises:
      NotACheckpoint: the item or its step has no `commit_success.txt`.
    """
    if not is_remote(location.item):
        return
    folders = [location.item]
    if location.given_as != "item":
        folders.append(location.item.parent)
    for folder in folders:
        if not (folder / COMMITTED).exists():
            raise NotACheckpoint(
                f"`{folder}` has no `{COMMITTED}`: it is an unfinished save, or a copy of a"
                " checkpoint from a local disk",
                hint="`--allow_uncommitted` reads it all the same",
            )


def _locate(path: str, step: int | None, has_step: bool) -> Location:
    given = finished_directory(path)
    if (given / TREE_METADATA).exists():
        if step is not None:
            raise BadInput(f"`{path}` is one item of a checkpoint, so `--step` has no meaning")
        refuse_strangers(given, given)
        refuse_strangers(given.parent, given.parent / STEP_METADATA)
        return Location(given, "item", step_metadata=_read_step_metadata(given, given.parent))
    if _items(given):
        if step is not None and _step_number(given.name) != step:
            raise BadInput(f"`{path}` is one step of a checkpoint, and it is not step {step}")
        refuse_strangers(given, given)
        return _in_step(given, "step")
    chosen = choose_step(given, step, has_step)
    refuse_strangers(given, chosen)
    return _in_step(chosen, "root")


def finished_directory(path: str) -> epath.Path:
    """The directory that a user names.

    Raises:
      NotACheckpoint: it is not there, or is what an interrupted save left.
    """
    given = absolute(path)
    if not given.exists():
        raise NotACheckpoint(f"`{path}` does not exist")
    if not given.is_dir():
        raise NotACheckpoint(f"`{path}` is a file, not a checkpoint directory")
    if UNFINISHED in given.name:
        raise NotACheckpoint(
            f"`{path}` is an unfinished save",
            hint="it was interrupted before it was committed; use a finished step",
        )
    return given


def absolute(path: str) -> epath.Path:
    """The path that a user gives, absolute and without symbolic links, or as a gs:// path."""
    if is_remote(path):
        prepare()
        return epath.Path(path.rstrip("/"))
    return epath.Path(os.path.realpath(os.path.expanduser(path)))  # noqa: PTH111


def _in_step(path: epath.Path, given_as: OneOf["step", "root"]) -> Location:
    items = _items(path)
    if not items:
        raise NotACheckpoint(f"step `{path}` has no item with arrays", hint=_looks_like(path))
    usual = [name for name in USUAL_ITEMS if name in items]
    if len(items) > 1 and len(usual) != 1:
        raise BadInput(
            f"`{path}` holds {len(items)} items with arrays: {', '.join(sorted(items))}",
            hint=f"name one of them, for example `{path / sorted(items)[0]}`",
        )
    item = usual[0] if usual else items[0]
    others = tuple(sorted(child.name for child in path.iterdir() if _is_other(child, item)))
    return Location(path / item, given_as, path.name, others, _read_step_metadata(path))


def _is_other(child: epath.Path, item: str) -> bool:
    return child.is_dir() and child.name != item and UNFINISHED not in child.name


def _items(path: epath.Path) -> list[str]:
    """The directories under a step that hold a tree of arrays."""
    return [
        child.name
        for child in path.iterdir()
        if _step_number(child.name) is None
        and UNFINISHED not in child.name
        and (child / TREE_METADATA).exists()
    ]


def _step_number(name: str) -> int | None:
    """The number in `100`, `checkpoint_100` or `step_100`; None for any other name."""
    match = re.fullmatch(r"(?:[^.]*_)?([0-9]+)", name)
    return int(match[1]) if match else None


def steps_in(root: epath.Path) -> dict[int, epath.Path]:
    """The finished steps under a root, by number."""
    numbered = {_step_number(child.name): child for child in root.iterdir() if child.is_dir()}
    return {number: numbered[number] for number in sorted(n for n in numbered if n is not None)}


def choose_step(root: epath.Path, step: int | None, has_step: bool = True) -> epath.Path:
    """The step that `--step` names, or the only one.

    Raises:
      NotACheckpoint: there are no steps.
      BadInput: there are several to choose from, or not the one that is asked for.
    """
    steps = steps_in(root)
    if not steps:
        raise NotACheckpoint(f"`{root}` is not an Orbax checkpoint", hint=_looks_like(root))
    listed = ", ".join(map(str, steps))
    if step is None and len(steps) > 1:
        name_it = f"name one of them, for example `{steps[max(steps)]}`"
        hint = "choose one with `--step N`" if has_step else name_it
        raise BadInput(f"`{root}` holds {len(steps)} steps: {listed}", hint=hint)
    if step is not None and step not in steps:
        raise BadInput(f"`{root}` has no step {step}", hint=f"it has {listed}")
    return steps[next(iter(steps)) if step is None else step]


def _looks_like(path: epath.Path) -> str:
    """What a directory that is no checkpoint seems to be, and what to try."""
    names = {child.name for child in path.iterdir()}
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
    for path in paths:
        file = path / STEP_METADATA
        if file.exists():
            metadata = read_json(file, NotACheckpoint)
            custom = free_metadata(metadata, "custom_metadata", file)
            return {**metadata, "custom_metadata": custom}
    return None
