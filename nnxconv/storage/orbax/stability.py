"""A checkpoint that its writer replaces or removes while it is read is never read as a mixture."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from etils import epath

from nnxconv.errors import DamagedCheckpoint
from nnxconv.storage.files import Folder, generation_of, generations_below
from nnxconv.storage.gcs import is_remote

Seen = Mapping[str, tuple[int, ...]]
"""For each file of a directory, and for itself: its inode, bytes, and time of change.

Of each object below a path in a bucket: its generation and bytes.
"""


def look_at(folder: Folder) -> Seen:
    """What a directory looked like when it was listed, where all of it was; else what it does."""
    if folder.objects is None:
        return look(folder.path)
    return {name: (int(number), nbytes) for name, (nbytes, number) in folder.objects.items()}


def look(path: epath.Path) -> Seen:
    """What a directory looks like; one listing in a bucket."""
    if is_remote(path):
        found = generations_below(path) or generation_of(path)
        return {name: (int(number), nbytes) for name, (nbytes, number) in found.items()}
    if path.is_file():
        return {"": _identity(os.stat(path))}  # noqa: PTH116
    return dict(_entries(Path(os.fspath(path)), ""))


def _entries(folder: Path, prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield prefix, (folder.stat().st_ino, 0, 0)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _entries(folder / entry.name, f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name, _identity(entry.stat())


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns


class Looked(Protocol):
    """What was looked at when it was opened."""

    @property
    def path(self) -> epath.Path:
        """Where it lies."""
        ...

    @property
    def seen(self) -> Seen:
        """What it looked like; empty where nobody looked."""
        ...


def refuse_changed(items: Iterable[Looked]) -> None:
    """Refuses what was read if any file is not the one that was there when it was opened.

    Raises:
      DamagedCheckpoint: files have been changed, added or removed; they are named.
    """
    for item in items:
        if item.seen:  # an item of which only metadata are read was not looked at
            _refuse_changed(item.path, item.seen)


def _refuse_changed(path: epath.Path, seen: Seen) -> None:
    try:
        now = look(path)
    except FileNotFoundError:
        now = {}
    if now == seen:
        return
    names = sorted(name for name in seen.keys() | now.keys() if seen.get(name) != now.get(name))
    raise DamagedCheckpoint(
        "the checkpoint was changed while it was read",
        where=str(path),
        details=[_told(name, seen, now) for name in names],
        hint="try again when the program that writes it is done",
    )


def _told(name: str, seen: Seen, now: Seen) -> str:
    what = "is new" if name not in seen else "is gone" if name not in now else "is another one"
    return f"`{name or '.'}` {what}"
