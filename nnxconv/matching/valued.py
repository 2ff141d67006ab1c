"""The search for pairs of leaves by what they hold.

First leaves are paired whose fingerprints no other has, then those of which several hold the same,
where the modules around them are paired or their names are certain, and then arrays with their
parts. The steps are those of which the values say that they hold; every pair is proved.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from nnxconv.matching.arrangements import (
    Steps,
    undone,
    unusual_ways,
    ways_to_join,
    ways_to_one,
)
from nnxconv.matching.fingerprints import Fingerprint
from nnxconv.matching.generalise import Move, skeleton
from nnxconv.matching.modules import Path, names_in
from nnxconv.matching.parts import leaves_that_add_up
from nnxconv.matching.vicinity import Vicinity, only_fitting
from nnxconv.tree import Key, Shape, View, dtype_of

EQUAL = "equal values"


class Values(Protocol):
    """The values of two checkpoints, which are read when they are asked for."""

    def fingerprints(
        self, source: Sequence[Key], template: Sequence[Key], dtype: str | None
    ) -> tuple[Mapping[Key, Fingerprint], Mapping[Key, Fingerprint]]:
        """What leaves of both sides hold; cast to `dtype`, where one is given."""
        ...

    def holding(self, moves: Sequence[Move], dtype: str | None) -> Sequence[bool]:
        """Of each move of leaves, whether it makes the template's values of the source's."""
        ...


@dataclass(frozen=True)
class Found:
    """Leaves that hold the same, and how one side is made of the other.

    Attributes:
      moves: the same leaves by each way that holds; one, unless all of their elements are alike.
      evidence: why.
    """

    moves: tuple[Move, ...]
    evidence: str


@dataclass(frozen=True)
class Alike:
    """Leaves of both sides that hold the same, of which nothing tells which is which."""

    sources: tuple[Key, ...]
    templates: tuple[Key, ...]


@dataclass
class ValueSearch:
    """What is known of two trees while their leaves are paired.

    Attributes:
      left, right: the arrays that are in no pair, by key.
      found: the pairs so far, all of them proved.
      alike: what is not decided.
    """

    left: dict[Key, View]
    right: dict[Key, View]
    values: Values
    by_name: Mapping[Key, tuple[Key, str]]
    found: list[Found] = field(default_factory=list)
    alike: list[Alike] = field(default_factory=list)

    def run(self) -> None:
        """Pairs what holds the same bits, and then what does after rounding."""
        for dtype in (None, *self._roundings()):
            here, there = self._comparable(dtype)
            if here and there:
                _Round(self, dtype, here, there).run()

    def take(self, some: Iterable[Found]) -> None:
        """Takes pairs that are proved."""
        for one in some:
            self.found.append(one)
            for key in one.moves[0].sources:
                self.left.pop(key, None)
            for key in one.moves[0].targets:
                self.right.pop(key, None)

    def _roundings(self) -> list[str]:
        """The types to which one side may have been rounded, those that keep most first."""
        seen = {dtype_of(view) for view in (*self.left.values(), *self.right.values())}
        narrow = [name for name in ("float32", "float16") if name in seen and len(seen) > 1]
        return [*narrow, "bfloat16"]

    def _comparable(self, dtype: str | None) -> tuple[list[Key], list[Key]]:
        """The leaves of both sides that may hold the same, as they are or rounded."""
        aside = {key for one in self.alike for key in (*one.sources, *one.templates)}
        types = [{dtype_of(view) for view in side.values()} for side in (self.left, self.right)]
        shared = types[0] & types[1]

        def chosen(side: Mapping[Key, View]) -> list[Key]:
            keys = [key for key in side if key not in aside]
            if dtype is None:
                return [key for key in keys if dtype_of(side[key]) in shared]
            return [key for key in keys if _may_round(dtype_of(side[key]), dtype)]

        return chosen(self.left), chosen(self.right)


_ROUNDED: Mapping[str, tuple[str, ...]] = {
    "float32": ("float64",),
    "float16": ("float64", "float32"),
    "bfloat16": ("float64", "float32"),
}


def _may_round(dtype: str, to: str) -> bool:
    return dtype == to or dtype in _ROUNDED[to]


class _Round:
    """The search among some leaves, as they are or cast to a type."""

    def __init__(
        self, search: ValueSearch, dtype: str | None, here: Sequence[Key], there: Sequence[Key]
    ) -> None:
        self._search = search
        self._dtype = dtype
        self._left = {key: search.left[key] for key in here}
        self._right = {key: search.right[key] for key in there}
        self._names = {key: _names(key) for key in (*here, *there)}
        self._held, self._held_there = search.values.fingerprints(here, there, dtype)
        self._evidence = EQUAL if dtype is None else f"equal values, rounded to {dtype}"

    def run(self) -> None:
        """Takes all pairs of which there is evidence."""
        self._take([(a, b, self._evidence) for a, b in self._alone()])
        while self._take(self._around()) or self._take(self._named()):
            pass
        self._join()
        while self._take(self._around()) or self._take(self._named()):
            pass
        self._search.alike += [Alike(tuple(a), tuple(b)) for a, b in self._classes()]

    def _classes(self) -> list[tuple[list[Key], list[Key]]]:
        """The leaves of both sides that hold the same, and are in no pair."""
        groups: dict[Hashable, tuple[list[Key], list[Key]]] = defaultdict(lambda: ([], []))
        for place, (side, held) in enumerate(self._sides()):
            for key in side:
                groups[self._kind(key, side), held[key]][place].append(key)
        return [both for both in groups.values() if all(both)]

    def _sides(self) -> Iterator[tuple[dict[Key, View], Mapping[Key, Fingerprint]]]:
        yield self._left, self._held
        yield self._right, self._held_there

    def _kind(self, key: Key, side: Mapping[Key, View]) -> Hashable:
        """What leaves have in common besides values: their collection, and their type."""
        head = key[0] if key[0] == "params" else key[:2]
        return head, self._dtype or dtype_of(side[key])

    # --- one to one

    def _alone(self) -> list[tuple[Key, Key]]:
        """The leaves that hold what one other leaf of the other side holds, and no more."""
        return [(a[0], b[0]) for a, b in self._classes() if len(a) == len(b) == 1]

    def _around(self) -> list[tuple[Key, Key, str]]:
        """Of leaves that hold the same those that are told by what is paired around them."""
        moves = [found.moves[0] for found in self._search.found]
        paired = [(_names(a), _names(b)) for m in moves for a in m.sources for b in m.targets]
        there, back = Vicinity(paired), Vicinity((b, a) for a, b in paired)
        why = f"{self._evidence}, in paired modules"
        return [
            (a[i], b[j], why)
            for a, b in self._classes()
            for i, j in only_fitting(self._named_all(a), self._named_all(b), there, back)
        ]

    def _named_all(self, keys: Sequence[Key]) -> list[Path]:
        return [self._names[key] for key in keys]

    def _named(self) -> list[tuple[Key, Key, str]]:
        """Of leaves that hold the same those whose names are certain."""
        by_name = self._search.by_name
        return [
            (key, by_name[key][0], f"{self._evidence}, {by_name[key][1]}")
            for some, others in self._classes()
            for key in some
            if key in by_name and by_name[key][0] in others
        ]

    def _take(self, pairs: Sequence[tuple[Key, Key, str]]) -> bool:
        """Takes those pairs for which there are steps that hold; False when there are none."""
        groups: dict[Hashable, list[tuple[Key, Key, str]]] = defaultdict(list)
        for pair in pairs:
            a, b, why = pair
            shapes = self._left[a].shape, self._right[b].shape
            groups[skeleton(a), skeleton(b), *shapes, why].append(pair)
        solved = [self._solved([(a, b) for a, b, _ in g], g[0][2]) for g in groups.values()]
        found = self._proved([one for some in solved for one in some])
        self._keep(found)
        return bool(found)

    def _solved(self, pairs: Sequence[tuple[Key, Key]], why: str) -> list[Found]:
        """The pairs of one family, with the ways that hold for one of them."""
        old, new = self._left[pairs[0][0]].shape, self._right[pairs[0][1]].shape
        ways = ways_to_one(old, new)
        if len(ways) != 1:
            a, b = min(pairs, key=lambda pair: self._held[pair[0]].is_constant)
            ways = self._ways_of(a, b, old, new)
        return [Found(tuple(Move((a,), (b,), way) for way in ways), why) for a, b in pairs if ways]

    def _ways_of(self, a: Key, b: Key, old: Shape, new: Shape) -> tuple[Steps, ...]:
        """The ways that hold for one pair."""
        for ways in (ways_to_one, unusual_ways):
            moves = [Move((a,), (b,), way) for way in ways(old, new)]
            holding = self._holding(moves)
            if any(holding):
                return tuple(m.steps for m, holds in zip(moves, holding, strict=True) if holds)
        return ()

    def _holding(self, moves: Sequence[Move]) -> Sequence[bool]:
        return self._search.values.holding(moves, self._dtype) if moves else []

    def _proved(self, found: Sequence[Found]) -> list[Found]:
        """Those that hold by their first way; others are asked for all their ways."""
        holding = self._holding([one.moves[0] for one in found])
        proved: list[Found] = []
        for one, holds in zip(found, holding, strict=True):
            move = one.moves[0]
            if holds:
                proved.append(one)
            elif len(move.sources) == len(move.targets) == 1:
                a, b = move.sources[0], move.targets[0]
                ways = self._ways_of(a, b, self._left[a].shape, self._right[b].shape)
                moves = tuple(Move((a,), (b,), way) for way in ways)
                proved += [replace(one, moves=moves)] if moves else []
        return proved

    def _keep(self, found: Sequence[Found]) -> None:
        self._search.take(found)
        for one in found:
            for key in one.moves[0].sources:
                self._left.pop(key, None)
            for key in one.moves[0].targets:
                self._right.pop(key, None)

    # --- parts

    def _join(self) -> None:
        """Takes the arrays that are parts of one of the other side."""
        for is_source in (True, False):
            joined = list(self._parts(is_whole_in_source=is_source))
            self._keep(self._proved([one for some in self._families(joined) for one in some]))

    def _parts(self, *, is_whole_in_source: bool) -> Iterator[Move]:
        """Leaves that add up to one of the other side; nothing is known of steps yet."""
        sides = list(self._sides())
        (wholes, held), (parts, held_parts) = sides if is_whole_in_source else sides[::-1]
        by_kind: dict[Hashable, tuple[dict[Key, Fingerprint], dict[Fingerprint, list[Key]]]]
        by_kind = defaultdict(lambda: ({}, defaultdict(list)))
        for key in parts:
            if not held_parts[key].is_constant:
                by_kind[self._kind(key, parts)][0][key] = held_parts[key]
        for key in wholes:
            by_kind[self._kind(key, wholes)][1][held[key]].append(key)
        for some, there in by_kind.values():
            for several, whole in leaves_that_add_up(some, self._names, there):
                one = (whole,)
                yield Move(*((one, several) if is_whole_in_source else (several, one)))

    def _families(self, joined: Sequence[Move]) -> Iterator[list[Found]]:
        """Those of one family in the same way: the one that holds for the first of them."""
        groups: dict[Hashable, list[Move]] = defaultdict(list)
        for move in joined:
            skeletons = tuple(map(skeleton, move.sources)), tuple(map(skeleton, move.targets))
            shapes = (self._shapes(move.sources), self._shapes(move.targets))
            groups[*skeletons, *shapes].append(move)
        for group in groups.values():
            ways = list(self._joins(group[0]))
            holding = self._holding([_ordered(group[0], *way) for way in ways])
            [*which] = (way for way, holds in zip(ways, holding, strict=True) if holds)
            if which:
                yield [Found((_ordered(move, *which[0]),), self._evidence) for move in group]

    def _shapes(self, keys: Sequence[Key]) -> tuple[Shape, ...]:
        return tuple((self._left.get(key) or self._right[key]).shape for key in keys)

    def _joins(self, move: Move) -> Iterator[tuple[tuple[int, ...], Steps]]:
        """The orders of the parts of a move, and the steps."""
        is_cut = len(move.targets) > 1
        parts, [whole] = (move.targets, move.sources) if is_cut else (move.sources, move.targets)
        for order, way in ways_to_join(self._shapes(parts), self._shapes([whole])[0]):
            yield order, (undone(way) or ()) if is_cut else way


def _names(key: Key) -> Path:
    return names_in(key[1:] if key[0] == "params" else key[2:])


def _ordered(move: Move, order: Sequence[int], steps: Steps) -> Move:
    """The move with its parts in an order."""

    def some(keys: tuple[Key, ...]) -> tuple[Key, ...]:
        return tuple(keys[place] for place in order) if len(keys) > 1 else keys

    return Move(some(move.sources), some(move.targets), steps)


def by_votes(found: Sequence[Found]) -> list[Found]:
    """The pairs, of which those whose elements are all alike are turned as others of their kind."""
    votes: dict[Hashable, set[Steps]] = defaultdict(set)
    for one in found:
        if len(one.moves) == 1:
            votes[_names_of(one.moves[0])].add(one.moves[0].steps)
    decided: list[Found] = []
    for one in found:
        known = votes[_names_of(one.moves[0])]
        fitting = tuple(move for move in one.moves if known == {move.steps})
        decided.append(replace(one, moves=fitting) if len(fitting) == 1 else one)
    return decided


def _names_of(move: Move) -> Hashable:
    """The last names of what is moved."""
    return tuple(tuple(_names(key)[-1:] for key in side) for side in (move.sources, move.targets))
