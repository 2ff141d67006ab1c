"""From moves of leaves to rules: for whole modules where they move as wholes, with numbers open.

>>> moves = [Move.of((f"Dense_{i}", "kernel"), (f"fc{i + 1}", "kernel")) for i in range(3)]
>>> [(str(rule), str(rule.targets[0])) for rule in rules_for(moves, [m.sources[0] for m in moves])]
[('Dense_{i}', 'fc{i+1}')]
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain
from typing import TypeAlias

from nnxconv.matching.modules import NUMBER, Numbers
from nnxconv.renaming import Layer, Name, Number, Part, Pattern, Rule, Step, literal
from nnxconv.tree import Key, in_order

_VARIABLES = "ijklmn"


@dataclass(frozen=True)
class Move:
    """Where leaves go, and what is done to them: one to one, several to one, or one to several."""

    sources: tuple[Key, ...]
    targets: tuple[Key, ...]
    steps: tuple[Step, ...] = ()

    @staticmethod
    def of(source: Key, target: Key) -> "Move":
        """One leaf under another name."""
        return Move((source,), (target,))


Wanted: TypeAlias = Mapping[Key, tuple[int, Move] | None]
"""For each key its move, and its place among the sources; None for what shall stay."""


def rules_for(moves: Sequence[Move], keys: Sequence[Key]) -> tuple[Rule, ...]:
    """The rules that do this, and leave every other one of `keys` where it is."""
    wanted: dict[Key, tuple[int, Move] | None] = dict.fromkeys(keys)
    wanted |= {key: (at, move) for move in moves for at, key in enumerate(move.sources)}
    groups: dict[object, list[Move]] = defaultdict(list)
    for move in [*_with_steps(moves), *_modules(wanted)]:
        shapes = tuple(map(skeleton, move.sources)), tuple(map(skeleton, move.targets))
        groups[*shapes, move.steps].append(move)
    found: list[Rule] = []
    index = _Index(wanted)
    for members in groups.values():
        general = _general(members, index)
        found += [general] if general else map(_literal, members)
    return tuple(sorted(found, key=lambda rule: -len(rule.sources[0].parts)))


def _with_steps(moves: Sequence[Move]) -> list[Move]:
    return [move for move in moves if move.steps or len(move.sources) + len(move.targets) > 2]


def _literal(move: Move) -> Rule:
    return Rule(tuple(map(literal, move.sources)), tuple(map(literal, move.targets)), move.steps)


def skeleton(key: Key) -> tuple[str, ...]:
    """A key without its numbers; layers are told from names.

    >>> skeleton(("blocks", 3, "norm1"))
    ('blocks', '[#]', 'norm#')
    """
    return tuple(map(_bare, key))


@lru_cache(maxsize=2**16)
def _bare(part: str | int) -> str:
    return "[#]" if isinstance(part, int) else NUMBER.sub("#", part)


def _modules(wanted: Wanted) -> list[Move]:
    """The outermost modules that move as wholes, and where to; what stays is left out.

    What is cut, joined or turned has a rule of its own, which comes first.
    """
    plain: dict[Key, Key | None] = {}
    for key, found in wanted.items():
        if found is None:
            plain[key] = None
        elif not (found[1].steps or len(found[1].targets) + len(found[1].sources) > 2):
            plain[key] = found[1].targets[0]
    below: dict[Key, list[Key]] = defaultdict(list)
    for key in plain:
        for size in range(1, len(key) + 1):
            below[key[:size]].append(key)

    @cache
    def moves_whole(old: Key, new: Key) -> bool:
        return all(plain[key] == (*new, *key[len(old) :]) for key in below[old])

    heads: dict[Key, Key] = {}
    for key in in_order(plain):
        new = plain[key]
        if new is None or new == key:
            continue
        for kept in range(_common_end(key, new), -1, -1):
            old_head, new_head = key[: len(key) - kept], new[: len(new) - kept]
            if moves_whole(old_head, new_head):
                heads[old_head] = new_head
                break
    return [Move.of(old, new) for old, new in heads.items()]


def _common_end(a: Key, b: Key) -> int:
    """How many last parts two keys share, short of a whole key."""
    count = 0
    while count < min(len(a), len(b)) - 1 and a[-1 - count] == b[-1 - count]:
        count += 1
    return count


# --- open numbers -----------------------------------------------------------------------------


def numbers_in(key: Key) -> Numbers:
    """The numbers in a key, in the order in which they are spelled."""
    return tuple(chain.from_iterable(map(_numbers_of, key)))


@lru_cache(maxsize=2**16)
def _numbers_of(part: str | int) -> Numbers:
    return tuple(map(int, NUMBER.findall(str(part))))


_DIGITS = re.compile("[0-9]+")


class _Index:
    """What shall be done to keys, by how they begin but for numbers: a rule fits few of them."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._by_size: dict[int, dict[Key, list[Key]]] = {}

    def beginning_like(self, key: Key) -> Iterator[tuple[Key, tuple[int, Move] | None]]:
        """The keys that begin like one whose numbers may differ."""
        size = len(key)
        if size not in self._by_size:
            found: dict[Key, list[Key]] = defaultdict(list)
            for other in self._wanted:
                found[_loose(other[:size])].append(other)
            self._by_size[size] = found
        return ((k, self._wanted[k]) for k in self._by_size[size].get(_loose(key), ()))


