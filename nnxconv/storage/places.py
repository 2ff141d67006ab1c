"""What may be written where: checks on the target's path before anything is done."""

import shutil

from etils import epath

from nnxconv.errors import BadInput, PlanError
from nnxconv.plan import Plan, Transfer
from nnxconv.sizes import format_bytes
from nnxconv.storage.item import Item
from nnxconv.storage.locate import STEP_METADATA, TREE_METADATA, Location, absolute, steps_in
from nnxconv.storage.save import Target
from nnxconv.views import Literal, size_bytes


def check_places(
    source: str, location: Location, target_path: str, target: Target, overwrite: bool
) -> None:
    """Refuses a target that would harm something.

    Raises:
      BadInput: source and target lie in each other; the target exists and may not, or is no
        checkpoint and therefore not ours to replace.
    """
    destination = absolute(target_path)
    given = absolute(source)
    if destination == given or given in destination.parents or destination in location.item.parents:
        raise BadInput(
            "source and target lie in each other",
            details=[f"source: {source}", f"target: {target_path}"],
            hint="write to a directory beside the source",
        )
    if not destination.exists():
        return
    if not overwrite:
        raise BadInput(f"`{target_path}` exists", hint="add `--overwrite` to replace it")
    if not destination.is_dir() or not _is_checkpoint(destination):
        raise BadInput(
            f"`{target_path}` exists and is not a checkpoint, so it is not replaced",
            hint="remove it yourself, or choose another target",
        )
    if location.given_as == "root" and not steps_in(destination):
        raise BadInput(
            f"`{target_path}` is not a root of steps as the source is, so it is not replaced",
            hint=f"give the step itself as the source: `{location.item.parent}`",
        )
    if location.given_as != "root" and steps_in(destination):
        raise BadInput(
            f"`{target_path}` is a root of steps, so it is not replaced by one step",
            hint=f"name the step in it, for example `{target.path / '0'}`",
        )


def _is_checkpoint(path: epath.Path) -> bool:
    return (
        (path / TREE_METADATA).exists()
        or (path / STEP_METADATA).exists()
        or bool(steps_in(path))
        or any((child / TREE_METADATA).exists() for child in path.iterdir() if child.is_dir())
    )


SPARE_BYTES = 2**20


def check_space(plan: Plan, item: Item, target: Target, transfer: Transfer) -> None:
    """Refuses a plan for which the target's file system has not enough room.

    Arrays are taken to be as compressible as the source's are; with links, those that are renamed
    take no room.

    Raises:
      PlanError: there is not enough room.
    """
    if target.path.as_posix().startswith("gs://"):
        return
    stored = stored_bytes(item.path)
    decoded = sum(size_bytes(leaf) for leaf in item.tree.values() if not isinstance(leaf, Literal))
    arrays = plan.rewritten if transfer == "link" else plan.arrays
    wanted = sum(size_bytes(array.view) for array in arrays)
    needed = SPARE_BYTES + wanted * stored // max(decoded, 1)
    parent = next(path for path in target.path.parents if path.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise PlanError(
            f"the target needs about {format_bytes(needed)}, but {format_bytes(free)} are free",
            where=str(parent),
            hint="free some space, or choose a target on another file system",
        )


def stored_bytes(path: epath.Path) -> int:
    """Bytes of all files under a directory."""
    return sum(
        stored_bytes(child) if child.is_dir() else child.stat().length for child in path.iterdir()
    )
