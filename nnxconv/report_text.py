"""A comparison's report as plain text: the verdict first, then one line per difference."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nnxconv.keys import in_order, spell
from nnxconv.sizes import counted
from nnxconv.views import notation

if TYPE_CHECKING:
    from nnxconv.report import Finding, Kind, Report

MAX_ROWS = 50
KINDS: dict["Kind", str] = {
    "missing": "only in a",
    "extra": "only in b",
    "shape": "in shape",
    "dtype": "in type",
    "value": "in value",
}
"""How the verdict counts findings."""
MARKS = {"missing": "-", "extra": "+", "shape": "*", "dtype": "*", "value": "*"}
"""As rclone has them: `-` only in a, `+` only in b, `*` different, `=` equal."""


def report_text(report: "Report", *, verbose: bool) -> str:
    """The report for people; `verbose` lists equal leaves as well and shortens nothing."""
    lines = [verdict(report)]
    if report.findings:
        lines += ["", *_table(report, verbose)]
    if verbose:
        lines += ["", *_every_leaf(report)]
    footnotes = [*report.notes, *ignored_lines(report)]
    if footnotes:
        lines += ["", *footnotes]
    return "\n".join(lines)


def verdict(report: "Report") -> str:
    """The answer in one line."""
    total = len(report.leaves)
    arrays = counted(total, "array")
    if report.findings:
        count = len(report.findings)
        kinds = ", ".join(
            f"{report.counts[kind]:,} {text}" for kind, text in KINDS.items() if report.counts[kind]
        )
        return f"{count:,} of {arrays} {'differs' if count == 1 else 'differ'}: {kinds}"
    if not report.compared_values:
        same = "names and shapes" if report.ignores_dtype else "names, shapes and types"
        return f"match: {arrays} have the same {same}; values were not compared"
    tolerance = report.tolerance
    exact = tolerance.atol == 0 and tolerance.rtol == 0
    within = "exactly" if exact else f"within atol {tolerance.atol:g}, rtol {tolerance.rtol:g}"
    return f"match: {arrays} equal {within}"


def _table(report: "Report", verbose: bool) -> Iterator[str]:
    """The findings, grouped by kind; capped at 50 lines with a count."""
    order = list(MARKS)
    findings = sorted(report.findings, key=lambda finding: order.index(finding.kind))
    shown = findings if verbose else findings[:MAX_ROWS]
    rows = [(spell(finding.key), *_cells(finding)) for finding in shown]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, array, text in rows:
        yield f"  {name:<{widths[0]}}  {array:<{widths[1]}}  {text}"
    if len(findings) > len(shown):
        yield f"  and {len(findings) - len(shown):,} more; `--verbose` or `--json` shows all"


def _cells(finding: "Finding") -> tuple[str, str]:
    """What the array is, and how it differs."""
    a = "" if finding.a is None else notation(finding.a)
    b = "" if finding.b is None else notation(finding.b)
    if finding.kind == "missing":
        return a, "only in a"
    if finding.kind == "extra":
        return b, "only in b"
    if finding.values is not None:
        return a, f"a: {finding.values[0]}  b: {finding.values[1]}"
    if finding.difference is None:
        return a, f"in b: {b}"
    return a if a == b else f"{a} / {b}", _statistics(finding)


def _statistics(finding: "Finding") -> str:
    found = finding.difference
    assert found is not None and found.worst is not None
    where = ",".join(map(str, found.worst))
    return (
        f"max |a-b| {found.max_abs:.3g} at [{where}], mean {found.mean_abs:.3g},"
        f" max relative {found.max_rel:.3g}; {found.beyond:,} of {found.count:,} differ"
    )


def _every_leaf(report: "Report") -> Iterator[str]:
    """One line per leaf with its mark."""
    marks = {finding.key: MARKS[finding.kind] for finding in report.findings}
    for key in in_order(report.leaves):
        yield f"{marks.get(key, '=')} {spell(key)}  {notation(report.leaves[key])}"


def ignored_lines(report: "Report") -> Iterator[str]:
    """One line per option that left leaves aside."""
    for option, count in report.ignored.items():
        yield f"{counted(count, 'array')} left aside ({option})"
