"""Which scope of one tree is which of the other: as many members, of the same sizes in order.

Fusing, cutting, turning and reshaping arrays keeps the number of elements of a layer, so that this
is what scopes are known by. Where it leaves a choice, such as between an encoder's layers and a
decoder's of the same sizes, their names must say it.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

from nnxconv.matching.modules import ModuleFamily, Path, Scope
from nnxconv.matching.vocabulary import side

ALIKE = 0.8
"""The least share of its counterpart's elements that a scope has: biases may be missing."""

Sizes = tuple[int, ...]


def pair_scopes(
    left: Sequence[ModuleFamily], right: Sequence[ModuleFamily]
) -> list[tuple[Path, Path]]:
    """The scopes that can only be each other; the whole trees are the first pair."""
    sizes = _sizes(left), _sizes(right)
    found = [((), ())]
    groups: tuple[dict[Hashable, list[Path]], ...] = (defaultdict(list), defaultdict(list))
    for group, known in zip(groups, sizes, strict=True):
        for path, totals in known.items():
            if path:
                group[totals].append(path)
    for totals, some in groups[0].items():
        found += _by_name(some, groups[1].get(totals, []))
    return found + _alike(sizes, found)


def _sizes(modules: Iterable[ModuleFamily]) -> dict[Path, Sizes]:
    """The number of elements of each member of each scope, with what is nested in it."""
    scopes: dict[Path, Scope] = {module.scope.path: module.scope for module in modules}
    totals: dict[Path, dict[tuple[int, ...], int]] = {
        path: dict.fromkeys(scope.members, 0) for path, scope in scopes.items()
    }
    for module in modules:
        path, members = module.scope.path, module.scope.members
        around = [path[:end] for end in range(len(path) + 1) if path[:end] in scopes]
        depths = [(totals[outer], sum(name.count("#") for name in outer)) for outer in around]
        for slot in module.slots.values():
            for rank, shape in zip(slot.ranks, slot.shapes or (), strict=False):
                numbers, size = members[rank], math.prod(shape)
                for known, depth in depths:
                    member = numbers[:depth]
                    known[member] = known.get(member, 0) + size
    return {path: tuple(totals[path][m] for m in sorted(totals[path])) for path in scopes}


def _by_name(some: Sequence[Path], others: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Scopes of the same sizes: the only two, those of the same name, or of the same side."""
    if len(some) == len(others) == 1:
        return [(some[0], others[0])]
    found = [(path, path) for path in some if path in others]
    left = [path for path in some if (path, path) not in found]
    right = [path for path in others if (path, path) not in found]
    for path in left:
        told = side(path)
        there = [other for other in right if side(other) == told]
        here = [other for other in left if side(other) == told]
        if told and len(here) == len(there) == 1:
            found.append((path, there[0]))
    return found


def _alike(
    sizes: tuple[Mapping[Path, Sizes], Mapping[Path, Sizes]], found: Sequence[tuple[Path, Path]]
) -> list[tuple[Path, Path]]:
    """What is left over and has nearly the same sizes as one other scope only."""
    left = {p: s for p, s in sizes[0].items() if p not in {a for a, _ in found}}
    right = {p: s for p, s in sizes[1].items() if p not in {b for _, b in found}}
    fitting = [(a, b) for a, x in left.items() for b, y in right.items() if _are_alike(x, y)]
    return [
        (a, b)
        for a, b in fitting
        if sum(a == other for other, _ in fitting) == sum(b == other for _, other in fitting) == 1
    ]


def _are_alike(a: Sizes, b: Sizes) -> bool:
    return len(a) == len(b) and all(
        min(x, y) >= ALIKE * max(x, y) for x, y in zip(a, b, strict=True)
    )
