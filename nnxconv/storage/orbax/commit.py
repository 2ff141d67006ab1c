"""The target appears whole or not at all: temporary names, the last rename, the clean-up."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from etils import epath
from orbax.checkpoint.path import atomicity

from nnxconv.errors import BadInput, StorageError
from nnxconv.storage import COMMITTED, UNFINISHED
from nnxconv.storage.files import (
    copy_tree,
    exchange,
    files_below,
    locked,
    locked_in_bucket,
    parents_made,
    remove_objects,
    remove_tree,
)
from nnxconv.storage.gcs import Lease, LeaseLost, is_remote, plain_reason


@dataclass(frozen=True)
class Place:
    """The path that Orbax is told to write, and how it shall name and commit it."""

    path: epath.Path
    temporary_path_class: type[atomicity.TemporaryPathBase]


@contextmanager
def nothing_left_on_failure(path: epath.Path, *, may_replace: bool) -> Iterator[Place]:
    """Removes the temporary directory, and the parents made for it, unless all goes well.

    Raises:
      BadInput: another conversion is writing the target, or has just written it.
    """
    if is_remote(path):
        with (
            locked_in_bucket(path) as lease,
            _no_objects_left_on_failure(path, may_replace, lease) as place,
        ):
            yield Place(place, _marked_while_held(lease))
        return
    with parents_made(path), locked(path):
        _undo(path)  # what a killed run left
        refuse_replacing(path, may_replace)
        try:
            yield Place(_stand_in(path), Swap if may_replace else Rename)
        except BaseException:
            _undo(path)
            raise


@contextmanager
def _no_objects_left_on_failure(
    path: epath.Path, may_replace: bool, lease: Lease
) -> Iterator[epath.Path]:
    """The same in a bucket, where there are no directories, and no temporary names for new ones.

    An old target is replaced when the new one, beside it, is complete.
    """
    beside = path.parent / f"{path.name}.nnxconv-new"
    place = path
    if files_below(path):
        place = beside
        _refuse_unless(may_replace, path)
    left = files_below(beside)
    if COMMITTED in left:
        raise BadInput(
            f"`{beside}` is a complete checkpoint, which an interrupted `--overwrite` left",
            hint=f"`gcloud storage mv {beside} ...` keeps it, `gcloud storage rm -r {beside}`"
            " removes it",
        )
    if left:
        remove_tree(beside)
    try:
        yield place
    except LeaseLost:  # what is there may be the other run's
        raise
    except BaseException as error:
        try:
            lease.confirm()
            remove_objects(place)
        except LeaseLost:
            raise
        except Exception as trouble:
            raise StorageError(
                f"`{place}` is not complete, and could not be removed",
                details=[plain_reason(error)],
                hint=f"`gcloud storage rm -r {place}` removes it",
            ) from trouble
        raise
    if place == beside:
        _replace(path, beside)


def _replace(old: epath.Path, new: epath.Path) -> None:
    """Puts the new checkpoint, which is complete, in the place of the old one.

    A bucket has no atomic rename: until the server has copied the objects, only `new` is whole.

    Raises:
      StorageError: where the whole checkpoint lies, and how to finish by hand.
    """
    try:
        remove_tree(old)
        copy_tree(new, old)
    except Exception as error:
        raise StorageError(
            f"the new checkpoint is complete at `{new}`, but could not replace `{old}`",
            details=[plain_reason(error)],
            hint=f"`gcloud storage rm -r {old}`, then `gcloud storage mv {new} {old}`",
        ) from error
    try:
        remove_tree(new)
    except Exception as error:
        raise StorageError(
            f"`{old}` is complete, but the copy beside it could not be removed",
            details=[plain_reason(error)],
            hint=f"`gcloud storage rm -r {new}` removes it",
        ) from error


def refuse_replacing(path: epath.Path, may_replace: bool) -> None:
    """Raises BadInput for a target that has come to be there since that was checked."""
    if path.exists():
        _refuse_unless(may_replace, path)


def _refuse_unless(may_replace: bool, path: epath.Path) -> None:
    if not may_replace:
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


def _marked_while_held(lease: Lease) -> type[atomicity.TemporaryPathBase]:
    """Orbax's last object in a bucket, for a run that no other one has taken for dead."""

    class Marked(atomicity.CommitFileTemporaryPath):
        async def finalize(self) -> None:
            lease.check(surely=True)
            await super().finalize()

    return Marked


def _stand_in(path: epath.Path) -> epath.Path:
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
