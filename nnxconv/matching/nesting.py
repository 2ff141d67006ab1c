"""Layers within layers that only one tree counts, such as experts that the other has in one array.

What is repeated within a layer is a scope of its own. Where no scope of the other tree is its
counterpart, but the layer around it has one, its members are modules of that layer.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

from nnxconv.matching.modules import ModuleFamily, Numbers, Path, Scope, Slot


def unnested(modules: Sequence[ModuleFamily], paired: Collection[Path]) -> list[ModuleFamily]:
    """The modules, those of scopes without a counterpart as modules of the layer around them.

    Args:
      modules: those of one tree.
      paired: the scopes of this tree that have a counterpart in the other.
    """
    known = {module.scope.path: module.scope for module in modules}
    known[()] = known.get((), Scope((), ((),)))
    found: list[ModuleFamily] = []
    for module in modules:
        outer = _around(module.scope, paired, known)
        found += [module] if outer is None else _members(module, known[outer])
    return found


def _around(scope: Scope, paired: Collection[Path], known: Collection[Path]) -> Path | None:
    """The innermost layer around a scope that has a counterpart, where itself has none.

    The whole tree is around a single layer, which need not be counted at all.
    """
    path = scope.path
    if path in paired:
        return None
    above = (path[:end] for end in range(len(path) - 1, 0, -1))
    found = next((outer for outer in above if outer in paired and outer in known), None)
    return () if found is None and scope.count == 1 and path else found


def _members(module: ModuleFamily, outer: Scope) -> Iterator[ModuleFamily]:
    """A module of an inner scope, apart by the inner numbers."""
    depth = sum(name.count("#") for name in outer.path)
    ranks = {member: rank for rank, member in enumerate(outer.members)}
    members = module.scope.members
    inner = sorted({member[depth:] for member in members})
    if any(member[:depth] not in ranks for member in members):
        yield module
        return
    for numbers in inner:
        slots = {
            name: taken
            for name, slot in module.slots.items()
            if (taken := _taken(slot, members, numbers, depth, ranks)) is not None
        }
        if slots:
            names = (*module.scope.path[len(outer.path) :], *module.path)
            yield ModuleFamily(outer, _numbered(names, numbers), slots)


def _taken(
    slot: Slot,
    members: Sequence[Numbers],
    numbers: Numbers,
    depth: int,
    ranks: dict[Numbers, int],
) -> Slot | None:
    """The leaves of a slot that have these inner numbers; None where there are none."""
    places = [n for n, rank in enumerate(slot.ranks) if members[rank][depth:] == numbers]
    if not places:
        return None
    return Slot(
        slot.name,
        slot.collection,
        tuple(slot.keys[n] for n in places),
        tuple(slot.leaves[n] for n in places),
        tuple(ranks[members[slot.ranks[n]][:depth]] for n in places),
    )


def _numbered(names: Iterable[str], numbers: Numbers) -> Path:
    """Names with their open numbers filled in."""
    left = iter(numbers)
    return tuple("".join(str(next(left)) if c == "#" else c for c in name) for name in names)
