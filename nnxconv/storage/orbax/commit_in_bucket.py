"""In a bucket, too, the target appears whole or not at all: its last object, the clean-up."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from etils import epath

from nnxconv.errors import BadInput, StorageError
from nnxconv.storage import COMMITTED, last_resort
from nnxconv.storage.files import (
    copy_tree,
    files_below,
    is_complete,
    locked_in_bucket,
    remove_objects,
    remove_tree,
    write_files,
)
from nnxconv.storage.gcs import Lease, LeaseLost, plain_reason
from nnxconv.storage.orbax.documents import mark
from nnxconv.storage.orbax.staging import Staging, refuse_replacing, refuse_unless


@contextmanager
def staged_in_bucket(
    path: epath.Path,
    may_replace: bool,
    *,
    is_object: bool,
    last: Callable[[epath.Path], None] | None,
) -> Iterator[Staging]:
    """Removes the objects of the target unless all goes well.

    Args:
      path: of the target.
      may_replace: whether what is there is replaced.
      is_object: the target is one object.
      last: writes that by which readers know that it is complete, instead of Orbax's mark.

    Raises:
      BadInput: another conversion is writing the target, or has just written it.
    """
    mark_it = last or partial(_mark, path)
    with (
        locked_in_bucket(path) as lease,
        _one_object(path, may_replace)
        if is_object
        else _no_objects_left_on_failure(path, may_replace, lease) as place,
    ):
        commit = partial(_mark_while_held, mark_it, place, lease)
        yield Staging(place, commit, partial(lease.check, surely=True))


@contextmanager
def _one_object(path: epath.Path, may_replace: bool) -> Iterator[epath.Path]:
    """The directory of an object that is written at once, so that nothing of it can be left."""
    refuse_replacing(path, may_replace)
    yield path.parent


@contextmanager
def _no_objects_left_on_failure(
    path: epath.Path, may_replace: bool, lease: Lease
) -> Iterator[epath.Path]:
    """Where the objects of a target go: a new one has no temporary name in a bucket.

    An old target is replaced when the new one, beside it, is complete.
    """
    beside = path.parent / f"{path.name}.nnxconv-new"
    place = path
    with ThreadPoolExecutor(2) as pool:
        there, left = pool.map(files_below, (path, beside))
    if there:
        place = beside
        refuse_unless(may_replace, path)
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


def _mark(path: epath.Path, place: epath.Path) -> None:
    write_files({place / COMMITTED: mark(path)})


def _mark_while_held(
    mark_it: Callable[[epath.Path], None], place: epath.Path, lease: Lease
) -> None:
    """The last object in a bucket, for a run that no other one has taken for dead."""
    lease.check()
    mark_it(place)
