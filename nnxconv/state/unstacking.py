"""Find the layer groups of a state, and take its stacks apart."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal as OneOf

from nnxconv.state.layer_groups import (
    DEFAULT_NAMES,
    PARAMS,
    Apart,
    Blocks,
    LayerGroup,
    Sections,
    Spelling,
    Stacked,
    joined,
    remainder_key,
    sections_of,
    wanted_axis,
)
from nnxconv.state.quantised import scales_of
from nnxconv.state.train_state import RNGS, TrainState, below, children
from nnxconv.tree import Key, Leaf, Literal, is_digits, notation, slot, spell


def unstack(
    state: TrainState,
    *,
    names: Sequence[str] = DEFAULT_NAMES,
    layer_axis: int | None = None,
    known_axes: Mapping[Key, int] | None = None,
    is_scanned: bool | None = None,
    aux_axis: int | None = None,
) -> tuple[TrainState, list[LayerGroup]]:
    """The state with its layers apart under ints, and how each group was arranged.

    A stack whose layer axis cannot be told from the shapes of its parameters (axis 0 or 1, as in
    MaxText's `param_scan_axis`) stays whole, its group saying why; `known_axes`, or else
    `layer_axis`, decides then.
    `is_scanned=False` says that the writer stacked no layers. `aux_axis` is where the program has
    the layers of other variables than parameters; it decides where their shapes do not.
    """
    sections, rest = sections_of(state)
    groups: list[LayerGroup] = []
    settled: set[Key] = set()
    while found := _find(sections[PARAMS], names, settled):
        stacks_first = [group for group in found if group.kind == "whole"] or found
        for group in stacks_first:
            settled.add(group.key)
            if group.kind != "whole":
                arrangement = Apart(group.kind)
                sections = {h: _number(t, group.key, group.kind) for h, t in sections.items()}
                groups.append(LayerGroup(group.key, group.indices, arrangement))
            elif is_scanned is not False:
                axis = (known_axes or {}).get(group.key, layer_axis)
                taken = _take_apart(sections, group.key, axis, aux_axis)
                if taken is not None:
                    sections, layer_group = taken
                    groups.append(layer_group)
    return joined(state, sections, rest), groups


def _number(tree: dict[Key, Leaf], key: Key, spelling: Spelling) -> dict[Key, Leaf]:
    """The tree with an int for every layer of a group that is apart."""
    place = len(key) - 1
    return {_numbered(path, key, place, spelling): leaf for path, leaf in tree.items()}


def _numbered(path: Key, key: Key, place: int, spelling: Spelling) -> Key:
    if path[:place] != key[:place] or len(path) <= place + 1:
        return path
    if spelling == "index":
        if path[place] == key[place] and is_digits(path[place + 1]):
            return (*key, int(path[place + 1]), *path[place + 2 :])
        return path
    base, _, digits = str(path[place]).rpartition("_")
    if base == key[place] and is_digits(digits):
        return (*key, int(digits), *path[place + 1 :])
    return path


def _take_apart(
    sections: Sections, key: Key, layer_axis: int | None, aux_axis: int | None
) -> tuple[Sections, LayerGroup] | None:
    """A stack taken apart, or left whole with the reason, or None when it is no stack."""
    inside = {head: below(tree, key) for head, tree in sections.items()}
    readings = _axis_readings(inside)
    if layer_axis is not None and layer_axis in readings:
        readings = {layer_axis: readings[layer_axis]}
    if not readings:
        return None
    if len(readings) > 1:
        told = " or ".join(f"axis {axis} of {size}" for axis, size in readings.items())
        problem = f"the layer axis of `{spell(key)}` cannot be told from the shapes: {told}"
        return sections, LayerGroup(key, (), None, problem)
    [(axis, size)] = readings.items()
    aux_axes, problem = _aux_axes(inside, axis, size, aux_axis)
    problem = problem or _moments_problem(inside, key)
    period = _period(inside[PARAMS], key)
    arrangement = Stacked(axis, aux_axes) if period is None else Blocks(axis, period, aux_axes)
    if problem:
        return sections, LayerGroup(key, (), arrangement, problem)
    remainder = _remainder(sections, key) if period is not None else {}
    sections = {
        head: _slots(tree, key, remainder.get(head, {}), arrangement, head, size)
        for head, tree in sections.items()
    }
    indices = sorted(i for i in children(sections[PARAMS], key) if isinstance(i, int))
    return sections, LayerGroup(key, tuple(indices), arrangement)


def _axis_readings(inside: Sections) -> dict[int, int]:
    """For each layer axis that fits all parameters, the number of layers it gives."""
    params = inside[PARAMS]
    scales = scales_of(params)
    shapes = [
        leaf.shape
        for path, leaf in params.items()
        if not isinstance(leaf, Literal) and path not in scales
    ]
    if not shapes or () in shapes:
        return {}
    on_axis_0 = [*inside.get(("aux", RNGS), {}).values(), *(params[path] for path in scales)]
    known_sizes = {
        leaf.shape[0] for leaf in on_axis_0 if not isinstance(leaf, Literal) and leaf.shape
    }
    readings: dict[int, int] = {}
    for axis in (0, 1):
        sizes = {shape[min(axis, len(shape) - 1)] for shape in shapes}
        if len(sizes) == 1 and sizes >= known_sizes and sizes != {0}:
            readings[axis] = sizes.pop()
    return {0: readings[0]} if _same_place(shapes) and readings else readings


def _same_place(shapes: Sequence[tuple[int, ...]]) -> bool:
    """True when axis 0 and axis 1 mean the same: every array has one axis only."""
    return all(len(shape) == 1 for shape in shapes)


def _aux_axes(
    inside: Sections, axis: int, size: int, usual: int | None
) -> tuple[dict[str, int], str]:
    """The collections whose layer axis is not that of the parameters; or why none can be told."""
    axes: dict[str, int] = {}
    for head, tree in inside.items():
        if head[0] != "aux" or not tree:
            continue
        collection = str(head[1])
        if _is_like_parameters(tree, inside[PARAMS]):
            continue
        shapes = [leaf.shape for leaf in tree.values() if not isinstance(leaf, Literal)]
        wanted = (0,) if collection == RNGS else (0, 1)
        fitting = [a for a in wanted if all(s and s[min(a, len(s) - 1)] == size for s in shapes)]
        if shapes and not fitting:
            return {}, f"aux.{collection} has no layer axis of {size} in every array"
        if usual in fitting:
            fitting = [usual]
        if len(fitting) == 2 and not _same_place(shapes):
            return {}, f"the layer axis of aux.{collection} is 0 or 1, both of {size}"
        if collection != RNGS and fitting and fitting != [axis] and len(fitting) == 1:
            axes[collection] = fitting[0]
    return axes, ""


def _is_like_parameters(tree: Mapping[Key, Leaf], params: Mapping[Key, Leaf]) -> bool:
    """True when every leaf has the path and shape of a parameter, as in a moving average."""
    return all(
        path in params
        and not isinstance(leaf, Literal)
        and not isinstance(param := params[path], Literal)
        and leaf.shape == param.shape
        for path, leaf in tree.items()
    )


def _moments_problem(inside: Sections, key: Key) -> str:
    """Why a tree of the optimizer cannot follow its parameters, if it cannot."""
    for head, tree in inside.items():
        if head[0] != "opt_state":
            continue
        for path, leaf in tree.items():
            param = inside[PARAMS][path]
            if isinstance(leaf, Literal) or isinstance(param, Literal):
                continue
            if leaf.shape != param.shape:
                full = spell((*head, *key, *path))
                return f"{full} is {notation(leaf)}, but its parameter is {notation(param)}"
    return ""


def _period(params: Mapping[Key, Leaf], key: Key) -> int | None:
    """The number of stacked subtrees `layers_0..P-1` in a blocks arrangement, else None."""
    kids = children(params)
    names = {f"{key[-1]}_{j}" for j in range(len(kids))}
    return len(kids) if set(kids) == names else None


def _remainder(sections: Sections, key: Key) -> dict[Key, dict[Key, Leaf]]:
    """What stands in `layers_remainder`, by section."""
    return {head: below(tree, remainder_key(key)) for head, tree in sections.items()}


def _slots(
    tree: dict[Key, Leaf],
    key: Key,
    remainder: Mapping[Key, Leaf],
    arrangement: Stacked | Blocks,
    head: Key,
    size: int,
) -> dict[Key, Leaf]:
    """The tree with the stacked leaves under `key` replaced by one slot per layer."""
    period = arrangement.period if isinstance(arrangement, Blocks) else 1
    is_blocks = isinstance(arrangement, Blocks)
    gone = remainder_key(key) if is_blocks else None
    apart: dict[Key, Leaf] = {}
    scales = scales_of(tree) if head == PARAMS else {}
    for path, leaf in tree.items():
        if path[: len(key)] != key:
            if gone is None or path[: len(key)] != gone:
                apart[path] = leaf
            continue
        inner = path[len(key) :]
        place = int(str(inner[0]).rpartition("_")[2]) if is_blocks else 0
        axis = 0 if path in scales else _axis_in(leaf, head, arrangement)
        for block in range(size):
            layer = (*key, block * period + place, *(inner[1:] if is_blocks else inner))
            apart[layer] = _slot_of(leaf, axis, block)
    for inner, leaf in remainder.items():
        place = int(str(inner[0]).rpartition("_")[2])
        apart[(*key, size * period + place, *inner[1:])] = leaf
    return apart


def _slot_of(leaf: Leaf, axis: int, index: int) -> Leaf:
    return leaf if isinstance(leaf, Literal) else slot(leaf, axis, index)


def _axis_in(leaf: Leaf, head: Key, arrangement: Stacked | Blocks) -> int:
    """The layer axis of one stacked leaf."""
    rank = 1 if isinstance(leaf, Literal) else len(leaf.shape)
    return min(wanted_axis(head, arrangement), rank - 1)


@dataclass(frozen=True)
class _Found:
    key: Key
    kind: OneOf["suffix", "index", "whole"]
    indices: tuple[int, ...] = ()


def _find(paths: Iterable[Key], names: Sequence[str], settled: set[Key]) -> list[_Found]:
    """The outermost groups among the paths that are not settled yet."""
    suffixed: dict[Key, set[int]] = defaultdict(set)
    inside: dict[Key, set[str | int]] = defaultdict(set)
    for path in paths:
        for place, name in enumerate(path[:-1]):
            if not isinstance(name, str):
                continue
            base, _, digits = name.rpartition("_")
            if base in names and is_digits(digits):
                suffixed[(*path[:place], base)].add(int(digits))
            if name in names:
                inside[path[: place + 1]].add(path[place + 1])
    found = [
        _Found(key, "suffix", tuple(sorted(indices)))
        for key, indices in suffixed.items()
        if key not in inside and key not in settled
    ]
    for key, kids in inside.items():
        if key in suffixed or key in settled or any(isinstance(kid, int) for kid in kids):
            continue
        if all(map(is_digits, kids)):
            found.append(_Found(key, "index", tuple(sorted(int(kid) for kid in kids))))
        else:
            found.append(_Found(key, "whole"))
    heads = {head for group in found for head in _heads(group)}
    return [g for g in found if not any(g.key[:size] in heads for size in range(len(g.key)))]


def _heads(group: _Found) -> Iterator[Key]:
    """The paths under which everything belongs to a group."""
    if group.kind == "suffix":
        yield from ((*group.key[:-1], f"{group.key[-1]}_{i}") for i in group.indices)
    else:
        yield group.key
