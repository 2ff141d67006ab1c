"""Views in normal form, and views taken to pieces."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nnxconv.tree.array_notation import notation
from nnxconv.tree.elements import cast, dtype_of, size_bytes, with_kind
from nnxconv.tree.normal_form import concat, moved, part, slot, stack
from nnxconv.tree.piece import _KEPT, pieces
from nnxconv.tree.reshaping import divided, merged, permuted
from nnxconv.tree.views import (
    Cast,
    Concat,
    Moved,
    Part,
    Slot,
    Source,
    Stack,
    with_axis,
    without_axis,
)

modest = settings(max_examples=60, deadline=None)


class Arrays:
    """Stored arrays whose elements are all different, made as they are asked for."""

    def __init__(self):
        self.values = {}
        self.count = 0

    def new(self, shape, dtype="float32"):
        source = Source(f"s{len(self.values)}", shape, dtype, shape)
        size = int(np.prod(shape))
        numbers = np.arange(self.count, self.count + size, dtype=dtype)
        self.values[source.name] = numbers.reshape(shape)
        self.count += size
        return source


SHAPES = st.lists(st.integers(1, 4), max_size=3).map(tuple)


@st.composite
def composed(draw, stays_normal=False):
    """A view made by some operations, its values made by numpy, and the arrays it is made of.

    The operations are those that keep views in normal form, or the bare ones that do not. A normal
    view here is cut or put end to end, not both: what such a view drops again leaves several forms.
    """
    arrays = Arrays()
    view = arrays.new(draw(SHAPES))
    value = arrays.values[view.name]
    unused = draw(st.sampled_from(("part", "concat"))) if stays_normal else ""
    for _ in range(draw(st.integers(0, 5))):
        make = _NORMAL if stays_normal or draw(st.booleans()) else _BARE
        view, value = _step(draw, make, view, value, arrays, unused)
    return view, value, arrays.values


_NORMAL = {
    "slot": slot,
    "stack": stack,
    "part": part,
    "concat": concat,
    "moved": moved,
    "cast": cast,
}
_BARE = {
    "slot": Slot,
    "part": Part,
    "concat": lambda views, axis: Concat(tuple(views), axis),
    "stack": lambda views, axis: Stack(tuple(views), axis),
    "moved": Moved,
    "cast": Cast,
}


def _is_ragged(view):
    """True of layers that are put together from different parts: end to end with more, these would
    be parts of each layer, and not of all layers at once."""
    if isinstance(view, Stack) and any(isinstance(item, Concat) for item in view.items):
        return True
    below = view.items if isinstance(view, Stack | Concat) else [getattr(view, "of", None)]
    return any(_is_ragged(one) for one in below if one is not None)


def _step(draw, make, view, value, arrays, unused):
    axes = st.integers(0, value.ndim - 1) if value.ndim else st.nothing()
    kinds = ["slot", "moved", "unstacked", "part", "concat"] if value.ndim else []
    kinds = [kind for kind in kinds if kind != unused]
    if unused and _is_ragged(view):
        kinds = [kind for kind in kinds if kind != "concat"]
    kind = draw(st.sampled_from([*kinds, *(["stack"] if value.ndim < 4 else []), "cast"]))
    if kind == "slot":
        axis = draw(axes)
        index = draw(st.integers(0, value.shape[axis] - 1))
        return make["slot"](view, axis, index), np.take(value, index, axis)
    if kind == "moved":
        source, target = draw(axes), draw(axes)
        return make["moved"](view, source, target), np.moveaxis(value, source, target)
    if kind == "unstacked":
        source, target = draw(axes), draw(axes)
        slots = [make["slot"](view, source, i) for i in range(value.shape[source])]
        return make["stack"](slots, target), np.moveaxis(value, source, target)
    if kind == "cast":
        dtype = draw(st.sampled_from(("float32", "float64")))
        return make["cast"](view, dtype), value.astype(dtype)
    if kind == "part":
        axis = draw(axes)
        least = min(2, value.shape[axis]) if unused else 1  # one element is a slot in disguise
        start = draw(st.integers(0, value.shape[axis] - least))
        stop = draw(st.integers(start + least, value.shape[axis]))
        return make["part"](view, axis, start, stop), value.take(range(start, stop), axis)
    others = [arrays.new(value.shape, dtype_of(view)) for _ in range(draw(st.integers(0, 2)))]
    items = draw(st.permutations([(view, value), *((s, arrays.values[s.name]) for s in others)]))
    if kind == "concat":
        axis = draw(axes)
        views, values = zip(*items, strict=True)
        return make["concat"](views, axis), np.concatenate(values, axis)
    axis = draw(st.integers(0, value.ndim))
    views, values = zip(*items, strict=True)
    return make["stack"](views, axis), np.stack(values, axis)


# --- normal form ------------------------------------------------------------------------------


@modest
@given(SHAPES.filter(bool), st.data())
def test_a_stack_of_all_slots_is_the_array_itself(shape, data):
    array = Arrays().new(shape)
    axis = data.draw(st.integers(0, len(shape) - 1))
    assert stack([slot(array, axis, i) for i in range(shape[axis])], axis) is array


@modest
@given(SHAPES.filter(bool), st.data())
def test_a_stack_of_all_slots_on_another_axis_is_the_array_with_that_axis_moved(shape, data):
    array = Arrays().new(shape)
    axes = st.integers(0, len(shape) - 1)
    source, target = data.draw(axes), data.draw(axes)
    assume(source != target)
    slots = [slot(array, source, i) for i in range(shape[source])]
    assert stack(slots, target) == Moved(array, source, target)


@modest
@given(composed(stays_normal=True), st.data())
def test_unstacking_undoes_stacking(made, data):
    view, value, _ = made
    count, axis = data.draw(st.integers(1, 4)), data.draw(st.integers(0, value.ndim))
    others = [Source(f"o{i}", value.shape, dtype_of(view), value.shape) for i in range(count - 1)]
    layers = [view, *others]
    together = stack(layers, axis)
    assert [slot(together, axis, i) for i in range(count)] == layers


@modest
@given(composed(stays_normal=True), st.data())
def test_stacking_undoes_unstacking(made, data):
    view, value, _ = made
    assume(value.ndim)
    axis = data.draw(st.integers(0, value.ndim - 1))
    assert stack([slot(view, axis, i) for i in range(value.shape[axis])], axis) == view


@modest
@given(composed(stays_normal=True), st.data())
def test_stacking_on_another_axis_is_moving_the_axis(made, data):
    view, value, _ = made
    assume(value.ndim)
    axes = st.integers(0, value.ndim - 1)
    source, target = data.draw(axes), data.draw(axes)
    slots = [slot(view, source, i) for i in range(value.shape[source])]
    assert stack(slots, target) == moved(view, source, target)


@modest
@given(composed(stays_normal=True), st.data())
def test_moving_an_axis_back_gives_the_view_back(made, data):
    view, value, _ = made
    assume(value.ndim)
    axes = st.integers(0, value.ndim - 1)
    source, target = data.draw(axes), data.draw(axes)
    assert moved(moved(view, source, target), target, source) == view


@modest
@given(composed(stays_normal=True), st.data())
def test_cutting_undoes_putting_end_to_end(made, data):
    view, value, _ = made
    assume(value.ndim)
    axis = data.draw(st.integers(0, value.ndim - 1))
    sizes = data.draw(st.lists(st.integers(1, 3), max_size=2))
    others = [
        Source(f"o{i}", with_axis(without_axis(value.shape, axis), axis, size), dtype_of(view), ())
        for i, size in enumerate(sizes)
    ]
    items = [view, *others]
    whole = concat(items, axis)
    edges = np.cumsum([0, *(item.shape[axis] for item in items)])
    assert [part(whole, axis, a, b) for a, b in itertools.pairwise(edges.tolist())] == items


@modest
@given(composed(stays_normal=True), st.data())
def test_putting_end_to_end_undoes_cutting(made, data):
    view, value, _ = made
    assume(value.ndim)
    axis = data.draw(st.integers(0, value.ndim - 1))
    size = value.shape[axis]
    cuts = data.draw(st.lists(st.integers(1, size - 1), unique=True)) if size > 1 else []
    edges = [0, *sorted(cuts), size]
    assert concat([part(view, axis, a, b) for a, b in itertools.pairwise(edges)], axis) == view


@settings(modest, derandomize=True)
@given(composed(stays_normal=True), st.data())
def test_merging_undoes_dividing(made, data):
    view, value, _ = made
    assume(value.ndim)
    axis = data.draw(st.integers(0, value.ndim - 1))
    size = value.shape[axis]
    inner = data.draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
    two = divided(view, axis, (size // inner, inner))
    assert two.shape == (*value.shape[:axis], size // inner, inner, *value.shape[axis + 1 :])
    assert merged(two, axis) == view


@modest
@given(composed(stays_normal=True), st.data())
def test_permuting_back_gives_the_view_back(made, data):
    view, value, _ = made
    assume("Moved(" not in repr(view))  # one move may be written in two ways
    order = data.draw(st.permutations(range(value.ndim)))
    there = permuted(view, order)
    assert there.shape == value.transpose(order).shape
    assert permuted(there, np.argsort(order).tolist()) == view


@modest
@given(composed())
def test_casting_to_the_type_that_is_there_changes_nothing(made):
    view, _, _ = made
    assert cast(view, dtype_of(view)) is view


@modest
@given(composed())
def test_a_view_has_the_shape_and_type_of_its_values(made):
    view, value, _ = made
    assert (view.shape, dtype_of(view)) == (value.shape, value.dtype.name)
    assert size_bytes(view) == value.nbytes


A = Source("a", (5, 6), "float32", (5, 6))
B = Source("b", (5, 6), "float32", (5, 6))
W = Source("w", (5, 3, 6), "float32", (5, 3, 6))
W_SLOTS = [slot(W, 1, i) for i in range(3)]

# views, axis, what their stack is
STACKS = {
    "slots out of order stay apart": (W_SLOTS[::-1], 1, Stack(tuple(W_SLOTS[::-1]), 1)),
    "some of the slots stay apart": (W_SLOTS[:2], 1, Stack(tuple(W_SLOTS[:2]), 1)),
    "one slot thrice is no array": ([W_SLOTS[0]] * 3, 1, Stack((W_SLOTS[0],) * 3, 1)),
    "a slot among others": ([A, W_SLOTS[1], B], 0, Stack((A, W_SLOTS[1], B), 0)),
    "equal casts are done once": (
        [Cast(A, "bfloat16"), Cast(B, "bfloat16")],
        0,
        Cast(Stack((A, B), 0), "bfloat16"),
    ),
    "different casts stay inside": (
        [Cast(A, "bfloat16"), Cast(B, "float64")],
        0,
        Stack((Cast(A, "bfloat16"), Cast(B, "float64")), 0),
    ),
    "cast slots are the cast array": ([cast(s, "float64") for s in W_SLOTS], 1, Cast(W, "float64")),
}


@pytest.mark.parametrize(("views", "axis", "expected"), STACKS.values(), ids=STACKS.keys())
def test_only_all_slots_of_one_array_in_order_are_that_array(views, axis, expected):
    assert stack(views, axis) == expected


def test_slots_of_two_equal_looking_arrays_are_not_one_array():
    other = Source("other", (5, 3, 6), "float32", (5, 3, 6))
    slots = [*W_SLOTS[:2], slot(other, 1, 2)]
    assert stack(slots, 1) == Stack(tuple(slots), 1)


# dtype, shape, as text
NOTATIONS = [
    ("float32", (16, 3, 32), "f32[16,3,32]"),
    ("float64", (), "f64[]"),
    ("bfloat16", (2048,), "bf16[2048]"),
    ("float8_e4m3fn", (4,), "f8_e4m3fn[4]"),
    ("int4", (4,), "i4[4]"),
    ("int64", (), "i64[]"),
    ("uint32", (2,), "u32[2]"),
    ("bool", (1,), "bool[1]"),
    ("complex64", (1, 2), "c64[1,2]"),
]


@pytest.mark.parametrize(("dtype", "shape", "text"), NOTATIONS)
def test_types_and_shapes_are_written_short(dtype, shape, text):
    assert notation(Source("x", shape, dtype, shape)) == text


def test_a_cast_number_becomes_a_python_number_inside_its_cast():
    step = Source("step", (), "uint32", ())
    python_number = Source("step", (), "uint32", (), kind="scalar")
    assert with_kind(Cast(step, "int64"), "scalar") == Cast(python_number, "int64")


# --- pieces -----------------------------------------------------------------------------------


@st.composite
def grids(draw, shape):
    """The regions of an irregular grid over a shape: each axis cut at some places."""
    axes = []
    for size in shape:
        cuts = draw(st.lists(st.integers(1, size - 1), unique=True) if size > 1 else st.just([]))
        edges = [0, *sorted(cuts), size]
        axes.append([slice(a, b) for a, b in itertools.pairwise(edges)])
    return list(itertools.product(*axes))


@modest
@given(composed(), st.data())
def test_reading_the_sources_region_by_region_gives_the_whole_view_once(made, data):
    view, value, stored = made
    result = np.full(value.shape, np.nan)
    for piece in pieces(view):
        for region in data.draw(grids(piece.source.shape)):
            where = piece.target_region(region)
            if where is not None:
                assert np.isnan(result[where]).all()
                result[where] = piece.turn(stored[piece.source.name][region], region)
    np.testing.assert_array_equal(result, value)


@modest
@given(composed(), st.data())
def test_reading_the_view_region_by_region_gives_the_whole_view_once(made, data):
    view, value, stored = made
    for region in data.draw(grids(value.shape)):
        origin = [part.start for part in region]
        block = np.full([part.stop - part.start for part in region], np.nan)
        for piece in pieces(view):
            wanted = piece.source_region(region)
            if wanted is None:
                continue
            where = piece.target_region(wanted)
            inside = tuple(
                slice(part.start - start, part.stop - start)
                for part, start in zip(where, origin, strict=True)
            )
            assert np.isnan(block[inside]).all()
            block[inside] = piece.turn(stored[piece.source.name][wanted], wanted)
        np.testing.assert_array_equal(block, value[region])


@modest
@given(composed())
def test_every_piece_has_the_rank_of_its_view(made):
    view, value, _ = made
    assert {piece.rank for piece in pieces(view)} == {value.ndim}


@modest
@given(composed())
def test_a_piece_with_an_axis_left_copies_nothing(made):
    view, _, stored = made
    for piece in pieces(view):
        if set(piece.axes) - {None}:
            values = stored[piece.source.name]
            whole = tuple(slice(0, size) for size in values.shape)
            assert np.shares_memory(piece.turn(values, whole), values)


def test_a_layer_of_a_stack_on_disk_is_its_source_with_one_axis_fixed():
    [piece] = pieces(slot(W, 1, 2))
    assert (piece.axes, piece.fixed, piece.placed) == ((0, None, 1), {1: 2}, {})
    assert piece.image_of_chunks() == (5, 6)


def test_a_region_that_misses_the_fixed_index_is_outside_the_piece():
    [piece] = pieces(slot(W, 1, 2))
    assert piece.target_region((slice(0, 5), slice(0, 2), slice(0, 6))) is None
    assert piece.target_region((slice(1, 5), slice(2, 3), slice(0, 6))) == (
        slice(1, 5),
        slice(0, 6),
    )


def test_a_region_of_a_stack_without_the_layer_has_nothing_of_its_piece():
    first, second = pieces(stack([A, B], 1))
    region = (slice(0, 5), slice(1, 2), slice(3, 6))
    assert first.source_region(region) is None
    assert second.source_region(region) == (slice(0, 5), slice(3, 6))


def test_pieces_are_kept_for_as_long_as_their_view_is():
    first, second = Source("a", (2,), "float32", (2,)), Source("b", (2,), "float32", (2,))
    before = len(_KEPT)
    view = Stack((first, second), 0)
    assert pieces(view) is pieces(view)
    assert len(_KEPT) == before + 2
    del view
    assert len(_KEPT) == before
