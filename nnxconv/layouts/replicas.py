"""One of the replicas that a state has along the leading axis of all its arrays (`jax.pmap`)."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from nnxconv.errors import BadInput, LayerError
from nnxconv.state import Apart, Arrangement, LayerGroup, TrainState, Tree
from nnxconv.tree import Key, Leaf, Literal, View, counted, in_order, notation, slot, spell


def one_replica(tree: Tree, index: int) -> dict[Key, Leaf]:
    """The tree with one of every array along the leading axis, which all of them have.

    Raises:
      BadInput: some arrays have no such axis, or it is shorter.
    """
    shapes = {
        key: leaf.shape
        for key, leaf in tree.items()
        if not isinstance(leaf, Literal) and leaf.shape
    }
    sizes = {shape[0] for shape in shapes.values()}
    counters = {shape[0] for shape in shapes.values() if len(shape) == 1}
    count = min(counters & sizes) if len(sizes) > 1 and counters else min(sizes, default=0)
    others = [key for key in in_order(shapes) if shapes[key][0] != count]
    if others or not shapes:
        raise BadInput(
            f"`--replica {index}` needs one leading axis in every array, and"
            f" {counted(len(others), 'array')} of {len(shapes):,} have another one than {count}",
            details=[f"{spell(key)}  {notation(tree[key])}" for key in others],
            hint="`--at KEY` takes a replicated part alone, `--drop GLOB` leaves others out",
        )
    if not 0 <= index < count:
        raise BadInput(f"there is no replica {index}", hint=f"they are 0 to {count - 1}")
    return {key: _one(leaf, index) for key, leaf in tree.items()}


def _one(leaf: Leaf, index: int) -> Leaf:
    if isinstance(leaf, Literal) or not leaf.shape:
        return leaf
    view: View = slot(leaf, 0, index)
    return view


def replicas_of(state: TrainState) -> int:
    """How many replicas a state is of; 0 for a state that is none of several.

    The step has one number for each replica then, as every array has a place.
    """
    if state.step is None or len(state.step.shape) != 1:
        return 0
    [count] = state.step.shape
    shapes = [leaf.shape for leaf in state.params.values() if not isinstance(leaf, Literal)]
    return count if shapes and all(shape[:1] == (count,) for shape in shapes) else 0


def without_replicas(state: TrainState) -> TrainState:
    """The arrays of the first of several replicas."""
    params, aux = _first(state.params), _first(state.aux)
    opt_state = None if state.opt_state is None else _first(state.opt_state)
    return TrainState(params, opt_state, aux=aux)


def _first(tree: Tree) -> dict[Key, Leaf]:
    return {key: _one(leaf, 0) for key, leaf in tree.items()}


def in_replicas(group: LayerGroup, count: int) -> LayerGroup:
    """A group of layers of one replica as what it is in all of them: left whole."""
    return replace(group, problem=group.problem or _told(group.key, count))


def _told(group: Key, count: int) -> str:
    return (
        f"the layers of `{spell(group)}` are in {counted(count, 'replica')}, along the first axis"
        " of every array: they are not arranged anew"
    )


def refuse_rearranged_replicas(
    state: TrainState, groups: Iterable[LayerGroup], chosen: Mapping[Key, Arrangement | None]
) -> None:
    """Refuses to stack layers, or to take them apart, where all arrays are of several replicas.

    Raises:
      LayerError: the state is of several replicas.
    """
    count = replicas_of(state)
    changed = [
        group.key
        for group in groups
        if group.arrangement != chosen[group.key]
        and not (isinstance(group.arrangement, Apart) and isinstance(chosen[group.key], Apart))
    ]
    if changed and count:
        raise LayerError(
            _told(changed[0], count),
            hint="`--replica 0` takes one of the replicas, with `--at KEY` where they are a part",
        )
