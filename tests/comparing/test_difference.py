"""`measure` against an independent reference in exact arithmetic, for every element type."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnxconv.comparing.difference import STRIDE, Difference, Tolerance, measure

FLOATS = (
    "float16",
    "float32",
    "float64",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e4m3b11fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
)
COMPLEX = ("complex64", "complex128")
INTEGERS = (
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("int4", "uint4", "int2", "uint2"),
)
DTYPES = (*FLOATS, *COMPLEX, *INTEGERS, "bool")
EVERY_TYPE = st.sampled_from(DTYPES)
TOLERANCES = st.builds(
    Tolerance,
    st.sampled_from([0.0, 1e-5, 0.25, 3.0]),
    st.sampled_from([0.0, 1e-5, 0.125]),
    st.booleans(),
)


# --- arrays of every type ----------------------------------------------------------------------


def integer_range(dtype):
    info = ml_dtypes.iinfo(np.dtype(dtype))
    return int(info.min), int(info.max)


def elements(dtype):
    """Python numbers that the type holds, with its extremes, NaN and infinities."""
    if dtype == "bool":
        return st.booleans()
    if dtype in INTEGERS:
        low, high = integer_range(dtype)
        return st.integers(low, high) | st.sampled_from([low, high, 0, high - 1])
    special = [0.0, -0.0, 1.0, 1.0 + 2**-10, math.nan, math.inf, -math.inf]
    number = st.floats(width=32) | st.sampled_from(special)
    if dtype in COMPLEX:
        return st.builds(complex, number, number)
    if dtype == "float64":
        return st.floats() | st.sampled_from([*special, 5e-324, 2.0**53])
    return number


def to_array(values, shape, dtype):
    with np.errstate(all="ignore"):
        return np.array(values).astype(np.dtype(dtype)).reshape(shape) if values else np.empty(
            shape, dtype
        )  # fmt: skip


@st.composite
def pairs(draw, dtypes=EVERY_TYPE, other=None):
    """Two arrays of one shape; most elements are equal."""
    dtype = draw(dtypes)
    second = dtype if other is None else draw(other)
    shape = draw(st.sampled_from([(), (1,), (5,), (2, 3), (2, 1, 4), (0,), (3, 0)]))
    size = math.prod(shape)
    a = draw(st.lists(elements(dtype), min_size=size, max_size=size))
    b = [
        value if draw(st.booleans()) and second == dtype else draw(elements(second)) for value in a
    ]
    if dtype in INTEGERS or second in INTEGERS:
        return integer_array(a, shape, dtype), integer_array(b, shape, second)
    return to_array(a, shape, dtype), to_array(b, shape, second)


def integer_array(values, shape, dtype):
    """Integers without a detour through floats."""
    if dtype not in INTEGERS:
        return to_array(values, shape, dtype)
    wide = np.uint64 if dtype.startswith("u") else np.int64
    return np.array(values, wide).astype(np.dtype(dtype)).reshape(shape)


# --- the reference: one element at a time, in integers and fractions -----------------------------


def exact(element):
    """An element as (real, imaginary), each a Fraction, `nan`, or an infinity."""
    kind = np.asarray(element).dtype.name
    if kind.startswith("complex"):
        return tuple(part(float(x)) for x in (element.real, element.imag))
    if kind.startswith(("int", "uint", "bool")):
        return Fraction(int(element)), Fraction(0)
    return part(float(element)), Fraction(0)


def part(number):
    return Fraction(number) if math.isfinite(number) else number


def is_nan(x):
    return any(isinstance(p, float) and math.isnan(p) for p in x)


def is_finite(x):
    return all(isinstance(p, Fraction) for p in x)


def size(x):
    """|x|: exact for real numbers, to 60 digits and more for complex ones."""
    real, imaginary = x
    return abs(real) if not imaginary else root(real**2 + imaginary**2)


def root(square):
    scale = 2**1200  # so that the square root of the smallest subnormal has digits left
    return Fraction(math.isqrt(int(square * scale * scale)), scale)


def gap(x, y):
    if not (is_finite(x) and is_finite(y)):
        return math.inf
    return size((x[0] - y[0], x[1] - y[1]))


def reference(a, b, tolerance):
    """Statistics by the definitions alone: (difference, gaps)."""
    inexact = not all(x.dtype.name.startswith(("int", "uint", "bool")) for x in (a, b))
    found = Difference(count=a.size)
    total, gaps = Fraction(0), {}
    for index in np.ndindex(a.shape):
        x, y = exact(a[index]), exact(b[index])
        if (is_nan(x) and is_nan(y) and tolerance.equal_nan) or x == y:
            continue
        found.unequal += 1
        gaps[index] = between = gap(x, y)
        relative = math.inf
        is_beyond = True
        if between != math.inf:
            relative = between / max(size(x), size(y))
            allowed = Fraction(tolerance.atol) + Fraction(tolerance.rtol) * size(y)
            is_beyond = between > (allowed if inexact else 0)
        found.beyond += is_beyond
        total = math.inf if math.inf in (total, between) else total + between
        found.max_rel = max(found.max_rel, as_float(relative))
    found.sum_abs = as_float(total)
    found.max_abs = as_float(max(gaps.values(), default=0))
    return found, gaps


def as_float(number):
    try:
        return float(number)
    except OverflowError:
        return math.inf


def powers_of_two(gaps):
    """How many gaps lie between two powers of two; neither infinite nor subnormal ones."""
    numbers = [as_float(between) for between in gaps]
    normal = [x for x in numbers if 2.0**-1022 <= x < math.inf]
    return Counter(math.frexp(x)[1] - 1 for x in normal)


def close(x, y):
    """Equal up to the rounding of float64."""
    return x == y or math.isclose(x, y, rel_tol=1e-12)


def is_undecided(a, b, tolerance):
    """True where an element lies so near the tolerance that rounding decides."""
    for index in np.ndindex(a.shape):
        x, y = exact(a[index]), exact(b[index])
        between = gap(x, y)
        if between != math.inf:
            allowed = Fraction(tolerance.atol) + Fraction(tolerance.rtol) * size(y)
            if allowed and abs(between - allowed) < allowed * Fraction(1, 10**12):
                return True
    return False


def check(a, b, tolerance):
    found = measure(a, b, tolerance)
    expected, gaps = reference(a, b, tolerance)
    assert (found.count, found.unequal) == (expected.count, expected.unequal)
    if not is_undecided(a, b, tolerance):
        assert found.beyond == expected.beyond
    assert close(found.max_abs, expected.max_abs)
    assert close(found.sum_abs, expected.sum_abs)
    assert close(found.max_rel, expected.max_rel)
    assert found.infinite == sum(as_float(between) == math.inf for between in gaps.values())
    if not any(x.dtype.name.startswith("complex") for x in (a, b)):  # their |x| is rounded
        assert found.histogram == powers_of_two(gaps.values())
    if not gaps:
        assert found.worst is None
    else:
        assert found.worst in gaps
        assert close(as_float(gaps[found.worst]), expected.max_abs)


# --- the laws ----------------------------------------------------------------------------------


@given(pairs(), TOLERANCES)
@settings(max_examples=300, deadline=None)
def test_measure_agrees_with_exact_arithmetic(arrays, tolerance):
    check(*arrays, tolerance)


@pytest.mark.full
@given(
    pairs(st.sampled_from(FLOATS), st.sampled_from(FLOATS))
    | pairs(st.sampled_from(COMPLEX), st.sampled_from((*COMPLEX, *FLOATS))),
    TOLERANCES,
)
@settings(max_examples=300, deadline=None)
def test_floats_of_two_types_are_compared_in_the_wider_one(arrays, tolerance):
    check(*arrays, tolerance)


@given(pairs(st.sampled_from(INTEGERS), st.sampled_from((*INTEGERS, "bool"))), TOLERANCES)
@example((np.array([2**53 + 1], np.int64), np.array([2**53], np.uint64)), Tolerance())
@example((np.array([2**63 - 1], np.int64), np.array([2**63], np.uint64)), Tolerance())
@example((np.array([-1], np.int64), np.array([2**64 - 1], np.uint64)), Tolerance())
@settings(max_examples=300, deadline=None)
def test_integers_of_two_types_are_compared_by_value(arrays, tolerance):
    check(*arrays, tolerance)


@given(
    pairs(st.sampled_from(("int32", "uint8", "bool")), st.sampled_from(("float32", "float64"))),
    TOLERANCES,
)
@settings(max_examples=100, deadline=None)
def test_small_integers_and_floats_are_compared_by_value(arrays, tolerance):
    check(*arrays, tolerance)
    check(*reversed(arrays), tolerance)


@given(pairs(), TOLERANCES, st.data())
@settings(max_examples=300, deadline=None)
def test_blocks_merged_in_any_order_give_what_the_whole_gives(arrays, tolerance, data):
    a, b = arrays
    cuts = [sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=2))}) for n in a.shape]
    runs = [[slice(*run) for run in itertools.pairwise(cut)] for cut in cuts]
    blocks = data.draw(st.permutations(list(itertools.product(*runs))))
    merged = Difference()
    for block in blocks:
        offset = tuple(run.start for run in block)
        merged.add(measure(a[block], b[block], tolerance), offset)
    whole = measure(a, b, tolerance)
    assert (merged.count, merged.unequal, merged.beyond) == (
        whole.count,
        whole.unequal,
        whole.beyond,
    )
    assert (merged.max_abs, merged.max_rel) == (whole.max_abs, whole.max_rel)
    assert (merged.infinite, merged.histogram) == (whole.infinite, whole.histogram)
    assert close(merged.sum_abs, whole.sum_abs)
    assert merged.worst == whole.worst


def test_of_equally_bad_elements_the_first_is_the_worst_whatever_the_order_of_blocks():
    a, b = np.zeros(6, np.float32), np.ones(6, np.float32)
    for order in itertools.permutations(range(3)):
        merged = Difference()
        for block in order:
            part_of = slice(2 * block, 2 * block + 2)
            merged.add(measure(a[part_of], b[part_of], Tolerance()), (2 * block,))
        assert merged.worst == (0,)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "uint8"])
def test_arrays_longer_than_a_stride_are_measured_as_a_whole(dtype):
    a = np.ones((3, STRIDE // 2 + 1), np.dtype(dtype))
    b = a.copy()
    b[2, 7] = 4
    b[0, 0] = 2
    found = measure(a, b, Tolerance())
    assert (found.count, found.unequal, found.beyond) == (a.size, 2, 2)
    assert (found.max_abs, found.worst, found.sum_abs) == (3.0, (2, 7), 4.0)


@pytest.mark.parametrize("transposed", [False, True])
def test_arrays_that_are_not_contiguous_are_measured_by_their_indices(transposed):
    a = np.zeros((4, 6), np.float32)
    b = a.copy()
    b[1, 5] = 1
    if transposed:
        assert measure(a.T, b.T, Tolerance()).worst == (5, 1)
    else:
        assert measure(a[:, ::2], b[:, 1::2], Tolerance()).worst == (1, 2)


def test_the_mean_is_over_all_elements_and_zero_for_none():
    found = measure(np.array([0.0, 0.0, 0.0, 2.0]), np.zeros(4), Tolerance())
    assert found.mean_abs == 0.5
    assert Difference().mean_abs == 0.0


def test_a_difference_that_overflows_float64_is_infinite_and_beyond():
    big = np.array([1.5e308])
    found = measure(big, -big, Tolerance())
    assert (found.beyond, found.max_abs) == (1, math.inf)


def test_a_sum_that_overflows_float64_is_infinite_without_a_warning():
    big = np.array([1.5e308, 1.5e308])
    found = measure(big, np.zeros(2), Tolerance())
    assert (found.beyond, found.max_abs, found.sum_abs) == (2, 1.5e308, math.inf)
