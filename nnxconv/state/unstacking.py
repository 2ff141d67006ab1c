"""Find the layer groups of a state, and take its stacks apart."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeGuard, TypeVar

from nnxconv.state.block_stacks import Stack, find_blocks
from nnxconv.state.families import Family, for_names
from nnxconv.state.family_sources import known_families
from nnxconv.state.layer_groups import (
    DEFAULT_NAMES,
    PARAMS,
    Apart,
    LayerGroup,
    Spelling,
    is_fixed,
    joined,
    sections_of,
)
from nnxconv.state.stacks import take_apart
from nnxconv.state.train_state import TrainState
from nnxconv.tree import Key, is_digits


def unstack(
    state: TrainState,
    *,
    names: Sequence[str] = DEFAULT_NAMES,
    layer_axis: int | None = None,
    known_axes: Mapping[Key, int] | None = None,
    is_scanned: bool | None = None,
    aux_axis: int | None = None,
    families: Iterable[Family] | None = None,
) -> tuple[TrainState, list[LayerGroup]]:
    """The state with its layers apart under ints, and how each group was arranged.

    A stack whose layer axis cannot be told from the shapes of its parameters (axis 0 or 1, as in
    MaxText's `param_scan_axis`) stays whole, its group saying why; `known_axes`, or else
    `layer_axis`, decides then.
    `is_scanned=False` says that the writer stacked no layers. `aux_axis` is where the program has
    the layers of other variables than parameters; it decides where their shapes do not. `families`
    are those whose blocks are known, in order of preference; None for all that come with nnxconv.
    """
    families = list(known_families().values() if families is None else families)
    sections, rest = sections_of(state)
    groups: list[LayerGroup] = []
    settled: set[Key] = set()
    paths = _telling(sections[PARAMS], names, families)
    lists = _lists_in(paths, names)
    while found := _find(paths, names, settled, families, lists):
        stacks_first = [group for group in found if group.stack is not None] or found
        for group in stacks_first:
            settled.add(group.key)
            if group.kind is not None:
                arrangement = Apart(group.kind)
                sections = {h: _number(t, group.key, group.kind) for h, t in sections.items()}
                paths = _number(paths, group.key, group.kind)
                groups.append(LayerGroup(group.key, group.indices, arrangement))
            elif group.stack is not None and is_scanned is not False:
                axis = (known_axes or {}).get(group.stack.key, layer_axis)
                taken = take_apart(sections, group.stack, axis, aux_axis)
                if taken is not None:
                    sections, layer_group = taken
                    paths = _telling(sections[PARAMS], names, families)
                    groups.append(layer_group)
    return joined(state, sections, rest), groups


def number_layers(
    state: TrainState, groups: Iterable[LayerGroup]
) -> tuple[TrainState, list[LayerGroup]] | None:
    """The same as `unstack` of a state whose groups are known but for the number of their layers.

    None where one of them is a stack, or stands in the layers of another: they are to be looked at.
    """
    sections, rest = sections_of(state)
    numbered: list[LayerGroup] = []
    for group in groups:
        kind = group.arrangement
        if not isinstance(kind, Apart) or any(isinstance(part, int) for part in group.key):
            return None
        sections = {h: _number(t, group.key, kind.spelling) for h, t in sections.items()}
        numbered.append(replace(group, indices=_layers_of(sections[PARAMS], group.key)))
    return joined(state, sections, rest), numbered


def _layers_of(tree: Iterable[Key], key: Key) -> tuple[int, ...]:
    """The numbers of the layers of a group, in a tree that has ints for them."""
    size = len(key)
    found = {path[size] for path in tree if path[:size] == key and len(path) > size}
    return tuple(sorted(number for number in found if isinstance(number, int)))


def _telling(
    paths: Iterable[Key], names: Sequence[str], families: Sequence[Family]
) -> dict[Key, None]:
    """The paths, each down to what stands below the last name that layers may have.

    Of all that stands below one layer, such as `layers_3`, one name is told, and a family's mark;
    of modules whose layers stay as they are, nothing.
    """
    concrete = (family.called(name) for family, name in for_names(families, names))
    begin = (*names, *{word for family in concrete for word in family.names()})
    parts = set(chain.from_iterable(paths))
    telling = {part for part in parts if isinstance(part, str) and part.startswith(begin)}
    telling |= parts & {family.mark for family in families if family.remainder}
    layers = _numbered(telling, names).keys() - set(begin)
    has_fixed = is_fixed(tuple(parts))
    found: dict[Key, Key] = {}
    layer: Key = ()
    for path in paths:
        size = len(layer)
        if size and path[:size] == layer and telling.isdisjoint(path[size:]):
            continue  # of this layer, one name is told
        size = len(path)
        while size and path[size - 1] not in telling:
            size -= 1
        if size and not (has_fixed and is_fixed(path)):
            is_layer = path[size - 1] in layers
            layer = path[:size] if is_layer else ()
            found.setdefault(path[: size if is_layer else size + 1], path[: size + 1])
    return dict.fromkeys(found.values())


def _lists_in(paths: Iterable[Key], names: Sequence[str]) -> dict[Key, tuple[int, ...]]:
    """Where layers are the elements of a list or tuple, and their numbers."""
    found: dict[Key, set[int]] = defaultdict(set)
    for path in paths:
        for place, name in enumerate(path[:-1]):
            number = path[place + 1]
            if isinstance(number, int) and name in names:
                found[path[: place + 1]].add(number)
    return {key: tuple(sorted(numbers)) for key, numbers in found.items()}


_Value = TypeVar("_Value")


def _number(tree: Mapping[Key, _Value], key: Key, spelling: Spelling) -> dict[Key, _Value]:
    """The tree with an int for every layer of a group that is apart, as a sequence has it."""
    if spelling == "sequence":
        return dict(tree)
    last = len(key)
    above, place = (key, last) if spelling == "index" else (key[:-1], last - 1)
    numbered: dict[str | int, Key] = {}
    for part in {path[place] for path in tree if len(path) > last}:
        base, _, digits = str(part).rpartition("_")
        if spelling == "index" and is_digits(part):
            numbered[part] = (*key, int(part))
        elif spelling == "suffix" and base == key[-1] and is_digits(digits):
            numbered[part] = (*key, int(digits))
    return {
        new + path[place + 1 :]
        if len(path) > last and path[:place] == above and (new := numbered.get(path[place]))
        else path: leaf
        for path, leaf in tree.items()
    }


@dataclass(frozen=True)
class _Found:
    """A group: where it stands, and how its layers are apart, or the stack that it is."""

    key: Key
    kind: Spelling | None = None
    indices: tuple[int, ...] = ()
    stack: Stack | None = None


def _find(
    paths: Collection[Key],
    names: Sequence[str],
    settled: set[Key],
    families: Sequence[Family],
    lists: Mapping[Key, tuple[int, ...]],
) -> list[_Found]:
    """The outermost groups among the paths that are not settled yet; `lists` are those stored."""
    suffixed: dict[Key, set[int]] = defaultdict(set)
    inside: dict[Key, set[str | int]] = defaultdict(set)
    parts = set(chain.from_iterable(paths))
    numbered = _numbered(parts, names)
    groups = parts.intersection(names)
    telling = groups.union(numbered)
    for path in paths:
        if telling.isdisjoint(path):
            continue
        for place, name in enumerate(path[:-1]):
            if name not in telling:
                continue
            if name in numbered:
                base, number = numbered[name]
                suffixed[(*path[:place], base)].add(number)
            if name in groups:
                inside[path[: place + 1]].add(path[place + 1])
    blocks = [one for one in find_blocks(paths, names, families) if one.path not in settled]
    found = [_Found(one.path, stack=one) for one in blocks]
    settled = settled | {key for one in blocks for key in (one.key, one.path)}
    found += [
        _Found(key, "suffix", tuple(sorted(indices)))
        for key, indices in suffixed.items()
        if key not in inside and key not in settled
    ]
    for key, kids in inside.items():
        if key in suffixed or key in settled:
            continue
        if any(isinstance(kid, int) for kid in kids):
            if key in lists:
                found.append(_Found(key, "sequence", lists[key]))
        elif all(map(is_digits, kids)):
            found.append(_Found(key, "index", tuple(sorted(int(kid) for kid in kids))))
        elif not all(_IS_LAYER.fullmatch(str(kid)) or is_padded(f"_{kid}") for kid in kids):
            found.append(_Found(key, stack=Stack(key, key)))
    heads = {head for group in found for head in _heads(group)}
    return [g for g in found if not any(g.key[:size] in heads for size in range(len(g.key)))]


_IS_LAYER = re.compile(r"(en|de)coder_(layer|block)_[0-9]+")
"""What is a layer itself, and no part of a stack of layers, as torchvision calls those of a ViT."""


def is_padded(part: str | int) -> TypeGuard[str]:
    """True for a name whose number has zeros in front: `layers_00`."""
    digits = part.rpartition("_")[2] if isinstance(part, str) else ""
    return digits.isdecimal() and not is_digits(digits)


def _numbered(
    parts: Collection[str | int], names: Sequence[str]
) -> dict[str | int, tuple[str, int]]:
    """The names that are a layer's: the group's own name, and the number.

    Numbers with zeros in front would not come back: layers that have some are modules by names.
    """
    found: dict[str | int, tuple[str, int]] = {}
    known = frozenset(names) - {part.rpartition("_")[0] for part in parts if is_padded(part)}
    for part in parts:
        base, _, digits = part.rpartition("_") if isinstance(part, str) else ("", "", "")
        if base in known and is_digits(digits):
            found[part] = base, int(digits)
    return found


def _heads(group: _Found) -> Iterator[Key]:
    """The paths under which everything belongs to a group."""
    if group.kind == "suffix":
        yield from ((*group.key[:-1], f"{group.key[-1]}_{i}") for i in group.indices)
        return
    yield group.key
    if group.stack is not None:
        yield from group.stack.beside()
