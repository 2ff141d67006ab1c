"""A stack of layers, or of blocks of them: what its shapes tell, and how it is taken apart."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from nnxconv.state.families import Family, for_names
from nnxconv.state.layer_groups import (
    DEFAULT_AXIS,
    DEFAULT_NAMES,
    PARAMS,
    SCALES,
    Blocks,
    LayerGroup,
    Sections,
    Spelling,
    Stacked,
    apart,
    is_module,
    places,
    scale_axis,
    wanted_axis,
)
from nnxconv.state.quantised import scales_of
from nnxconv.state.train_state import RNGS, below, children
from nnxconv.tree import Key, Leaf, Literal, is_digits, notation, slot, spell


@dataclass(frozen=True)
class Stack:
    """A stack as its names tell it, its shapes not seen yet.

    Attributes:
      key: of the group of its layers, once they are apart.
      path: where it stands, below which everything has a layer axis.
      family: how its blocks are made, in its own terms; None where it has no blocks.
      prefix: how many layers are apart before it, spelled so.
      is_rest: it is the remainder of blocks of which there is none.
      problem: why it cannot be taken apart, whatever its shapes; empty otherwise.
    """

    key: Key
    path: Key
    family: Family | None = None
    prefix: int = 0
    spelling: Spelling = "suffix"
    is_rest: bool = False
    problem: str = ""

    @cached_property
    def concrete(self) -> Family | None:
        """The family in the names that are here."""
        return None if self.family is None else self.family.called(str(self.key[-1]))

    @cached_property
    def _within(self) -> set[str]:
        members = self.concrete.members if self.concrete else ()
        return {member.name for member in members if member.is_stack}

    def depth(self, path: Key) -> int:
        """How many layer axes the arrays have that stand at a path within the stack."""
        return 2 if path and path[0] in self._within else 1

    def beside(self) -> Iterator[Key]:
        """Where layers of the group stand besides the stack."""
        for i in range(self.prefix):
            yield apart(self.key, i, self.spelling)
        if self.concrete is not None and self.concrete.remainder and not self.is_rest:
            yield (*self.key[:-1], *self.concrete.remainder)


# --- blocks, by their names -----------------------------------------------------------------------


def find_blocks(
    params: Iterable[Key], names: Sequence[str], families: Iterable[Family]
) -> Iterator[Stack]:
    """The stacks whose members are called as those of a family; its remainder is there, if any is.

    A family's stack is left alone where `names` has it, or a stack within, as layers of its own.
    """
    kids = _kids(params)
    called = [(family, name, family.called(name)) for family, name in for_names(families, names)]
    stacks: dict[str | int, list[Key]] = {concrete.stack: [] for _, _, concrete in called}
    for path in kids:
        if path[-1] in stacks:
            stacks[path[-1]].append(path)
    found: dict[Key, Stack] = {}
    with_rest: set[Key] = set()
    for family, name, concrete in called:
        own = {concrete.stack, *(m.name for m in concrete.members if m.is_stack)}
        if own & (set(names) - {name, *DEFAULT_NAMES}):
            continue
        for path in stacks[concrete.stack]:
            if concrete.period_of(kids[path], 1) is None:
                continue
            key = (*path[:-1], name)
            rest = _rest(kids, path[:-1], concrete)
            spelled = _prefix(kids, key, path)
            if rest is None or spelled is None:
                told = f"what stands beside the blocks in `{spell(path)}` is not what remains"
                found.setdefault(path, Stack(key, path, family, problem=f"{told} of them"))
                continue
            if path in found and (not rest or path in with_rest):
                continue
            found[path] = Stack(key, path, family, *spelled)
            with_rest |= {path} if rest else set()
    yield from found.values()
    yield from _only_rests(kids, set(names), families, {stack.key for stack in found.values()})


def _only_rests(
    kids: Mapping[Key, Mapping[str | int, None]],
    names: Collection[str],
    families: Iterable[Family],
    settled: set[Key],
) -> Iterator[Stack]:
    """The remainders whose blocks are not there, for the model has fewer layers than a block.

    Several families may have remainders of that name: it is the first one's whose mark is there.
    Where no family's is, as among the factors of an adapter, it is the first one's.
    """
    families = list(families)
    marks = {family.mark for family in families if family.remainder} - {""}
    for must_have_mark, family in itertools.product((True, False), families):
        above, rest = family.remainder, family.rest
        if not above or rest is None or family.is_general or family.apart not in names:
            continue
        for path in kids:
            parent = path[: -len(above)]
            key = (*parent, family.apart)
            if path[-len(above) :] != above or key in settled or (*parent, family.stack) in kids:
                continue
            found = marks & _names_in(kids, path)
            is_its_own = not family.mark or family.mark in found
            if not _rest(kids, parent, family) or not (is_its_own if must_have_mark else not found):
                continue
            settled.add(key)
            where = (*path, rest.name) if rest.is_stack else path
            spelled = _prefix(kids, key, where)
            if spelled is not None and family.period is not None:
                yield Stack(key, where, family, *spelled, is_rest=True)


def _names_in(kids: Mapping[Key, Mapping[str | int, None]], path: Key) -> set[str | int]:
    inside = (names for key, names in kids.items() if key[: len(path)] == path)
    return {name for names in inside for name in names}


def _kids(paths: Iterable[Key]) -> dict[Key, dict[str | int, None]]:
    """The names below each path that others begin with."""
    kids: dict[Key, dict[str | int, None]] = {}
    for path in paths:
        size = len(path) - 1
        while size > 0 and path[:size] not in kids:
            size -= 1
        for known in range(max(size, 1), len(path)):
            kids.setdefault(path[:known], {})[path[known]] = None
    return kids


def _rest(kids: Mapping[Key, Mapping[str | int, None]], parent: Key, family: Family) -> bool | None:
    """Whether a remainder is there; None where something else stands in its place."""
    if family.rest is None:
        return False
    names = kids.get((*parent, *family.remainder), {})
    own = [name for name in names if str(name).startswith(family.rest.name)]
    if family.remainder and len(own) != len(names):
        return None
    if family.rest.is_stack:
        return bool(own) if own in ([], [family.rest.name]) else None
    numbers = family.rest.numbers(own) if own else []
    return bool(own) if numbers == list(range(len(own))) else None


def _prefix(
    kids: Mapping[Key, Mapping[str | int, None]], key: Key, stack: Key
) -> tuple[int, Spelling] | None:
    """How many layers are apart before a stack, and how they are spelled; None with gaps."""
    base = f"{key[-1]}_"
    beside = [str(name) for name in kids.get(key[:-1], {})]
    numbers = [int(n.removeprefix(base)) for n in beside if _is_numbered(n, base)]
    spelling: Spelling = "suffix"
    if not numbers and key != stack and all(map(is_digits, kids.get(key, {}))):
        numbers, spelling = [int(name) for name in kids.get(key, {})], "index"
    return (len(numbers), spelling) if sorted(numbers) == list(range(len(numbers))) else None


def _is_numbered(name: str, base: str) -> bool:
    return name.startswith(base) and is_digits(name.removeprefix(base))


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
            param = inside[PARAMS][path]
            if isinstance(leaf, Literal) or isinstance(param, Literal):
                continue
            if leaf.shape != param.shape:
                full = spell((*head, *key, *path))
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
