"""What commands that compute new arrays have in common: a state in the place of the source's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nnxconv.commands.carrying_out import Way, carry_out
from nnxconv.commands.opening import Opened, open_checkpoint
from nnxconv.commands.places import places_of
from nnxconv.commands.result import Result
from nnxconv.layouts import (
    ITEMS,
    Located,
    Options,
    Understood,
    account,
    convert_copies,
    convert_tree,
    join,
    one_state,
)
from nnxconv.state import TrainState
from nnxconv.tree import Key, Leaf

if TYPE_CHECKING:
    from nnxconv.storage.orbax import Item


@dataclass(frozen=True)
class Read:
    """A checkpoint of one state whose values will be read, and how the user named it."""

    path: str
    opened: Opened
    located: Located

    @property
    def item(self) -> "Item":
        """Its arrays."""
        return self.opened.item

    @property
    def understood(self) -> Understood:
        """What they mean."""
        return self.located.understood


def opened(
    path: str,
    step: int | None = None,
    *,
    how: Options | None = None,
    allow_uncommitted: bool = False,
    option: str = "--at",
) -> Read:
    """Opens a checkpoint whose values will be read; `option` names the one of several states.

    Raises:
      BadInput: it holds several states.
    """
    found = open_checkpoint(
        path, step, how or Options(), allow_uncommitted=allow_uncommitted, is_read=True
    )
    return Read(path, found, one_state(found.survey, "arithmetic", option))


def write_computed(
    source: Read,
    state: TrainState,
    others: Sequence[Read],
    target_path: str,
    way: Way,
    *,
    deed: tuple[str, str],
    notes: Sequence[str],
    options: Mapping[str, Any],
    started: float,
    aside: Mapping[Key, tuple[Leaf, str]] | None = None,
) -> Result:
    """Writes a state in the layout, the arrangement and the container of the source.

    What is beside the state, second copies of its parameters among it, stays as the source has it.

    Args:
      source: the checkpoint that the state takes after.
      state: its leaves; some may be computed from those of `others`.
      others: the other checkpoints that are read.
      target_path: where it is written.
      way: how.
      deed: what would be done, and what was: `average 2 checkpoints`, `averaged 2 checkpoints`.
      notes: what was decided, for the result.
      options: what was asked for; a run that goes on has the same.
      started: when the call began, on the monotonic clock, in seconds.
      aside: leaves of the source that the state no longer has, by canonical key, and why.
    """
    found, asked = source.understood, Options()
    understood = replace(found, state=state, notes=(*found.notes, *notes), aside=aside or {})
    conversion = convert_tree(understood, replace(asked, to=found.codec.name), None)
    survey, located = source.opened.survey, source.located
    copies = convert_copies(survey, located, conversion)
    whole = join(survey, [(located, conversion), *copies], asked, None)
    read = {path: item for other in others for path, item in other.item.stores.items()}
    layout = conversion.layout
    places = places_of(
        source.path, target_path, source.opened, read, layout, is_split=layout in ITEMS
    )
    done = carry_out(
        whole,
        places,
        way,
        account=account(source.item.tree, source.opened.chosen, whole),
        custom_metadata=source.item.custom_metadata,
        options=options,
        started=started,
    )
    return replace(done, deed=deed)
