"""The target appears whole or not at all: temporary names, the last rename, the clean-up."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from etils import epath
from orbax.checkpoint.path import atomicity

from nnxconv.storage.exchange import exchange
from nnxconv.storage.locate import UNFINISHED


@contextmanager
def nothing_left_on_failure(path: epath.Path) -> Iterator[None]:
    """Removes the temporary directory, and the parents made for it, unless all goes well."""
    _undo(path)  # what a killed run left
    made = [parent for parent in (path.parent, *path.parent.parents) if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        _undo(path)
        for parent in made:
            with suppress(OSError):  # somebody else uses it by now
                parent.rmdir()
        raise


def _undo(path: epath.Path) -> None:
    """Removes what an unfinished save left; a target that was set aside comes back."""
    temporary, aside = path.parent / (path.name + UNFINISHED), _aside(path)
    if aside.exists() and not path.exists():
        aside.rename(path)
    for leftover in (temporary, aside):
        if leftover.exists():
            _remove(leftover)


def _remove(path: epath.Path) -> None:
    """Removes a directory into which writes that were under way may still fall."""
    quiet = 0
    for _ in range(200):
        if path.exists():
            quiet = 0
            with suppress(OSError):
                path.rmtree()
        else:
            quiet += 1
            if quiet == 5:
                return
        time.sleep(0.01)


def _aside(path: epath.Path) -> epath.Path:
    """Where the new target stands before it takes the old one's place, and the old one after."""
    return path.parent / f"{path.name}{UNFINISHED}-replaced"


_STAND_IN = ".nnxconv-final"


def stand_in(path: epath.Path) -> epath.Path:
    """A name that never exists: Orbax would refuse, or delete first, a target that does."""
    return path.parent / (path.name + _STAND_IN)


class Swap(atomicity.AtomicRenameTemporaryPath):
    """Orbax's atomic rename; an existing target is replaced when the new one is complete."""

    @classmethod
    def from_final(cls, final_path: epath.Path, **options: Any) -> "Swap":
        real = final_path.parent / final_path.name.removesuffix(_STAND_IN)
        return super().from_final(real, **options)  # type: ignore[return-value]

    async def finalize(self) -> None:
        final = self.get_final()
        if not final.exists():
            return await super().finalize()
        self._final_path = _aside(final)
        await super().finalize()
        exchange(self._final_path, final)
        self._final_path.rmtree()
        return None