def _loose(key: Key) -> Key:
    """The names of a key with all of its digits alike."""
    return tuple(map(_loose_name, key))


@lru_cache(maxsize=2**16)
def _loose_name(part: str | int) -> str:
    return "[#]" if isinstance(part, int) else _DIGITS.sub("#", part)


def _general(members: Sequence[Move], wanted: _Index) -> Rule | None:
    """One rule for moves whose keys differ in numbers only; None where no rule fits them all."""
    if len(members) < 2:
        return None
    first = members[0]
    olds = [numbers_in(move.sources[0]) for move in members]
    variables = _named(olds)

    def patterns(side: Sequence[tuple[Key, ...]]) -> list[Pattern | None]:
        return [_pattern(column, olds, variables) for column in zip(*side, strict=True)]

    sources = patterns([move.sources for move in members])
    targets = patterns([move.targets for move in members])
    both = [pattern for pattern in (*sources, *targets) if pattern is not None]
    if len(both) < len(sources) + len(targets) or len({p.names for p in both}) > 1:
        return None
    rule = Rule(tuple(both[: len(sources)]), tuple(both[len(sources) :]), first.steps)
    return rule if _holds(rule, first.sources, wanted) else None


def _named(olds: Sequence[Numbers]) -> dict[int, str]:
    """A name for every number that differs between the keys."""
    varying = [
        place for place, column in enumerate(zip(*olds, strict=True)) if len(set(column)) > 1
    ]
    return dict(zip(varying, _VARIABLES, strict=False))


def _pattern(
    keys: Sequence[Key], olds: Sequence[Numbers], variables: Mapping[int, str]
) -> Pattern | None:
    """The pattern of keys that differ in their numbers, by those of the first source."""
    news = [numbers_in(key) for key in keys]
    sums = [_as_sum(column, olds, variables) for column in zip(*news, strict=True)]
    if None in sums:
        return None
    given = iter(sums)
    parts: list[Part] = []
    for part in keys[0]:
        if isinstance(part, int):
            parts.append(Layer(next(given) or Number((), part)))
        else:
            parts.append(Name(tuple(_texts(part, given))))
    return Pattern(tuple(parts))


def _as_sum(
    column: Sequence[int], olds: Sequence[Numbers], variables: Mapping[int, str]
) -> Number | None:
    """A number by those of the first source: itself, or shifted; None when it is neither."""
    if len(set(column)) == 1:
        return Number((), column[0])
    for place, name in variables.items():
        shifts = {new - old[place] for new, old in zip(column, olds, strict=True)}
        if len(shifts) == 1:
            return Number(((1, name),), shifts.pop())
    return None


def _texts(name: str, numbers: Iterator[Number | None]) -> Iterator[str | Number]:
    """The texts of a name between its open numbers."""
    fixed = ""
    for place, text in enumerate(NUMBER.split(name)):
        number = next(numbers) if place % 2 else None
        if number is None or not number.terms:
            fixed += text
            continue
        if fixed:
            yield fixed
            fixed = ""
        yield number
    if fixed:
        yield fixed


def _holds(rule: Rule, like: Sequence[Key], wanted: _Index) -> bool:
    """True when the rule does to every key that it fits what shall be done to it.

    What has steps and is no source of this rule may fit a rule for its module: its own comes first.

    Args:
      rule: what is tried.
      like: for each of its sources a key that it fits.
      wanted: what shall be done.
    """
    for place, pattern in enumerate(rule.sources):
        for key, found in wanted.beginning_like(like[place]):
            match = pattern.match(key)
            if match is None:
                continue
            there = tuple((*t.fill(match.binding), *match.rest) for t in rule.targets)
            if found is not None and found[1].steps and not rule.steps:
                continue
            if found is None or found[0] != place:
                return False
            if (found[1].targets, found[1].steps) != (there, rule.steps):
                return False
    return True
