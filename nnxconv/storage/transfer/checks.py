"""What may be written where: checks on the target's path before anything is done."""

import errno
import os
import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager

from etils import epath

from nnxconv.errors import BadInput, PlanError, StorageError
from nnxconv.storage import COMMITTED, STEP_METADATA, TREE_METADATA, UNFINISHED
from nnxconv.storage.files import Folder, is_complete, open_folder
from nnxconv.storage.gcs import SCHEME, first_sentence, is_remote
from nnxconv.storage.orbax import Location, Target, absolute, steps_in
from nnxconv.storage.safetensors import has_tensors
from nnxconv.storage.transfer.planned import rewritten_bytes, uncompressed_bytes
from nnxconv.storage.transfer.shares import Share
from nnxconv.storage.zarr import Compression
from nnxconv.tree import format_bytes


def check_places(
    source: str,
    location: Location,
    target_path: str,
    target: Target,
    overwrite: bool,
    *,
    is_ours: bool = False,
) -> None:
    """Refuses a target that would harm something.

    What is there is no obstacle where it `is_ours`: unfinished, and left by a run that goes on now.

    Raises:
      BadInput: source and target lie in each other; the target exists and may not, or is no
        checkpoint and therefore not ours to replace.
    """
    destination = absolute(target_path)
    _refuse_bucket(target_path, target.path)
    if any(_in_each_other(path, source, location) for path in (destination, target.path)):
        raise BadInput(
            "source and target lie in each other",
            details=[f"source: {source}", f"target: {target_path}"],
            hint="write to a directory beside the source",
        )
    for parent in () if is_remote(destination) else destination.parents:
        if parent.exists() and not parent.is_dir():
            raise BadInput(f"`{target_path}` lies in `{parent}`, which is not a directory")
    there = _folder_or_none(target_path, destination)
    if there is None or (is_ours and destination == target.path):
        return
    if _is_left_over_root(there, location, {target.path.name} if is_ours else set()):
        return
    if not overwrite:
        raise BadInput(f"`{target_path}` exists", hint=_way_out(there, location))
    if location.given_as == "root":
        _check_root(target_path, there, location)
    elif steps_in(there):
        raise BadInput(
            f"`{target_path}` is a root of steps, so it is not replaced by one step",
            hint=f"name the step in it, for example `{target_path}/0`",
        )
    old = there
    if target.path != destination:
        old = _folder_or_none(target_path, target.path)
    kind = "item" if location.is_bare_step else location.given_as
    if old is not None and not _is_replaceable(old, kind):
        what = "an item" if kind == "item" else "a step"
        raise BadInput(
            f"`{target.path}` exists and is not {what} of a checkpoint, so it is not replaced",
            hint=_removal(target.path),
        )


def _refuse_bucket(target_path: str, path: epath.Path) -> None:
    if is_remote(path) and "/" not in path.as_posix().removeprefix(SCHEME):
        raise BadInput(
            f"`{target_path}` is a bucket", hint=f"name the target in it: `{target_path}/NAME`"
        )


def check_tensors_place(
    source: str, location: Location, target: Target, overwrite: bool, *, is_ours: bool = False
) -> None:
    """Refuses a file or folder of safetensors that would harm something.

    What is there is no obstacle where it `is_ours`: unfinished, and left by a run that goes on now.

    Raises:
      BadInput: source and target lie in each other; the target exists and may not, or is something
        else and therefore not ours to replace.
    """
    path = target.path
    _refuse_bucket(path.as_posix(), path)
    if _in_each_other(path, source, location):
        raise BadInput(
            "source and target lie in each other",
            details=[f"source: {source}", f"target: {path}"],
            hint="write to a place beside the source",
        )
    for parent in () if is_remote(path) else path.parents:
        if parent.exists() and not parent.is_dir():
            raise BadInput(f"`{path}` lies in `{parent}`, which is not a directory")
    if is_ours or not path.exists():
        return
    is_file = not path.is_dir()
    folder = None if is_file else open_folder(path)
    if not overwrite:
        is_left = folder is not None and is_remote(path) and not is_complete(folder.files)
        raise BadInput(
            f"`{path}` exists",
            hint=_unfinished(path) if is_left else "add `--overwrite` to replace it",
        )
    if is_file != bool(target.tensors_file) or not (
        folder is None or (has_tensors(folder) and not folder.folders)
    ):
        raise BadInput(
            f"`{path}` exists and is no {'file' if target.tensors_file else 'folder'} of"
            " safetensors, so it is not replaced",
            hint=_removal(path),
        )


