"""One round of the search by values: among leaves as they are, or cast to one type.

First leaves are paired whose fingerprints no other has, then those of which several hold the same:
where the modules around them are paired, or their names are certain. The steps are those of which
the values say that they hold.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from nnxconv.matching.arrangements import Steps, unusual_ways, ways_to_one
from nnxconv.matching.fingerprints import Fingerprint
from nnxconv.matching.generalise import Move, skeleton
from nnxconv.matching.modules import Path
from nnxconv.matching.values import Found, Values, bare_names
from nnxconv.matching.vicinity import Vicinity, only_fitting
from nnxconv.tree import Key, Shape, View, dtype_of

_EQUAL = "equal values"


@dataclass
class Round:
    """The leaves of both sides that are looked at, and what is found.

    Attributes:
      left, right: those that are in no pair, by key.
      values: what reads them.
      dtype: the type to which they are cast; None for none.
      by_name: for leaves whose names are certain the other side's, and why.
      found: the pairs so far, with those of former rounds.
    """

    left: dict[Key, View]
    right: dict[Key, View]
    values: Values
    dtype: str | None
    by_name: Mapping[Key, tuple[Key, str]]
    found: list[Found] = field(default_factory=list)

    @property
    def evidence(self) -> str:
        """Why leaves are paired here."""
        return _EQUAL if self.dtype is None else f"{_EQUAL}, rounded to {self.dtype}"

    @cached_property
    def held(self) -> tuple[Mapping[Key, Fingerprint], Mapping[Key, Fingerprint]]:
        """What the leaves of both sides hold."""
        return self.values.fingerprints(list(self.left), list(self.right), self.dtype)

    def kind(self, key: Key, view: View) -> Hashable:
        """What leaves have in common besides values: their collection, and their type."""
        head = key[0] if key[0] == "params" else key[:2]
        return head, self.dtype or dtype_of(view)

    def classes(self) -> list[tuple[list[Key], list[Key]]]:
        """The leaves of both sides that hold the same, and are in no pair."""
        groups: dict[Hashable, tuple[list[Key], list[Key]]] = defaultdict(lambda: ([], []))
        for place, side in enumerate((self.left, self.right)):
            for key, view in side.items():
                groups[self.kind(key, view), self.held[place][key]][place].append(key)
        return [both for both in groups.values() if all(both) and not self._is_chance(*both)]

    def _is_chance(self, some: Sequence[Key], others: Sequence[Key]) -> bool:
        """True for one number and another that are the same only when they are rounded."""
        types = {dtype_of(self.left[key]) for key in some}
        types |= {dtype_of(self.right[key]) for key in others}
        is_rounded = self.dtype is not None and self.dtype not in types
        return is_rounded and self.held[0][some[0]].is_constant

    def take_alone(self) -> None:
        """Takes the leaves that hold what one other leaf of the other side holds, and no more."""
        alone = [(a[0], b[0]) for a, b in self.classes() if len(a) == len(b) == 1]
        self._take([(a, b, self.evidence) for a, b in alone])

    def take_told(self) -> None:
        """Takes those of several that hold the same which something else tells apart."""
        while self._take(self._around()) or self._take(self._named()):
            pass

    def vicinities(self) -> tuple[Vicinity, Vicinity]:
        """The counterparts of the modules of the source, and of the template."""
        moves = [found.moves[0] for found in self.found]
        keys = [(a, b) for move in moves for a in move.sources for b in move.targets]
        paired = [(bare_names(a), bare_names(b)) for a, b in keys]
        return Vicinity(paired), Vicinity((b, a) for a, b in paired)

    def holding(self, moves: Sequence[Move]) -> Sequence[bool]:
        """Of each move, whether it makes the template's values of the source's."""
        return self.values.holding(moves, self.dtype) if moves else []

    def keep(self, found: Sequence[Found]) -> None:
        """Takes pairs that are proved."""
        self.found += found
        for one in found:
            for key in one.moves[0].sources:
                del self.left[key]
            for key in one.moves[0].targets:
                del self.right[key]

    def _around(self) -> list[tuple[Key, Key, str]]:
        """Of leaves that hold the same those that are told by what is paired around them."""
        classes = self.classes()
        there, back = self.vicinities() if classes else (Vicinity(()), Vicinity(()))
        return [
            (a[i], b[j], f"{self.evidence}, in paired modules")
            for a, b in classes
            for i, j in only_fitting(_all_names(a), _all_names(b), there, back)
        ]

    def _named(self) -> list[tuple[Key, Key, str]]:
        """Of leaves that hold the same those whose names are certain."""
        told = ((key, others, self.by_name.get(key)) for key, others in self._choices())
        return [
            (key, found[0], f"{self.evidence}, {found[1]}")
            for key, others, found in told
            if found is not None and found[0] in others
        ]

    def _choices(self) -> Iterator[tuple[Key, list[Key]]]:
        return ((key, others) for some, others in self.classes() for key in some)

    # --- steps

    def _take(self, pairs: Sequence[tuple[Key, Key, str]]) -> bool:
        """Takes those pairs for which there are steps that hold; False when there are none."""
        groups: dict[Hashable, list[tuple[Key, Key, str]]] = defaultdict(list)
        for pair in pairs:
            a, b, why = pair
            shapes = self.left[a].shape, self.right[b].shape
            groups[skeleton(a), skeleton(b), *shapes, why].append(pair)
        solved = [self._solved([(a, b) for a, b, _ in g], g[0][2]) for g in groups.values()]
        found = self._proved([one for some in solved for one in some])
        self.keep(found)
        return bool(found)

    def _solved(self, pairs: Sequence[tuple[Key, Key]], why: str) -> list[Found]:
        """The pairs of one family, with the ways that hold for one of them."""
        old, new = self.left[pairs[0][0]].shape, self.right[pairs[0][1]].shape
        ways = ways_to_one(old, new)
        if len(ways) != 1:
            a, b = min(pairs, key=lambda pair: self.held[0][pair[0]].is_constant)
            ways = self._ways_of(a, b, old, new)
        return [Found(tuple(Move((a,), (b,), way) for way in ways), why) for a, b in pairs if ways]

    def _ways_of(self, a: Key, b: Key, old: Shape, new: Shape) -> tuple[Steps, ...]:
        """The ways that hold for one pair."""
        for ways in (ways_to_one, unusual_ways):
            moves = [Move((a,), (b,), way) for way in ways(old, new)]
            holding = self.holding(moves)
            if any(holding):
                return tuple(m.steps for m, holds in zip(moves, holding, strict=True) if holds)
        return ()

    def _proved(self, found: Sequence[Found]) -> list[Found]:
        """Those that hold by their first way; others are asked for all their ways."""
        holding = self.holding([one.moves[0] for one in found])
        proved: list[Found] = []
        for one, holds in zip(found, holding, strict=True):
            if holds:
                proved.append(one)
                continue
            a, b = one.moves[0].sources[0], one.moves[0].targets[0]
            ways = self._ways_of(a, b, self.left[a].shape, self.right[b].shape)
            moves = tuple(Move((a,), (b,), way) for way in ways)
            proved += [replace(one, moves=moves)] if moves else []
        return proved


def _all_names(keys: Sequence[Key]) -> list[Path]:
    return [bare_names(key) for key in keys]
