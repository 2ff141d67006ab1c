"""Small checkpoints are saved once in a run; who asks for the same again gets a copy of the files.

A copy is a tenth of the work of a save, and a test may do with it what it likes.
"""

import hashlib
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

MOST_BYTES = 2**20
"""Larger trees are saved each time: they would be written twice for few who ask again."""

_folder: Path | None = None


def keep_in(folder: Path) -> None:
    """From now on, what this process saves is kept in the folder."""
    global _folder
    _folder = folder


def once(path: Path, content: Any, save: Callable[[Path], None]) -> Path:
    """The path, where now lies what `save` writes there; `content` is all that it depends on."""
    kept = _place(content)
    if kept is None or str(path).startswith("gs:") or path.exists():
        save(path)
        return path
    if not kept.exists():
        save(kept)
    return shutil.copytree(kept, path, copy_function=shutil.copy)


def _place(content: Any) -> Path | None:
    """Where such content is kept; None for what is large, or lies on devices."""
    leaves = list(_leaves(content))
    plain = all(
        isinstance(leaf, np.ndarray | np.generic | int | float | str | None) for leaf in leaves
    )
    nbytes = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, np.ndarray))
    if _folder is None or not plain or nbytes > MOST_BYTES:
        return None
    return _folder / hashlib.sha256(pickle.dumps(content)).hexdigest()


def _leaves(content: Any) -> Iterator[Any]:
    if type(content) is dict:
        for value in content.values():
            yield from _leaves(value)
    elif type(content) in (list, tuple):
        for value in content:
            yield from _leaves(value)
    else:
        yield content
