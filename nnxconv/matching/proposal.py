"""Propose rename rules from two states, and try them before anyone is told."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nnxconv.matching.deciding import Choice, Question, answered, questions_about
from nnxconv.matching.generalise import Move, rules_for
from nnxconv.matching.known import known_pairs, with_names
from nnxconv.matching.modules import ModuleFamily, Slot
from nnxconv.matching.pairs import LeafPair, ModulePair, Pairs
from nnxconv.matching.readings import Orientation
from nnxconv.matching.trial import Trial, head, variables
from nnxconv.matching.value_pairs import pairs_by_value
from nnxconv.matching.valued import ValueSearch, by_votes
from nnxconv.matching.values import Echo, Found, KnownRules, Values
from nnxconv.renaming import Rule, Rules, rule_line, write_rules
from nnxconv.state import LayerGroup, TrainState
from nnxconv.tree import Key, Leaf, Literal, View, spell


@dataclass(frozen=True)
class Proposal:
    """The rules that two checkpoints suggest, and what they do not tell.

    Attributes:
      source: what the names are of now.
      template: what they shall be of.
      pairs: the modules that are certain, with the evidence, and those that are not.
      rules: for the certain ones alone.
      trial: the two states, between which other rules can be tried.
      problems: what was wrong when the rules were tried; nothing, unless a defect.
    """

    source: str
    template: str
    pairs: Pairs
    rules: Rules
    trial: Trial = field(repr=False)
    problems: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """True when every leaf of both sides is certain, and the rules fit."""
        found = self.pairs
        is_left = found.proposed or found.turned or found.unclear
        return not (is_left or found.only_source or found.only_template or self.problems)

    @property
    def exit_code(self) -> int:
        """0 when it is complete, 1 when something is left to decide."""
        return 0 if self.is_complete else 1

    def questions(self) -> tuple[Question, ...]:
        """What a person can decide."""
        return questions_about(self.pairs)

    def decided(self, answers: Sequence[Choice | None]) -> "Proposal":
        """The proposal after somebody has decided, its rules tried again.

        Args:
          answers: for each of its questions one of the choices, or None to leave it as it is.

        Raises:
          BadInput: two answers claim one leaf of the template.
        """
        return _tried(self.source, self.template, answered(self.pairs, answers), self.trial)

    def to_toml(self) -> str:
        """The rules as a file; what is not certain stands there as comments."""
        lines = [f"# Proposed by nnxconv match: {self.summary()}.", "", write_rules(self.rules)]
        lines += [f"# {line}".rstrip() if line else "" for line in map(_printed, self._notes())]
        return "\n".join(lines).rstrip() + "\n"

    def _notes(self) -> Iterator[str]:
        """What is not certain, with the rules that would follow from each reading."""
        for found in self.pairs.proposed:
            yield from (f"proposed, {found.evidence}:", *readings_told(found), "")
        for found in self.pairs.turned:
            yield f"{named(found.sources)} is {named(found.templates)}, but turned or not?"
            yield from (*_each_reading(found), "")
        for unclear in self.pairs.unclear:
            yield f"{unclear.source} could be one of {len(unclear.candidates)}:"
            yield from (
                line for candidate in unclear.candidates for line in readings_told(candidate)
            )
            yield ""
        yield from (f"only in the source: {line}" for line in only_lines(self.pairs.only_source))
        only = only_lines(self.pairs.only_template)
        yield from (f"only in the template: {line}" for line in only)
        yield from echo_lines(self.pairs.echoes)

    def summary(self) -> str:
        """`14 leaves are certain, 2 proposed, ...`."""
        found = self.pairs
        unclear = sum(module.source.leaf_count for module in found.unclear)
        counts = [
            (_count(found.certain), "certain"),
            (_count(found.proposed), "proposed"),
            (_count(found.turned) + unclear, "open"),
            (sum(len(slot.keys) for _, slot in found.only_source), "only in the source"),
            (sum(len(slot.keys) for _, slot in found.only_template), "only in the template"),
        ]
        [(first, what), *others] = [(n, what) for n, what in counts if n] or [(0, "there")]
        told = f"{first:,} {'leaf is' if first == 1 else 'leaves are'} {what}"
        return ", ".join([told, *(f"{count:,} {what}" for count, what in others)])


def named(modules: Sequence[ModuleFamily]) -> str:
    """The names of modules; of one, in most cases."""
    return " and ".join(map(str, modules))


def only_lines(only: Iterable[tuple[ModuleFamily, Slot]]) -> list[str]:
    """A line for each module that has leaves with no counterpart."""
    modules: dict[ModuleFamily, list[Slot]] = {}
    for module, slot in only:
        modules.setdefault(module, []).append(slot)
    return [f"{module}  {slots_told(slots)}" for module, slots in modules.items()]


def echo_lines(echoes: Iterable[Echo]) -> list[str]:
    """A line for each leaf that is in no pair, and holds what another one does."""
    return [
        f"{spell(echo.template)} holds the values of {spell(echo.source)}{_zeros_told(echo.zeros)}"
        for echo in echoes
    ]


def _zeros_told(zeros: int) -> str:
    return "" if not zeros else f", and {abs(zeros):,} zeros {'more' if zeros > 0 else 'fewer'}"


def slots_told(slots: Sequence[Slot]) -> str:
    """`kernel f32[16,16] × 3, bias f32[16] × 3`."""
    return ", ".join(f"{slot.name} {slot.told}".strip() for slot in slots)


def _count(pairs: Iterable[ModulePair]) -> int:
    leaves = (leaf for found in pairs for leaf in found.leaves)
    return sum(len(slot.keys) for leaf in leaves for slot in leaf.sources)


def rules_of(found: ModulePair, orientation: Orientation | None = None) -> tuple[Rule, ...]:
    """The rules that make a pair of it, by one of the readings; with no step and one name none."""
    moves = [m for leaf in found.leaves for m in _moves(leaf, orientation)]
    return rules_for(moves, [key for move in moves for key in move.sources])


def _moves(leaf: LeafPair, orientation: Orientation | None) -> Iterator[Move]:
    return leaf.moves(orientation if orientation in leaf.readings else None)


def _printed(line: str) -> str:
    """A line for a comment, in which TOML has no control characters.

    >>> _printed("a\\nb")
    'a\\\\nb'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def readings_told(found: ModulePair) -> list[str]:
    """The rules that would follow from each reading of a pair."""
    if not found.is_decided:
        return _each_reading(found)
    return [rule_line(rule) for rule in rules_of(found)]


