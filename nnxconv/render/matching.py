"""The result of `match`, for people and for programs."""

from collections.abc import Iterator, Sequence
from typing import Any

from nnxconv.matching import Family, Proposal, shapes_of
from nnxconv.renaming import rule_line


def proposal_text(proposal: Proposal, output: str | None) -> str:
    """What is certain, with the evidence, what is not, and the rules."""
    lines = [proposal.summary(), ""]
    for title, rows in _sections(proposal):
        if rows:
            widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
            lines += [f"{title}:", *(f"  {_cells(row, widths)}" for row in rows), ""]
    if output is not None:
        lines.append(f"rules written to {output}")
    elif proposal.rules.rules:
        lines += ["rules:", *(f"  {rule_line(rule)}" for rule in proposal.rules)]
    else:
        lines.append("no rules: what is certain has the same keys on both sides")
    return "\n".join(lines)


def _cells(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
    return "  ".join([*padded, row[-1]]).rstrip()


def _sections(proposal: Proposal) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    pairs = proposal.pairs
    yield (
        "certain",
        [
            (str(p.source), "->", str(p.template), shapes_of(p.source), p.evidence)
            for p in pairs.certain
        ],
    )
    yield (
        "ambiguous",
        [
            (str(u.source) if not place else "", "or" if place else "->", str(c), shapes_of(c))
            for u in pairs.unclear
            for place, c in enumerate(u.candidates)
        ],
    )
    yield "only in the source", [_row(family) for family in pairs.only_source]
    yield "only in the template", [_row(family) for family in pairs.only_template]
    yield "these may fit with a step", [(rule_line(rule),) for rule in proposal.hints]
    yield "the rules were tried, and do not fit", [(p,) for p in proposal.problems]


def _row(family: Family) -> tuple[str, ...]:
    return str(family), shapes_of(family)


def proposal_json(proposal: Proposal) -> dict[str, Any]:
    """Everything about a proposal as JSON values."""
    pairs = proposal.pairs
    return {
        "source": proposal.source,
        "template": proposal.template,
        "complete": proposal.is_complete,
        "certain": [
            {"source": str(p.source), "template": str(p.template), "array": shapes_of(p.source)}
            | {"evidence": p.evidence}
            for p in pairs.certain
        ],
        "ambiguous": [
            {"source": str(u.source), "candidates": [str(c) for c in u.candidates]}
            for u in pairs.unclear
        ],
        "only_in_source": [str(family) for family in pairs.only_source],
        "only_in_template": [str(family) for family in pairs.only_template],
        "hints": [rule_line(rule) for rule in proposal.hints],
        "rules": [rule_line(rule) for rule in proposal.rules],
        "problems": list(proposal.problems),
    }
