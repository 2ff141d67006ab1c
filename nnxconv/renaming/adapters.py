"""Rules for adapters of low rank, made of those for the weights that they belong to.

PEFT keeps A (rank, in) and B (out, rank) of weights (out, in). What a rule does to the weights on
the way to another program, it does to the axes that each factor has of them; numbers that they are
multiplied with go into b, so that a times b is as the weights are.

| names | form | axes |
|---|---|---|
| `base_model.model.MODULE.lora_A.weight` | PEFT | (rank, in), (out, rank) |
| `MODULE.WEIGHT_lora_a` | qwix, in models of Tunix | (in ..., rank), (rank, out ...) |
| `MODULE.WEIGHT_lora_a` | qwix, in models of MaxText | the same, axes of heads as one |
| `MODULE.lora_a.WEIGHT`, or with `lora_a.WEIGHT` as one name | MaxText of Linen | as Tunix |

Experts, which are one array, lead in both factors.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal, TypeAlias

from nnxconv.renaming.hugging_face import HuggingFaceFamily
from nnxconv.renaming.numbers import DivideBy, Times
from nnxconv.renaming.orders import Halves, Pairs, Permute
from nnxconv.renaming.pattern import Pattern, parse
from nnxconv.renaming.rule import Rule, Rules
from nnxconv.renaming.shapes import Divide, Merge, Transpose
from nnxconv.renaming.steps import Pile, Step

Form: TypeAlias = Literal["flat", "apart", "modules", "dotted"]
"""How the target's program has adapters: MaxText, Tunix, MaxText of Linen (with two spellings)."""

PEFT = "base_model.model."
_WEIGHT = ".weight"
_DIGITS = re.compile(r"\d+")


def adapter_family(family: HuggingFaceFamily, form: Form) -> HuggingFaceFamily:
    """The rules of a family for adapters of its weights, each of which may be there or not."""
    rules = tuple(new for rule in family.rules for new in _adapted(rule, form))
    whole = Rules(rules, family.rules.name)
    return replace(family, rules=whole, left_out=(), dtypes={}, is_whole=False)


def _adapted(rule: Rule, form: Form) -> Iterator[Rule]:
    """The rules of the two factors; none where the weights are no matrices, or of many modules."""
    sources, target = [str(pattern) for pattern in rule.sources], str(rule.targets[0])
    are_alike = len({_DIGITS.sub("", source) for source in sources}) == 1
    is_matrix = any(isinstance(step, Transpose) for step in rule.steps)
    if not (are_alike and is_matrix and all(source.endswith(_WEIGHT) for source in sources)):
        return
    for name, other in (("a", "out"), ("b", "in")):
        factor = _Factor(other)
        if not all(factor.follow(step) for step in rule.steps):
            return
        theirs = (f"{PEFT}{s.removesuffix(_WEIGHT)}.lora_{name.upper()}.weight" for s in sources)
        yield Rule(
            tuple(map(parse, theirs)),
            (_named(target, name, form),),
            factor.finished(is_flat=form == "flat"),
            is_optional=True,
        )


def _named(target: str, name: str, form: Form) -> Pattern:
    """What a factor of the weights at `target` is called."""
    if form in ("flat", "apart"):
        return parse(f"{target}_lora_{name}")
    module, _, leaf = target.rpartition(".")
    last = f".lora_{name}.{leaf}" if form == "modules" else f'["lora_{name}.{leaf}"]'
    return parse(f"{module}{last}")


@dataclass
class _Factor:
    """What becomes of a factor on its weights' way: its axes are some of theirs, and the rank.

    Attributes:
      other: the side of the weights that the factor does not have: "in" or "out".
      axes: those of the weights by now: their side, and how large where that is known.
      steps: of the factor, whose last axis is the rank all the way.
    """

    other: str
    axes: list[tuple[str, int]] = field(default_factory=lambda: [("out", -1), ("in", -1)])
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.other == "out":
            self.steps.append(Transpose((1, 0)))

    @property
    def _own(self) -> list[int]:
        """Which axes of the weights it has, in its order."""
        return [at for at, (side, _) in enumerate(self.axes) if side != self.other]

    def follow(self, step: Step) -> bool:
        """Takes a step of the weights; False where a factor cannot."""
        if isinstance(step, Times | DivideBy):
            if self.other == "in":
                self.steps.append(step)
            return True
        if isinstance(step, Transpose):
            own = self._own
            order = [own.index(at) for at in step.order if at in own]
            self.steps.append(Transpose((*order, len(own))))
            self.axes = [self.axes[at] for at in step.order]
            return True
        if not isinstance(step, Pile | Divide | Pairs | Halves | Permute) or step.axis < 0:
            return False
        if isinstance(step, Pile):
            self.axes.insert(step.axis, ("experts", -1))
        if step.axis in self._own:
            self.steps.append(replace(step, axis=self._own.index(step.axis)))
        if isinstance(step, Divide):
            side = self.axes[step.axis][0]
            self.axes[step.axis : step.axis + 1] = [(side, size) for size in step.into]
        return True

    def finished(self, *, is_flat: bool) -> tuple[Step, ...]:
        """All steps: experts lead, then `a` has the rank last and `b` has it next."""
        sides = [self.axes[at] for at in self._own]
        lead = [at for at, (side, _) in enumerate(sides) if side == "experts"]
        rest = [at for at in range(len(sides)) if at not in lead]
        rank = len(sides)
        steps = list(self.steps)
        if self.other == "out":
            steps.append(Transpose((*lead, *rest, rank)))
        else:
            steps.append(Transpose((*lead, rank, *rest)))
        first = len(lead) + (self.other == "in")
        sizes = [sides[at][1] for at in rest]
        while is_flat and len(sizes) > 1:
            steps.append(Merge(first, (sizes[0], sizes[1])))
            sizes[:2] = [prod(sizes[:2])]
        return tuple(step for step in steps if not _is_nothing(step))


def _is_nothing(step: Step) -> bool:
    return isinstance(step, Transpose) and step.order == tuple(range(len(step.order)))
