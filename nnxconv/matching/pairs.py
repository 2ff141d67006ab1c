"""Which leaf of one tree is which leaf of another: certain pairs with the evidence, and the rest.

Families are paired as wholes while they can be, and taken apart where they cannot. Nothing is
paired for want of something better: where two leaves fit one place equally well, both are
candidates.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nnxconv.matching.families import Family, as_in_rules, families, regrouped
from nnxconv.matching.names import can_be_same, likeness
from nnxconv.tree import Key, Leaf, notation

MARGIN = 0.1
"""By how much names must be more alike than those of any other candidate."""


@dataclass(frozen=True)
class Paired:
    """A family of the source that is one of the template, and why."""

    source: Family
    template: Family
    evidence: str


@dataclass(frozen=True)
class Unclear:
    """A family of the source that could be one of several, the most alike first."""

    source: Family
    candidates: tuple[Family, ...]


@dataclass
class Pairs:
    """What was found."""

    certain: list[Paired] = field(default_factory=list)
    unclear: list[Unclear] = field(default_factory=list)
    only_source: list[Family] = field(default_factory=list)
    only_template: list[Family] = field(default_factory=list)

    def by_key(self) -> dict[Key, Key]:
        """The certain pairs, leaf by leaf, by module path."""
        return {
            a: b
            for pair in self.certain
            for a, b in zip(pair.source.members, pair.template.members, strict=True)
        }


def pair(source: Mapping[Key, Leaf], template: Mapping[Key, Leaf]) -> Pairs:
    """Pairs the leaves of two canonical trees, without their RNG state.

    >>> from nnxconv.tree import Source
    >>> w = Source("w", (4, 5), "float32", (4, 5))
    >>> found = pair({("params", "Dense_0", "kernel"): w}, {("params", "out", "kernel"): w})
    >>> found.certain[0].evidence
    'the only f32[4,5] called kernel'
    """
    return _Search(families(source), families(template)).run()


class _Search:
    def __init__(self, left: list[Family], right: list[Family]) -> None:
        self._left, self._right = left, right
        self._pairs = Pairs()
        self._parents: dict[Key, Key] = {}
        self._fitting = _by_signature(right)

    def run(self) -> Pairs:
        while True:
            while self._accept_any():
                pass
            if not self._split_any():
                break
        for family in self._left:
            candidates = self._candidates(family)
            if candidates:
                self._pairs.unclear.append(Unclear(family, tuple(candidates)))
            else:
                self._pairs.only_source.append(family)
        wanted = {f.members for unclear in self._pairs.unclear for f in unclear.candidates}
        left_over = [f for f in self._right if f.members not in wanted]
        self._pairs.only_source = regrouped(self._pairs.only_source)
        self._pairs.only_template = regrouped(left_over)
        return self._pairs

    def _candidates(self, family: Family) -> list[Family]:
        """What a family could be, the most alike first."""
        found = [f for f in self._fitting.get(family.signature, ()) if _fit(family, f)]
        parent = self._parents.get(family.members[0][:-1])
        beside = [other for other in found if other.members[0][:-1] == parent]
        return sorted(beside or found, key=lambda other: -_score(family, other))

    def _accept_any(self) -> bool:
        """Accepts the pairs of the strongest evidence that there is."""
        options = [(family, self._candidates(family)) for family in self._left]
        rivals: dict[tuple[str, tuple[Key, ...]], list[Family]] = defaultdict(list)
        for family, candidates in options:
            for other in candidates:
                rivals[other.collection, other.members].append(family)
        for evidence in (_same_name, self._beside, _only_one, _by_name):
            accepted = []
            for family, candidates in options:
                for other in candidates[:1]:
                    why = evidence(family, candidates, rivals[other.collection, other.members])
                    if why:
                        accepted.append(Paired(family, other, why))
            accepted = _without_rivals(accepted)
            for found in accepted:
                self._accept(found)
            if accepted:
                self._fitting = _by_signature(self._right)
                return True
        return False

    def _accept(self, found: Paired) -> None:
        self._pairs.certain.append(found)
        self._left.remove(found.source)
        self._right.remove(found.template)
        for a, b in zip(found.source.members, found.template.members, strict=True):
            if len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
                self._parents.setdefault(a[:-1], b[:-1])

    def _beside(self, family: Family, candidates: Sequence[Family], rivals: list[Family]) -> str:
        """The evidence of a neighbour in the same module that is paired already."""
        own, other = family.members[0], candidates[0].members[0]
        if self._parents.get(own[:-1]) != other[:-1]:
            return ""
        alike = [c for c in candidates if c.members[0][-1] == own[-1]] or candidates
        at_home = [r for r in rivals if self._parents.get(r.members[0][:-1]) == other[:-1]]
        if alike[0] is not candidates[0] or len(alike) > 1 or len(_called(at_home, own)) > 1:
            return ""
        return f"beside {as_in_rules(own[:-1])}, which is {as_in_rules(other[:-1])}"

    def _split_any(self) -> bool:
        """Takes the largest families apart that could be nothing as they are, if there are any."""
        lonely = [*_lonely(self._left, self._right), *_lonely(self._right, self._left)]
        largest = max((len(family.members) for family in lonely), default=1)
        if largest == 1:
            return False
        which = {id(family) for family in lonely if len(family.members) == largest}
        self._left = _taken_apart(self._left, which)
        self._right = _taken_apart(self._right, which)
        self._fitting = _by_signature(self._right)
        return True


def _by_signature(some: Iterable[Family]) -> dict[object, list[Family]]:
    found: dict[object, list[Family]] = defaultdict(list)
    for family in some:
        found[family.signature].append(family)
    return found


def _lonely(some: Sequence[Family], others: Sequence[Family]) -> list[Family]:
    """The families that none of the others fits."""
    known = _by_signature(others)
    return [f for f in some if not any(_fit(f, other) for other in known.get(f.signature, ()))]


def _taken_apart(some: Iterable[Family], which: Collection[int]) -> list[Family]:
    return [part for f in some for part in (f.split() if id(f) in which else [f])]


def _without_rivals(accepted: Sequence[Paired]) -> list[Paired]:
    """The pairs whose template is in no other one."""
    counts = Counter(id(found.template) for found in accepted)
    return [found for found in accepted if counts[id(found.template)] == 1]


def _called(some: Iterable[Family], key: Key) -> list[Family]:
    return [family for family in some if family.members[0][-1] == key[-1]]


def _fit(a: Family, b: Family) -> bool:
    return can_be_same(a.members[0], b.members[0])


def _score(a: Family, b: Family) -> float:
    return likeness(a.members[0], b.members[0])


def _same_name(family: Family, candidates: Sequence[Family], rivals: list[Family]) -> str:
    del rivals
    return "the same key" if family.members == candidates[0].members else ""


def _only_one(family: Family, candidates: Sequence[Family], rivals: list[Family]) -> str:
    """The evidence that nothing else has these shapes, on either side."""
    if len(candidates) > 1 or len(rivals) > 1:
        return ""
    shape = notation(family.leaves[0])
    count = len(family.members)
    if count == 1:
        last = family.members[0][-1]
        is_called_so = last == candidates[0].members[0][-1]
        return f"the only {shape} " + (f"called {last}" if is_called_so else "that fits")
    same = len({notation(leaf) for leaf in family.leaves}) == 1
    told = f"the only {count} of {shape}" if same else f"the only {count} of these shapes"
    return f"{told}, numbered alike"


def _by_name(family: Family, candidates: Sequence[Family], rivals: list[Family]) -> str:
    """The evidence of names that are more alike than any others."""
    best = _score(family, candidates[0])
    others = [_score(family, other) for other in candidates[1:]]
    others += [_score(rival, candidates[0]) for rival in rivals if rival is not family]
    if not others or best - max(others) < MARGIN:
        return ""
    return f"names alike ({best:.2f}, the next {max(others):.2f})"
