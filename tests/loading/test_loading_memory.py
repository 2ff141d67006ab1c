"""Besides the arrays that are loaded, loading takes at most `max_memory`.

Measured in a process of its own that has imported all that loading needs, as the kernel counts it.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nnxconv
from tests.running import test_memory
from tests.running.test_memory import MIB, READ_PEAK
from tests.support import checkpoints

MAX_MEMORY = 128 * MIB
SIZE_BYTES = 384 * MIB

LAYERS = 16

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc"
)

MEASURE = f"""
import json, sys
import flax.nnx, jax, jax.numpy as jnp
import nnxconv
from nnxconv import loading, storage

path, like, options = json.loads(sys.argv[1])
like = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(tuple(shape), jnp.float32),
    like,
    is_leaf=lambda x: isinstance(x, list),
)
jnp.zeros(1) + 1
tree = nnxconv.open(path, layer_axis=options.get("layer_axis"))
tree["params.decoder.layers[0].w0.kernel"][:1]
{READ_PEAK}
before = peak
loaded = nnxconv.load(path, like=like, **options)
{READ_PEAK}
print(json.dumps([peak - before, sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))]))
"""


@pytest.fixture(scope="module", params=["apart", "stacked", "small chunks"])
def source(request, tmp_path_factory):
    """384 MiB: layers of 8 MiB beside each other, or stacked in chunks of 16 MiB."""
    root = tmp_path_factory.mktemp("memory")
    whole = test_memory.SIZE_BYTES
    test_memory.SIZE_BYTES = SIZE_BYTES
    try:
        tree = {
            "apart": lambda: test_memory.apart(LAYERS, 1024, 2048),
            "stacked": lambda: test_memory.stacked(1, LAYERS, 1024, 2048),
            "small chunks": lambda: test_memory.apart(LAYERS, 256, 512),
        }[request.param]()
    finally:
        test_memory.SIZE_BYTES = whole
    yield checkpoints.save_item(root / "in", tree)
    shutil.rmtree(root)


def shapes(source: Path, is_stacked: bool) -> dict[str, Any]:
    """The shapes of all parameters, as a nested mapping for `like`."""
    found: dict[str, Any] = {}
    for array in nnxconv.open(source, layer_axis=1).filter("params.*").values():
        _, decoder, name, index, *rest = array.key
        shape = list(array.shape)
        if is_stacked:
            shape.insert(1, LAYERS)
        path = [name] if is_stacked else [f"{name}_{index}"]
        inner = found.setdefault(decoder, {})
        for part in [*path, *rest[:-1]]:
            inner = inner.setdefault(part, {})
        inner[rest[-1]] = shape
    return {"params": {"params": found}}


@pytest.mark.sample(1)
@pytest.mark.slow
@pytest.mark.parametrize("is_stacked", [False, True], ids=["to apart", "to stacked"])
def test_loading_stays_within_the_memory_that_it_is_given(is_stacked, source):
    options = {"without": ["step"], "max_memory": MAX_MEMORY, "layer_axis": 1}
    argument = json.dumps([str(source), shapes(source, is_stacked), options])
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, argument],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "XLA_FLAGS": ""},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    grown, arrays = json.loads(run.stdout.splitlines()[-1])
    assert arrays >= SIZE_BYTES
    assert grown <= arrays + MAX_MEMORY
