"""The result of `match`, for people and for programs."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nnxconv.matching import (
    LeafPair,
    ModuleFamily,
    ModulePair,
    Proposal,
    Slot,
    echo_lines,
    named,
    only_lines,
    rules_of,
    slots_told,
)
from nnxconv.renaming import rule_line, step_line
from nnxconv.tree import notation, spell


def proposal_text(proposal: Proposal, output: str | None) -> str:
    """What is certain, with the evidence, what is not, and the rules, module by module."""
    lines = [proposal.summary(), ""]
    for title, rows in _sections(proposal):
        if rows:
            lines += [f"{title}:", *_table(rows), ""]
    if not proposal.rules.rules:
        lines.append("no rules: what is certain has the same keys on both sides")
        if output is not None and proposal.exit_code:
            lines.append(f"{output} has what is not certain, as comments")
    elif output is not None:
        lines.append(f"rules written to {output}")
    else:
        lines += ["rules:", *(f"  {rule_line(rule)}" for rule in proposal.rules)]
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  " + "  ".join([*padded, row[-1]]).rstrip()


def _sections(proposal: Proposal) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    pairs = proposal.pairs
    yield "certain", list(map(_row, pairs.certain))
    yield "proposed, for their names are alike", list(map(_row, pairs.proposed))
    yield "certain, but turned or not", [row for p in pairs.turned for row in _readings(p)]
    yield (
        "open",
        [
            (str(u.source) if not place else "", "or" if place else "->", *_row(found)[2:4])
            for u in pairs.unclear
            for place, found in enumerate(u.candidates)
        ],
    )
    yield "only in the source", [(line,) for line in only_lines(pairs.only_source)]
    yield "only in the template", [(line,) for line in only_lines(pairs.only_template)]
    yield (
        "of the same values in some order, but in no pair",
        [(line,) for line in echo_lines(pairs.echoes)],
    )
    yield "the rules were tried, and do not fit", [(p,) for p in proposal.problems]


def _row(found: ModulePair) -> tuple[str, ...]:
    """The two modules, their arrays, and the evidence with the steps."""
    arrays = slots_told([slot for leaf in found.leaves for slot in leaf.sources])
    told = [found.evidence, *_steps_told(found.leaves)]
    return named(found.sources), "->", named(found.templates), arrays, "; ".join(told)


def _steps_told(leaves: Iterable[LeafPair]) -> Iterator[str]:
    for leaf in leaves:
        steps = leaf.steps[0]
        if leaf.is_decided and steps:
            yield f"{leaf.sources[0].name} {', '.join(map(step_line, steps))}".strip()


def _readings(found: ModulePair) -> Iterator[tuple[str, ...]]:
    """A line for each way to read the arrays of a pair."""
    names = dict.fromkeys(name for leaf in found.leaves for name in leaf.readings)
    for place, name in enumerate(names):
        rules = [rule_line(rule) for rule in rules_of(found, name)] or ["as it is"]
        head = (*_row(found)[:3], "") if not place else ("", "or", "", "")
        yield (*head[:3], name, "; ".join(rules))


# --- for programs -----------------------------------------------------------------------------


def proposal_json(proposal: Proposal) -> dict[str, Any]:
    """Everything about a proposal as JSON values, leaf by leaf."""
    pairs = proposal.pairs
    return {
        "source": proposal.source,
        "template": proposal.template,
        "complete": proposal.is_complete,
        "certain": [leaf for found in pairs.certain for leaf in _leaves_json(found)],
        "proposed": [leaf for found in pairs.proposed for leaf in _leaves_json(found)],
        "turned": [leaf for found in pairs.turned for leaf in _leaves_json(found)],
        "open": [
            {
                "module": str(unclear.source),
                "candidates": [named(found.templates) for found in unclear.candidates],
                "sources": [_spelled(slot, key) for slot, key in _leaves_of(unclear.source)],
            }
            for unclear in pairs.unclear
        ],
        "only_in_source": _only_json(pairs.only_source),
        "only_in_template": _only_json(pairs.only_template),
        "same_values": [
            {"source": spell(e.source), "template": spell(e.template), "more_zeros": e.zeros}
            for e in pairs.echoes
        ],
        "rules": [rule_line(rule) for rule in proposal.rules],
        "problems": list(proposal.problems),
    }


def _leaves_json(found: ModulePair) -> Iterator[dict[str, Any]]:
    for leaf in found.leaves:
        readings = {name: list(leaf.moves(name)) for name in leaf.readings}
        first = next(iter(readings.values()))
        for place, move in enumerate(first):
            steps = {
                name: [step_line(step) for step in moves[place].steps]
                for name, moves in readings.items()
            }
            yield {
                "sources": [
                    _spelled(s, k) for s, k in zip(leaf.sources, move.sources, strict=True)
                ],
                "templates": [
                    _spelled(s, k) for s, k in zip(leaf.templates, move.targets, strict=True)
                ],
                "arrays": [notation(slot.leaves[place]) for slot in leaf.sources],
                "evidence": found.evidence,
                **(
                    {"steps": next(iter(steps.values()))}
                    if leaf.is_decided
                    else {"readings": steps}
                ),
            }


def _leaves_of(module: ModuleFamily) -> Iterator[tuple[Slot, Any]]:
    return ((slot, key) for slot in module.slots.values() for key in slot.keys)


def _only_json(only: Iterable[tuple[ModuleFamily, Slot]]) -> list[str]:
    return [_spelled(slot, key) for _, slot in only for key in slot.keys]


def _spelled(slot: Slot, key: Any) -> str:
    """The key with its collection, as `inspect` has it."""
    head = ("params",) if slot.collection == "params" else ("aux", slot.collection)
    return spell((*head, *key))
