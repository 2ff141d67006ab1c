"""What an optimizer keeps for each parameter, where those of several layers become one.

A tree of the parameters' shapes is stacked as they are. Other trees are not: Adafactor's rows and
columns, L-BFGS's memories, one norm for each parameter (NovoGrad), one vector for each axis (SM3),
projections (GaLore), factors (K-FAC) have other shapes for stacked parameters, and mostly other
values.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

from nnxconv.errors import LayerError
from nnxconv.state.layer_groups import Apart, Arrangement, LayerGroup
from nnxconv.state.optimizer import parameter_trees
from nnxconv.state.train_state import TrainState
from nnxconv.tree import Key, Literal, in_order, is_digits, notation, spell


def refuse_unfollowed(
    before: TrainState,
    after: TrainState,
    groups: Iterable[LayerGroup],
    chosen: Mapping[Key, Arrangement | None],
) -> None:
    """Refuses to stack layers, or to take them apart, where their optimizer does not follow.

    Args:
      before: the state with its layers apart.
      after: the same with its layers as they were `chosen`.
      groups: the layer groups as they are in the source.
      chosen: how each of them shall be arranged.

    Raises:
      LayerError: the optimizer has other shapes, or another partition, for stacked parameters.
    """
    known = [group for group in groups if group.arrangement is not None]
    were_stacked = [g.key for g in known if not isinstance(g.arrangement, Apart)]
    changed = [g.key for g in known if _is_apart(chosen[g.key]) != _is_apart(g.arrangement)]
    respelled = [g.key for g in known if chosen[g.key] != g.arrangement and g.key not in changed]
    if not (changed or respelled) or not after.opt_state:
        return
    if not changed:
        _refuse_respelled(before, respelled)
        return
    problems = [*_other_shapes(before, after), *_left_behind(before, changed)]
    problems += _parted_by_rank(before, after, were_stacked)
    problems += _factors(before)
    if problems:
        is_stacked = changed[0] in were_stacked
        option, kept = ("scan", "stacked") if is_stacked else ("no-scan", "apart")
        raise LayerError(
            "the optimizer's state cannot follow these layers"
            + (" apart" if is_stacked else " into a stack"),
            details=problems,
            hint="`--without opt_state` leaves the optimizer out;"
            f" `--{option}_layers` keeps them {kept}",
        )


def _refuse_respelled(before: TrainState, groups: Iterable[Key]) -> None:
    problems = list(_left_behind(before, groups, are_elements_followed=True))
    if problems:
        raise LayerError(
            "the optimizer's state cannot follow these layers to other names",
            details=problems,
            hint="`--without opt_state` leaves the optimizer out",
        )


def named_as_layers(
    keys: Iterable[Key], groups: Iterable[LayerGroup], chosen: Mapping[Key, Arrangement | None]
) -> list[Key]:
    """The keys that have layers of a group in them which is arranged otherwise, or spelled so.

    Args:
      keys: of leaves outside of a state, such as an optimizer's that follows no parameters.
      groups: the state's layer groups, as they are in the source.
      chosen: how each of them is arranged in the target.
    """
    changed = [group.key[-1:] for group in groups if chosen[group.key] != group.arrangement]
    return [
        key
        for key in keys
        if any(_is_in_group(key[start:], group) for group in changed for start in range(len(key)))
    ]


def _is_apart(arrangement: Arrangement | None) -> bool:
    return isinstance(arrangement, Apart)


def _other_shapes(before: TrainState, after: TrainState) -> Iterator[str]:
    """The stacked leaves that have another shape than their parameters."""
    state = after.opt_state or {}
    for prefix in parameter_trees(state, after.params):
        for path, param in after.params.items():
            leaf = state.get((*prefix, *path))
            is_stacked = path not in before.params
            if leaf is None or not is_stacked or isinstance(leaf, Literal):
                continue
            if not isinstance(param, Literal) and leaf.shape != param.shape:
                key = spell(("opt_state", *prefix, *path))
                yield f"{key} would be {notation(leaf)}, for parameters {notation(param)}"


def _left_behind(
    before: TrainState, changed: Iterable[Key], *, are_elements_followed: bool = False
) -> Iterator[str]:
    """The leaves that stand below the name of layers and in no tree that follows the parameters.

    The elements of what is kept for each parameter follow it to another name, and into no stack.
    """
    state = before.opt_state or {}
    trees = parameter_trees(state, before.params)
    for key in in_order(state):
        size = next((n for n in range(len(key) + 1) if key[:n] in trees), None)
        if size is not None and (are_elements_followed or key[size:] in before.params):
            continue
        if any(_is_in_group(key[start:], group) for group in changed for start in range(len(key))):
            yield f"{spell(('opt_state', *key))} belongs to these layers, in a way of its own"


def _factors(before: TrainState) -> Iterator[str]:
    """K-FAC's factors, of which there is a pair for each layer, by names that are no module's."""
    for key, leaf in (before.opt_state or {}).items():
        if "estimator_state" in key and not isinstance(leaf, Literal) and len(leaf.shape) > 1:
            yield f"{spell(('opt_state', *key))} is a factor of one layer"


def _is_in_group(key: Key, group: Key) -> bool:
    """True where a key begins with a group, or one of its layers: `layers`, `layers_0`."""
    size = len(group)
    if len(key) <= size or key[: size - 1] != group[:-1]:
        return False
    name, _, digits = str(key[size - 1]).rpartition("_")
    return key[size - 1] == group[-1] or (name == group[-1] and is_digits(digits))


def _parted_by_rank(
    before: TrainState, after: TrainState, were_stacked: Collection[Key]
) -> Iterator[str]:
    """Muon's partition where it has all matrices and nothing else, and would not any more.

    That is the default of `optax.contrib.muon`. Programs that say themselves what Muon is for, as
    MaxText does, have other parts, which are kept.
    """
    for prefix in parameter_trees(before.opt_state or {}, before.params):
        if "muon" not in map(str, prefix):
            continue
        has, matrices = _held(before, prefix), _matrices(before, were_stacked)
        if has and has == matrices and _held(after, prefix) != _matrices(after):
            yield (
                f"{spell(('opt_state', *prefix))} has every array of two axes and no other,"
                " which then have another number of axes"
            )


def _held(state: TrainState, prefix: Key) -> set[Key]:
    """The paths of the parameters for which a tree of the optimizer has something."""
    tree = state.opt_state or {}
    leaves = {path: tree.get((*prefix, *path)) for path in state.params}
    return {path for path, leaf in leaves.items() if not isinstance(leaf, Literal | None)}


def _matrices(state: TrainState, were_stacked: Collection[Key] = ()) -> set[Key]:
    """The paths of the parameters that have two axes, those of layers as they were stacked."""
    return {
        path
        for path, leaf in state.params.items()
        if not isinstance(leaf, Literal)
        and len(leaf.shape) + sum(path[: len(key)] == key for key in were_stacked) == 2
    }
