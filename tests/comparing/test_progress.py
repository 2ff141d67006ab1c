"""What those are told who watch a comparison or a checksum: how far it is, up to the whole."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest

import nnxconv
from tests.support.checkpoints import save_item

LEAVES = 5


def state(dtype):
    """Leaves of several blocks: each is read in more than one window."""
    layers = {f"w{i}": np.arange(2**18, dtype=np.float32).reshape(2**9, -1) for i in range(LEAVES)}
    return {"params": {"params": {name: layer.astype(dtype) for name, layer in layers.items()}}}


@pytest.fixture
def both(tmp_path):
    wide = save_item(tmp_path / "wide", state(np.float32))
    return str(wide), str(save_item(tmp_path / "narrow", state(ml_dtypes.bfloat16)))


def check(events):
    assert len(events) > 1
    assert 0 < events[0].arrays < LEAVES
    for before, after in pairwise(events):
        assert before.arrays <= after.arrays
        assert before.done_bytes < after.done_bytes
    assert events[-1].arrays == events[-1].total_arrays == LEAVES
    assert events[-1].done_bytes == events[-1].total_bytes


@pytest.mark.parametrize("turned", [False, True])
def test_comparing_tells_how_far_it_is_whichever_side_is_wider(both, turned):
    a, b = reversed(both) if turned else both
    events = []
    nnxconv.compare(
        a, b, compare_values=True, ignore_dtype=True, max_memory="12MiB", watch=events.append
    )
    check(events)


def test_a_checksum_tells_how_far_it_is(both, tmp_path):
    events, output = [], str(tmp_path / "sums.json")
    nnxconv.write_checksums(both[0], manifest=output, max_memory="8MiB", watch=events.append)
    check(events)
