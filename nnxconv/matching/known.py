"""Pairs that rules of a known family make, whose steps no name or shape tells."""

from collections.abc import Mapping, Sequence

from nnxconv.matching.generalise import Move
from nnxconv.matching.pairs import Pairs
from nnxconv.matching.proposing import pair
from nnxconv.matching.readings import undone
from nnxconv.matching.value_pairs import pairs_by_value
from nnxconv.matching.values import Found, KnownRules
from nnxconv.renaming import uses_of
from nnxconv.tree import Key, Leaf, Literal


def known_pairs(
    source: Mapping[Key, Leaf], template: Mapping[Key, Leaf], known: KnownRules
) -> list[Found]:
    """What the rules make of one side's parameters that the other side has, in its shape."""
    left, right = (template, source) if known.is_back else (source, template)
    params = {key[1:]: leaf for key, leaf in left.items() if key[0] == "params"}
    found: list[Found] = []
    for use in uses_of(known.rules, params):
        sources, targets = (
            tuple(("params", *key) for key in keys) for keys in (use.sources, use.targets)
        )
        steps = undone(use.steps) if known.is_back else use.steps
        shapes = tuple(_shape(right.get(key)) for key in targets)
        if shapes == use.shapes and steps is not None:
            ends = (targets, sources) if known.is_back else (sources, targets)
            found.append(Found((Move(*ends, steps),), f"by `{known.rules.name}`"))
    return found


def _shape(leaf: Leaf | None) -> object:
    return None if leaf is None or isinstance(leaf, Literal) else leaf.shape


def with_names(
    source: Mapping[Key, Leaf], template: Mapping[Key, Leaf], found: Sequence[Found]
) -> Pairs:
    """What is found, and pairs by name of what is left of both trees."""
    if not found:
        return pair(source, template)
    by_rules = pairs_by_value(source, template, found, ())
    gone = {key for one in found for key in one.moves[0].sources}
    gone_there = {key for one in found for key in one.moves[0].targets}
    rest = pair(_without(source, gone), _without(template, gone_there))
    return Pairs(
        (*by_rules.certain, *rest.certain),
        rest.proposed,
        rest.turned,
        rest.unclear,
        rest.only_source,
        rest.only_template,
        scopes=rest.scopes,
    )


def _without(leaves: Mapping[Key, Leaf], gone: set[Key]) -> dict[Key, Leaf]:
    return {key: leaf for key, leaf in leaves.items() if key not in gone}
