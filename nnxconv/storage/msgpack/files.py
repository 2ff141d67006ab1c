"""Files that hold a tree in msgpack, told by their first bytes."""

import re

from etils import epath

from nnxconv.storage.files import Folder
from nnxconv.storage.gcs import is_remote

OLD_TREE = "checkpoint"
"""Where the Orbax of 2023 has the tree of an item."""
_STEP_FILE = re.compile(r"checkpoint_(\d+(?:\.\d+)?)")


def is_msgpack(file: epath.Path) -> bool:
    """True for a local file that begins as a msgpack mapping does."""
    if is_remote(file) or not file.is_file():
        return False
    with file.open("rb") as stream:
        first = stream.read(1)
    return bool(first) and (first[0] & 0xF0 == 0x80 or first[0] in (0xDE, 0xDF))


def newest_file(folder: Folder) -> tuple[epath.Path, int] | None:
    """The newest file `checkpoint_N` of flax.training.checkpoints, and how many there are."""
    found = {
        float(match[1]): folder.path / name
        for name in folder.files
        if (match := _STEP_FILE.fullmatch(name)) is not None
    }
    files = {number: file for number, file in found.items() if is_msgpack(file)}
    return (files[max(files)], len(files)) if files else None
