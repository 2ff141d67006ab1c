"""Names of arrays that a target can have: none leads out of it, or to a file of another one."""

import posixpath
from collections.abc import Iterable, Sequence

from nnxconv.errors import BadInput
from nnxconv.storage import COMMITTED, MANIFEST, STEP_METADATA, STRINGS, TREE_METADATA
from nnxconv.storage.orbax import array_name
from nnxconv.storage.safetensors import METADATA
from nnxconv.storage.transfer.shares import Share

_OWN_FILES = (
    *(TREE_METADATA, STEP_METADATA, STRINGS, COMMITTED),
    *("_sharding", "array_metadatas", MANIFEST),
)
_LONGEST_NAME = 255
"""Bytes of a name on the usual file systems."""


def check_names(shares: Sequence[Share], is_tensors: bool) -> None:
    """Refuses arrays that would lie where they cannot be read, or outside of the target.

    Raises:
      BadInput: there are some, all of which are named; or there are no arrays.
    """
    if not any(share.plan.arrays for share in shares):
        raise BadInput("the new checkpoint would hold no arrays")
    problems: list[str] = []
    for share in shares:
        problems += [f"`{share.name}` {why}" for why in _problem_of_folder(share.name)]
        literals = [array_name(key) for key, _ in share.plan.literals]
        arrays = [array.name for array in share.plan.arrays]
        if is_tensors:
            problems += [f"`{METADATA}` is no name of an array"] * (METADATA in arrays)
        else:
            is_plain = not share.container.use_ocdbt
            problems += [f"`{name}` {why}" for name in arrays for why in _problem(name, is_plain)]
            problems += _within_others([*arrays, *literals])
    if problems:
        raise BadInput(
            "the new checkpoint cannot have arrays of these names",
            details=sorted(problems),
            hint="`--rename` gives them others",
        )


def _problem_of_folder(name: str) -> Iterable[str]:
    if name and (name in (".", "..") or "/" in name or "\0" in name):
        yield "is no name of an item"


def _problem(name: str, is_plain: bool) -> Iterable[str]:
    """What is wrong with the name of an array, in a database or as a folder."""
    parts = name.split("/")
    if not name:
        yield "is empty"
    elif not is_plain:
        return
    elif "\0" in name:
        yield "has a character that no file name has"
    elif name[:1] == "/" or parts[0] in (".", "..") or posixpath.normpath(name) != name:
        yield "leads to another folder"
    elif parts[0] in _OWN_FILES:
        yield "is a file of the checkpoint itself"
    elif max(len(part.encode()) for part in parts) > _LONGEST_NAME:
        yield f"is longer than {_LONGEST_NAME} bytes"


def _within_others(names: Sequence[str]) -> Iterable[str]:
    """Names that lie in the folder of another array."""
    known = set(names)
    for name in names:
        above = name
        while "/" in above:
            above = above.rpartition("/")[0]
            if above in known:
                yield f"`{name}` lies within `{above}`"
                break
