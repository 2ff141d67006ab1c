"""All pairs: what `search` leaves is proposed where names are alike, or left open."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from nnxconv.matching.doubts import doubts_between
from nnxconv.matching.modules import ModuleFamily, Slot, modules_of
from nnxconv.matching.names import likeness
from nnxconv.matching.pairs import ModulePair, Pairs, Unclear
from nnxconv.matching.search import Search
from nnxconv.tree import Key, Leaf

ALIKE = 0.25
"""How alike names must be at the least for a proposal."""
AHEAD = 0.1
"""By how much they must be more alike than those of any rival."""


def pair(source: Mapping[Key, Leaf], template: Mapping[Key, Leaf]) -> Pairs:
    """Pairs the modules of two canonical trees, without their RNG state.

    >>> from nnxconv.tree import Source
    >>> w = Source("w", (4, 5), "float32", (4, 5))
    >>> found = pair({("params", "Dense_0", "kernel"): w}, {("params", "out", "kernel"): w})
    >>> found.certain[0].evidence
    'nothing else has f32[4,5]'
    """
    search = Search(modules_of(source), modules_of(template))
    search.run()
    paired = [search.with_leaves(found) for found in search.certain]
    doubt = doubts_between(search.left, search.right, search.role)
    certain = [found for found in paired if not doubt(found)]
    doubted = [replace(p, evidence=f"{p.evidence}; {told}") for p in paired if (told := doubt(p))]
    proposed, unclear = _not_certain(search)
    proposed = (*(found for found in doubted if found.leaves), *proposed)
    taken = [*certain, *proposed]
    maybe = [candidate for found in unclear for candidate in found.candidates]
    return Pairs(
        tuple(found for found in map(_decided, certain) if found.leaves),
        proposed,
        tuple(found for found in map(_undecided, certain) if found.leaves),
        unclear,
        _only(search.left, [leaf.sources for p in (*taken, *maybe) for leaf in p.leaves]),
        _only(search.right, [leaf.templates for p in (*taken, *maybe) for leaf in p.leaves]),
        scopes=tuple(search.scopes),
    )


def _decided(found: ModulePair) -> ModulePair:
    leaves = tuple(leaf for leaf in found.leaves if leaf.is_decided)
    return ModulePair(found.sources, found.templates, found.evidence, leaves)


def _undecided(found: ModulePair) -> ModulePair:
    leaves = tuple(leaf for leaf in found.leaves if not leaf.is_decided)
    return ModulePair(found.sources, found.templates, found.evidence, leaves)


def _only(
    modules: Iterable[ModuleFamily], taken: Iterable[Sequence[Slot]]
) -> tuple[tuple[ModuleFamily, Slot], ...]:
    known = {id(slot) for slots in taken for slot in slots}
    return tuple((m, slot) for m in modules for slot in m.slots.values() if id(slot) not in known)


def _not_certain(search: Search) -> tuple[tuple[ModulePair, ...], tuple[Unclear, ...]]:
    """Of what is left: the pairs with the most alike names, and what could be several things."""
    left = {a: found for _, a, found in search.candidates()}
    scores = {(a, b): _likeness(a, b) for a, found in left.items() for b in found}
    rivals: dict[ModuleFamily, list[ModuleFamily]] = defaultdict(list)
    for a, b in scores:
        rivals[b].append(a)
    proposed: dict[ModuleFamily, ModulePair] = {}
    for (a, b), score in sorted(scores.items(), key=lambda item: -item[1]):
        others = [scores[a, c] for c in left[a] if c is not b]
        others += [scores[c, b] for c in rivals[b] if c is not a]
        if score >= ALIKE and score - max(others, default=0) >= AHEAD:
            told = f"names alike: {score:.2f}"
            told += f", the next {max(others):.2f}" if others else ""
            proposed[a] = search.with_leaves(ModulePair((a,), (b,), told))
    gone = {found.templates[0] for found in proposed.values()}
    unclear = []
    for a, found in left.items():
        rest = [b for b in found if b not in gone]
        if a not in proposed and rest:
            rest.sort(key=lambda b: -scores[a, b])
            pairs = (search.with_leaves(ModulePair((a,), (b,), "")) for b in rest)
            unclear.append(Unclear(a, tuple(pairs)))
    return tuple(proposed.values()), tuple(unclear)


def _likeness(a: ModuleFamily, b: ModuleFamily) -> float:
    return likeness((*a.scope.path, *a.path), (*b.scope.path, *b.path))
