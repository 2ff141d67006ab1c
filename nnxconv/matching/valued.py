"""The search for pairs of leaves by what they hold: the same bits, then the same after rounding."""

import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nnxconv.matching.arrangements import Steps
from nnxconv.matching.fingerprints import Fingerprint
from nnxconv.matching.joins import take_joined
from nnxconv.matching.rounds import Round
from nnxconv.matching.values import Alike, Echo, Found, Values, bare_names
from nnxconv.tree import Key, View, dtype_of, in_order

_ROUNDED: Mapping[str, tuple[str, ...]] = {
    "float32": ("float64",),
    "float16": ("float64", "float32"),
    "bfloat16": ("float64", "float32"),
}
"""The types that may have been rounded to each."""


@dataclass
class ValueSearch:
    """What is known of two trees while their leaves are paired.

    Attributes:
      left, right: the arrays that are in no pair, by key.
      values: what reads them.
      by_name: for leaves whose names are certain the other side's, and why.
      found: the pairs so far, all of them proved.
      alike: what is not decided.
      echoes: what is in no pair, and holds what something else does.
    """

    left: Mapping[Key, View]
    right: Mapping[Key, View]
    values: Values
    by_name: Mapping[Key, tuple[Key, str]]
    found: list[Found] = field(default_factory=list)
    alike: list[Alike] = field(default_factory=list)
    echoes: list[Echo] = field(default_factory=list)

    def run(self) -> None:
        """Pairs what holds the same bits, and then what does after rounding."""
        for dtype in (None, *self._roundings()):
            here, there = self._comparable(dtype)
            if here and there:
                one = Round(here, there, self.values, dtype, self.by_name, self.found)
                held = one.held
                self._search(one)
                if dtype is None:
                    self.echoes = _in_order(_echoes(one, *held))

    def _search(self, one: Round) -> None:
        """All pairs of a round."""
        one.take_alone()
        one.take_told()
        take_joined(one)
        one.take_told()
        self.alike += [Alike(tuple(a), tuple(b)) for a, b in one.classes()]

    def _roundings(self) -> list[str]:
        """The types to which one side may have been rounded, those that keep most first."""
        seen = {dtype_of(view) for view in (*self.left.values(), *self.right.values())}
        narrow = [name for name in ("float32", "float16") if name in seen and len(seen) > 1]
        return [*narrow, "bfloat16"]

    def _comparable(self, dtype: str | None) -> tuple[dict[Key, View], dict[Key, View]]:
        """The leaves of both sides that may hold the same, as they are or rounded."""
        moves = [found.moves[0] for found in self.found]
        gone = {key for one in self.alike for key in one.sources}
        gone_there = {key for one in self.alike for key in one.templates}
        left = _without(self.left, gone.union(*(move.sources for move in moves)))
        right = _without(self.right, gone_there.union(*(move.targets for move in moves)))
        if dtype is not None:
            return _rounded(left, dtype), _rounded(right, dtype)
        return _of_types(left, right), _of_types(right, left)


def _in_order(echoes: Iterable[Echo]) -> list[Echo]:
    """By their leaves of the template, as these are shown."""
    found = list(echoes)
    places = {key: place for place, key in enumerate(in_order({one.template for one in found}))}
    return sorted(found, key=lambda one: places[one.template])


def _echoes(
    one: Round, here: Mapping[Key, Fingerprint], there: Mapping[Key, Fingerprint]
) -> Iterator[Echo]:
    """What a round has left, and where on the other side its values are, zeros aside."""
    groups: dict[Hashable, tuple[list[Key], list[Key]]] = defaultdict(lambda: ([], []))
    for place, held in enumerate((here, there)):
        for key, found in held.items():
            if found.nonzero and not found.is_constant:
                groups[found.content][place].append(key)
    undecided = {frozenset((*a, *b)) for a, b in one.classes()}
    for some, others in groups.values():
        if frozenset((*some, *others)) in undecided:
            continue
        for a, b in itertools.product(some, others):
            if a in one.left or b in one.right:
                yield Echo(a, b, there[b].count - here[a].count)


def _without(side: Mapping[Key, View], gone: set[Key]) -> dict[Key, View]:
    return {key: view for key, view in side.items() if key not in gone}


def _rounded(side: Mapping[Key, View], dtype: str) -> dict[Key, View]:
    """What has a type, or may have been rounded to it."""
    return {k: v for k, v in side.items() if dtype_of(v) in (dtype, *_ROUNDED[dtype])}


def _of_types(side: Mapping[Key, View], other: Mapping[Key, View]) -> dict[Key, View]:
    """What has a type that the other side has too."""
    types = {dtype_of(view) for view in other.values()}
    return {key: view for key, view in side.items() if dtype_of(view) in types}


def by_votes(found: Sequence[Found]) -> list[Found]:
    """The pairs, of which those whose elements are all alike are turned as others of their kind."""
    votes: dict[Hashable, set[Steps]] = defaultdict(set)
    for one in found:
        if len(one.moves) == 1:
            votes[_last_names(one)].add(one.moves[0].steps)
    decided: list[Found] = []
    for one in found:
        known = votes[_last_names(one)]
        fitting = tuple(move for move in one.moves if known == {move.steps})
        decided.append(replace(one, moves=fitting) if len(fitting) == 1 else one)
    return decided


def _last_names(one: Found) -> Hashable:
    """The last names of what is moved."""
    sides: Iterable[Sequence[Key]] = (one.moves[0].sources, one.moves[0].targets)
    return tuple(tuple(bare_names(key)[-1:] for key in side) for side in sides)
