"""Modules that one tree counts and the other has in layers: `Dense_0` to `Dense_7`, `blocks.#.mlp`.

Flax counts the modules of a loop that has no module of its own. As many modules of one size, which
differ in one number, are then one family, in the order of that number.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from nnxconv.matching.modules import ModuleFamily, Path, Scope, Slot


@dataclass(frozen=True)
class Counted:
    """Two lists of modules, in which series are families, and what those can only be."""

    left: Sequence[ModuleFamily]
    right: Sequence[ModuleFamily]
    pairs: Sequence[tuple[ModuleFamily, ModuleFamily]]


def series_as_layers(
    left: Sequence[ModuleFamily], right: Sequence[ModuleFamily], scopes: Sequence[tuple[Path, Path]]
) -> Counted:
    """Takes series for families where the other side has one module of their size in its layers.

    Args:
      left, right: the modules of both sides.
      scopes: the layers of both that are paired; what is in those is nothing else.
    """
    pairs = list(_series_of(left, [m for m in right if m.scope.path not in {b for _, b in scopes}]))
    back = list(_series_of(right, [m for m in left if m.scope.path not in {a for a, _ in scopes}]))
    return Counted(
        _with_families(left, pairs),
        _with_families(right, back),
        [(one, other) for one, _, other in pairs] + [(other, one) for one, _, other in back],
    )


def _series_of(
    modules: Sequence[ModuleFamily], layers: Sequence[ModuleFamily]
) -> Iterator[tuple[ModuleFamily, list[ModuleFamily], ModuleFamily]]:
    """Each series that alone has the size of one module in the layers: as a family, and whole."""
    series = list(_series_in(modules))
    seen = Counter(one.main.size for one, _ in series)
    there = Counter(module.main.size for module in layers)
    by_size = {module.main.size: module for module in layers}
    for one, members in series:
        size = one.main.size
        if seen[size] == there[size] == 1:
            yield one, members, by_size[size]


def _with_families(
    modules: Sequence[ModuleFamily],
    found: Sequence[tuple[ModuleFamily, list[ModuleFamily], ModuleFamily]],
) -> list[ModuleFamily]:
    families = {members[0]: one for one, members, _ in found}
    gone = {module for _, members, _ in found for module in members[1:]}
    return [families.get(module, module) for module in modules if module not in gone]


def _series_in(
    modules: Iterable[ModuleFamily],
) -> Iterator[tuple[ModuleFamily, list[ModuleFamily]]]:
    """Each series among modules outside of layers, as one family, and what it consists of."""
    groups: dict[Hashable, list[ModuleFamily]] = defaultdict(list)
    for module in modules:
        if module.scope.count == 1 and module.numbers:
            slots = tuple((name, slot.size) for name, slot in sorted(module.slots.items()))
            groups[module.skeleton, slots].append(module)
    for group in groups.values():
        columns = [set(column) for column in zip(*(m.numbers for m in group), strict=True)]
        changing = [place for place, column in enumerate(columns) if len(column) > 1]
        if len(changing) == 1:
            group.sort(key=lambda module: module.numbers)
            yield _as_one(group, changing[0]), group


def _as_one(group: list[ModuleFamily], changing: int) -> ModuleFamily:
    """The family of which the modules are the members."""
    members = tuple((module.numbers[changing],) for module in group)
    path = tuple(
        name if skeleton == name or len({m.path[at] for m in group}) == 1 else skeleton
        for at, (skeleton, name) in enumerate(zip(group[0].skeleton, group[0].path, strict=True))
    )
    slots = {
        name: Slot(
            slot.name,
            slot.collection,
            tuple(key for module in group for key in module.slots[name].keys),
            tuple(leaf for module in group for leaf in module.slots[name].leaves),
            tuple(range(len(group))),
        )
        for name, slot in group[0].slots.items()
    }
    return ModuleFamily(Scope(path, members), (), slots)