def _folder_or_none(target_path: str, path: epath.Path) -> Folder | None:
    """What stands at a path, or nothing.

    Raises:
      BadInput: a file does.
    """
    try:
        return open_folder(path, is_expected=False)
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise BadInput(
            f"`{target_path}` is a file, and is not replaced", hint=_removal(path)
        ) from error


def _removal(path: epath.Path) -> str:
    if is_remote(path):
        return f"`gcloud storage rm -r {path}` removes it; or choose another target"
    return "remove it yourself, or choose another target"


def _way_out(there: Folder, location: Location) -> str:
    """How to write where something is; what a killed run left in a bucket has its final name."""
    is_finished = not is_remote(there.path) or location.given_as == "root"
    if is_finished or COMMITTED in there.files:
        return "add `--overwrite` to replace it"
    return _unfinished(there.path)


def _unfinished(path: epath.Path) -> str:
    return (
        f"it is no finished checkpoint: if nobody is writing it,"
        f" `gcloud storage rm -r {path}` removes it"
    )


def _in_each_other(path: epath.Path, source: str, location: Location) -> bool:
    given = absolute(source)
    return path in (given, location.item) or given in path.parents or path in location.item.parents


def _is_left_over_root(there: Folder, location: Location, ours: Set[str]) -> bool:
    """True for a root that holds nothing, or only what a killed conversion left."""
    names = there.names - ours
    return location.given_as == "root" and all(UNFINISHED in name for name in names)


def _check_root(target_path: str, there: Folder, location: Location) -> None:
    if not steps_in(there):
        paths = {"step": location.item.parent, "item": location.item}
        ways = [
            f"give the {kind} itself as the source: `{path}`"
            for kind, path in paths.items()
            if _is_replaceable(there, kind)
        ]
        raise BadInput(
            f"`{target_path}` is not a root of steps as the source is, so it is not replaced",
            hint=ways[0] if ways else _removal(there.path),
        )


def _is_replaceable(there: Folder, given_as: str) -> bool:
    """True for a whole item, or a step that holds items and nothing else."""
    if given_as == "item":
        return TREE_METADATA in there.files
    if TREE_METADATA in there.files or steps_in(there):
        return False
    return STEP_METADATA in there.files or (
        not there.files - {COMMITTED}
        and all(TREE_METADATA in open_folder(there.path / n).files for n in there.folders)
    )


SPARE_BYTES = 2**20


def needed_bytes(share: Share) -> int:
    """About how many bytes the target takes on its file system."""
    return SPARE_BYTES + share.transfers.copied_bytes + _rewritten_bytes(share)


def written_bytes(share: Share) -> int:
    """The most bytes of values that are not moved as parts of whole files."""
    return uncompressed_bytes(share.plan) + sum(share.transfers.value_bytes.values())


def _rewritten_bytes(share: Share) -> int:
    if share.container.compression == Compression():
        return uncompressed_bytes(share.plan)
    return rewritten_bytes(share.plan, share.source)


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
            raise StorageError(
                f"the target cannot be written: {first_sentence(error)}", where=str(target.path)
            ) from error
        raise


def _free_bytes(target: Target) -> tuple[int, epath.Path]:
    parent = next(path for path in target.path.parents if path.exists())
    return shutil.disk_usage(parent).free, parent


def _full(needed: int, target: Target) -> PlanError:
    free, parent = _free_bytes(target)
    if free >= needed:
        return PlanError(
            "the file system is full, or the user's share of it",
            where=str(parent),
            details=[
                f"the target needs about {format_bytes(needed)}, and {format_bytes(free)} are free:"
                " a quota, or a limit on the number of files, may be reached"
            ],
            hint="`quota` and `df -i` show them; or choose a target on another file system",
        )
    return PlanError(
        f"the target needs about {format_bytes(needed)}, but {format_bytes(free)} are free",
        where=str(parent),
        hint="free some space, or choose a target on another file system",
    )
