"""How much two blocks of values differ. Pure numpy, exact for every element type.

>>> a, b = np.array([1.0, np.nan, 3.0]), np.array([1.0, np.nan, 2.0])
>>> measure(a, b, Tolerance(atol=0.5, rtol=0.0)).beyond
1
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

STRIDE = 2**14
"""How many elements are compared at once, so that temporary arrays stay small."""


@dataclass(frozen=True)
class Tolerance:
    """`|a - b| <= atol + rtol * |b|` for floats; integers and bools must be equal.

    NaN equals NaN if `equal_nan`; infinities equal themselves only.
    """

    atol: float = 1e-5
    rtol: float = 1e-5
    equal_nan: bool = True


@dataclass
class Difference:
    """Statistics of |a - b| over the elements seen so far.

    Attributes:
      count: elements seen.
      unequal: elements whose values are not the same.
      beyond: elements beyond the tolerance.
      max_abs: largest |a - b|; infinite where one side is NaN or infinite and the other is not.
      sum_abs: sum of |a - b|.
      max_rel: largest |a - b| / max(|a|, |b|).
      worst: index of the first element with the largest |a - b|.
      infinite: elements whose |a - b| is infinite.
      histogram: how many elements have `2**n <= |a - b| < 2**(n + 1)`, by n.
    """

    count: int = 0
    unequal: int = 0
    beyond: int = 0
    max_abs: float = 0.0
    sum_abs: float = 0.0
    max_rel: float = 0.0
    worst: tuple[int, ...] | None = None
    infinite: int = 0
    histogram: Counter[int] = field(default_factory=Counter)

    @property
    def mean_abs(self) -> float:
        """Mean |a - b| over all elements."""
        return self.sum_abs / self.count if self.count else 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "histogram": list(self.histogram.items())}

    @staticmethod
    def from_json(told: dict[str, Any]) -> "Difference":
        """The statistics that `to_json` gave."""
        worst = None if told["worst"] is None else tuple(told["worst"])
        counts = dict(told["histogram"])
        return Difference(**{**told, "worst": worst, "histogram": Counter(counts)})

    def add(self, other: "Difference", offset: tuple[int, ...] = ()) -> None:
        """Takes in the statistics of a block that starts at `offset`, or at the start."""
        if other.worst is not None:
            start = offset or (0,) * len(other.worst)
            place = tuple(o + i for o, i in zip(start, other.worst, strict=True))
            is_earlier = other.max_abs == self.max_abs and place < (self.worst or place)
            if self.worst is None or other.max_abs > self.max_abs or is_earlier:
                self.worst = place
        self.count += other.count
        self.unequal += other.unequal
        self.beyond += other.beyond
        self.sum_abs += other.sum_abs
        self.max_abs = max(self.max_abs, other.max_abs)
        self.max_rel = max(self.max_rel, other.max_rel)
        self.infinite += other.infinite
        self.histogram.update(other.histogram)


def measure(a: np.ndarray, b: np.ndarray, tolerance: Tolerance) -> Difference:
    """The differences between two equally shaped blocks, indices relative to the block."""
    found = Difference(count=a.size)
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    for start in range(0, a.size, STRIDE):
        part = slice(start, start + STRIDE)
        _measure_part(flat_a[part], flat_b[part], tolerance, found, start)
    if found.worst is not None:
        found.worst = tuple(int(i) for i in np.unravel_index(found.worst[0], a.shape))
    return found


def _measure_part(
    a: np.ndarray, b: np.ndarray, tolerance: Tolerance, found: Difference, start: int
) -> None:
    unequal = _unequal(a, b)
    if tolerance.equal_nan:
        unequal &= ~(_is_nan(a) & _is_nan(b))
    [places] = np.nonzero(unequal)
    if not len(places):
        return
    x, y = _wide(a[places]), _wide(b[places])
    with np.errstate(all="ignore"):
        gap = _gap(x, y)
        size = np.maximum(_size(x), _size(y))
        relative = np.where(np.isfinite(gap) & (size > 0), gap / size, np.inf)
        allowed = tolerance.atol + tolerance.rtol * _size(y) if _is_inexact(x, y) else 0.0
        beyond = (gap > allowed) | ~np.isfinite(gap)
    worst = int(np.argmax(gap))
    if found.worst is None or gap[worst] > found.max_abs:
        found.worst = (start + int(places[worst]),)
    found.unequal += len(places)
    found.beyond += int(np.count_nonzero(beyond))
    with np.errstate(over="ignore"):
        found.sum_abs += float(gap.sum())
    found.max_abs = max(found.max_abs, float(gap[worst]))
    found.max_rel = max(found.max_rel, float(relative.max()))
    found.infinite += int(np.count_nonzero(np.isinf(gap)))
    found.histogram.update(_powers_of_two(gap))


def _unequal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two arrays of any types differ; integers of any two types exactly."""
    if a.dtype == b.dtype:
        return np.asarray(a != b)
    x, y = _wide(a), _wide(b)
    if {x.dtype.kind, y.dtype.kind} == {"i", "u"}:
        signed, unsigned = (x, y) if x.dtype.kind == "i" else (y, x)
        return (signed < 0) | (signed.astype(np.uint64) != unsigned)
    return np.asarray(x != y)


