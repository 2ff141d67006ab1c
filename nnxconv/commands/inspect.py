"""`inspect`: what a checkpoint is."""

from nnxconv.commands.boundary import plainly
from nnxconv.commands.inspection import (
    Inspection,
    chain_of,
    chunks_of,
    compressors_of,
    dtypes_of,
    sizes_of,
)
from nnxconv.commands.opening import meaning
from nnxconv.commands.options import documented
from nnxconv.errors import UnknownLayout
from nnxconv.layouts import Options


@plainly
@documented
def inspect(path: str, *, step: int | None = None, allow_uncommitted: bool = False) -> Inspection:
    """Says what a checkpoint is, from its metadata alone, besides its step.

    Raises:
      NotACheckpoint: there is no checkpoint there; the message says what it looks like.
      DamagedCheckpoint: its metadata cannot be read.
    """
    from nnxconv.storage.orbax import (
        locate,
        open_item,
        read_number,
        read_shardings,
        writing_processes,
    )

    location = locate(path, step, allow_uncommitted=allow_uncommitted)
    item = open_item(location)
    understood, problem = None, ""
    try:
        understood = meaning(location, item, Options())
    except UnknownLayout as error:
        problem = "; ".join((error.message, *error.details))
    state = None if understood is None else understood.state
    return Inspection(
        item,
        understood,
        problem,
        None if state is None or state.step is None else read_number(item, state.step),
        sizes_of(item.tree if state is None else state.leaves()),
        [] if state is None else chain_of(state),
        dtypes_of(item.tree),
        chunks_of(item.formats),
        compressors_of(item.formats),
        [] if location.joined else writing_processes(location.folder),
        {} if location.joined else read_shardings(location.folder),
        {**location.custom_metadata, **item.custom_metadata},
    )
