"""The outcome of a comparison: it counts, and owns the exit code."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal as OneOf

from nnxconv.difference import Difference, Tolerance
from nnxconv.keys import Key
from nnxconv.report_text import report_text
from nnxconv.views import Leaf

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