def _wide(values: np.ndarray) -> np.ndarray:
    """The values in a type in which they and their differences are exact, or float64."""
    kind = _kind(values)
    if kind == "c":
        return values.astype(np.complex128)
    if kind == "f":
        return values.astype(np.float64)
    return values.astype(np.uint64 if kind == "u" else np.int64)


def _kind(values: np.ndarray) -> str:
    """`f`, `c`, `i` or `u`, for the types of ml_dtypes as well."""
    kind = values.dtype.kind
    if kind == "b":
        return "i"
    if kind in "fciu":
        return kind
    name = values.dtype.name
    return "u" if name.startswith("uint") else "i" if name.startswith("int") else "f"


def _is_nan(values: np.ndarray) -> np.ndarray:
    return np.isnan(values) if _kind(values) in "fc" else np.zeros(values.shape, bool)


def _is_inexact(x: np.ndarray, y: np.ndarray) -> bool:
    return x.dtype.kind in "fc" or y.dtype.kind in "fc"


def _size(values: np.ndarray) -> np.ndarray:
    """|values| in float64; nothing wraps around."""
    if values.dtype.kind == "i":
        return np.abs(values.astype(np.float64))
    return np.abs(values).astype(np.float64)


def _gap(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|x - y| in float64; infinite where exactly one side is not finite, or they differ in that."""
    if {x.dtype.kind, y.dtype.kind} == {"i", "u"}:
        return np.abs(x.astype(object) - y.astype(object)).astype(np.float64)
    if _is_inexact(x, y):
        gap = np.abs(_inexact(x) - _inexact(y)).astype(np.float64)
        return np.where(np.isnan(gap), math.inf, gap)
    larger, smaller = np.maximum(x, y).astype(np.uint64), np.minimum(x, y).astype(np.uint64)
    return (larger - smaller).astype(np.float64)


def _powers_of_two(gap: np.ndarray) -> dict[int, int]:
    """How many gaps lie in `2**n <= gap < 2**(n + 1)`, by n; zero and infinity in none.

    >>> _powers_of_two(np.array([0.25, 0.3, 1.0, 3.0, np.inf, 0.0]))
    {-2: 2, 0: 1, 1: 1}
    """
    exponents = np.bincount(gap.view(np.int64) >> 52, minlength=2048)  # of positive float64
    return {int(e) - 1023: int(exponents[e]) for e in np.flatnonzero(exponents) if 0 < e < 2047}


def _inexact(values: np.ndarray) -> np.ndarray:
    return values if values.dtype.kind in "fc" else values.astype(np.float64)
