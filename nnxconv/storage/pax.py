"""A Pax checkpoint, opened without reading its arrays.

```
checkpoints/                       a root of steps
└── checkpoint_00000005/           a step; in version 0 it holds the leaves itself
    ├── state/<leaf>/              since version 1.0: `.zarray` and chunks such as `0.0.1`
    └── metadata/metadata          JSON; since version 1.1 with the shapes without padding
```
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from nnxconv.errors import DamagedCheckpoint, NotACheckpoint
from nnxconv.storage import MANIFEST
from nnxconv.storage.files import (
    Folder,
    files_below,
    open_folder,
    parse_json,
    read_if_there,
    refuse_strangers,
)
from nnxconv.storage.names import TREE_METADATA
from nnxconv.storage.orbax import (
    Item,
    choose_step,
    finished_directory,
    look,
    read_formats,
    steps_in,
)
from nnxconv.storage.zarr import ArrayFormat, chunk_key, encoding
from nnxconv.tree import Key, Shape, Source

_PARAMETERS = "mdl_vars."
_MAX_CHUNKS_NAMED = 8


@dataclass(frozen=True)
class PaxCheckpoint:
    """The leaves of a Pax checkpoint.

    Attributes:
      folder: the directory of the leaves.
      item: what is in it, each leaf an array of one key.
      step: the number in the step's name; None when it has none.
      unpadded: shapes without padding by leaf, for parameters only; empty before version 1.1.
      missing_chunks: for each leaf of which chunks are missing, how many, and some of them.
    """

    folder: Folder
    item: Item
    step: int | None
    unpadded: Mapping[str, Shape]
    missing_chunks: Mapping[str, str]

    @property
    def leaves(self) -> dict[str, Source]:
        """The stored arrays by name."""
        return {leaf.name: leaf for leaf in self.item.tree.values() if isinstance(leaf, Source)}


def open_pax(path: str, step: int | None = None) -> PaxCheckpoint:
    """Opens the directory of the leaves, their step, or a root of steps.

    Raises:
      NotACheckpoint: there is no Pax checkpoint there.
      BadInput: there are several steps to choose from, or the step is not there.
      DamagedCheckpoint: the metadata of the checkpoint or of a leaf cannot be read.
    """
    given = finished_directory(path)
    found = _locate(path, given, step)
    folder = found.path
    parent = folder.parent if folder.name == "state" else folder
    top = given.path if given.path in folder.parents else parent
    refuse_strangers(top, folder, parent / "metadata")
    seen = look(folder)
    names = sorted(found.folders)
    if MANIFEST in found.files:
        raise NotACheckpoint(
            "this Pax checkpoint is an OCDBT database (version 1.2), which is not supported",
            where=str(folder),
            hint="save it again without OCDBT",
        )
    formats = read_formats(folder, None, False, names)
    tree = {_key(name): _source(folder, name, formats[name]) for name in names}
    return PaxCheckpoint(
        found,
        Item(folder, tree, formats, use_ocdbt=False, use_zarr3=False, seen=seen),
        _number(parent.name),
        _unpadded(parent / "metadata" / "metadata"),
        {name: text for name in names if (text := _missing(folder / name, formats[name]))},
    )


def _key(name: str) -> Key:
    return (name,)


def _source(folder: epath.Path, name: str, array: ArrayFormat) -> Source:
    store = folder.as_posix()
    return Source(
        name, array.shape, array.dtype, array.chunks, store=store, encoding=encoding(array)
    )


def _locate(path: str, given: Folder, step: int | None) -> Folder:
    """The directory that holds the leaves."""
    if not _has_leaves(given) and "checkpoints" in given.folders:
        given = open_folder(given.path / "checkpoints")
    if not _has_leaves(given) and _step_folders(given):
        given = open_folder(choose_step(given, step, allow_uncommitted=True))
    if "state" in given.folders:
        state = open_folder(given.path / "state")
        if _has_leaves(state):
            return state
    if _has_leaves(given):
        return given
    raise NotACheckpoint(f"`{path}` is not a Pax checkpoint", hint=_looks_like(given))


def _has_leaves(folder: Folder) -> bool:
    """True where parameters are, one by one or in a database."""
    if TREE_METADATA in folder.files:
        return False
    if any(name.startswith(_PARAMETERS) or name == MANIFEST for name in folder.names):
        return True
    return "state" in folder.folders and _has_leaves(open_folder(folder.path / "state"))


def _step_folders(folder: Folder) -> bool:
    return any(_has_leaves(open_folder(step)) for step in steps_in(folder).values())


def _looks_like(folder: Folder) -> str:
    if not folder.names:
        return "it is empty"
    if TREE_METADATA in folder.files or any(
        TREE_METADATA in open_folder(folder.path / name).files for name in folder.folders
    ):
        return "it is an Orbax checkpoint: `nnxconv convert` takes it"
    return "expected `mdl_vars.params.lm...`, `state`, or steps such as `checkpoint_00000005`"


def _number(name: str) -> int | None:
    match = re.fullmatch(r"(?:checkpoint_)?([0-9]+)", name)
    return int(match[1]) if match else None


def _unpadded(file: epath.Path) -> dict[str, Shape]:
    """The shapes without padding that the metadata give, by leaf."""
    text = read_if_there(file)
    if text is None:
        return {}
    try:
        metadata = parse_json(text)
        if float(metadata["version"]) < 1.1:
            return {}
        return dict(_shapes(metadata["train_state_metadata"]["mdl_vars"], "mdl_vars"))
    except KeyError as error:
        raise DamagedCheckpoint(f"`{file}` has no `{error.args[0]}`") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"`{file}` is not the metadata of a Pax checkpoint") from error


def _shapes(tree: Mapping[str, Any], path: str) -> Iterator[tuple[str, Shape]]:
    for name, branch in tree.items():
        if not isinstance(branch, dict):
            continue
        if "unpadded_shape" in branch:
            yield f"{path}.{name}", tuple(int(size) for size in branch["unpadded_shape"])
        else:
            yield from _shapes(branch, f"{path}.{name}")


def _missing(folder: epath.Path, array: ArrayFormat) -> str:
    """`2 of 12 chunks: 0.1, 2.2`; empty when all are there."""
    counts = [-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)]
    wanted = [
        chunk_key(array.zarr_format, array.metadata, index)
        for index in itertools.product(*map(range, counts))
    ]
    found = files_below(folder)
    missing = [key for key in wanted if key not in found]
    if not missing:
        return ""
    named = ", ".join(missing[:_MAX_CHUNKS_NAMED])
    more = ", ..." if len(missing) > _MAX_CHUNKS_NAMED else ""
    return f"{len(missing):,} of {len(wanted):,} chunks: {named}{more}"
