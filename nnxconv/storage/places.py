"""What may be written where: checks on the target's path before anything is done."""

from etils import epath

from nnxconv.errors import BadInput
from nnxconv.storage.locate import STEP_METADATA, TREE_METADATA, Location, steps_in
from nnxconv.storage.save import Target


def check_places(
    source: str, location: Location, destination: epath.Path, target: Target, overwrite: bool
) -> None:
    """Refuses a target that would harm something.

    Raises:
      BadInput: source and target lie in each other; the target exists and may not, or is no
        checkpoint and therefore not ours to replace.
    """
    ours, theirs = _absolute(location.item), _absolute(destination)
    given = _absolute(epath.Path(source))
    if theirs == given or _is_within(theirs, given) or _is_within(ours, theirs):
        raise BadInput(
            "source and target lie in each other",
            details=[f"source: {source}", f"target: {destination}"],
            hint="write to a directory beside the source",
        )
    if not destination.exists():
        return
    if not overwrite:
        raise BadInput(f"`{destination}` exists", hint="add `--overwrite` to replace it")
    if not destination.is_dir() or not _is_checkpoint(destination):
        raise BadInput(
            f"`{destination}` exists and is not a checkpoint, so it is not replaced",
            hint="remove it yourself, or choose another target",
        )
    if location.given_as == "root" and not steps_in(destination):
        raise BadInput(
            f"`{destination}` is not a root of steps as the source is, so it is not replaced",
            hint=f"give the step itself as the source: `{location.item.parent}`",
        )
    if location.given_as != "root" and steps_in(destination):
        raise BadInput(
            f"`{destination}` is a root of steps, so it is not replaced by one step",
            hint=f"name the step in it, for example `{target.path / '0'}`",
        )


def _is_checkpoint(path: epath.Path) -> bool:
    return (
        (path / TREE_METADATA).exists()
        or (path / STEP_METADATA).exists()
        or bool(steps_in(path))
        or any((child / TREE_METADATA).exists() for child in path.iterdir() if child.is_dir())
    )


def _absolute(path: epath.Path) -> epath.Path:
    text = path.as_posix()
    return path if text.startswith("gs://") else epath.Path(text).expanduser().resolve()


def _is_within(inner: epath.Path, outer: epath.Path) -> bool:
    return outer in inner.parents
