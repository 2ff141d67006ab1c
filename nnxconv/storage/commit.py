"""The target appears whole or not at all: temporary names, the last rename, the clean-up."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from etils import epath
from orbax.checkpoint.path import atomicity

from nnxconv.errors import BadInput, StorageError
from nnxconv.storage.alone import alone
from nnxconv.storage.exchange import exchange
from nnxconv.storage.locate import UNFINISHED
from nnxconv.storage.remote import COMMITTED, is_remote, move_tree, remove_tree


@contextmanager
def nothing_left_on_failure(path: epath.Path, *, may_replace: bool) -> Iterator[None]:
    """Removes the temporary directory, and the parents made for it, unless all goes well.

    Raises:
      BadInput: another conversion is writing the target, or has just written it.
    """
    if is_remote(path):
        with _no_objects_left_on_failure(path):
            yield
        return
    made = [parent for parent in (path.parent, *path.parent.parents) if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with alone(path):
            _undo(path)  # what a killed run left
            refuse_replacing(path, may_replace)
            try:
                yield
            except BaseException:
                _undo(path)
                raise
    except BaseException:
        for parent in made:
            with suppress(OSError):  # somebody else uses it by now
                parent.rmdir()
        raise


@contextmanager
def _no_objects_left_on_failure(path: epath.Path) -> Iterator[None]:
    """The same in a bucket, where there are no directories, and no temporary names for new ones."""
    beside = _beside(path)
    if (beside / COMMITTED).exists():
        raise BadInput(
            f"`{beside}` is a complete checkpoint, which an interrupted `--overwrite` left",
            hint=f"`gcloud storage mv {beside} ...` keeps it, `gcloud storage rm -r {beside}`"
            " removes it",
        )
    temporary = beside if path.exists() else path
    remove_tree(beside)
    try:
        yield
    except BaseException as error:
        try:
            if not (temporary / COMMITTED).exists():
                remove_tree(temporary)
        except Exception as trouble:
            raise StorageError(
                f"`{temporary}` is not complete, and could not be removed",
                details=[str(error).splitlines()[0]],
                hint=f"`gcloud storage rm -r {temporary}` removes it",
            ) from trouble
        raise


def refuse_replacing(path: epath.Path, may_replace: bool) -> None:
    """Raises BadInput for a target that has come to be there since that was checked."""
    if path.exists() and not may_replace:
        raise BadInput(
            f"`{path}` exists: another program has just written it",
            hint="add `--overwrite` to replace it",
        )


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


def _beside(path: epath.Path) -> epath.Path:
    """Where in a bucket the new target is written while the old one is there."""
    return path.parent / f"{path.name}.nnxconv-new"


def temporary_path_class(
    path: epath.Path, *, may_replace: bool
) -> type[atomicity.TemporaryPathBase]:
    """How Orbax shall name and commit a target."""
    if is_remote(path):
        return SwapObjects
    return Swap if may_replace else Rename


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


class Rename(Swap):
    """The same, but for a target that is not to be replaced, whenever it came to be there."""

    async def finalize(self) -> None:
        refuse_replacing(self.get_final(), may_replace=False)
        await super().finalize()


class SwapObjects(atomicity.CommitFileTemporaryPath):
    """Orbax's commit by a last object; a target that exists is replaced after that.

    A bucket has no atomic rename: while the server copies the new objects to the place of the old
    ones, which are removed first, only the complete checkpoint beside it is whole.
    """

    _replaced: epath.Path | None = None

    @classmethod
    def from_final(cls, final_path: epath.Path, **options: Any) -> "SwapObjects":
        real = final_path.parent / final_path.name.removesuffix(_STAND_IN)
        if not real.exists():
            return super().from_final(real, **options)  # type: ignore[return-value]
        made = super().from_final(_beside(real), **options)
        made._replaced = real  # type: ignore[attr-defined]
        return made  # type: ignore[return-value]

    async def finalize(self) -> None:
        await super().finalize()
        if self._replaced is not None:
            remove_tree(self._replaced)
            move_tree(self.get_final(), self._replaced)
