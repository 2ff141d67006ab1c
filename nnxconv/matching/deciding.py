"""What a person is asked where something is not certain, and what follows from the answers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from nnxconv.errors import BadInput
from nnxconv.matching.modules import ModuleFamily, Slot
from nnxconv.matching.pairs import ModulePair, Pairs, Unclear
from nnxconv.tree import Key

_CHOSEN = "chosen by hand"


@dataclass(frozen=True)
class Choice:
    """One answer: a counterpart, by one of its readings.

    Attributes:
      pair: with the steps of that reading.
      reading: what it is called; empty where there is no other one.
    """

    pair: ModulePair
    reading: str


@dataclass(frozen=True)
class Question:
    """A module of the source that is not certain, and what it may be.

    Attributes:
      kind: `turned`, `proposed` or `open`.
      sources: the module; several where the template has them as one.
      choices: what it may be.
    """

    kind: str
    sources: tuple[ModuleFamily, ...]
    choices: tuple[Choice, ...]
    about: ModulePair | Unclear = field(repr=False)


def questions_about(pairs: Pairs) -> tuple[Question, ...]:
    """All that a person can decide: steps first, then what is proposed, then what is open."""
    found = [Question("turned", p.sources, _choices([p]), p) for p in pairs.turned]
    found += [Question("proposed", p.sources, _choices([p]), p) for p in pairs.proposed]
    found += [Question("open", (u.source,), _choices(u.candidates), u) for u in pairs.unclear]
    return tuple(question for question in found if question.choices)


def _choices(candidates: Iterable[ModulePair]) -> tuple[Choice, ...]:
    return tuple(choice for pair in candidates for choice in _read(pair))


def _read(pair: ModulePair) -> Iterator[Choice]:
    """The pair by each of its readings."""
    names = dict.fromkeys(name for leaf in pair.leaves for name in leaf.readings)
    for name in names:
        leaves = tuple(leaf.read_as(name) for leaf in pair.leaves)
        yield Choice(replace(pair, leaves=leaves), name if len(names) > 1 else "")


_Leaf: TypeAlias = tuple[str, Key]
"""A leaf of one side: its collection, and its key in it."""


def claimed(pair: ModulePair) -> set[_Leaf]:
    """The template's leaves that a pair would make."""
    return _leaves(slot for leaf in pair.leaves for slot in leaf.templates)


def _leaves(slots: Iterable[Slot]) -> set[_Leaf]:
    return {(slot.collection, key) for slot in slots for key in slot.keys}


def answered(pairs: Pairs, answers: Sequence[Choice | None]) -> Pairs:
    """The pairs after somebody has decided.

    Args:
      pairs: what was found.
      answers: for each question about them one of its choices, or None to leave it as it is.

    Raises:
      BadInput: two answers claim one leaf of the template.
    """
    asked = questions_about(pairs)
    given = [(q, choice.pair) for q, choice in zip(asked, answers, strict=True) if choice]
    taken = _claimed_once([pair for _, pair in given])
    gone = {id(question.about) for question, _ in given}
    left = [_without(one, taken) for one in pairs.unclear if id(one) not in gone]
    chosen = tuple(replace(pair, evidence=_evidence(q, pair)) for q, pair in given)
    found = replace(
        pairs,
        certain=(*pairs.certain, *chosen),
        proposed=tuple(p for p in pairs.proposed if id(p) not in gone),
        turned=tuple(p for p in pairs.turned if id(p) not in gone),
        unclear=tuple(one for one in left if one.candidates),
    )
    return _with_what_is_left(found, pairs, chosen)


def _claimed_once(chosen: Sequence[ModulePair]) -> set[_Leaf]:
    """All leaves of the template that are claimed.

    Raises:
      BadInput: one of them is claimed twice.
    """
    by: dict[_Leaf, ModulePair] = {}
    for pair in chosen:
        for leaf in claimed(pair):
            if leaf in by:
                names = " and ".join(str(other.sources[0]) for other in (by[leaf], pair))
                raise BadInput(f"`{pair.templates[0]}` was chosen for {names}")
            by[leaf] = pair
    return set(by)


def _without(one: Unclear, taken: set[_Leaf]) -> Unclear:
    """What is still open, without what others have got."""
    return replace(one, candidates=tuple(c for c in one.candidates if taken.isdisjoint(claimed(c))))


def _evidence(question: Question, pair: ModulePair) -> str:
    return f"{pair.evidence}, turned or not {_CHOSEN}" if question.kind == "turned" else _CHOSEN


def _with_what_is_left(found: Pairs, before: Pairs, chosen: Sequence[ModulePair]) -> Pairs:
    """The pairs, and as leaves of one side what was open before and can be nothing any more."""
    still = [*chosen, *(pair for one in found.unclear for pair in one.candidates)]
    was_open = [pair for one in before.unclear for pair in one.candidates]
    return replace(
        found,
        only_source=(*found.only_source, *_gone(_here(was_open), _here(still))),
        only_template=(*found.only_template, *_gone(_there(was_open), _there(still))),
    )


_Owned: TypeAlias = tuple[ModuleFamily, Slot]


def _here(pairs: Iterable[ModulePair]) -> Iterator[_Owned]:
    return ((p.sources[0], slot) for p in pairs for leaf in p.leaves for slot in leaf.sources)


def _there(pairs: Iterable[ModulePair]) -> Iterator[_Owned]:
    return ((p.templates[0], slot) for p in pairs for leaf in p.leaves for slot in leaf.templates)


def _gone(before: Iterable[_Owned], after: Iterable[_Owned]) -> Iterator[_Owned]:
    """What was there before and is no more, each slot once."""
    known = _leaves(slot for _, slot in after)
    slots = {(slot.collection, slot.keys): (module, slot) for module, slot in before}
    return (owned for owned in slots.values() if known.isdisjoint(_leaves(owned[1:])))
