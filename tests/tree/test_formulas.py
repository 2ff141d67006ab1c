"""Formulas: what is computed of stacks is what is computed of each layer, whatever the region."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnxconv.tree import Average, Formula, Multiply, Source, cast, compute, operand_regions, stack
from nnxconv.tree.formulas import is_computed, region_cost, sources_of
from nnxconv.tree.operations import LowRank

GENERATOR = np.random.default_rng(0)


def source(name, shape):
    return Source(name, shape, "float32", shape)


def evaluate(view, stored):
    """The values of a view by brute force: formulas of whole operands, stacks by numpy."""
    match view:
        case Source(name=name):
            return stored[name]
        case Formula(operation, operands, dtype, precision):
            whole = tuple(slice(0, size) for size in view.shape)
            values = [evaluate(one, stored) for one in operands]
            return compute(operation, values, whole, precision).astype(dtype)
    return np.stack([evaluate(item, stored) for item in view.items], view.axis)


def low_rank(layer, shape, in_axes, rank, factor, first=0):
    """A layer's formula, its operands' values, and what numpy makes of them."""
    inner = slice(first, first + in_axes)
    w = GENERATOR.normal(size=shape).astype("float32")
    a = GENERATOR.normal(size=(*shape[inner], rank)).astype("float32")
    b = GENERATOR.normal(size=(rank, *shape[:first], *shape[inner.stop :])).astype("float32")
    names = [f"{name}{layer}" for name in "wab"]
    views = tuple(source(n, v.shape) for n, v in zip(names, (w, a, b), strict=True))
    formula = Formula(LowRank(factor, in_axes, first=first), views, "float32")
    product = np.moveaxis(np.tensordot(a, b, 1), range(in_axes), range(first, inner.stop))
    expected = w + np.float32(factor) * product
    return formula, dict(zip(names, (w, a, b), strict=True)), expected


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.data(),
)
def test_a_product_of_low_rank_is_the_same_for_a_stack_and_for_each_layer(
    sizes, layers, in_axes, rank, data
):
    shape, in_axes = tuple(sizes), min(in_axes, len(sizes) - 1)
    axis = data.draw(st.integers(0, len(shape)))
    first = data.draw(st.integers(0, len(shape) - in_axes))
    every = [low_rank(layer, shape, in_axes, rank, 0.5, first) for layer in range(layers)]
    stored = {name: value for _, values, _ in every for name, value in values.items()}
    whole = stack([formula for formula, _, _ in every], axis)
    assert isinstance(whole, Formula)
    expected = np.stack([value for _, _, value in every], axis)
    np.testing.assert_allclose(evaluate(whole, stored), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.integers(1, 3), st.data())
def test_a_region_of_a_product_needs_these_regions_of_its_factors(sizes, rank, data):
    shape = tuple(sizes)
    in_axes = data.draw(st.integers(1, len(shape) - 1))
    first = data.draw(st.integers(0, len(shape) - in_axes))
    formula, stored, expected = low_rank(0, shape, in_axes, rank, 2.0, first)
    starts = [data.draw(st.integers(0, size - 1)) for size in shape]
    region = tuple(slice(start, size) for start, size in zip(starts, shape, strict=True))
    values = list(stored.values())
    needed = operand_regions(formula.operation, [value.shape for value in values], region)
    parts = [value[one] for value, one in zip(values, needed, strict=True)]
    found = compute(formula.operation, parts, region, "float32")
    np.testing.assert_allclose(found, expected[region], rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(1, 3), st.data())
def test_a_region_of_what_is_computed_is_that_region_of_the_whole(sizes, layers, data):
    shape = tuple(sizes)
    axis = data.draw(st.integers(0, len(shape)))
    factors = [GENERATOR.normal(size=shape).astype("float32") for _ in range(layers)]
    views = [
        Formula(
            Multiply(tuple(f.reshape(-1).tolist()), shape), (source(f"w{n}", shape),), "float32"
        )
        for n, f in enumerate(factors)
    ]
    stored = {f"w{n}": GENERATOR.normal(size=shape).astype("float32") for n in range(layers)}
    whole = stack(views, axis)
    expected = evaluate(whole, stored)
    region = tuple(
        slice(start, data.draw(st.integers(start + 1, size)))
        for size in whole.shape
        for start in [data.draw(st.integers(0, size - 1))]
    )
    [needed] = operand_regions(whole.operation, [whole.shape], region)
    operand = evaluate(whole.operands[0], stored)
    part = compute(whole.operation, [operand[needed]], region, "float32")
    np.testing.assert_array_equal(part, expected[region])


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5))
def test_the_average_of_equal_arrays_is_that_array_bit_for_bit(weights):
    shares = tuple(np.array(weights) / sum(weights))
    values = np.array([1e-38, 0.1, -3.3e38, np.inf, -np.inf, 0.0], "float32")
    averaged = compute(Average(shares), [values] * len(shares), (slice(0, 6),), "float32")
    np.testing.assert_array_equal(averaged, values)


def test_an_average_is_that_of_numpy():
    values = [GENERATOR.normal(size=(3, 4)).astype("float32") for _ in range(3)]
    region = (slice(0, 3), slice(0, 4))
    averaged = compute(Average((0.5, 0.3, 0.2)), values, region, "float64")
    np.testing.assert_allclose(averaged, np.average(values, 0, (0.5, 0.3, 0.2)), rtol=1e-12)


def test_layers_that_are_computed_in_different_ways_stay_a_stack_of_formulas():
    a, b = (source(name, (2,)) for name in "ab")
    one = Formula(Average((0.5, 0.5)), (a, b), "float32")
    other = Formula(Average((0.25, 0.75)), (a, b), "float32")
    whole = stack([one, other], 0)
    assert is_computed(whole)
    assert {found.name for found in sources_of(whole)} == {"a", "b"}
    assert evaluate(whole, {"a": np.zeros(2), "b": np.ones(2)}).tolist() == [[0.5, 0.5], [0.75] * 2]


def test_a_cast_is_the_one_at_the_end():
    formula = Formula(Multiply((2.0,), (1,)), (source("w", (3,)),), "float32")
    assert cast(formula, "bfloat16") == Formula(
        formula.operation, formula.operands, "bfloat16", "float32"
    )


@pytest.mark.parametrize(("rank", "expected"), [(2, 4 * 4 * 8 + 2 * 4 * 2 * 8 + 16 * 8)])
def test_a_region_costs_its_operands_and_the_result(rank, expected):
    formula, _, _ = low_rank(0, (4, 4), 1, rank, 1.0)
    assert region_cost(formula, (slice(0, 4), slice(0, 4))) == expected
