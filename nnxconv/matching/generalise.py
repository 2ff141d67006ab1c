"""From pairs of keys to rules: for whole modules where they move as wholes, with numbers left open.

>>> moves = {(f"Dense_{i}", "kernel"): (f"fc{i + 1}", "kernel") for i in range(3)}
>>> [(str(rule), str(rule.targets[0])) for rule in rules_for(moves, list(moves))]
[('Dense_{i}', 'fc{i+1}')]
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from nnxconv.matching.families import Numbers, numbers_in, skeleton
from nnxconv.renaming import Layer, Name, Number, Part, Pattern, Rule, literal
from nnxconv.tree import Key, in_order

Moves: TypeAlias = Mapping[Key, Key]
_VARIABLES = "ijklmn"
_NUMBER = re.compile(r"(0|[1-9][0-9]*)")


def rules_for(moves: Moves, keys: Sequence[Key]) -> tuple[Rule, ...]:
    """The rules that move these keys, and leave every other one of `keys` where it is."""
    all_moves = {key: moves.get(key) for key in keys}
    modules = _modules(all_moves)
    groups: dict[tuple[object, object], list[tuple[Key, Key]]] = defaultdict(list)
    for old, new in modules.items():
        groups[skeleton(old), skeleton(new)].append((old, new))
    found: list[Rule] = []
    for members in groups.values():
        found += _general(members, all_moves) or [
            Rule((literal(old),), (literal(new),)) for old, new in members
        ]
    return tuple(sorted(found, key=lambda rule: -len(rule.sources[0].parts)))


def _modules(all_moves: Mapping[Key, Key | None]) -> dict[Key, Key]:
    """The outermost modules that move as wholes, and where to; what stays is left out."""
    below: dict[Key, list[Key]] = defaultdict(list)
    for key in all_moves:
        for size in range(1, len(key) + 1):
            below[key[:size]].append(key)
    found: dict[Key, Key] = {}
    for key in in_order(all_moves):
        new = all_moves[key]
        if new is None or new == key:
            continue
        common = _common_end(key, new)
        for kept in range(common, -1, -1):
            old_head, new_head = key[: len(key) - kept], new[: len(new) - kept]
            if _moves_whole(old_head, new_head, below[old_head], all_moves):
                found[old_head] = new_head
                break
    return found


def _common_end(a: Key, b: Key) -> int:
    """How many last parts two keys share, short of a whole key."""
    count = 0
    while count < min(len(a), len(b)) - 1 and a[-1 - count] == b[-1 - count]:
        count += 1
    return count


def _moves_whole(
    old: Key, new: Key, below: Sequence[Key], all_moves: Mapping[Key, Key | None]
) -> bool:
    return all(all_moves[key] == (*new, *key[len(old) :]) for key in below)


# --- open numbers -----------------------------------------------------------------------------


def _general(members: Sequence[tuple[Key, Key]], all_moves: Mapping[Key, Key | None]) -> list[Rule]:
    """One rule for modules whose keys differ in numbers only; none where no rule fits them all."""
    if len(members) < 2:
        return []
    olds = [numbers_in(old) for old, _ in members]
    news = [numbers_in(new) for _, new in members]
    variables = _named(olds)
    source = [Number(((1, variables[p]),)) if p in variables else None for p in range(len(olds[0]))]
    target = [_as_sum(place, olds, news, variables) for place in range(len(news[0]))]
    if None in target:
        return []
    rule = Rule(
        (_pattern(members[0][0], source),),
        (_pattern(members[0][1], target),),
    )
    if rule.sources[0].names != rule.targets[0].names or not _holds(rule, all_moves):
        return []
    return [rule]


def _named(olds: Sequence[Numbers]) -> dict[int, str]:
    """A name for every number that differs between the keys."""
    varying = [
        place for place, column in enumerate(zip(*olds, strict=True)) if len(set(column)) > 1
    ]
    return dict(zip(varying, _VARIABLES, strict=False))


def _as_sum(
    place: int, olds: Sequence[Numbers], news: Sequence[Numbers], variables: Mapping[int, str]
) -> Number | None:
    """A number of the new keys by those of the old: itself, or shifted; None when it is neither."""
    column = [numbers[place] for numbers in news]
    if len(set(column)) == 1:
        return Number((), column[0])
    for old_place, name in variables.items():
        shifts = {new - old[old_place] for new, old in zip(column, olds, strict=True)}
        if len(shifts) == 1:
            return Number(((1, name),), shifts.pop())
    return None


def _pattern(key: Key, numbers: Sequence[Number | None]) -> Pattern:
    """The key with some of its numbers open, in the order in which they are spelled."""
    given = iter(numbers)
    parts: list[Part] = []
    for part in key:
        if isinstance(part, int):
            parts.append(Layer(next(given) or Number((), part)))
        else:
            parts.append(Name(tuple(_texts(part, given))))
    return Pattern(tuple(parts))


def _texts(name: str, numbers: Iterator[Number | None]) -> Iterator[str | Number]:
    for place, text in enumerate(_NUMBER.split(name)):
        if place % 2 == 0:
            if text:
                yield text
            continue
        number = next(numbers)
        yield number if number is not None and number.terms else text


def _holds(rule: Rule, all_moves: Mapping[Key, Key | None]) -> bool:
    """True when the rule moves every key that it fits to where it shall be."""
    for key, wanted in all_moves.items():
        match = rule.sources[0].match(key)
        if match and (*rule.targets[0].fill(match.binding), *match.rest) != wanted:
            return False
    return True
