"""Shares of a plan: every piece of work is somebody's, and nobody has much more than others."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnxconv
from nnxconv.planning.blocks import MIB
from nnxconv.planning.plan import make_plan, written
from nnxconv.running.sharing import split_up, spread, work_shard_of
from nnxconv.storage.transfer.planned import TransferPlan
from nnxconv.tree.elements import cast
from nnxconv.tree.normal_form import moved, part, slot, stack
from nnxconv.tree.views import Source
from tests.planning.test_plan import targets
from tests.support import pax

PLENTY = 2**50
counts = st.integers(1, 5)
modest = settings(max_examples=30, deadline=None)


@given(st.lists(st.integers(0, 50)), counts)
def test_the_largest_share_is_at_most_a_unit_above_the_mean(sizes, count):
    loads = Counter()
    for owner, size in zip(spread(sizes, count), sizes, strict=True):
        loads[owner] += size
    assert set(loads) <= set(range(count))
    assert max(loads.values(), default=0) <= sum(sizes) / count + max(sizes, default=0)


@st.composite
def cut_off(draw):
    """An array without its first elements: what one block of the source writes ends in a chunk."""
    chunk = draw(st.integers(2, 40))
    size = draw(st.integers(100, 2000))
    start = draw(st.integers(1, 99))
    return [(("w",), part(source("w", (size,), (chunk,)), 0, start, size))]


@modest
@given(st.one_of(targets(), cut_off()), st.integers(2, 4))
def test_every_block_is_in_one_share_and_every_chunk_is_written_in_one(leaves, count):
    plan = replace(make_plan(leaves, PLENTY), merge_bytes=1)  # blocks of one chunk
    shares = [work_shard_of(plan, TransferPlan(), number, count) for number in range(count)]
    jobs = list(plan.jobs())
    assert sorted(job for share in shares for job in share.jobs) == list(range(len(jobs)))
    writers: dict[tuple, set[int]] = {}
    for number, share in enumerate(shares):
        for job in share.jobs:
            for array, region in written(jobs[job]):
                grid = zip(region, array.chunks, strict=True)
                first = tuple((run.start // size, -(-run.stop // size)) for run, size in grid)
                for chunk in _product(first):
                    writers.setdefault((array.key, chunk), set()).add(number)
    assert all(len(numbers) == 1 for numbers in writers.values())


def _product(bounds):
    if not bounds:
        return [()]
    (low, high), *rest = bounds
    return [(place, *others) for place in range(low, high) for others in _product(rest)]


@modest
@given(targets(), counts)
def test_shares_count_every_element_array_and_byte_once(leaves, count):
    plan = make_plan(leaves, PLENTY)
    shares = [work_shard_of(plan, TransferPlan(), number, count) for number in range(count)]
    elements = sum((Counter(share.elements) for share in shares), Counter())
    wanted = {array.key: math.prod(array.view.shape) for array in plan.rewritten}
    assert elements == Counter({key: size for key, size in wanted.items() if size})
    counted = Counter(key for share in shares for key in share.counted)
    assert counted == Counter(array.key for array in plan.arrays)
    if not plan.renamed:
        assert sum(share.total_bytes for share in shares) == plan.total_bytes


def test_files_and_values_are_shared_and_references_wait_for_all():
    sizes = {"a": 40, "b": 30, "c": 20}
    transfers = TransferPlan(
        files={name: name for name in sizes},
        references={"w/0": "v/0"},
        values={"x/0": "y/0"},
        file_sizes=sizes,
        value_bytes={"x/0": 10},
    )
    first, second = (
        work_shard_of(make_plan([], PLENTY), transfers, n, 2).transfers for n in range(2)
    )
    assert (first.file_sizes, first.values) == ({"a": 40}, {"x/0": "y/0"})
    assert (second.file_sizes, second.values) == ({"b": 30, "c": 20}, {})
    assert (first.references, second.references) == ({}, {})


def source(name, shape, chunks):
    return Source(name, shape, "float32", chunks)


def embedding_and_layers():
    """One array of 8 GiB among some of 8 MiB."""
    huge = source("embedding", (262144, 8192), (2048, 512))
    layers = [source(f"layers_{n}", (1024, 2048), (1024, 2048)) for n in range(8)]
    return [
        (("embedding",), cast(huge, "bfloat16")),
        (("layers",), stack(layers, 1)),
        (("first",), moved(layers[0], 0, 1)),
    ]


def one_chunk_for_all_layers():
    """What is unstacked from chunks that span all layers, next to a large array."""
    wide = source("stacked", (4096, 64, 1024), (256, 64, 256))
    return [
        *(((f"layers_{n}",), slot(wide, 1, n)) for n in range(64)),
        (("head",), moved(source("head", (65536, 1024), (512, 1024)), 0, 1)),
    ]


@pytest.mark.parametrize("leaves", [embedding_and_layers, one_chunk_for_all_layers])
def test_a_plan_that_is_mostly_one_array_is_shared_evenly(leaves):
    plan = make_plan(leaves(), 2048 * MIB)
    loads = split_up(plan, TransferPlan(), 16).loads
    assert max(loads) <= 1.05 * sum(loads) / 16


@pytest.mark.parametrize("options", [{}, {"fused_qkv": False}])
def test_the_model_of_175_billion_parameters_is_shared_evenly_by_64_processes(options, tmp_path):
    path = pax.write_only_metadata(tmp_path / "pax")
    plan = nnxconv.gpt3_from_paxml(
        str(path), str(tmp_path / "out"), dry_run=True, max_memory="4GiB", **options
    ).plan
    loads = split_up(plan, TransferPlan(), 64).loads
    assert sum(loads) == pytest.approx(pax.state_bytes(pax.SIZES_175B), rel=1e-3)
    assert max(loads) <= 1.05 * sum(loads) / 64


def test_everything_is_the_portion_of_one_process_alone():
    plan = make_plan(embedding_and_layers(), 2048 * MIB)
    share = work_shard_of(plan, TransferPlan(), 0, 1)
    assert share.jobs is None
    assert share.total_bytes == plan.total_bytes
    assert share.transfers == TransferPlan()
