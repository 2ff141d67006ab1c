"""Prove a conversion before it is committed: read the new arrays back and compare the meaning."""

from collections.abc import Mapping
from dataclasses import replace

from nnxconv.comparing.difference import Tolerance
from nnxconv.comparing.pairing import agree_on_layers, join_layers, line_up
from nnxconv.comparing.values import compare_pairs
from nnxconv.errors import DamagedCheckpoint
from nnxconv.layouts import RECORD, Conversion, Understood, understand
from nnxconv.running.cluster import SINGLE_PROCESS, Team
from nnxconv.storage.orbax import Item, Proof, Writer, Writers
from nnxconv.tree import Key, View, cast, dtype_of, spell

EXACT = Tolerance(0.0, 0.0, True)


def verifier(
    conversion: Conversion, items: Mapping[str, Item], max_memory: int, team: Team = SINGLE_PROCESS
) -> Proof:
    """A check to run when all arrays are written, before the target is committed.

    It decodes the new tree as if it were a foreign checkpoint, and compares it with the source,
    key by key and value by value, as `compare` does. The processes of a team share the values.
    """

    async def verify(writer: Writer | Writers) -> None:
        written = writer.read_back(conversion.tree)
        source, target = agree_on_layers(
            replace(conversion.source, state=conversion.state),
            _understood(conversion, written),
        )
        findings, common = line_up(source.state.leaves(), target.state.leaves(), ignore_dtype=True)
        if findings:
            keys = [spell(finding.key) for finding in findings]
            raise DamagedCheckpoint(
                "the new checkpoint does not hold the same leaves", details=keys
            )
        pairs = join_layers([_as_target(*triple) for triple in common], source.groups)
        both = {**items, **written.stores}
        values = await compare_pairs(pairs, both, EXACT, max_memory, team)
        wrong = [spell(key) for key, found in values.statistics.items() if found.unequal]
        if wrong:
            raise DamagedCheckpoint(
                "the new checkpoint does not hold the same values; nothing was committed",
                details=wrong,
            )

    return verify


def _understood(conversion: Conversion, written: Item) -> Understood:
    return understand(
        written.tree,
        custom_metadata={RECORD: conversion.record.to_json()},
        is_scanned=conversion.scan_layers,
        layout=conversion.layout,
    )


def _as_target(key: Key, source: View, target: View) -> tuple[Key, View, View]:
    """The pair with the source in the target's element type."""
    return key, cast(source, dtype_of(target)), target
