"""What may be written where: checks on the target's path before anything is done."""

from etils import epath

from nnxconv.errors import BadInput
from nnxconv.storage.locate import STEP_METADATA, TREE_METADATA, Location, absolute, steps_in
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
