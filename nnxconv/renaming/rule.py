"""Rules: what leaves are called, and how they are cut, before and after."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nnxconv.errors import BadInput
from nnxconv.renaming.numbers import ARITHMETIC
from nnxconv.renaming.pattern import Name, Pattern, part_is_open
from nnxconv.renaming.steps import MAKE_ONE, MAKE_SEVERAL, Step, why_not_undone
from nnxconv.tree import Key, fits_no_key

UNDOING = "inverse of "
"""What the names of sets begin with that undo others."""


@dataclass(frozen=True)
class Rule:
    """Keys that start with a pattern start with another one; steps may change the arrays.

    Attributes:
      sources: one pattern, or those of the arrays that are joined, in order.
      targets: one pattern, or those of the parts into which an array is cut, in order.
      steps: what is done to the arrays, in order.
      is_optional: that it fits no key is no error.
    """

    sources: tuple[Pattern, ...]
    targets: tuple[Pattern, ...]
    steps: tuple[Step, ...] = ()
    is_optional: bool = False

    def __str__(self) -> str:
        return ", ".join(map(str, self.sources))

    @property
    def computes(self) -> bool:
        """True when it changes elements, which moments do not follow as they follow axes."""
        return any(isinstance(step, ARITHMETIC) for step in self.steps)

    def check(self) -> None:
        """Refuses a rule that leaves something open on one side only, or joins and cuts at once.

        Raises:
          BadInput: the rule cannot be applied, whatever the tree.
        """
        names = [pattern.names for pattern in (*self.sources, *self.targets)]
        one_sided = frozenset().union(*names) - names[0].intersection(*names)
        if one_sided:
            told = " and ".join(f"`{{{name}}}`" for name in sorted(one_sided))
            raise BadInput(f"{told} does not stand in every name of the rule")
        if len(self.sources) > 1 and len(self.targets) > 1:
            raise BadInput("the rule has several names on both sides")
        self._check_steps()

    def _check_steps(self) -> None:
        making_one = [step for step in self.steps if isinstance(step, MAKE_ONE)]
        making_several = [step for step in self.steps if isinstance(step, MAKE_SEVERAL)]
        if (len(self.sources) > 1) != bool(making_one):
            raise BadInput(
                "several names on the left need `concat` or `stack`; one has nothing to join"
            )
        if (len(self.targets) > 1) != bool(making_several):
            raise BadInput(
                "several names on the right need `split` or `unstack`; one has nothing to cut"
            )
        if len(making_one) > 1 or len(making_several) > 1:
            raise BadInput("the arrays of a rule can be joined or cut only once")

    def inverse(self) -> "Rule":
        """The rule that undoes this one.

        Raises:
          BadInput: it has none.
        """
        undone = [step.inverse() for step in reversed(self.steps)]
        steps = tuple(step for step in undone if step is not None)
        if len(steps) < len(undone):
            [(why, hint), *_] = [why_not_undone(s) for s in self.steps if s.inverse() is None]
            raise BadInput(f"the rule `{self}` has no inverse: {why}", hint=hint)
        return Rule(self.targets, self.sources, steps, self.is_optional)


@dataclass(frozen=True)
class Rules:
    """A set of rules; of those that fit a key, the first one is applied, and only once.

    Attributes:
      rules: in order.
      name: of the set or its file.
      counts: numbers that the tree tells: how many different keys fit a pattern, by name.
    """

    rules: tuple[Rule, ...]
    name: str = ""
    counts: Mapping[str, Pattern] = field(default_factory=dict)

    def inverse(self) -> "Rules":
        """The rules that undo these, the most special ones first.

        Raises:
          BadInput: a rule has no inverse; the message names it.
        """
        undoing = [rule.inverse() for rule in self.rules]
        counts = {name: self._after(pattern) for name, pattern in self.counts.items()}
        undoing.sort(key=_generality)
        return Rules(tuple(undoing), f"{UNDOING}{self.name}" if self.name else "", counts)

    def _after(self, counted: Pattern) -> Pattern:
        """What a counted pattern is called once the rules are applied."""
        for rule in self.rules:
            if rule.sources == (counted,):
                return rule.targets[0]
        return counted

    def words(self) -> set[str]:
        """The fixed texts in the names on both sides."""
        patterns = (p for rule in self.rules for p in (*rule.sources, *rule.targets))
        return {word for pattern in patterns for word in pattern.words}

    def layer_names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of layer groups on the left and on the right."""
        left = (name for rule in self.rules for p in rule.sources for name in p.layer_names())
        right = (name for rule in self.rules for p in rule.targets for name in p.layer_names())
        return tuple(dict.fromkeys(left)), tuple(dict.fromkeys(right))

    def counted(self, keys: Sequence[Key]) -> "Rules":
        """The rules with the numbers that these keys tell."""
        values = {name: _count(pattern, keys) for name, pattern in self.counts.items()}
        return replace(self, rules=tuple(_with(rule, values) for rule in self.rules), counts={})

    def unused(self, used: Collection[int], keys: Sequence[Key]) -> list[str]:
        """What is wrong with the rules, but for optional ones, whose numbers are not in `used`."""
        idle = (rule for number, rule in enumerate(self) if number not in used)
        return [_why_unused(rule, keys) for rule in idle if not rule.is_optional]

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)


def _why_unused(rule: Rule, keys: Sequence[Key]) -> str:
    if all(any(pattern.match(key) for key in keys) for pattern in rule.sources):
        return f"`{rule}` fits no key that an earlier rule does not take"
    missing = next(p for p in rule.sources if not any(p.match(key) for key in keys))
    return fits_no_key(str(missing), keys)


def _generality(rule: Rule) -> tuple[int, int]:
    """Orders rules: longer patterns first, then those that leave less open."""
    first = rule.sources[0]
    opens = sum(part_is_open(part) for part in first.parts)
    wide = sum(isinstance(p, Name) and p.texts[0:1] != () and part_is_open(p) for p in first.parts)
    return -len(first.parts), opens + wide


def _count(pattern: Pattern, keys: Sequence[Key]) -> int:
    matches = (pattern.match(key) for key in keys)
    return len({tuple(found.binding.items()) for found in matches if found is not None})


def _with(rule: Rule, values: Mapping[str, int]) -> Rule:
    def known(patterns: tuple[Pattern, ...]) -> tuple[Pattern, ...]:
        return tuple(pattern.known(values) for pattern in patterns)

    return replace(rule, sources=known(rule.sources), targets=known(rule.targets))
