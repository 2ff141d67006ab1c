"""RNG state that stands in the first layer and is one set for all of them, as MaxText has it."""

from collections import defaultdict
from collections.abc import Iterable

from nnxconv.state.train_state import RNGS, TrainState
from nnxconv.tree import Key


def shared_rngs(state: TrainState, groups: Iterable[Key]) -> list[Key]:
    """The RNG state, by keys of `aux`, that of several layers of a group only the first one has.

    Args:
      state: with the layers of these groups under ints.
      groups: the paths of the groups, for example `("decoder", "layers")`.
    """
    found: list[Key] = []
    for group in groups:
        size = len(group)
        layers = {
            path[size]
            for path in state.params
            if path[:size] == group and isinstance(path[size], int)
        }
        by_layer: dict[str | int, list[Key]] = defaultdict(list)
        for key in state.aux:
            path = key[1:]
            if key[0] == RNGS and path[:size] == group and path[size] in layers:
                by_layer[path[size]].append(key)
        if len(layers) > 1 and by_layer.keys() == {min(layers, key=int)}:
            found += next(iter(by_layer.values()))
    return found
