"""What may be written where: checks on the target's path before anything is done."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from etils import epath

from nnxconv.errors import BadInput, PlanError, StorageError
from nnxconv.plan import Plan
from nnxconv.sizes import format_bytes
from nnxconv.storage.freight import Freight, rewritten_bytes
from nnxconv.storage.item import Item
from nnxconv.storage.locate import (
    STEP_METADATA,
    TREE_METADATA,
    UNFINISHED,
    Location,
    absolute,
    steps_in,
)
from nnxconv.storage.remote import is_remote
from nnxconv.storage.save import Target


def check_places(
    source: str, location: Location, target_path: str, target: Target, overwrite: bool
) -> None:
    """Refuses a target that would harm something.

    Raises:
      BadInput: source and target lie in each other; the target exists and may not, or is no
        checkpoint and therefore not ours to replace.
    """
    destination = absolute(target_path)
    if any(_in_each_other(path, source, location) for path in (destination, target.path)):
        raise BadInput(
            "source and target lie in each other",
            details=[f"source: {source}", f"target: {target_path}"],
            hint="write to a directory beside the source",
        )
    for parent in () if is_remote(destination) else destination.parents:
        if parent.exists() and not parent.is_dir():
            raise BadInput(f"`{target_path}` lies in `{parent}`, which is not a directory")
    if not destination.exists() or _is_left_over_root(destination, location):
        return
    if not overwrite:
        raise BadInput(f"`{target_path}` exists", hint="add `--overwrite` to replace it")
    if location.given_as == "root":
        _check_root(target_path, destination, location)
    elif destination.is_dir() and steps_in(destination):
        raise BadInput(
            f"`{target_path}` is a root of steps, so it is not replaced by one step",
            hint=f"name the step in it, for example `{target_path}/0`",
        )
    if target.path.exists() and not _is_replaceable(target.path, location.given_as):
        what = "an item" if location.given_as == "item" else "a step"
        raise BadInput(
            f"`{target.path}` exists and is not {what} of a checkpoint, so it is not replaced",
            hint="remove it yourself, or choose another target",
        )


def _in_each_other(path: epath.Path, source: str, location: Location) -> bool:
    given = absolute(source)
    return path in (given, location.item) or given in path.parents or path in location.item.parents


def _is_left_over_root(destination: epath.Path, location: Location) -> bool:
    """True for a root that holds nothing, or only what a killed conversion left."""
    if location.given_as != "root" or not destination.is_dir():
        return False
    return all(UNFINISHED in child.name for child in destination.iterdir())


def _check_root(target_path: str, destination: epath.Path, location: Location) -> None:
    if not destination.is_dir() or not steps_in(destination):
        raise BadInput(
            f"`{target_path}` is not a root of steps as the source is, so it is not replaced",
            hint=f"give the step itself as the source: `{location.item.parent}`",
        )


def _is_replaceable(path: epath.Path, given_as: str) -> bool:
    """True for a whole item, or a step that holds items and nothing else."""
    if not path.is_dir():
        return False
    if given_as == "item":
        return (path / TREE_METADATA).exists()
    if (path / TREE_METADATA).exists() or steps_in(path):
        return False
    children = list(path.iterdir())
    return (path / STEP_METADATA).exists() or all(
        child.is_dir() and (child / TREE_METADATA).exists() for child in children
    )


SPARE_BYTES = 2**20


def needed_bytes(plan: Plan, freight: Freight, item: Item) -> int:
    """About how many bytes the target takes on its file system."""
    return SPARE_BYTES + freight.copied_bytes + rewritten_bytes(plan, item)


def check_space(needed: int, target: Target) -> None:
    """Refuses a target whose file system has not enough room.

    Raises:
      PlanError: there is not enough room.
    """
    if not is_remote(target.path) and needed > _free_bytes(target)[0]:
        raise _full(needed, target)


_SYSTEM_SAYS = "[os_error_code="
"""In TensorStore's errors that come from the operating system."""


@contextmanager
def failures_told(needed: int, target: Target) -> Iterator[None]:
    """Says of a disk that fills up on the way what was needed, and of others what they are.

    Raises:
      PlanError: the disk is full, or the user's share of it.
      StorageError: the file system refuses, for example because there are too many open files.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        texts = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
        if is_full or any(text in str(error) for text in texts):
            raise _full(needed, target) from error
        if _SYSTEM_SAYS in str(error):
            reason = str(error).split(" [")[0].splitlines()[0]
            raise StorageError(
                f"the target cannot be written: {reason}", where=str(target.path)
            ) from error
        raise


def _free_bytes(target: Target) -> tuple[int, epath.Path]:
    parent = next(path for path in target.path.parents if path.exists())
    return shutil.disk_usage(parent).free, parent


def _full(needed: int, target: Target) -> PlanError:
    free, parent = _free_bytes(target)
    return PlanError(
        f"the target needs about {format_bytes(needed)}, but {format_bytes(free)} are free",
        where=str(parent),
        hint="free some space, or choose a target on another file system",
    )
