"""`inspect`: what a checkpoint is."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nnxconv.commands.boundary import plainly
from nnxconv.commands.families import described
from nnxconv.commands.inspection import (
    Inspection,
    chain_of,
    chunks_of,
    compressors_of,
    dtypes_of,
    main_state,
    sizes_of,
)
from nnxconv.commands.opening import meaning
from nnxconv.commands.options import documented
from nnxconv.layouts import Options
from nnxconv.running import without_collecting
from nnxconv.state import Family
from nnxconv.tree import Source, View

if TYPE_CHECKING:
    from nnxconv.storage.orbax import Item


@plainly
@documented
def inspect(
    path: str,
    *,
    step: str | float | None = None,
    at: str | None = None,
    layer_group: Iterable[str] = (),
    family: str | Family | None = None,
    allow_uncommitted: bool = False,
) -> Inspection:
    """Says what a checkpoint is, from its metadata alone, besides its step.

    Raises:
      NotACheckpoint: there is no checkpoint there; the message says what it looks like.
      DamagedCheckpoint: its metadata cannot be read.
    """
    from nnxconv.storage.orbax import locate, open_item, read_shardings, writing_processes

    with without_collecting():
        location = locate(path, step, allow_uncommitted=allow_uncommitted)
        item = open_item(location)
        how = Options(at=at, layer_group=tuple(layer_group), family=described(family))
        survey = meaning(location, item, how).survey
        understood = main_state(survey)
        state = None if understood is None else understood.state
        return Inspection(
            item=item,
            survey=survey,
            understood=understood,
            step=None if state is None or state.step is None else _step_of(item, state.step),
            parts=sizes_of(survey.tree if state is None else state.leaves()),
            chain=[] if state is None else chain_of(state),
            dtypes=dtypes_of(survey.tree),
            chunks=chunks_of(item.formats),
            compressors=compressors_of(item.formats),
            processes=[] if location.joined else writing_processes(location.folder),
            shardings={} if location.joined else read_shardings(location.folder),
            custom_metadata={**location.custom_metadata, **item.custom_metadata},
            choice=location.choice,
        )


def _step_of(item: "Item", step: View) -> int | tuple[int, ...]:
    """The number of steps done; of replicated states one for each."""
    from nnxconv.storage.orbax import read_number, read_numbers

    if step.shape == () or not isinstance(step, Source):
        return read_number(item, step)
    return tuple(read_numbers(item, step))