def _each_reading(found: ModulePair) -> list[str]:
    names = dict.fromkeys(name for leaf in found.leaves for name in leaf.readings)
    lines = []
    for name in names:
        rules = rules_of(found, name)
        told = [rule_line(rule) for rule in rules] or ["(nothing to do)"]
        lines += [f"  {name}:", *told]
    return lines


def propose(
    source: TrainState,
    groups: Sequence[LayerGroup],
    template: TrainState,
    *,
    names: tuple[str, str],
    values: Values | None = None,
    known: KnownRules | None = None,
) -> Proposal:
    """Pairs the leaves of two states, makes rules of the certain pairs, and tries them.

    Args:
      source: what is renamed; `groups` are its layers.
      template: what has the names that it shall have.
      names: what the two are called.
      values: what their arrays hold, where leaves shall be paired by that.
      known: rules of a family that is known to lead from one to the other.
    """
    here, wanted = variables(source), variables(template)
    by_rules = [] if known is None else known_pairs(here, wanted, known)
    pairs = with_names(here, wanted, by_rules)
    if values is not None:
        proved = zip(by_rules, values.holding([f.moves[0] for f in by_rules], None), strict=True)
        pairs = paired_by_value(here, wanted, values, pairs, [f for f, holds in proved if holds])
    return _tried(*names, pairs, Trial(source, groups, wanted))


def _tried(source: str, template: str, pairs: Pairs, trial: Trial) -> Proposal:
    rules = trial.rules(pairs)
    return Proposal(source, template, pairs, rules, trial, tuple(trial.problems(pairs, rules)))


def paired_by_value(
    source: Mapping[Key, Leaf],
    template: Mapping[Key, Leaf],
    values: Values,
    named: Pairs,
    proved: Sequence[Found] = (),
) -> Pairs:
    """The leaves of two canonical trees, paired by what they hold.

    Args:
      source, template: the trees.
      values: what their arrays hold.
      named: their pairs by name, which decide where values leave a choice.
      proved: what is known to hold.
    """
    by_name = {move.sources[0]: (move.targets[0], why) for move, why in _canonical(named)}
    empty = [
        Found((Move.of(a, b),), why)
        for a, (b, why) in by_name.items()
        if _is_empty(source[a]) and _is_empty(template[b])
    ]
    search = ValueSearch(_arrays(source), _arrays(template), values, by_name, [*proved, *empty])
    search.run()
    found = pairs_by_value(source, template, by_votes(search.found), search.alike)
    return replace(found, echoes=tuple(search.echoes))


def _canonical(named: Pairs) -> Iterator[tuple[Move, str]]:
    """The certain pairs of one leaf and another by their canonical keys, and why they are that."""
    for found in (*named.certain, *named.turned):
        for leaf in found.leaves:
            if len(leaf.sources) == len(leaf.templates) == 1:
                heads = (head(leaf.sources[0].collection), head(leaf.templates[0].collection))
                for move in leaf.moves():
                    a, b = move.sources[0], move.targets[0]
                    yield Move.of((*heads[0], *a), (*heads[1], *b)), found.evidence


def _arrays(leaves: Mapping[Key, Leaf]) -> dict[Key, View]:
    """The leaves that hold values."""
    return {
        key: leaf
        for key, leaf in leaves.items()
        if not isinstance(leaf, Literal) and not _is_empty(leaf)
    }


def _is_empty(leaf: Leaf) -> bool:
    return isinstance(leaf, Literal) or 0 in leaf.shape
