"""A stack of layers, or of blocks of them: what its shapes tell, and how it is taken apart."""

from collections.abc import Mapping

from nnxconv.state.block_stacks import Stack
from nnxconv.state.layer_groups import (
    DEFAULT_AXIS,
    PARAMS,
    SCALES,
    Blocks,
    LayerGroup,
    Sections,
    Stacked,
    is_module,
    places,
    scale_axis,
    wanted_axis,
)
from nnxconv.state.quantised import scales_of
from nnxconv.state.train_state import RNGS, below, children
from nnxconv.tree import Key, Leaf, Literal, notation, slot, spell

# --- what shapes tell -----------------------------------------------------------------------------


def take_apart(
    sections: Sections, stack: Stack, layer_axis: int | None, aux_axis: int | None
) -> tuple[Sections, LayerGroup] | None:
    """A stack taken apart, or left whole with the reason, or None when it is no stack."""
    inside = {head: below(tree, stack.path) for head, tree in sections.items()}
    if stack.is_rest and not _is_deep(stack):
        return _numbered_rest(sections, stack, layer_axis)
    readings = _axis_readings(inside, stack)
    if layer_axis is not None and layer_axis in readings:
        readings = {layer_axis: readings[layer_axis]}
    if not readings or is_module(inside[PARAMS]):
        return None
    if stack.problem:
        return sections, LayerGroup(stack.path, (), Stacked(min(readings)), stack.problem)
    if len(readings) > 1:
        told = " or ".join(f"axis {axis} of {sizes[0]}" for axis, sizes in readings.items())
        problem = f"the layer axis of `{spell(stack.path)}` cannot be told from the shapes: {told}"
        return sections, LayerGroup(stack.path, (), None, problem)
    [(axis, sizes)] = readings.items()
    aux_axes, problem = _aux_axes(inside, axis, sizes, aux_axis, stack)
    if _scale_axis(inside[PARAMS], stack, axis, sizes):
        aux_axes[SCALES] = axis
    problem = problem or _moments_problem(inside, stack.path)
    arrangement = _arrangement(inside[PARAMS], stack, axis, sizes, aux_axes)
    count = sizes[0]
    if isinstance(arrangement, Blocks):
        left = _left(sections[PARAMS], stack, axis)
        problem = problem or _rest_problem(sections, stack, arrangement, left)
        in_blocks = 0 if stack.is_rest else sizes[0] * arrangement.period
        count = stack.prefix + in_blocks + left
    if problem:
        return sections, LayerGroup(stack.path, (), arrangement, problem)
    sections = {
        head: _slots(tree, stack.key, arrangement, head, count) for head, tree in sections.items()
    }
    return sections, LayerGroup(stack.key, tuple(range(count)), arrangement)


def _is_deep(stack: Stack) -> bool:
    """True for a remainder that is a stack of its layers."""
    rest = stack.concrete.rest if stack.concrete else None
    return rest is not None and rest.is_stack


def _numbered_rest(
    sections: Sections, stack: Stack, layer_axis: int | None
) -> tuple[Sections, LayerGroup]:
    """Layers that are all of them a remainder, one by one: no shape tells an axis."""
    axis = DEFAULT_AXIS if layer_axis is None else layer_axis
    blocks = _arrangement({}, stack, axis, (), {})
    left = _left(sections[PARAMS], stack, axis)
    if isinstance(blocks, Blocks) and (problem := _rest_problem(sections, stack, blocks, left)):
        return sections, LayerGroup(stack.path, (), blocks, problem)
    count = stack.prefix + left
    sections = {
        head: _slots(tree, stack.key, blocks, head, count) for head, tree in sections.items()
    }
    return sections, LayerGroup(stack.key, tuple(range(count)), blocks)


def _arrangement(
    params: Mapping[Key, Leaf],
    stack: Stack,
    axis: int,
    sizes: tuple[int, ...],
    aux_axes: Mapping[str, int],
) -> Stacked | Blocks:
    if stack.family is None or stack.concrete is None:
        return Stacked(axis, aux_axes)
    if stack.is_rest:
        period = stack.family.period or 1
    else:
        period = stack.concrete.period_of(children(params), sizes[-1]) or 1
    return Blocks(axis, period, aux_axes, stack.family, stack.prefix, stack.spelling)


def _left(params: Mapping[Key, Leaf], stack: Stack, axis: int) -> int:
    """How many layers fill no whole block: in a stack of them, as the first array has it."""
    family = stack.concrete
    if family is None or family.rest is None:
        return 0
    above = (*stack.key[:-1], *family.remainder)
    if not family.rest.is_stack:
        return sum(str(name).startswith(family.rest.name) for name in children(params, above))
    for leaf in below(params, (*above, family.rest.name)).values():
        if not isinstance(leaf, Literal) and leaf.shape:
            return _sizes_at(leaf.shape, axis, 1)[0]
    return 0


def _rest_problem(sections: Sections, stack: Stack, blocks: Blocks, left: int) -> str:
    """Why what stands beside the blocks is not what remains of them, if it is not."""
    if left >= blocks.period:
        told = f"`{spell(stack.path)}` has blocks of {blocks.period}"
        return f"{told}, but {left} layers are left over beside it"
    family = stack.concrete
    if not left or family is None or family.rest is None or not family.rest.is_stack:
        return ""
    path = (*stack.key[:-1], *family.remainder, family.rest.name)
    for head, tree in sections.items():
        scales = scales_of(tree) if head == PARAMS else {}
        for key, leaf in tree.items():
            if key[: len(path)] != path or isinstance(leaf, Literal):
                continue
            axis = scale_axis(blocks) if key in scales else wanted_axis(head, blocks)
            if _sizes_at(leaf.shape, axis, 1) != (left,):
                return f"{spell((*head, *key))} is {notation(leaf)}, in a stack of {left} layers"
    return ""


