"""The target appears whole or not at all: temporary names, the last rename, the clean-up."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from etils import epath

from nnxconv.errors import BadInput, StorageError
from nnxconv.storage import COMMITTED, UNFINISHED, last_resort
from nnxconv.storage.files import (
    copy_tree,
    exchange,
    files_below,
    is_complete,
    locked,
    locked_in_bucket,
    parents_made,
    remove_objects,
    remove_tree,
    write_files,
)
from nnxconv.storage.gcs import Lease, LeaseLost, is_remote, plain_reason
from nnxconv.storage.orbax.documents import mark


@dataclass(frozen=True)
class Staging:
    """A directory that is filled, and what makes it the target when it is complete.

    Attributes:
      commit: gives the target its name, or the mark that it is complete.
      confirm: makes sure, shortly before, that no other run has taken the target over.
    """

    directory: epath.Path
    commit: Callable[[], None]
    confirm: Callable[[], None] = lambda: None


@contextmanager
def nothing_left_on_failure(
    path: epath.Path,
    *,
    may_replace: bool,
    is_marked: bool = True,
    file: str = "",
    last: Callable[[epath.Path], None] | None = None,
) -> Iterator[Staging]:
    """Removes the temporary directory, and the parents made for it, unless all goes well.

    Args:
      path: of the target.
      may_replace: whether what is there is replaced.
      is_marked: a complete one says so by a file in it, as Orbax's do.
      file: the only file in the directory that becomes the target, instead of all of it.
      last: writes into the directory, in a bucket, by what readers know that it is complete,
        instead of Orbax's mark.

    Raises:
      BadInput: another conversion is writing the target, or has just written it.
    """
    if is_remote(path):
        mark_it = last or partial(_mark, path)
        with (
            locked_in_bucket(path) as lease,
            _one_object(path, may_replace)
            if file
            else _no_objects_left_on_failure(path, may_replace, lease) as place,
        ):
            commit = partial(_mark_while_held, mark_it, place, lease)
            yield Staging(place, commit, partial(lease.check, surely=True))
        return
    with parents_made(path), locked(path):
        _undo(path)  # what a killed run left
        refuse_replacing(path, may_replace)
        try:
            with last_resort(partial(_undo, path)):
                made = _made(_temporary(path))
                commit = partial(_rename, made, path, may_replace, is_marked=is_marked, file=file)
                yield Staging(made.directory, commit)
        except BaseException:
            _undo(path)
            raise


@contextmanager
def _one_object(path: epath.Path, may_replace: bool) -> Iterator[epath.Path]:
    """The directory of an object that is written at once, so that nothing of it can be left."""
    refuse_replacing(path, may_replace)
    yield path.parent


@contextmanager
def _no_objects_left_on_failure(
    path: epath.Path, may_replace: bool, lease: Lease
) -> Iterator[epath.Path]:
    """The same in a bucket, where there are no directories, and no temporary names for new ones.

    An old target is replaced when the new one, beside it, is complete.
    """
    beside = path.parent / f"{path.name}.nnxconv-new"
    place = path
    with ThreadPoolExecutor(2) as pool:
        there, left = pool.map(files_below, (path, beside))
    if there:
        place = beside
        _refuse_unless(may_replace, path)
    if is_complete(left):
        raise BadInput(
            f"`{beside}` is a complete checkpoint, which an interrupted `--overwrite` left",
            hint=f"`gcloud storage mv {beside} ...` keeps it, `gcloud storage rm -r {beside}`"
            " removes it",
        )
    if left:
        remove_tree(beside)
    try:
        with last_resort(partial(_remove_if_held, place, lease)):
            yield place
    except LeaseLost:  # what is there may be the other run's
        raise
    except BaseException as error:
        try:
            _remove_if_held(place, lease)
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


def _remove_if_held(place: epath.Path, lease: Lease) -> None:
    lease.confirm()
    remove_objects(place)


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
    temporary, aside = _temporary(path), _aside(path)
    if aside.exists() and not path.exists():
        aside.rename(path)
    for leftover in (temporary, aside):
        if os.path.islink(leftover):  # noqa: PTH114
            os.unlink(leftover)  # noqa: PTH108
        elif leftover.exists():
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


def _temporary(path: epath.Path) -> epath.Path:
    """Where a target is written; Orbax takes such names for unfinished saves."""
    return path.parent / (path.name + UNFINISHED)


@dataclass(frozen=True)
class _Made:
    """A directory that we have made, and how the system knows it."""

    directory: epath.Path
    status: os.stat_result

    def confirm(self) -> None:
        """Makes sure that it is still there, and is not a link, or another one of that name.

        Raises:
          StorageError: it is not.
        """
        with suppress(OSError):
            if os.path.samestat(self.status, os.lstat(self.directory)):
                return
        raise StorageError(
            "the unfinished target was moved or replaced while it was written",
            where=os.fspath(self.directory),
            hint="let no other program change it, and try again",
        )


def _made(directory: epath.Path) -> _Made:
    directory.mkdir()
    return _Made(directory, os.lstat(directory))


def _mark(path: epath.Path, place: epath.Path) -> None:
    write_files({place / COMMITTED: mark(path)})


def _mark_while_held(
    mark_it: Callable[[epath.Path], None], place: epath.Path, lease: Lease
) -> None:
    """The last object in a bucket, for a run that no other one has taken for dead."""
    lease.check()
    mark_it(place)


def _rename(
    made: _Made, path: epath.Path, may_replace: bool, *, is_marked: bool, file: str
) -> None:
    """Gives the target its name; an existing one, which may be replaced, is swapped for it."""
    made.confirm()
    refuse_replacing(path, may_replace)
    temporary = made.directory
    if file:
        (temporary / file).replace(path)
        temporary.rmtree()
        return
    if is_marked:
        write_files({temporary / COMMITTED: mark(path)})
    if not path.exists():
        temporary.rename(path)
        return
    aside = _aside(path)
    temporary.rename(aside)
    exchange(aside, path)
    aside.rmtree()
