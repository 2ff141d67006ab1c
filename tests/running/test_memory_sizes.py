"""Peak memory is at most `max_memory` and 300 MiB for every kind of plan, at every size.

A source holds one and a half times `max_memory`, in arrays of a few chunks that are as large as
a plan takes: a quarter of `max_memory`. That is 1 GiB; with `NNXCONV_LARGE=1` it is 4 GiB as
well, and every kind of plan is run.
"""

import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from nnxconv.tree.sizes import format_bytes
from tests.running.test_memory import IMPORTS_BYTES, measure, noise
from tests.support import checkpoints
from tests.support.chunkwise import Builder

GIB = 2**30
IS_LARGE = os.environ.get("NNXCONV_LARGE") == "1"
SIZES = [GIB, 4 * GIB] if IS_LARGE else [GIB]

DECODER = "params.params.decoder"
BLOCKS = 8

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc"
    ),
]


def apart(item: Path, size: int) -> Path:
    """Six layers, each of one chunk."""
    builder = Builder(item)
    block = noise(size // 2**17, 8192)
    for layer in range(6):
        builder.add(f"{DECODER}.layers_{layer}.mlp.kernel", block.shape, block.shape, block)
    return builder.finish()


def small(item: Path, size: int) -> Path:
    """Layers of many arrays of 960 KiB: their chunks are merged."""
    kernel = noise(240, 1024)
    count = size * 3 // 2 // (64 * kernel.nbytes) + 1
    layer = {f"w{index}": {"kernel": kernel} for index in range(count)}
    decoder = {f"layers_{index}": layer for index in range(64)}
    return checkpoints.save_item(item, {"params": {"params": {"decoder": decoder}}})


def stacked(item: Path, size: int, *, has_values=True, dtype="float32", blocks=1) -> Path:
    """Three stacks of two chunks each, and a small one by which the layer axis can be told."""
    builder = Builder(item)
    layers = 16 * size // GIB // blocks
    chunk, scale = (2048, layers, 2048), (33, layers)
    block = noise(*chunk) if has_values else None
    ones = np.ones(scale, np.float32) if has_values else None
    for place in range(blocks):
        path = f"{DECODER}.layers" if blocks == 1 else f"{DECODER}.layers.layers_{place}"
        for matrix in range(3):
            builder.add(f"{path}.w{matrix}.kernel", (4096, layers, 2048), chunk, block, dtype)
        builder.add(f"{path}.norm.scale", scale, scale, ones, dtype)
    return builder.finish()


def one_file(item: Path, size: int) -> Path:
    """Seven chunks, five of them in one data file, of which two are weights."""
    builder = Builder(item)
    block = noise(size // 2**17, 8192)
    # the other two: TensorStore gives the first value of a commit a file of its own
    statistics = [f"batch_stats.w{index}.mean" for index in range(5)]
    weights = [f"params.params.w{index}.kernel" for index in range(2)]
    for name in (*statistics[1:], *weights):
        builder.add(name, block.shape, block.shape)
    builder.add(statistics[0], block.shape, block.shape, block)
    builder.repeat(statistics[0], *statistics[1:], *weights)
    return builder.finish()


SOURCES = {"apart": apart, "small": small, "stacked": stacked, "one file": one_file}
LIKE = {
    "bfloat16": {"dtype": "bfloat16"},
    "blocks": {"blocks": BLOCKS},
}

# kind: source, options, how the arrays move, whether it is run without NNXCONV_LARGE
KINDS = {
    "rename, copy": ("stacked", {"to": "nnx"}, "rename", False),
    "rename, link": ("stacked", {"to": "nnx", "transfer": "link"}, "rename", False),
    # of a file that is little needed, chunks are copied one by one
    "rename, chunks": ("one file", {"to": "linen", "without": ["aux"]}, "rename", True),
    "unstack": ("stacked", {"to": "linen", "scan_layers": False}, "rewrite", True),
    "cast": ("stacked", {"like": "bfloat16"}, "rewrite", False),
    "regroup": ("stacked", {"like": "blocks"}, "rewrite", True),
    "other axis": ("stacked", {"to": "nnx", "layer_axis": 0}, "rewrite", False),
    "stack": ("apart", {"to": "nnx", "scan_layers": True}, "rename", False),
    "stack, merged": ("small", {"to": "nnx", "scan_layers": True}, "rewrite", False),
}
RUN = sorted((n for n, kind in KINDS.items() if IS_LARGE or kind[-1]), key=lambda n: KINDS[n][0])
CASES = [
    (size, kind)
    for size, kind in itertools.product(SIZES, RUN)
    if kind != "rename, chunks" or size == GIB  # a data file holds no more than 2 GiB
]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Saves a source when it is asked for the first time; the one before it is deleted."""
    root = tmp_path_factory.mktemp("sizes")
    there: dict[tuple[str, int], Path] = {}

    def get(name: str, size: int) -> Path:
        if (name, size) not in there:
            shutil.rmtree(root)
            root.mkdir()
            there.clear()
            there[name, size] = SOURCES[name](root / "in", size)
        return there[name, size]

    yield get
    shutil.rmtree(root)


@pytest.mark.full
@pytest.mark.parametrize(("size", "kind"), CASES)
def test_peak_memory_is_what_was_promised_at_every_size(size, kind, build, tmp_path, capsys):
    name, options, how, _ = KINDS[kind]
    source, target = build(name, size), tmp_path / "out"
    if "like" in options:
        like = stacked(tmp_path / "like", size, has_values=False, **LIKE[options["like"]])
        options = {**options, "like": str(like)}
    found = measure(source, target, max_memory=size, **options)
    shutil.rmtree(target)
    with capsys.disabled():
        texts = {name: format_bytes(found[name]) for name in ("peak", "predicted", "total")}
        print(f"\n{kind} at {format_bytes(size)}: {texts}")
    stored = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
    assert stored > size + IMPORTS_BYTES
    assert (found["renamed"] > 0) == (how == "rename")
    assert found["peak"] <= size + IMPORTS_BYTES
    assert found["peak"] <= found["predicted"] + IMPORTS_BYTES
