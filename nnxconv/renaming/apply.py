"""Apply rules to the keys and leaves of one tree."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from nnxconv.errors import BadInput
from nnxconv.renaming.pattern import Pattern
from nnxconv.renaming.rule import Rule, Rules
from nnxconv.renaming.steps import apply_steps
from nnxconv.state import Tree
from nnxconv.tree import Key, Leaf, Literal, in_order, spell


@dataclass(frozen=True)
class Fit:
    """Which rule, and which of its names, a key fits.

    Attributes:
      rule: its place in the set.
      place: of the fitting name among those on the rule's left.
      targets: what the key becomes.
      group: the same for the keys that are joined.
    """

    rule: int
    place: int
    targets: tuple[Key, ...]

    @property
    def group(self) -> tuple[int, tuple[Key, ...]]:
        """What keys that are joined have in common."""
        return self.rule, self.targets


Fits: TypeAlias = Mapping[Key, Fit]


def fits(keys: Iterable[Key], rules: Rules) -> dict[Key, Fit]:
    """For each key that some rule fits, the first one.

    >>> from nnxconv.renaming.toml import parse_rules
    >>> rules = parse_rules('[rules]\\n"Dense_{i}" = "layers[{i}]"')
    >>> fits([("Dense_1", "bias"), ("norm", "scale")], rules)[("Dense_1", "bias")].targets
    (('layers', 1, 'bias'),)
    """
    index = _Index(rules)
    found = ((key, index.fit(key)) for key in keys)
    return {key: fit for key, fit in found if fit is not None}


_Numbered: TypeAlias = tuple[int, int, Pattern]
"""A pattern, with the number of its rule and its place in it."""


class _Index:
    """The patterns of rules, each by that name in it which the fewest others have.

    Of many rules a key is then held against those few that have one of its names.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = list(rules)
        patterns = [
            (number, place, pattern)
            for number, rule in enumerate(self._rules)
            for place, pattern in enumerate(rule.sources)
        ]
        counts = Counter(name for *_, pattern in patterns for name in pattern.fixed)
        self._by_name: dict[tuple[int, str | int], list[_Numbered]] = defaultdict(list)
        self._others: list[_Numbered] = []
        for numbered in patterns:
            fixed = numbered[2].fixed
            rarest = min(fixed, key=lambda name: counts[name], default=None)
            (self._others if rarest is None else self._by_name[rarest]).append(numbered)

    def fit(self, key: Key) -> Fit | None:
        """What the first rule that fits makes of a key."""
        named = (self._by_name.get(named, ()) for named in enumerate(key))
        some = [*self._others, *(numbered for found in named for numbered in found)]
        for number, place, pattern in sorted(some, key=lambda numbered: numbered[:2]):
            match = pattern.match(key)
            if match is not None:
                there = (target.fill(match.binding) for target in self._rules[number].targets)
                return Fit(number, place, tuple((*target, *match.rest) for target in there))
        return None


@dataclass
class Applied:
    """A tree with its new keys; what did not fit; and where each leaf has gone."""

    tree: dict[Key, Leaf] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    moves: dict[Key, tuple[Key, ...]] = field(default_factory=dict)


def apply(tree: Tree, rules: Rules, found: Fits, head: Key = ()) -> Applied:
    """The tree with the rules applied; `head` is where it stands, for messages."""
    applied = Applied()
    origins: dict[Key, list[Key]] = {}
    groups: dict[tuple[int, tuple[Key, ...]], dict[int, Key]] = {}
    for key in tree:
        fit = found.get(key)
        if fit is None:
            applied.moves[key] = (key,)
            applied.tree[key] = tree[key]
            origins.setdefault(key, []).append(key)
        else:
            applied.moves[key] = fit.targets
            group = groups.setdefault(fit.group, {})
            if fit.place in group:
                origins.setdefault(fit.targets[0], []).append(key)
            group.setdefault(fit.place, key)
    for (number, targets), places in groups.items():
        rule = rules.rules[number]
        keys = [places[place] for place in sorted(places)]
        for target in targets:
            origins.setdefault(target, []).append(keys[0])
        try:
            leaves = _leaves(rule, keys, [tree[key] for key in keys])
        except BadInput as error:
            told = " and ".join(spell((*head, *key)) for key in keys)
            applied.problems.append(f"{told}: {error.message}")
            continue
        applied.tree.update(zip(targets, leaves, strict=True))
    applied.problems += _collisions(origins, head)
    return applied


def _leaves(rule: Rule, keys: list[Key], leaves: list[Leaf]) -> list[Leaf]:
    """What a rule makes of the leaves that it joins or cuts, or of one.

    Raises:
      BadInput: some of the leaves are not there, or a step does not fit them.
    """
    if len(keys) < len(rule.sources):
        raise BadInput(f"`{rule}` needs {len(rule.sources)} arrays, but {len(keys)} are there")
    literals = [leaf for leaf in leaves if isinstance(leaf, Literal)]
    views = [leaf for leaf in leaves if not isinstance(leaf, Literal)]
    if literals and views:
        raise BadInput("some of them are arrays and some are not")
    if literals and rule.steps:
        if len(set(literals)) > 1:
            raise BadInput("they have different values")
        return [literals[0]] * len(rule.targets)
    return [*literals, *apply_steps(rule.steps, views, len(rule.targets))]


def _collisions(origins: Mapping[Key, list[Key]], head: Key) -> list[str]:
    """Keys that several leaves would have, and keys under which other leaves would stand."""
    problems = [
        f"{spell((*head, *key))} would be {' and '.join(map(spell, in_order(set(sources))))}"
        for key, sources in origins.items()
        if len(sources) > 1
    ]
    for key in origins:
        for size in range(1, len(key)):
            if key[:size] in origins:
                whole = spell((*head, *key[:size]))
                problems.append(f"{whole} would be an array, and hold {spell((*head, *key))}")
    return problems


def cannot_be_undone(moves: Mapping[Key, Collection[Key]], rules: Rules) -> list[str]:
    """The leaves that the inverse rules would not bring back, and what they would make of them.

    Raises:
      BadInput: a rule has no inverse.
    """
    after = [target for targets in moves.values() for target in targets]
    back = fits(after, rules.inverse().counted(after))
    lost = []
    for key, targets in moves.items():
        for target in targets:
            returned = back[target].targets if target in back else (target,)
            if key not in returned:
                was = "" if target == key else f", which was {spell(key)},"
                lost.append(f"{spell(target)}{was} would become {spell(returned[0])}")
    return lost
