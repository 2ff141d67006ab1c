"""Prove a conversion before it is committed: read the new arrays back and compare the meaning."""

from collections.abc import Mapping
from dataclasses import replace

from nnxconv.comparing.difference import Tolerance
from nnxconv.comparing.pairing import Pair, agree_on_layers, join_layers, line_up
from nnxconv.comparing.values import compare_pairs
from nnxconv.errors import DamagedCheckpoint
from nnxconv.layouts import RECORD, Conversion, Part, Understood, Whole, understand
from nnxconv.running.cluster import SINGLE_PROCESS, Team
from nnxconv.state import Tree
from nnxconv.storage.orbax import Item, Proof, ReadsBack
from nnxconv.tree import Key, Literal, View, cast, dtype_of, spell

EXACT = Tolerance(0.0, 0.0, True)


def verifier(
    whole: Whole, items: Mapping[str, Item], max_memory: int, team: Team = SINGLE_PROCESS
) -> Proof:
    """A check to run when all arrays are written, before the target is committed.

    It decodes each state of the new tree as if it were a foreign checkpoint, and compares it with
    the source, key by key and value by value, as `compare` does; what stands around the states is
    compared as it is. The processes of a team share the values.
    """

    async def verify(writer: ReadsBack) -> None:
        written = writer.read_back(whole.tree)
        pairs: list[Pair] = []
        missing: list[str] = []
        for number, part in enumerate(whole.parts):
            mine, lacking = _pairs(part, written, number)
            pairs += mine
            missing += lacking
        pairs += [
            Pair((("around", *key),), leaf, new)
            for key in whole.kept
            if not isinstance(leaf := whole.tree[key], Literal)
            and not isinstance(new := written.tree[key], Literal)
        ]
        if missing:
            raise DamagedCheckpoint(
                "the new checkpoint does not hold the same leaves", details=missing
            )
        both = {**items, **written.stores}
        values = await compare_pairs(pairs, both, EXACT, max_memory, team)
        wrong = [spell(key) for key, found in values.statistics.items() if found.unequal]
        if wrong:
            raise DamagedCheckpoint(
                "the new checkpoint does not hold the same values; nothing was committed",
                details=wrong,
            )

    return verify


def _pairs(part: Part, written: Item, number: int) -> tuple[list[Pair], list[str]]:
    """What is to be equal of one state, and what one side lacks; keys of the first are its own."""
    conversion = part.conversion
    tree = {key: written.tree[place] for key, place in part.places().items()}
    before = replace(conversion.source, state=conversion.state)
    source, target = agree_on_layers(before, _understood(conversion, tree))
    findings, common = line_up(source.state.leaves(), target.state.leaves(), ignore_dtype=True)
    pairs = join_layers([_as_target(*triple) for triple in common], source.groups)
    head: Key = (f"state {number + 1}",) if number else ()
    named = [replace(pair, keys=tuple((*head, *key) for key in pair.keys)) for pair in pairs]
    return named, [spell((*head, *finding.key)) for finding in findings]


def _understood(conversion: Conversion, tree: Tree) -> Understood:
    return understand(
        tree,
        custom_metadata={RECORD: conversion.record.to_json()},
        is_scanned=conversion.scan_layers,
        layout=conversion.layout,
    )


def _as_target(key: Key, source: View, target: View) -> tuple[Key, View, View]:
    """The pair with the source in the target's element type."""
    return key, cast(source, dtype_of(target)), target