def _sizes_at(shape: tuple[int, ...], axis: int, depth: int) -> tuple[int, ...]:
    """The sizes of the layer axes of an array; none where it has too few axes."""
    if len(shape) < depth:
        return ()
    place = min(axis, len(shape) - depth)
    return shape[place : place + depth]


def _axis_readings(inside: Sections, stack: Stack) -> dict[int, tuple[int, ...]]:
    """For each layer axis that fits all parameters, how many layers it gives, blocks first."""
    params = inside[PARAMS]
    scales = scales_of(params)
    shapes = [
        (leaf.shape, stack.depth(path))
        for path, leaf in params.items()
        if not isinstance(leaf, Literal) and path not in scales
    ]
    if not shapes:
        return {}
    known = {
        _sizes_at(leaf.shape, 0, stack.depth(path))
        for path, leaf in inside.get(("aux", RNGS), {}).items()
        if not isinstance(leaf, Literal) and leaf.shape
    }
    readings: dict[int, tuple[int, ...]] = {}
    for axis in (0, 1):
        sizes = {_sizes_at(shape, axis, depth) for shape, depth in shapes}
        outer = {size[:1] for size in sizes}
        longest = [size for size in sizes if len(size) == max(map(len, sizes))]
        if len(outer) != 1 or len(longest) != 1 or not outer.isdisjoint({(0,), ()}):
            continue
        is_known = all(size == longest[0][: len(size)] for size in known)
        if is_known and _scale_axis(params, stack, axis, longest[0]) is not None:
            readings[axis] = longest[0]
    is_same = all(len(shape) == depth for shape, depth in shapes)
    return {0: readings[0]} if is_same and readings else readings


def _scale_axis(
    params: Mapping[Key, Leaf], stack: Stack, axis: int, sizes: tuple[int, ...]
) -> int | None:
    """Where the scales of quantised weights have the layers: first, or where all parameters do.

    MaxText 0.2.5 trains with the latter, for its scales are parameters; None where neither fits.
    """
    scales = [
        (leaf.shape, stack.depth(path))
        for path in scales_of(params)
        if not isinstance(leaf := params[path], Literal) and leaf.shape
    ]
    for place in dict.fromkeys((0, axis)):
        found = ((_sizes_at(shape, place, depth), depth) for shape, depth in scales)
        if all(one == sizes[:depth] for one, depth in found):
            return place
    return None


def _aux_axes(
    inside: Sections, axis: int, sizes: tuple[int, ...], usual: int | None, stack: Stack
) -> tuple[dict[str, int], str]:
    """The collections whose layer axis is not that of the parameters; or why none can be told."""
    axes: dict[str, int] = {}
    for head, tree in inside.items():
        if head[0] != "aux" or not tree:
            continue
        collection = str(head[1])
        if _is_like_parameters(tree, inside[PARAMS]):
            continue
        shapes = [
            (leaf.shape, stack.depth(path))
            for path, leaf in tree.items()
            if not isinstance(leaf, Literal)
        ]
        wanted = (0,) if collection == RNGS else (0, 1)
        fitting = [a for a in wanted if all(_sizes_at(s, a, d) == sizes[:d] for s, d in shapes)]
        if shapes and not fitting:
            told = " and ".join(map(str, sizes))
            return {}, f"aux.{collection} has no layer axis of {told} in every array"
        if usual in fitting:
            fitting = [usual]
        if len(fitting) == 2 and not all(len(shape) == depth for shape, depth in shapes):
            return {}, f"the layer axis of aux.{collection} is 0 or 1, both of {sizes[0]}"
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
            param = inside[PARAMS].get(path)
            if isinstance(leaf, Literal) or isinstance(param, Literal):
                continue
            full = spell((*head, *key, *path))
            if param is None:
                return f"{full} is {notation(leaf)}, one of several for its parameter"
            if leaf.shape != param.shape:
                return f"{full} is {notation(leaf)}, but its parameter is {notation(param)}"
    return ""


# --- taken apart ----------------------------------------------------------------------------------


def _slots(
    tree: dict[Key, Leaf], key: Key, arrangement: Stacked | Blocks, head: Key, count: int
) -> dict[Key, Leaf]:
    """A section with one slot for each layer; what stands in no place of a layer stays."""
    scales = scales_of(tree) if head == PARAMS else {}
    by_path = {place.path: place for place in places(key, arrangement, count)}
    sizes = {len(path) for path in by_path}
    found: dict[Key, Leaf] = {}
    for path, leaf in tree.items():
        place = next((by_path[path[:s]] for s in sizes if path[:s] in by_path), None)
        if place is None or len(path) == len(place.path):
            found[path] = leaf
            continue
        axis = scale_axis(arrangement) if path in scales else wanted_axis(head, arrangement)
        inner = path[len(place.path) :]
        slots = _slots_of(leaf, axis, place.sizes)
        found |= {(*key, i, *inner): one for i, one in zip(place.layers, slots, strict=True)}
    return found


def _slots_of(leaf: Leaf, axis: int, sizes: tuple[int, ...]) -> list[Leaf]:
    """The layers in an array with layer axes of these sizes."""
    if not sizes:
        return [leaf]
    if isinstance(leaf, Literal):
        return [one for _ in range(sizes[0]) for one in _slots_of(leaf, axis, sizes[1:])]
    place = min(axis, len(leaf.shape) - len(sizes))
    slots = [slot(leaf, place, i) for i in range(sizes[0])]
    return [one for inner in slots for one in _slots_of(inner, axis, sizes[1:])]
