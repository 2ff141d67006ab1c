"""The outcome of a comparison: it counts, and owns the exit code."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal as OneOf

from nnxconv.comparing.difference import Difference, Tolerance
from nnxconv.tree import Key, Leaf, counted, in_order, may_be_renamed, notation, spell

Kind = OneOf["missing", "extra", "shape", "dtype", "value"]
KINDS: tuple[Kind, ...] = ("missing", "extra", "shape", "dtype", "value")

MATCH = 0
DIFFER = 1


@dataclass(frozen=True)
class Finding:
    """One leaf that is not the same on both sides.

    Attributes:
      kind: `missing` is only in a, `extra` only in b.
      key: canonical, for example `params.decoder.layers[3].mlp.wi.kernel`.
      a, b: the leaf on each side, None where there is none.
      difference: statistics, for a difference in values.
      values: of a scalar on both sides, when they are known.
    """

    kind: Kind
    key: Key
    a: Leaf | None
    b: Leaf | None
    difference: Difference | None = None
    values: tuple[str, str] | None = None


@dataclass(frozen=True)
class Side:
    """One of the two checkpoints: its path, layout, and how many leaves were compared."""

    path: str
    layout: str


@dataclass(frozen=True)
class Report:
    """What `compare` found.

    Attributes:
      findings: sorted by key.
      leaves: every key that was compared, with the leaf of a, or of b where a has none.
      statistics: of every leaf whose values were compared.
      compared_values: False when only metadata was read.
      ignores_dtype: True when differences in type alone are none.
      layer_groups: module paths of the layers, for example `("decoder", "layers")`.
      ignored: how many leaves were left aside, by the option that says so.
      read_bytes: bytes of values that were decoded; equal encoded chunks are not.
      equal_chunk_bytes: bytes of values that were proved equal without decoding.
      process: which of the processes that compared this one is; all have the whole report.
    """

    a: Side
    b: Side
    findings: Sequence[Finding]
    leaves: Mapping[Key, Leaf]
    tolerance: Tolerance
    compared_values: bool
    ignores_dtype: bool = False
    layer_groups: Sequence[Key] = ()
    statistics: Mapping[Key, Difference] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    read_bytes: int = 0
    equal_chunk_bytes: int = 0
    seconds: float = 0.0
    process: int = 0

    @property
    def is_match(self) -> bool:
        """True when nothing differs."""
        return not self.findings

    @property
    def exit_code(self) -> int:
        """0 for a match, 1 for a difference, as `diff` has them."""
        return MATCH if self.is_match else DIFFER

    @property
    def counts(self) -> Counter[Kind]:
        """How many findings there are of each kind."""
        return Counter(finding.kind for finding in self.findings)

    def render(self, *, verbose: bool = False) -> str:
        """The report as text: the verdict first, then one line per difference."""
        return report_text(self, verbose=verbose)


def under_other_names(findings: Iterable[Finding]) -> bool:
    """True when parameters that only a has may be some that only b has, called otherwise."""
    alone: dict[str, list[Leaf]] = {"missing": [], "extra": []}
    for finding in findings:
        leaf = finding.a if finding.kind == "missing" else finding.b
        if finding.kind in alone and finding.key[:1] == ("params",) and leaf is not None:
            alone[finding.kind].append(leaf)
    return may_be_renamed(alone["missing"], alone["extra"])


MAX_ROWS = 50
OTHER_NAMES = "where names alone differ, `nnxconv match A B` proposes rules for `--rename`"
_TOLD: dict[Kind, str] = {
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
    if under_other_names(report.findings):
        lines += ["", OTHER_NAMES]
    return "\n".join(lines)


def verdict(report: "Report") -> str:
    """The answer in one line."""
    total = len(report.leaves)
    arrays = counted(total, "array")
    if report.findings:
        count = len(report.findings)
        kinds = ", ".join(
            f"{report.counts[kind]:,} {text}" for kind, text in _TOLD.items() if report.counts[kind]
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
