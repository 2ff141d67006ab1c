"""`match`: rename rules, proposed from a checkpoint and another model."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nnxconv.commands.boundary import plainly
from nnxconv.commands.families import described
from nnxconv.commands.hugging_face import family_of, target_of_names
from nnxconv.commands.opening import Opened, open_checkpoint
from nnxconv.commands.options import documented
from nnxconv.comparing import CheckpointValues, Holding
from nnxconv.errors import BadInput
from nnxconv.layouts import (
    TENSORS,
    Options,
    one_state,
    refuse_unknown,
    with_layer_names,
)
from nnxconv.matching import KnownRules, Proposal, propose
from nnxconv.renaming import reread
from nnxconv.running import Watcher, ignore, share_one_heap, without_collecting
from nnxconv.state import (
    DEFAULT_NAMES,
    Family,
    LayerGroup,
    TrainState,
    families_with,
    unstack,
)
from nnxconv.tree import Literal, parse_bytes


@dataclass(frozen=True)
class _Side:
    """One of the two trees, with its layers apart.

    Attributes:
      label: what it is called.
      opened: the checkpoint; None for what is made in Python.
    """

    label: str
    state: TrainState
    groups: tuple[LayerGroup, ...]
    opened: Opened | None = None


@plainly
@documented
def match(
    source_path: str,
    template: Any,
    *,
    output: str | None = None,
    overwrite: bool = False,
    step: str | float | None = None,
    at: str | None = None,
    at_template: str | None = None,
    layer_group: Iterable[str] = (),
    family: str | Family | None = None,
    by_values: bool = False,
    max_memory: int | str = "2GiB",
    watch: Watcher = ignore,
) -> Proposal:
    """Proposes rename rules: which leaf of a checkpoint is which leaf of another model.

    Returns:
      The certain pairs with the evidence, what is not certain, and the rules.

    Raises:
      NnxconvError: one of the two cannot be read; `output` is there, and may not be replaced.
    """
    from nnxconv.storage.files import refuse_file
    from nnxconv.storage.orbax import refuse_changed

    refuse_file(output, overwrite)
    names = tuple(layer_group)
    how = Options(at=at, family=described(family))
    with without_collecting():
        opened = open_checkpoint(source_path, step, how, is_read=by_values)
        source = _opened(opened, names, "--at")
        wanted = _template(template, replace(how, at=at_template), names, is_read=by_values)
        refuse_unknown(names, source.state, wanted.state)
        found = None if by_values else _proposed(source, wanted)
    if found is None:
        share_one_heap()
        sides = (_holding(source), _holding(wanted))
        values = CheckpointValues(*sides, parse_bytes(max_memory), watch)
        found = _proposed(source, wanted, values)
        for side in sides:
            refuse_changed(side.item.stores.values())
    if output is not None:
        write_rules(found, output)
    return found


def _proposed(source: _Side, wanted: _Side, values: CheckpointValues | None = None) -> Proposal:
    labels = source.label, wanted.label
    known = _known(source, wanted)
    return propose(
        source.state, source.groups, wanted.state, names=labels, values=values, known=known
    )


def _known(source: _Side, wanted: _Side) -> KnownRules | None:
    """The rules of the family that a folder of Hugging Face is of, to the other side's names."""
    for side, other, is_back in ((source, wanted, False), (wanted, source, True)):
        target = target_of_names(other.state.params)
        if side.opened is None or side.opened.location.container != TENSORS or target is None:
            continue
        try:
            family = family_of(side.opened, target=target)
        except BadInput:
            continue  # names alone tell, and what they do not
        if family is not None:
            return KnownRules(replace(family.rules, name=family.name), is_back)
    return None


def write_rules(found: Proposal, output: str) -> None:
    """Writes the rules to a file, and as comments in it what is not certain."""
    from nnxconv.storage.files import write_text

    write_text(output, found.to_toml())


def _opened(opened: Opened, names: Sequence[str], option: str) -> _Side:
    """A checkpoint with its layers apart; `option` chooses where there are several states."""
    understood = one_state(opened.survey, "`match`", option).understood
    read = reread(with_layer_names(understood, names), None) if names else understood
    return _Side(str(opened.item.path), read.state, read.groups, opened)


def _holding(side: _Side) -> Holding:
    """A side whose values can be read.

    Raises:
      BadInput: it is no checkpoint.
    """
    if side.opened is None:
        raise BadInput(
            f"`{side.label}` is no checkpoint, whose values `--by_values` could read",
            hint="without `--by_values` leaves are paired by names and shapes",
        )
    leaves = {k: leaf for k, leaf in side.state.leaves().items() if not isinstance(leaf, Literal)}
    return Holding(leaves, side.groups, side.opened.item)


def _template(template: Any, how: Options, names: Sequence[str], *, is_read: bool) -> _Side:
    """A template: a checkpoint, or what is made in Python.

    Raises:
      BadInput: a key is given for what is no checkpoint.
    """
    from nnxconv.loading import call, is_python_name, state_of

    if isinstance(template, str | os.PathLike) and not is_python_name(str(template)):
        opened = open_checkpoint(str(template), None, how, has_step=False, is_read=is_read)
        return _opened(opened, names, "--at_template")
    label = template if isinstance(template, str) else f"a {type(template).__name__}"
    if how.at is not None:
        raise BadInput(
            f"`{label}` is no checkpoint, in which `--at_template` could name a key",
            hint="let the function return the part that is meant",
        )
    state = state_of(call(template) if isinstance(template, str) else template)
    families = families_with(how.family)
    state, groups = unstack(state, names=(*DEFAULT_NAMES, *names), families=families)
    return _Side(label, state, tuple(groups))
