"""Swap two directories in one step, where the kernel can."""

import ctypes
import os

from etils import epath

_HERE = -100  # AT_FDCWD: paths are relative to the working directory
_EXCHANGE = 2  # RENAME_EXCHANGE, Linux 3.15


def exchange(new: epath.Path, old: epath.Path) -> None:
    """Puts `new` in the place of `old`, and `old` in that of `new`.

    One atomic step on Linux file systems that know RENAME_EXCHANGE. Elsewhere it takes three
    renames, and a kill between them leaves `old` beside its place, under the name `new` had with
    `-old` added.
    """
    if not _exchange_at_once(os.fspath(new), os.fspath(old)):
        spare = new.parent / (new.name + "-old")
        old.rename(spare)
        new.rename(old)
        spare.rename(new)


def _exchange_at_once(a: str, b: str) -> bool:
    """True when the kernel did it; False when it cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return rename(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE) == 0
