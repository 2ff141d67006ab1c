"""What still has layer axes when all layers are apart."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from nnxconv.errors import LayerError
from nnxconv.state.layer_groups import Arrangement, Blocks, LayerGroup, is_fixed, is_module
from nnxconv.state.train_state import RNGS, TrainState, below, children
from nnxconv.tree import Key, Leaf, Literal, is_digits, notation, spell

_LIKE_LAYERS = re.compile(
    r"(.*_)?(layers|blocks)(_remainder|_outside_pipeline|_[0-9]+_[0-9]+)?|global_layer"
)


def refuse_left_stacked(state: TrainState, groups: Iterable[LayerGroup]) -> None:
    """Refuses to leave stacks where all layers shall be apart.

    Raises:
      LayerError: below a key that is called like layers, all arrays share the size of one axis.
    """
    left = like_stacks(state, groups)
    if left:
        raise LayerError(
            "these look like stacked layers, and no description of a family fits them",
            details=[
                f"{spell(path)}  {notation(leaf)}" for some in left.values() for path, leaf in some
            ],
            hint="`--layer_group NAME` names layers that are a plain stack, and `--family FILE`"
            " describes blocks of them; without `--no-scan_layers` they stay as they are",
        )


def like_stacks(
    state: TrainState, groups: Iterable[LayerGroup]
) -> dict[Key, list[tuple[Key, Leaf]]]:
    """What looks like stacked layers and is not known as such: where it stands, and its arrays."""
    known = {group.key for group in groups if group.problem}
    inside: dict[Key, list[tuple[Key, Leaf]]] = defaultdict(list)
    for path, leaf in state.params.items():
        if is_fixed(path):
            continue
        for size in range(1, len(path)):
            is_whole = not isinstance(path[size - 1], int) and not isinstance(path[size], int)
            if is_whole and _LIKE_LAYERS.fullmatch(str(path[size - 1])):
                inside[path[:size]].append((path, leaf))
                break
    return {
        key: some
        for key, some in inside.items()
        if key not in known
        and not _are_apart(state, key)
        and not is_module(below(state.params, key))
        and _share(leaf for _, leaf in some)
    }


def _are_apart(state: TrainState, key: Key) -> bool:
    """True for one module for each number, whatever their shapes."""
    return all(is_digits(name) for name in children(state.params, key))


def _share(leaves: Iterable[Leaf]) -> bool:
    """True where all arrays have one size on the axis that layers are stacked on, once or twice."""
    shapes = [leaf.shape for leaf in leaves if not isinstance(leaf, Literal)]
    ways = ((0, 1), (1, 1), (1, 2))
    sizes = [{_size(shape, axis, depth) for shape in shapes} for axis, depth in ways]
    return len(shapes) > 1 and any(len(found) == 1 and None not in found for found in sizes)


def _size(shape: tuple[int, ...], axis: int, depth: int) -> int | None:
    return shape[min(axis, len(shape) - depth)] if len(shape) >= depth else None


def left_by_blocks(
    state: TrainState,
    groups: Iterable[LayerGroup],
    chosen: Mapping[Key, Arrangement | None],
) -> list[Key]:
    """The RNG state, by keys of `aux`, of blocks that are no more; it is no layer's.

    Raises:
      LayerError: blocks that are no more have other variables of their own.
    """
    found: list[Key] = []
    others: list[str] = []
    for group in groups:
        now, then = group.arrangement, chosen[group.key]
        if not isinstance(now, Blocks) or group.problem or _same_blocks(now, then):
            continue
        heads = _of_blocks(group.key, now)
        for key in state.aux:
            path = key[1:]
            if any(path[: len(head)] == head and not _is_layer(path, head) for head in heads):
                found += [key] if key[0] == RNGS else []
                others += [] if key[0] == RNGS else [spell(("aux", *key))]
    if others:
        raise LayerError(
            "these belong to a block of layers, and to none of its layers",
            details=others,
            hint="`--without aux` leaves them out; `--scan_layers` keeps the blocks",
        )
    return found


def _of_blocks(key: Key, blocks: Blocks) -> list[Key]:
    """Where the blocks of a group stand, and what remains of them."""
    family, parent = blocks.family.called(str(key[-1])), key[:-1]
    above = [(*parent, *family.remainder)] if family.remainder else []
    return [(*parent, family.stack), *above]


def _is_layer(path: Key, head: Key) -> bool:
    return len(path) > len(head) and isinstance(path[len(head)], int)


def _same_blocks(now: Blocks, then: Arrangement | None) -> bool:
    return isinstance(then, Blocks) and then.family.stack == now.family.stack
