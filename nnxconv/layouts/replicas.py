"""One of the replicas that a state has along the leading axis of all its arrays (`jax.pmap`)."""

from collections.abc import Iterable, Mapping

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


def refuse_rearranged_replicas(
    state: TrainState, groups: Iterable[LayerGroup], chosen: Mapping[Key, Arrangement | None]
) -> None:
    """Refuses to stack layers, or to take them apart, where all arrays are of several replicas.

    Raises:
      LayerError: the step has one number for each replica, as every array has a place.
    """
    if state.step is None or len(state.step.shape) != 1:
        return
    count = state.step.shape[0]
    arrays = [leaf.shape for leaf in state.params.values() if not isinstance(leaf, Literal)]
    changed = [
        spell(group.key)
        for group in groups
        if group.arrangement != chosen[group.key]
        and not (isinstance(group.arrangement, Apart) and isinstance(chosen[group.key], Apart))
    ]
    if changed and arrays and all(shape[:1] == (count,) for shape in arrays):
        raise LayerError(
            f"the layers of `{changed[0]}` are in {counted(count, 'replica')}, along the first axis"
            " of every array: they are not arranged anew",
            hint="`--replica 0` takes one of the replicas, with `--at KEY` where they are a part",
        )
