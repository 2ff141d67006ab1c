"""Propose rename rules from two states, and try them before anyone is told."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nnxconv.matching.families import Family
from nnxconv.matching.generalise import rules_for
from nnxconv.matching.hints import hints
from nnxconv.matching.pairs import Pairs, pair
from nnxconv.renaming import Rule, Rules, literal, rename, rule_line, write_rules
from nnxconv.state import RNGS, LayerGroup, TrainState
from nnxconv.tree import Key, Leaf, Literal, counted, notation, spell


@dataclass(frozen=True)
class Proposal:
    """The rules that two checkpoints suggest, and what they do not tell.

    Attributes:
      source: what the names are of now.
      template: what they shall be of.
      pairs: the leaves that are certain, with the evidence, and those that are not.
      rules: for the certain ones alone.
      hints: rules with a step that may fit what is left over; never applied.
      problems: what was wrong when the rules were tried; nothing, unless a defect.
    """

    source: str
    template: str
    pairs: Pairs
    rules: Rules
    hints: tuple[Rule, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """True when every leaf of both sides is certain, and the rules fit."""
        pairs = self.pairs
        return not (pairs.unclear or pairs.only_source or pairs.only_template or self.problems)

    @property
    def exit_code(self) -> int:
        """0 when it is complete, 1 when something is left to decide."""
        return 0 if self.is_complete else 1

    def to_toml(self) -> str:
        """The rules as a file; what is not certain stands there as comments."""
        lines = [f"# Proposed by nnxconv match: {self.summary()}.", "", write_rules(self.rules)]
        for unclear in self.pairs.unclear:
            lines.append(f"# {unclear.source} could be one of {len(unclear.candidates)}:")
            for candidate in unclear.candidates:
                lines += [f"# {line}" for line in _lines(unclear.source, candidate)]
            lines.append("")
        if self.hints:
            lines += [
                "# with a step, if the names mean this:",
                *(f"# {rule_line(rule)}" for rule in self.hints),
                "",
            ]
        for name, only in (
            ("source", self.pairs.only_source),
            ("template", self.pairs.only_template),
        ):
            lines += [f"# only in the {name}: {family}  {shapes_of(family)}" for family in only]
        return "\n".join(lines).rstrip() + "\n"

    def summary(self) -> str:
        """`14 leaves are certain, 2 ambiguous, ...`."""
        pairs = self.pairs
        counts = [
            (_count(pair.source for pair in pairs.certain), "certain"),
            (_count(unclear.source for unclear in pairs.unclear), "ambiguous"),
            (_count(pairs.only_source), "only in the source"),
            (_count(pairs.only_template), "only in the template"),
        ]
        first, *others = [f"{count:,} {what}" for count, what in counts if count] or ["no leaves"]
        [number, *rest] = first.split(" ", 1)
        noun = "leaf is" if number == "1" else "leaves are"
        return ", ".join([f"{number} {noun} {rest[0]}" if rest else first, *others])


def _count(families: Iterable[Family]) -> int:
    return sum(len(family.members) for family in families)


def _lines(source: Family, candidate: Family) -> list[str]:
    """The rules that would make a family that candidate."""
    moves = dict(zip(source.members, candidate.members, strict=True))
    rules = rules_for(moves, source.members)
    if not rules:
        rules = tuple(Rule((literal(a),), (literal(b),)) for a, b in moves.items())
    return [rule_line(rule) for rule in rules]


def shapes_of(family: Family) -> str:
    """`f32[16,16] × 3`, or each shape."""
    shapes = list(dict.fromkeys(notation(leaf) for leaf in family.leaves))
    if len(shapes) == 1:
        return shapes[0] + (f" × {len(family.leaves)}" if len(family.leaves) > 1 else "")
    told = ", ".join(shapes[:4])
    return told + (f" and {counted(len(shapes) - 4, 'more shape')}" if len(shapes) > 4 else "")


def propose(
    source: TrainState,
    groups: Sequence[LayerGroup],
    template: TrainState,
    *,
    names: tuple[str, str],
) -> Proposal:
    """Pairs the leaves of two states, makes rules of the certain pairs, and tries them."""
    wanted = _variables(template)
    pairs = pair(_variables(source), wanted)
    moves = pairs.by_key()
    keys = list(dict.fromkeys(_path(key) for key in _variables(source)))
    rules = Rules(rules_for(moves, keys))
    problems = _problems(source, groups, wanted, pairs, rules)
    left = hints(pairs.only_source, pairs.only_template)
    return Proposal(*names, pairs, rules, tuple(left), tuple(problems))


def _variables(state: TrainState) -> dict[Key, Leaf]:
    """Parameters and other variables but RNG state, by canonical key."""
    return {
        key: leaf
        for key, leaf in state.leaves().items()
        if key[0] in ("params", "aux") and key[:2] != ("aux", RNGS)
    }


def _path(key: Key) -> Key:
    return key[1:] if key[0] == "params" else key[2:]


def _problems(
    source: TrainState,
    groups: Sequence[LayerGroup],
    wanted: Mapping[Key, Leaf],
    pairs: Pairs,
    rules: Rules,
) -> list[str]:
    """What the rules do not do that they should."""
    if not rules.rules:
        return []
    renamed = rename(source, groups, rules, spelling="suffix")
    found = _variables(renamed.state)
    problems = list(renamed.problems)
    for certain in pairs.certain:
        collection = certain.source.collection
        head = (collection,) if collection == "params" else ("aux", collection)
        for path in certain.template.members:
            key: Key = (*head, *path)
            if key not in found:
                problems.append(f"{spell(key)} is not there")
            elif _shape(found[key]) != _shape(wanted[key]):
                told = f"{notation(found[key])}, but {notation(wanted[key])} in the template"
                problems.append(f"{spell(key)} is {told}")
    return problems


def _shape(leaf: Leaf) -> object:
    return leaf if isinstance(leaf, Literal) else leaf.shape
