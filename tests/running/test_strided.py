"""Copies with steps: as many elements in the same places as one copy for each piece makes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnxconv.renaming import Divide, Halves, Merge, Pairs, Transpose, apply_steps
from nnxconv.running.strided import copies
from nnxconv.tree import Source, fill, pieces

STEPS = [
    (Transpose((1, 0)), Divide(1, (4, 8)), Pairs(2, 1)),
    (Divide(0, (4, 8)), Pairs(1, 1), Transpose((2, 0, 1))),
    (Divide(0, (4, 8)), Halves(1, 1), Merge(0, (4, 8))),
    (Transpose((1, 0)), Pairs(1, 4), Divide(1, (8, 4))),
]


@pytest.mark.parametrize("steps", STEPS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_region_is_filled_as_by_one_copy_for_each_piece(steps, data):
    stored = np.arange(32 * 6, dtype=np.float32).reshape(32, 6)
    [view] = apply_steps(steps, [Source("w", (32, 6), "float32", (32, 6))], 1)
    starts = [data.draw(st.integers(0, size - 1)) for size in view.shape]
    both = zip(starts, view.shape, strict=True)
    region = tuple(slice(at, data.draw(st.integers(at + 1, size))) for at, size in both)
    reads = [(p, wanted) for p in pieces(view) if (wanted := p.source_region(region)) is not None]
    found = np.full([part.stop - part.start for part in region], -1, np.float32)
    for one in copies(reads):
        one.carry(stored, (slice(0, 32), slice(0, 6)), found, region)
    wanted = np.empty_like(found)
    for piece, there in reads:
        target = piece.target_region(there)
        assert target is not None
        inside = tuple(
            slice(t.start - r.start, t.stop - r.start) for t, r in zip(target, region, strict=True)
        )
        wanted[inside] = piece.turn(stored[there], there)
    np.testing.assert_array_equal(found, wanted)


def test_rotary_heads_take_two_copies_each():
    [view] = apply_steps(STEPS[0], [Source("w", (32, 6), "float32", (32, 6))], 1)
    whole = tuple(slice(0, size) for size in view.shape)
    reads = [(piece, piece.source_region(whole)) for piece in pieces(view)]
    assert (len(reads), len(copies(reads))) == (32, 8)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_an_array_is_filled_whatever_the_order_of_its_axes(order):
    values = np.random.default_rng(0).random((37, 40, 35)).transpose(order)
    for target in (np.zeros(values.shape), np.zeros(values.shape[::-1]).T):
        fill(target, values)
        np.testing.assert_array_equal(target, values)
