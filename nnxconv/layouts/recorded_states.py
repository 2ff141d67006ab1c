"""The states of a tree that nnxconv wrote, by the record that it left in the metadata."""

from collections.abc import Mapping, Sequence
from typing import Any

from nnxconv.errors import BadInput, UnknownLayout
from nnxconv.layouts.finding import find
from nnxconv.layouts.form import key_of, mapping
from nnxconv.layouts.located import Located, Survey, survey_of
from nnxconv.layouts.placement import Placement
from nnxconv.layouts.survey_options import SurveyOptions
from nnxconv.layouts.understanding import no_record
from nnxconv.state import Tree
from nnxconv.tree import Key

STATES = "states"
"""Where a record of several states, or of one among other things, has them."""


def states_recorded(tree: Tree, how: SurveyOptions, record: Mapping[str, Any]) -> Survey | None:
    """The states of a tree that nnxconv wrote; None where the tree has been changed since."""
    try:
        entries = [_entry(mapping(STATES, one)) for one in record[STATES]]
        kept = {key_of("kept", key) for key in record.get("kept", [])}
    except (ValueError, TypeError) as error:
        raise no_record(error, how.where) from error
    regions: dict[int, list[Key]] = {number: [] for number in range(len(entries))}
    around: list[Key] = []
    for key in tree:
        number = _owner(key, entries, kept)
        (around if number is None else regions[number]).append(key)
    states: list[Located] = []
    copies: list[Located] = []
    for number, (at, placement, copy_of, inner) in enumerate(entries):
        stored = placement.gathered(regions[number])
        if not stored:
            return None
        try:
            understood = how.of({new: tree[old] for new, old in stored.items()}, inner)
        except (UnknownLayout, BadInput):
            return None
        known = recorded_placements(inner, how.where)
        located = Located(at, placement, understood, stored, copy_of, known)
        (states if copy_of is None else copies).append(located)
    return survey_of(tree, states, copies, find(tree).roles, around)


def recorded_placements(record: Mapping[str, Any], where: str) -> dict[str, Placement]:
    """Where a state stood in other layouts, as a record has it."""
    try:
        found = mapping("placements", record.get("placements", {}))
        return {name: Placement.from_json(one) for name, one in found.items()}
    except ValueError as error:
        raise no_record(error, where) from error


_Entry = tuple[Key, Placement, Key | None, Mapping[str, Any]]


def _entry(one: Mapping[str, Any]) -> _Entry:
    copy_of = one.get("copy_of")
    return (
        key_of("at", one.get("at")),
        Placement.from_json(one.get("placement")),
        None if copy_of is None else key_of("copy_of", copy_of),
        mapping("record", one.get("record")),
    )


def _owner(key: Key, entries: Sequence[_Entry], kept: set[Key]) -> int | None:
    """Which state a leaf belongs to: that with the longest prefix of its key, if any."""
    best: tuple[int, int] | None = None
    for number, (_, placement, _, _) in enumerate(entries):
        prefixes = [old for old, _ in placement.moves] + [old for _, old in placement.apart]
        for old in prefixes:
            if key[: len(old)] == old and (best is None or len(old) > best[0]):
                best = (len(old), number)
    is_kept = any(key[:size] in kept for size in range(best[0] if best else 0, len(key) + 1))
    return None if best is None or is_kept else best[1]
