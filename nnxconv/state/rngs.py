"""RNG state that stands in the first layer and is one set for all of them, as MaxText has it."""

from collections import defaultdict
from collections.abc import Iterable

from nnxconv.state.train_state import RNGS, TrainState
from nnxconv.tree import Key


def shared_rngs(state: TrainState, groups: Iterable[Key]) -> list[Key]:
    """The RNG state, by keys of `aux`, that of several layers of a group only the first one has.

    The others may have RNG state of their own elsewhere, as layers that train in int8 do.

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
        if len(layers) < 2 or not by_layer:
            continue
        first = min(layers, key=int)
        own = by_layer.pop(first, [])
        elsewhere = {key[size + 2 :] for keys in by_layer.values() for key in keys}
        if not by_layer or _has_twin(state, group, first):
            found += [key for key in own if key[size + 2 :] not in elsewhere]
    return found


def _has_twin(state: TrainState, group: Key, first: str | int) -> bool:
    """True where another layer has the parameters of the first, and so ought to have its RNGs."""
    size = len(group)
    inside: dict[str | int, set[Key]] = defaultdict(set)
    for path in state.params:
        if path[:size] == group and len(path) > size:
            inside[path[size]].add(path[size + 1 :])
    return any(paths == inside[first] for layer, paths in inside.items() if layer != first)
