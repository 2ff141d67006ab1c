"""Steps do to arrays what numpy does."""

import numpy as np
import pytest

from nnxconv.errors import BadInput
from nnxconv.renaming.steps import Divide, Halves, Merge, Pairs, Permute, Reshape
from nnxconv.tree import Source, pieces


def source(shape):
    return Source("w", shape, "float32", shape)


def values(view):
    """The values of a view whose source counts its elements."""
    found = np.full(view.shape, -1.0)
    for piece in pieces(view):
        stored = np.arange(np.prod(piece.source.shape)).reshape(piece.source.shape)
        region = tuple(slice(0, size) for size in piece.source.shape)
        found[piece.target_region(region)] = piece.turn(stored, region)
    return found


RESHAPES = [
    ((6,), (6, 1)),
    ((1, 1, 1, 6), (6,)),
    ((4, 6), (2, 2, 3, 2)),
    ((2, 2, 3, 4), (12, 4)),
    ((2, 3, 5, 4), (6, 10, 2)),  # both sides cut the others' axes
    ((3, 4), (4, 3)),  # every element on its own
    ((2, 1, 4), (1, 8)),
    ((), (1, 1)),
    ((5, 1), (5,)),
]


@pytest.mark.parametrize(("old", "new"), RESHAPES)
def test_reshape_is_that_of_numpy(old, new):
    w = source(old)
    there = Reshape(new, old)
    [view] = there.apply([w], 1)
    assert np.array_equal(values(view), np.arange(np.prod(old)).reshape(new))
    [back] = there.inverse().apply([view], 1)
    assert np.array_equal(values(back), values(w))


# step, shape, what becomes of 0, 1, 2, ...
ORDERS = [
    (Permute(0, (2, 0, 1)), (6,), [4, 5, 0, 1, 2, 3]),
    (Permute(-1, (1, 0)), (2, 2), [[1, 0], [3, 2]]),
    (Halves(0, 1), (6,), [0, 2, 4, 1, 3, 5]),
    (Halves(0, 2), (8,), [0, 2, 1, 3, 4, 6, 5, 7]),
    (Pairs(0, 2), (8,), [0, 2, 1, 3, 4, 6, 5, 7]),
    (Pairs(0, 1), (6,), [0, 3, 1, 4, 2, 5]),
    (Halves(1, 1), (1, 4), [[0, 2, 1, 3]]),
]


@pytest.mark.parametrize(("step", "shape", "wanted"), ORDERS)
def test_an_axis_is_put_into_another_order_and_back(step, shape, wanted):
    w = source(shape)
    [view] = step.apply([w], 1)
    assert values(view).tolist() == wanted
    [back] = step.inverse().apply([view], 1)
    assert np.array_equal(values(back), values(w))


# step, shape, message
REFUSED = [
    (Reshape((4, 4)), (4, 5), "it is f32[4,5], which cannot have the shape [4, 4]"),
    (Reshape((8,), (2, 4)), (4, 2), "it is f32[4,2], not of shape [2, 4]"),
    (Reshape((0,)), (0, 3), "it is f32[0,3], which cannot have the shape [0]"),
    (
        Reshape((300, 200)),
        (200, 300),
        "[300, 200] cuts f32[200,300] into 60,000 runs of elements, which is more than 16,384",
    ),
    (Divide(0, (-1, 4)), (6,), "axis 0 has 6, which is not -1 × 4"),
    (Merge(0, (-1, 4)), (2, 3), "axes 0 and 1 have [2, 3], not [-1, 4]"),
    (Permute(1, (1, 0)), (4, 5), "axis 1 of f32[4,5] has no 2 equal parts"),
    (Halves(0, 2), (6, 5), "axis 0 of f32[6,5] is not 2 heads of an even size"),
]


@pytest.mark.parametrize(("step", "shape", "message"), REFUSED)
def test_a_step_that_does_not_fit_is_refused(step, shape, message):
    with pytest.raises(BadInput) as caught:
        step.apply([source(shape)], 1)
    assert caught.value.message == message


def test_a_reshape_is_undone_only_where_the_shape_before_it_is_known():
    assert Reshape((8,)).inverse() is None
