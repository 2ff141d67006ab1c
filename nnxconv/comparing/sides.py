"""Two surveyed trees side by side: which state of one is which of the other."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from nnxconv.errors import BadInput
from nnxconv.layouts import OTHER, Survey, Understood, copy_leaves
from nnxconv.state import under
from nnxconv.tree import Key, Leaf, spell


@dataclass(frozen=True)
class Couple:
    """The same state on both sides, and what its keys begin with."""

    head: Key
    a: Understood
    b: Understood


def coupled(a: Survey, b: Survey) -> list[Couple]:
    """The states of both sides, each with its counterpart; none where one side has no state.

    Raises:
      BadInput: the sides have states under different keys.
    """
    if not a.states or not b.states:
        return []
    if len(a.states) == len(b.states) == 1:
        return [Couple((), a.states[0].understood, b.states[0].understood)]
    ours = {one.at: one.understood for one in a.states}
    theirs = {one.at: one.understood for one in b.states}
    if ours.keys() != theirs.keys():
        raise BadInput(
            "the two sides have different states",
            details=[*_told("a", ours), *_told("b", theirs)],
            hint="`--at KEY` takes one of them, `--at_b KEY` one of side b",
        )
    return [Couple(at, ours[at], theirs[at]) for at in ours]


def _told(side: str, states: dict[Key, Understood]) -> Iterator[str]:
    for at, state in states.items():
        yield f"{side}: {spell(at) or 'the root'}  {state.layout}"


def around(survey: Survey, *, ignore_rngs: bool) -> tuple[dict[Key, Leaf], Counter[str]]:
    """What is compared besides states, and how much is left aside by which option.

    These are copies of parameters, and what belongs to no state.
    """
    found: dict[Key, Leaf] = {}
    for copy in survey.copies:
        found |= copy_leaves(copy)
    rest = {
        key: leaf
        for key, leaf in survey.around.items()
        if not (ignore_rngs and survey.roles[key] == "rng")
    }
    aside = len(survey.around) - len(rest)
    return found | under(OTHER, rest), Counter({"--ignore_rngs": aside} if aside else {})
