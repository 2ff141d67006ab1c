"""What `match` found as one self-contained page: both trees side by side, and a line for each pair.

`matching.html.j2` is the page, `page.css` and `matching.css` its looks and `matching.js` what it
does.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from nnxconv.errors import BadInput
from nnxconv.matching import (
    LeafPair,
    ModulePair,
    Proposal,
    Slot,
    names_in,
    readings_told,
    with_layers_alike,
)
from nnxconv.renaming import Step, rule_line, step_line
from nnxconv.render.pages import drawn, own_file
from nnxconv.tree import Key, in_order


def check_page(file: str) -> None:
    """Raises what `write_page` would raise, before there is anything to draw.

    Raises:
      BadInput: the ending is not `.html`, or the directory is not there.
    """
    path = Path(file)
    if path.suffix != ".html":
        raise BadInput(f"`--html {file}` is no .html")
    if not path.parent.is_dir():
        raise BadInput(f"`--html {file}` is in a directory that is not there")


def write_page(proposal: Proposal, file: str) -> None:
    """Writes the page of a proposal."""
    from nnxconv.storage.files import write_text

    write_text(file, proposal_html(proposal))


def proposal_html(proposal: Proposal) -> str:
    """The proposal as a page: the two trees, what is whose, why, and the rules."""
    return drawn(
        "matching.html.j2",
        ["page.css", "matching.css"],
        [own_file("matching.js")],
        proposal=proposal,
        rules=[rule_line(rule) for rule in proposal.rules],
        page=pairs_json(proposal),
    )


@dataclass
class _Side:
    """One of the trees: its leaves by number, a row for all layers that are alike.

    Attributes:
      label: what it is called.
      numbers: the number of each leaf, by its collection and its keys.
      slots: the leaves, in the order of their numbers.
    """

    label: str
    numbers: dict[tuple[str, tuple[Key, ...]], int] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)

    def number(self, slot: Slot) -> int:
        """Which leaf it is."""
        known = self.numbers.setdefault((slot.collection, slot.keys), len(self.slots))
        if known == len(self.slots):
            self.slots.append(slot)
        return known

    def json(self) -> dict[str, Any]:
        """Its leaves, and in which order they are shown."""
        first = {(slot.keys[0], number): number for number, slot in enumerate(self.slots)}
        places = {key: place for place, key in enumerate(in_order({key for key, _ in first}))}
        order = sorted(first, key=lambda each: (places[each[0]], each[1]))
        return {
            "label": self.label,
            "leaves": [_leaf_json(slot) for slot in self.slots],
            "order": [first[each] for each in order],
        }


def _leaf_json(slot: Slot) -> dict[str, Any]:
    return {
        "path": with_layers_alike([names_in(key) for key in slot.keys]) or [slot.name],
        "told": slot.told,
        "collection": "" if slot.collection == "params" else slot.collection,
        "count": len(slot.keys),
    }


def pairs_json(proposal: Proposal) -> dict[str, Any]:
    """What the page draws: the leaves of both sides, and the pairs that refer to them by number."""
    sides = _Side(proposal.source), _Side(proposal.template)
    links = list(_links(proposal, sides))
    for side, only in zip(sides, _only(proposal), strict=True):
        for slot in only:
            side.number(slot)
    return {"sides": [side.json() for side in sides], "links": links}


def _only(proposal: Proposal) -> tuple[Iterable[Slot], Iterable[Slot]]:
    found = proposal.pairs
    return (slot for _, slot in found.only_source), (slot for _, slot in found.only_template)


def _links(proposal: Proposal, sides: tuple[_Side, _Side]) -> Iterator[dict[str, Any]]:
    """Each pair of leaves; what could be several has a link to each of them."""
    found = proposal.pairs
    kinds = {"certain": found.certain, "proposed": found.proposed, "turned": found.turned}
    for kind, pairs in kinds.items():
        for pair in pairs:
            told = readings_told(pair) if kind != "certain" else []
            for leaf in pair.leaves:
                yield _link(kind, pair, told, sides, _ends(leaf), _steps(leaf))
    for unclear in found.unclear:
        slots = tuple(unclear.source.slots.values())
        for slot in slots:
            sides[0].number(slot)
        for pair in unclear.candidates:
            others = tuple(slot for module in pair.templates for slot in module.slots.values())
            every = [_ends(leaf) for leaf in pair.leaves] or [(slots, others)]
            told = readings_told(pair)
            yield from (_link("open", pair, told, sides, ends) for ends in every)


_Ends: TypeAlias = tuple[Sequence[Slot], Sequence[Slot]]


def _ends(leaf: LeafPair) -> _Ends:
    return leaf.sources, leaf.templates


def _steps(leaf: LeafPair) -> Sequence[Step]:
    return leaf.steps[0] if leaf.is_decided else ()


def _link(
    kind: str,
    pair: ModulePair,
    told: Sequence[str],
    sides: tuple[_Side, _Side],
    ends: _Ends,
    steps: Sequence[Step] = (),
) -> dict[str, Any]:
    return {
        "kind": kind,
        "ends": [
            [side.number(slot) for slot in slots] for side, slots in zip(sides, ends, strict=True)
        ],
        "evidence": pair.evidence,
        "steps": ", ".join(map(step_line, steps)),
        "told": told,
    }
