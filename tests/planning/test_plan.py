"""Plans: integers only, checked before anything moves."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnxconv.errors import PlanError
from nnxconv.planning.blocks import MERGED_BYTES, MIB, SMALL_CHUNK_BYTES, regions
from nnxconv.planning.plan import Gather, Scatter, make_plan
from nnxconv.planning.undecoded import renamed_chunks
from nnxconv.tree.elements import cast, dtype_of, first_source, item_bytes, size_bytes
from nnxconv.tree.normal_form import concat, moved, part, slot, stack
from nnxconv.tree.piece import pieces
from nnxconv.tree.views import Cast, Literal, Source, with_axis, without_axis
from tests.support.states import values_of

modest = settings(max_examples=40, deadline=None)
GIB = 2**30
PLENTY = 2**50

# --- reference: what a plan reads and writes --------------------------------------------------


def writes(plan):
    """Every write of a plan: the key, the region, and the job that makes it."""
    for job in plan.jobs():
        if isinstance(job, Gather):
            yield job.target.key, job.region, job
        else:
            for array, piece in job.into:
                region = piece.target_region(job.region)
                if region is not None:
                    yield array.key, region, job


def reads(plan):
    """Every read of a plan: a stored array and a region of it."""
    for job in plan.jobs():
        if isinstance(job, Scatter):
            yield job.source, job.region
        else:
            for piece in job.parts:
                region = piece.source_region(job.region)
                if region is not None:
                    yield piece.source, region


def chunks_read(plan):
    """How often each chunk of each stored array is decoded."""
    counts = Counter()
    for source, region in reads(plan):
        grid = [
            range(part.start // chunk, -(-part.stop // chunk))
            for part, chunk in zip(region, source.chunks, strict=True)
        ]
        counts.update((source.name, place) for place in itertools.product(*grid))
    return counts


def all_chunks(source):
    grid = [
        range(-(-size // chunk)) for size, chunk in zip(source.shape, source.chunks, strict=True)
    ]
    return {(source.name, place) for place in itertools.product(*grid)}


def times_written(shape, written):
    """For the cells that the edges of all regions cut a shape into, how often each is written."""
    edges = [
        sorted({0, size} | {e for region in written for e in (region[a].start, region[a].stop)})
        for a, size in enumerate(shape)
    ]
    count = np.zeros([len(e) - 1 for e in edges], int)
    for region in written:
        cells = tuple(
            slice(e.index(part.start), e.index(part.stop))
            for e, part in zip(edges, region, strict=True)
        )
        count[cells] += 1
    return count


def is_covered_once(plan):
    """True when every element of every array is written exactly once."""
    written = {array.key: [] for array in plan.arrays}
    for key, region, _ in writes(plan):
        written[key].append(region)
    return all(
        (times_written(array.view.shape, written[array.key]) == 1).all() for array in plan.arrays
    )


# --- generated plans --------------------------------------------------------------------------

SIZES = st.sampled_from((1, 3, 64, 96, 256, 1000, 2048))


@st.composite
def sources(draw, name="w", min_rank=0):
    """Stored arrays from a few bytes to a few hundred MiB, in at most some hundred chunks."""
    shape = tuple(draw(st.lists(SIZES, min_size=min_rank, max_size=3)))
    chunks = tuple(
        draw(st.sampled_from((size, max(1, size // 4), max(1, size // 3)))) for size in shape
    )
    dtype = draw(st.sampled_from(("float32", "bfloat16", "complex64", "int4")))
    return Source(name, shape, dtype, chunks)


@st.composite
def layered(draw):
    """A stored stack: its source, its layer axis."""
    source = draw(sources(min_rank=1))
    axis = draw(st.integers(0, len(source.shape) - 1))
    layers = draw(st.integers(1, 6))
    chunk = draw(st.sampled_from((1, layers)))
    shape = with_axis(without_axis(source.shape, axis), axis, layers)
    chunks = with_axis(without_axis(source.chunks, axis), axis, chunk)
    return Source("w", shape, source.dtype, chunks), axis


@st.composite
def targets(draw):
    """What a conversion makes: arrays as they are, taken apart, moved, or put together."""
    kind = draw(st.sampled_from(("plain", "cast", "moved", "unstacked", "stacked")))
    if kind == "plain":
        return [(("w",), draw(sources()))]
    if kind == "cast":
        return [(("w",), Cast(draw(sources()), "float64"))]
    if kind == "moved":
        source = draw(sources(min_rank=2))
        axes = st.integers(0, len(source.shape) - 1)
        return [(("w",), moved(source, draw(axes), draw(axes)))]
    if kind == "unstacked":
        source, axis = draw(layered())
        count = source.shape[axis]
        return [(("layers", str(i)), slot(source, axis, i)) for i in range(count)]
    first = draw(sources("w0"))
    others = [
        Source(f"w{i}", first.shape, first.dtype, first.chunks)
        for i in range(1, draw(st.integers(2, 6)))
    ]
    return [(("w",), stack([first, *others], draw(st.integers(0, len(first.shape)))))]


def sources_of(leaves):
    found = {}
    for _, view in leaves:
        parts = [view]
        while parts:
            part = parts.pop()
            if isinstance(part, Source):
                found[part.name] = part
            else:
                parts += getattr(part, "items", None) or [part.of]
    return list(found.values())


@modest
@given(targets())
def test_every_element_is_written_exactly_once(leaves):
    assert is_covered_once(make_plan(leaves, PLENTY))


@modest
@given(targets())
def test_every_chunk_is_decoded_once(leaves):
    counts = chunks_read(make_plan(leaves, PLENTY))
    chunks = set().union(*(all_chunks(source) for source in sources_of(leaves)))
    assert counts == dict.fromkeys(chunks, 1)


@modest
@given(targets())
def test_chunks_are_never_larger_than_the_array(leaves):
    for array in make_plan(leaves, PLENTY).arrays:
        assert all(0 < c <= s for c, s in zip(array.chunks, array.view.shape, strict=True))


@modest
@given(targets())
def test_small_chunks_grow_until_they_are_ordinary(leaves):
    for array in make_plan(leaves, PLENTY).arrays:
        chunk_bytes = math.prod(array.chunks) * item_bytes(dtype_of(array.view))
        assert chunk_bytes >= min(SMALL_CHUNK_BYTES, size_bytes(array.view)) // 2
        image = max(image_bytes(array), SMALL_CHUNK_BYTES)
        # Chunks are merged up to that size as they are stored; a cast may widen what they become.
        stored = item_bytes(first_source(array.view).dtype)
        widened = max(1, item_bytes(dtype_of(array.view)) // stored)
        assert chunk_bytes <= max(image, MERGED_BYTES * widened)


def image_bytes(array):
    [first, *_] = sources_of([(array.key, array.view)])
    return math.prod(first.chunks) * item_bytes(dtype_of(array.view))


@modest
@given(targets(), st.integers(16, 4096))
def test_a_plan_keeps_to_its_memory_or_is_refused(leaves, memory):
    memory *= MIB
    try:
        plan = make_plan(leaves, memory)
    except PlanError as refused:
        assert refused.message.endswith(f"but --max_memory is {_size(memory)}")
        return
    assert plan.peak_bytes <= memory
    for window in plan.windows():
        held = sum(job.block_bytes for job in window)
        assert len(window) == 1 or held <= plan.window_bytes
        assert all(job.block_bytes <= plan.largest_block_bytes for job in window)


def _size(count):
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


@modest
@given(targets())
def test_windows_are_all_jobs_in_order(leaves):
    plan = make_plan(leaves, PLENTY)
    assert [job for window in plan.windows() for job in window] == list(plan.jobs())


@modest
@given(targets())
def test_bytes_are_counted_once(leaves):
    plan = make_plan(leaves, PLENTY)
    volumes = {array.key: 0 for array in plan.arrays}
    for key, region, _ in writes(plan):
        volumes[key] += math.prod(part.stop - part.start for part in region)
    total = sum(volumes[array.key] * item_bytes(dtype_of(array.view)) for array in plan.arrays)
    assert total == plan.total_bytes


# --- chunks -----------------------------------------------------------------------------------

BIG = Source("big", (4096, 8, 4096), "float32", (1024, 1, 1024))
LAYER = Source("layer", (4096, 4096), "float32", (1024, 1024))
SPANNING = Source("spanning", (4096, 8, 4096), "float32", (512, 8, 2048))
SMALL = Source("small", (256, 8, 256), "float32", (256, 1, 256))
NORM = Source("norm", (4096,), "float32", (4096,))
UNEVEN = Source("uneven", (1000, 1000), "float32", (300, 1000))

# the view, its chunks
CHUNKS = {
    "as they are": (BIG, (1024, 1, 1024)),
    "a layer has the chunks of its stack, without the layer axis": (slot(BIG, 1, 3), (1024, 1024)),
    "also where a chunk spans all layers": (slot(SPANNING, 1, 3), (512, 2048)),
    "a moved axis takes its chunks along": (moved(BIG, 1, 0), (1, 1024, 1024)),
    "a stack has one layer in a chunk": (stack([LAYER] * 8, 1), (1024, 1, 1024)),
    "small chunks become one": (SMALL, (256, 8, 256)),
    "a small layer is one chunk": (slot(SMALL, 1, 3), (256, 256)),
    "small layers are stacked in one chunk": (stack([NORM] * 8, 1), (4096, 8)),
    "a chunk that does not divide the array stays": (UNEVEN, (300, 1000)),
    "a scalar": (Source("s", (), "int32", ()), ()),
    "nothing": (Source("n", (0, 5), "float32", (0, 5)), (1, 5)),
    "a chunk larger than its array is cut": (Source("c", (3,), "float32", (8,)), (3,)),
}


@pytest.mark.parametrize(("view", "chunks"), CHUNKS.values(), ids=CHUNKS.keys())
def test_chunks_are_the_image_of_the_sources(view, chunks):
    [array] = make_plan([(("w",), view)], GIB).arrays
    assert array.chunks == chunks


def test_a_source_whose_chunks_span_all_layers_is_read_once_for_all_of_them():
    leaves = [(("layers", str(i)), slot(SPANNING, 1, i)) for i in range(8)]
    counts = chunks_read(make_plan(leaves, GIB))
    assert counts == dict.fromkeys(all_chunks(SPANNING), 1)


def test_an_array_that_goes_to_two_places_is_read_once():
    leaves = [(("a",), BIG), (("b",), moved(BIG, 1, 0))]
    plan = make_plan(leaves, GIB)
    assert chunks_read(plan) == dict.fromkeys(all_chunks(BIG), 1)
    assert is_covered_once(plan)


def test_layers_of_one_stack_in_blocks_are_written_once():
    layers = [slot(BIG, 1, i) for i in range(8)]
    leaves = [(("layers", f"layers_{j}"), stack(layers[j::2], 1)) for j in range(2)]
    assert is_covered_once(make_plan(leaves, GIB))


def test_an_array_without_elements_needs_no_job():
    plan = make_plan([(("w",), Source("w", (0, 5), "float32", (1, 5)))], GIB)
    assert [array.key for array in plan.arrays] == [("w",)]
    assert list(plan.jobs()) == []


def test_an_empty_tree_is_an_empty_plan():
    plan = make_plan([], GIB)
    assert (plan.arrays, list(plan.windows()), plan.total_bytes, plan.peak_bytes) == ((), [], 0, 0)


def test_literals_move_no_bytes():
    name = Literal("string", "a")
    plan = make_plan([(("name",), name), (("w",), NORM)], GIB)
    assert plan.literals == ((("name",), name),)
    assert plan.total_bytes == 16384


@pytest.mark.parametrize(
    ("shape", "block", "count"),
    [((), (), 1), ((5,), (2,), 3), ((4, 6), (4, 2), 3), ((0,), (1,), 0)],
)
def test_regions_cover_a_shape_once(shape, block, count):
    found = list(regions(shape, block))
    assert len(found) == count
    assert (times_written(shape, found) == 1).all()


# --- chunks that are taken over as they are ---------------------------------------------------


@st.composite
def encoded_targets(draw):
    """Small arrays whose chunks are stored in C order, and what may be made of them."""
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=3)))
    chunks = tuple(draw(st.sampled_from((1, 2, size, size + 1))) for size in shape)
    count = draw(st.integers(1, 3))
    dtypes = draw(st.sampled_from((("int32",), ("int32", "uint32"))))
    layers = [
        Source(
            f"w{i}",
            shape,
            "int32",
            chunks,
            encoding=draw(st.sampled_from(("zstd", "zstd", "gzip"))),
        )
        for i in range(count)
    ]
    view = layers[0]
    kinds = ("stack", "slot", "moved", "cast", "part", "concat")
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=3)):
        rank = len(view.shape)
        if kind == "stack" and view is layers[0]:
            view = stack(layers, draw(st.integers(0, rank)))
        elif kind == "slot" and rank:
            axis = draw(st.integers(0, rank - 1))
            view = slot(view, axis, draw(st.integers(0, view.shape[axis] - 1)))
        elif kind == "part" and rank:
            axis = draw(st.integers(0, rank - 1))
            start = draw(st.integers(0, view.shape[axis] - 1))
            view = part(view, axis, start, draw(st.integers(start + 1, view.shape[axis])))
        elif kind == "concat" and view is layers[0] and rank:
            view = concat(layers, draw(st.integers(0, rank - 1)))
        elif kind == "moved" and rank:
            axes = st.integers(0, rank - 1)
            view = moved(view, draw(axes), draw(axes))
        elif kind == "cast":
            view = cast(view, draw(st.sampled_from(dtypes)))
    return view, layers


def chunk_of(values, chunks, index):
    """One chunk as it is stored: in C order, padded where it stands out of the array."""
    region = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunks, strict=True))
    part = values[region]
    chunk = np.full(chunks, -1)
    chunk[tuple(slice(0, size) for size in part.shape)] = part
    return chunk.ravel().tolist()


@settings(max_examples=200, deadline=None)
@given(encoded_targets())
def test_renamed_chunks_are_the_chunks_of_the_new_array(made):
    view, layers = made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnxconv.planning.undecoded.SMALL_CHUNK_BYTES", 1)
        plan = make_plan([(("w",), view)], PLENTY)
    stored = {
        layer.name: np.arange(math.prod(layer.shape)).reshape(layer.shape) + 1000 * i
        for i, layer in enumerate(layers)
    }
    values = values_of(view, stored)
    for array in plan.renamed:
        assert len({piece.source.encoding for piece in pieces(view)}) == 1
        made_chunks = {}
        for source, index, new_index in renamed_chunks(array.view):
            assert new_index not in made_chunks
            made_chunks[new_index] = chunk_of(stored[source.name], source.chunks, index)
        counts = [range(-(-s // c)) for s, c in zip(view.shape, array.chunks, strict=True)]
        assert made_chunks == {
            index: chunk_of(values, array.chunks, index) for index in itertools.product(*counts)
        }


def encoded(source, encoding="zstd"):
    return replace(source, encoding=encoding)


E_BIG, E_LAYER, E_SPANNING, E_NORM = (encoded(s) for s in (BIG, LAYER, SPANNING, NORM))

# the view, why it is rewritten
RENAMES = {
    "an array as it is": (E_BIG, ""),
    "a layer that has its own chunks": (slot(E_BIG, 1, 3), ""),
    "layers side by side": (stack([E_LAYER] * 8, 1), ""),
    "a layer axis that is one long in each chunk": (moved(E_BIG, 1, 0), ""),
    "an encoding that is not known": (BIG, "its chunks are not stored in C order, one by one"),
    "a cast": (Cast(E_BIG, "bfloat16"), "cast to bfloat16"),
    "a layer among others in a chunk": (slot(E_SPANNING, 1, 3), "one chunk holds several layers"),
    "another order of elements": (
        moved(E_BIG, 2, 0),
        "its axes change their order within a chunk",
    ),
    "layers encoded differently": (
        stack([E_LAYER, encoded(LAYER, "gzip")], 1),
        "its layers are encoded differently",
    ),
    "layers in different chunks": (
        stack([E_LAYER, replace(E_LAYER, chunks=(512, 1024))], 1),
        "its layers have different chunks",
    ),
    "many small layers": (stack([E_NORM] * 8, 1), "its chunks would be small: they are merged"),
}


@pytest.mark.parametrize(("view", "why"), RENAMES.values(), ids=RENAMES.keys())
def test_chunks_are_taken_over_when_their_bytes_are_right(view, why):
    [array] = make_plan([(("w",), view)], GIB).arrays
    assert (array.how, array.why) == ("rewrite" if why else "rename", why)


def test_renaming_takes_no_memory_for_blocks():
    huge = Source("w", (2**20, 2**20), "float32", (2**20, 2**10), encoding="zstd")
    assert make_plan([(("w",), huge)], MIB).peak_bytes == 0


# --- refusals ---------------------------------------------------------------------------------


def test_a_chunk_that_is_too_large_is_refused_with_what_it_needs():
    chunk = (12288, 96, 512)
    view = Source("w", (12288, 96, 49152), "float32", chunk)
    with pytest.raises(PlanError) as refused:
        make_plan([(("params", "decoder", "layers", "mlp", "wi", "kernel"), view)], 4 * GIB)
    assert refused.value.render() == (
        "error: the plan needs 9.0 GiB, but --max_memory is 4.0 GiB\n"
        "  at params.decoder.layers.mlp.wi.kernel  f32[12288,96,49152]\n"
        "  one source chunk is 2.2 GiB, and up to 4 copies of a block are held at once\n"
        "\n"
        "hint: `--max_memory 9216MiB`"
    )


def test_what_the_refusal_asks_for_is_enough():
    view = Source("w", (1000, 3000, 1000), "float32", (1000, 300, 1000))
    with pytest.raises(PlanError) as refused:
        make_plan([(("w",), view)], GIB)
    needed = int(refused.value.hint.strip("`").removeprefix("--max_memory ").removesuffix("MiB"))
    assert make_plan([(("w",), view)], needed * MIB).peak_bytes <= needed * MIB
    with pytest.raises(PlanError):
        make_plan([(("w",), view)], (needed - 1) * MIB)


def test_small_chunks_are_no_reason_to_refuse_little_memory():
    view = Source("w", (4096, 4096), "float32", (512, 512))
    assert make_plan([(("w",), view)], 32 * MIB).peak_bytes <= 32 * MIB


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (
            ("params", "a.b", "w"),
            ("params", "a", "b", "w"),
            "error: different arrays would have the same name on disk\n"
            '  params.a.b.w: params["a.b"].w and params.a.b.w',
        ),
        (
            ("opt_state", 0, "count"),
            ("opt_state", "0", "count"),
            "error: different arrays would have the same name on disk\n"
            '  opt_state.0.count: opt_state[0].count and opt_state["0"].count',
        ),
    ],
)
def test_equal_names_on_disk_are_refused(one, other, message):
    with pytest.raises(PlanError) as refused:
        make_plan([(one, NORM), (other, NORM)], GIB)
    assert refused.value.render() == message
