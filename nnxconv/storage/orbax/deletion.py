"""The record of a partial delete under way, which Orbax 0.12.4 and later keep in a step.

`_CHECKPOINT_DELETION` is JSON; its `checkpointable_name` is the item that is being deleted, which
Orbax then neither lists nor restores.
"""

from nnxconv.errors import DamagedCheckpoint, NotACheckpoint
from nnxconv.storage import DELETION
from nnxconv.storage.files import Folder, mapping_in, read_if_there


def deleted_item(step: Folder) -> str | None:
    """The name of the item that is being deleted from a step, if any.

    Raises:
      DamagedCheckpoint: the record is none.
    """
    if DELETION not in step.files:
        return None
    file = step.path / DELETION
    text = read_if_there(file)
    if text is None:  # the deletion has just come to its end
        return None
    name = mapping_in(text, file, DamagedCheckpoint).get("checkpointable_name")
    if not isinstance(name, str):
        raise DamagedCheckpoint(f"`{file}` does not say which item is being deleted")
    return name


def refuse_deleted(step: Folder, item: str) -> None:
    """Refuses an item that is being deleted, as Orbax does.

    Raises:
      NotACheckpoint: it is, and its arrays may be gone already.
    """
    if deleted_item(step) == item:
        raise NotACheckpoint(
            f"`{step.path / item}` is being deleted: `{DELETION}` beside it says so",
            hint="finish the deletion with Orbax; the step's other items can be read",
        )
