"""What rules would do to each array of a tree."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from nnxconv.errors import BadInput
from nnxconv.renaming.apply import fits
from nnxconv.renaming.rule import Rules
from nnxconv.renaming.steps import Step, apply_steps
from nnxconv.tree import Key, Leaf, Literal, Shape


@dataclass(frozen=True)
class Use:
    """One use of a rule.

    Attributes:
      sources: the keys that the rule fits; several that it joins.
      targets: what they become; several where it cuts an array.
      steps: in their order.
      shapes: of the targets.
    """

    sources: tuple[Key, ...]
    targets: tuple[Key, ...]
    steps: tuple[Step, ...]
    shapes: tuple[Shape, ...]


def uses_of(rules: Rules, tree: Mapping[Key, Leaf]) -> list[Use]:
    """The uses of rules on a tree; those whose steps do not fit its arrays are left out."""
    rules = rules.counted(list(tree))
    groups: dict[tuple[int, tuple[Key, ...]], dict[int, Key]] = defaultdict(dict)
    for key, fit in fits(tree, rules).items():
        groups[fit.group].setdefault(fit.place, key)
    found: list[Use] = []
    for (number, targets), places in groups.items():
        rule = rules.rules[number]
        keys = tuple(places[place] for place in sorted(places))
        leaves = [leaf for leaf in map(tree.__getitem__, keys) if not isinstance(leaf, Literal)]
        if len(leaves) < len(rule.sources):
            continue
        try:
            made = apply_steps(rule.steps, leaves, len(targets))
        except BadInput:
            continue
        found.append(Use(keys, targets, rule.steps, tuple(view.shape for view in made)))
    return found
