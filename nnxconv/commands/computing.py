"""What commands that compute new arrays have in common: a state in the place of the source's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nnxconv.commands.opening import open_checkpoint
from nnxconv.commands.result import Places, Result, Way, carry_out
from nnxconv.errors import BadInput
from nnxconv.layouts import ITEMS, Options, Understood, convert_tree
from nnxconv.state import TrainState

if TYPE_CHECKING:
    from nnxconv.storage.orbax import Item, Location

PRECISIONS = ("float32", "float64")


@dataclass(frozen=True)
class Opened:
    """A checkpoint that is opened, and how the user named it."""

    path: str
    location: "Location"
    item: "Item"
    understood: Understood


def opened(path: str, step: int | None = None, *, allow_uncommitted: bool = False) -> Opened:
    """Opens a checkpoint whose values will be read."""
    location, item, understood = open_checkpoint(
        path, step, Options(), allow_uncommitted=allow_uncommitted, is_read=True
    )
    return Opened(path, location, item, understood)


def check_precision(precision: str) -> None:
    """Refuses what is not computed in.

    Raises:
      BadInput: it is neither float32 nor float64.
    """
    if precision not in PRECISIONS:
        raise BadInput(f"`--precision {precision}` is neither float32 nor float64")


def write_computed(
    source: Opened,
    state: TrainState,
    others: Sequence[Opened],
    target_path: str,
    way: Way,
    *,
    notes: Sequence[str],
    options: Mapping[str, Any],
    started: float,
) -> Result:
    """Writes a state in the layout, the arrangement and the container of the source.

    Args:
      source: the checkpoint that the state takes after.
      state: its leaves; some may be computed from those of `others`.
      others: the other checkpoints that are read.
      target_path: where it is written.
      way: how.
      notes: what was decided, for the result.
      options: what was asked for; a run that goes on has the same.
      started: when the call began, on the monotonic clock, in seconds.
    """
    from nnxconv.storage.orbax import target_for

    found = source.understood
    understood = replace(found, state=state, notes=(*found.notes, *notes))
    conversion = convert_tree(understood, Options(to=found.codec.name), None)
    items = dict(source.item.stores)
    for other in others:
        items |= other.item.stores
    is_split = conversion.layout in ITEMS
    target = target_for(
        target_path, source.location, source.location.custom_metadata, is_split=is_split
    )
    places = Places(
        source.path,
        source.location,
        items,
        target_path,
        target,
        source.item.container,
        len(source.item.stores),
    )
    return carry_out(
        conversion,
        places,
        way,
        custom_metadata=source.item.custom_metadata,
        options=options,
        started=started,
    )
