"""`match`: rename rules, proposed from a checkpoint and another model."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

from nnxconv.commands.boundary import plainly
from nnxconv.commands.opening import open_checkpoint
from nnxconv.commands.options import documented
from nnxconv.layouts import (
    Options,
    one_state,
    refuse_unknown,
    with_layer_names,
)
from nnxconv.matching import Proposal, propose
from nnxconv.renaming import reread
from nnxconv.state import DEFAULT_NAMES, TrainState, unstack


@plainly
@documented
def match(
    source_path: str,
    template: Any,
    *,
    output: str | None = None,
    step: str | float | None = None,
    at: str | None = None,
    layer_group: Iterable[str] = (),
) -> Proposal:
    """Proposes rename rules: which leaf of a checkpoint is which leaf of another model.

    Returns:
      The certain pairs with the evidence, what is not certain, and the rules.

    Raises:
      NnxconvError: one of the two cannot be read.
    """
    from nnxconv.storage.files import write_text

    names = tuple(layer_group)
    opened = open_checkpoint(source_path, step, Options(at=at))
    source = one_state(opened.survey, "`match`").understood
    label, state = _template(template, names)
    refuse_unknown(names, source.state, state)
    source = reread(with_layer_names(source, names), None)
    found = propose(source.state, source.groups, state, names=(str(opened.item.path), label))
    if output is not None:
        write_text(output, found.to_toml())
    return found


def _template(template: Any, names: Sequence[str]) -> tuple[str, TrainState]:
    """What a template is called, and its state with the layers apart."""
    from nnxconv.loading import call, is_python_name, state_of

    if isinstance(template, str | os.PathLike) and not is_python_name(str(template)):
        opened = open_checkpoint(str(template), None, Options(), has_step=False)
        understood = one_state(opened.survey, "`match`").understood
        return str(opened.item.path), reread(with_layer_names(understood, names), None).state
    label = template if isinstance(template, str) else f"a {type(template).__name__}"
    state = state_of(call(template) if isinstance(template, str) else template)
    return label, unstack(state, names=(*DEFAULT_NAMES, *names))[0]
