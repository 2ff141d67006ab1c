"""Directories that are made on the way and removed again, and objects that arrive late."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from etils import epath

from nnxconv.storage import last_resort
from nnxconv.storage.files.operations import remove_tree


@contextmanager
def parents_made(path: epath.Path) -> Iterator[None]:
    """Makes the directory that a path lies in, and removes it again unless all goes well."""
    made = [parent for parent in (path.parent, *path.parent.parents) if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)

    def remove() -> None:
        for parent in made:
            with suppress(OSError):  # somebody else uses it by now
                Path(parent).rmdir()

    try:
        with last_resort(remove):
            yield
    except BaseException:
        remove()
        raise


def remove_objects(path: epath.Path, *, but: Sequence[str] = ()) -> None:
    """Removes what is below a path, and what writes that were under way still bring there."""
    quiet = 0
    for _ in range(_LOOKS):
        quiet = 0 if remove_tree(path, but=but) else quiet + 1
        if quiet == _QUIET_LOOKS:
            return
        time.sleep(_BETWEEN_LOOKS_SECONDS)


_LOOKS, _QUIET_LOOKS, _BETWEEN_LOOKS_SECONDS = 50, 3, 0.1
