"""In what a checkpoint is not what it shall be loaded into, all at once, as `compare` tells it."""

from collections import Counter
from collections.abc import Sequence

from nnxconv.comparing import Finding, Kind, line_up, under_other_names
from nnxconv.errors import Mismatch
from nnxconv.layouts import FLOATS
from nnxconv.state import TrainState
from nnxconv.tree import (
    Leaf,
    Literal,
    counted,
    dtype_of,
    notation,
    prng_impl_of,
    short_dtype,
    spell,
)

KINDS: dict[Kind, str] = {
    "missing": "only in the checkpoint",
    "extra": "only in `like`",
    "shape": "in shape",
    "dtype": "in type",
}
"""How the verdict counts findings; the checkpoint is side a, `like` is side b."""

OTHER_NAMES = (
    "where names alone differ, `nnxconv match CHECKPOINT TEMPLATE` proposes rules for `rename=`"
)


def refuse_differences(state: TrainState, like: TrainState, casts: bool) -> None:
    """Refuses a state that is not that of `like`, in every leaf.

    Args:
      state: of the checkpoint.
      like: of the tree that is to be filled.
      casts: a difference in type alone is none, of two floats or two integers.

    Raises:
      Mismatch: leaves are missing, unexpected, or of another shape or type; all are listed.
    """
    a, b = state.leaves(), like.leaves()
    findings, common = line_up(a, b, ignore_dtype=False)
    findings = [one for one in findings if not (casts and _can_cast(one))]
    findings += [
        Finding("dtype", key, left, right)
        for key, left, right in common
        if prng_impl_of(left) != prng_impl_of(right)
    ]
    if not findings:
        return
    counts = Counter(one.kind for one in findings)
    kinds = ", ".join(f"{counts[kind]:,} {told}" for kind, told in KINDS.items() if counts[kind])
    does = "does" if len(findings) == 1 else "do"
    total = counted(len(a.keys() | b.keys()), "array")
    raise Mismatch(
        f"{len(findings):,} of {total} {does} not fit `like`: {kinds}",
        details=_rows(findings),
        hint=_hint(findings, casts),
    )


def _can_cast(finding: Finding) -> bool:
    """True for a difference in type alone, of two floats or two integers."""
    a, b = finding.a, finding.b
    if finding.kind != "dtype" or a is None or b is None:
        return False
    if isinstance(a, Literal) or isinstance(b, Literal):
        return False
    types = (dtype_of(a), dtype_of(b))
    are_integers = all(short_dtype(dtype).startswith(("i", "u")) for dtype in types)
    return are_integers or all(dtype in FLOATS for dtype in types)


def _rows(findings: Sequence[Finding]) -> list[str]:
    """One line per finding, grouped by kind."""
    order = list(KINDS)
    rows = [
        (spell(one.key), _told(one.b if one.a is None else one.a), _difference(one))
        for one in sorted(findings, key=lambda one: order.index(one.kind))
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"{key:<{widths[0]}}  {array:<{widths[1]}}  {text}" for key, array, text in rows]


def _difference(finding: Finding) -> str:
    if finding.a is None or finding.b is None:
        return KINDS[finding.kind]
    return f"in `like`: {_told(finding.b)}"


def _told(leaf: Leaf | None) -> str:
    """Type and shape, and for typed PRNG keys their implementation."""
    if leaf is None:
        return ""
    impl = None if isinstance(leaf, Literal) else prng_impl_of(leaf)
    return notation(leaf) + (f" ({impl} key)" if impl else "")


def _hint(findings: Sequence[Finding], casts: bool) -> str:
    """A way out, where there is one for all findings."""
    if not casts and all(_can_cast(one) for one in findings):
        return "`cast=True` reads them in the types that `like` has"
    if all(one.kind in ("extra", "missing") and one.key[0] != "params" for one in findings):
        parts = dict.fromkeys(
            spell(one.key[:2] if one.key[0] == "aux" else one.key[:1]) for one in findings
        )
        return f"`without={list(parts)}` does not load them: `like` keeps what it has"
    return OTHER_NAMES if under_other_names(findings) else ""
