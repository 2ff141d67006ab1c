"""Peak memory is at most `max_memory` and 300 MiB for the program, however large the checkpoint.

Measured in a process of its own, as the kernel counts it. `ru_maxrss` would not do: a process
inherits it from the one that started it, and pytest's is large.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import nnxconv
from nnxconv.errors import PlanError
from nnxconv.storage.orbax.reading import Reader
from tests.support import checkpoints

MIB = 2**20
IMPORTS_BYTES = 300 * MIB
SIZE_BYTES = 768 * MIB
MAX_MEMORY = 256 * MIB

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc"
)

READ_PEAK = """
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        peak = int(line.split()[1]) * 1024
"""

MEASURE = f"""
import json, sys
import nnxconv
source, target, options = json.loads(sys.argv[1])
result = nnxconv.convert(source, target, **options)
{READ_PEAK}
renamed = len([array for array in result.plan.arrays if array.how == "rename"])
print(json.dumps(dict(
    peak=peak,
    predicted=result.plan.peak_bytes,
    total=result.plan.total_bytes,
    renamed=renamed,
    reported=result.peak_memory_bytes,
)))
"""


def measure(source: Path, target: Path, **options) -> dict[str, int]:
    """Converts in another process, whose peak memory and plan are returned."""
    argument = json.dumps([str(source), str(target), options])
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, argument],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "XLA_FLAGS": ""},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def noise(*shape: int) -> np.ndarray:
    """Bits that do not compress, as float32."""
    bits = np.random.default_rng(0).bytes(4 * int(np.prod(shape)))
    return np.frombuffer(bits, np.float32).reshape(shape)


def apart(layers: int, *shape: int) -> dict:
    """Layers beside each other, of so many arrays that they fill `SIZE_BYTES`."""
    count = math.ceil(SIZE_BYTES / (4 * layers * math.prod(shape)))
    kernels = {f"w{index}": {"kernel": noise(*shape)} for index in range(count)}
    scale = {"norm": {"scale": noise(shape[0])}}
    return _tree({f"layers_{index}": {**kernels, **scale} for index in range(layers)})


def stacked(axis: int, layers: int, *shape: int) -> dict:
    """The same stacked, each array sharded over eight devices: one chunk is an eighth of it."""
    count = math.ceil(SIZE_BYTES / (4 * layers * math.prod(shape)))
    whole = (*shape[:axis], layers, *shape[axis:])
    mesh = jax.make_mesh((8,), ("x",))
    kernel = jax.device_put(noise(*whole), NamedSharding(mesh, PartitionSpec("x")))
    kernels = {f"w{index}": {"kernel": kernel} for index in range(count)}
    # Two sizes, by which the layer axis can be told.
    small = {
        f"norm{size}": {"scale": noise(*((size, layers) if axis else (layers, size)))}
        for size in shape
    }
    return _tree({"layers": {**kernels, **small}})


def _tree(decoder: dict) -> dict:
    step = np.asarray(1, np.int32)
    return {"step": step, "params": {"params": {"decoder": decoder}}, "opt_state": {}}


SOURCES = {
    # layers of 8 MiB: their chunks are taken over as they are
    "apart": lambda: apart(16, 1024, 2048),
    # layers of 512 KiB: their chunks are merged
    "small": lambda: apart(64, 256, 512),
    # chunks of 16 MiB
    "axis 0": lambda: stacked(0, 16, 1024, 2048),
    "axis 1": lambda: stacked(1, 16, 1024, 2048),
    # chunks of 64 MiB, the largest that the plan takes
    "large chunks": lambda: stacked(1, 16, 4096, 2048),
}

STACK = {"to": "nnx", "scan_layers": True}
UNSTACK = {"to": "linen", "scan_layers": False}

# source, options, whether most arrays are renamed
PLANS = [
    ("apart", {"to": "linen"}, True),
    ("apart", STACK, True),
    ("axis 0", UNSTACK, False),
    ("axis 0", {**STACK, "layer_axis": 1}, False),
    ("axis 1", UNSTACK, False),
    ("axis 1", {**STACK, "layer_axis": 0}, False),
    ("axis 1", {**UNSTACK, "verify": True}, False),
    ("large chunks", UNSTACK, False),
    ("small", STACK, False),
]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Saves a source when it is asked for the first time; the one before it is deleted."""
    root = tmp_path_factory.mktemp("memory")
    there: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in there:
            shutil.rmtree(root)
            there.clear()
            there[name] = checkpoints.save_item(root / "in", SOURCES[name]())
        return there[name]

    yield get
    shutil.rmtree(root)


@pytest.mark.sample(1)
@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "is_renamed"), PLANS, ids=str)
def test_peak_memory_is_what_was_promised(name, options, is_renamed, build, tmp_path):
    source = build(name)
    target = tmp_path / "out"
    found = measure(source, target, max_memory="256MiB", **options)
    shutil.rmtree(target)
    assert found["total"] >= SIZE_BYTES > MAX_MEMORY + IMPORTS_BYTES
    assert (found["renamed"] > 5) == is_renamed
    assert found["peak"] <= MAX_MEMORY + IMPORTS_BYTES
    assert found["peak"] <= found["predicted"] + IMPORTS_BYTES


def test_the_measure_sees_a_process_that_takes_too_much():
    code = "x = bytearray(700 << 20)\n" + READ_PEAK + "print(peak)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) > MAX_MEMORY + IMPORTS_BYTES


@pytest.mark.full
def test_the_reported_peak_is_that_of_this_process_alone(tmp_path):
    source = checkpoints.save_item(tmp_path / "linen", checkpoints.linen())
    ballast = bytearray(os.urandom(MIB)) * 512
    found = measure(source, tmp_path / "nnx")
    del ballast
    assert found["reported"] == pytest.approx(found["peak"], rel=0.1)


# Refusals

CHUNK = (2048, 3, 1024)
"""24 MiB of float32, in one chunk, with three layers in it."""


@pytest.fixture
def one_chunk(tmp_path) -> Path:
    decoder = {"layers": {"mlp": {"kernel": np.zeros(CHUNK, np.float32)}}}
    return checkpoints.save_item(tmp_path / "in", _tree(decoder))


@pytest.mark.parametrize("dry_run", [False, True], ids=["run", "dry run"])
def test_a_chunk_that_is_too_large_is_refused_before_anything_moves(
    dry_run, one_chunk, tmp_path, monkeypatch
):
    async def refuse(*_):
        raise AssertionError("something was read")

    monkeypatch.setattr(Reader, "read", refuse)
    options = {"layer_axis": 1, "max_memory": "64MiB", "dry_run": dry_run, **UNSTACK}
    with pytest.raises(PlanError) as caught:
        nnxconv.convert(str(one_chunk), str(tmp_path / "out" / "linen"), **options)
    assert caught.value.render() == (
        "error: the plan needs 96.0 MiB, but --max_memory is 64.0 MiB\n"
        "  at params.params.decoder.layers_0.mlp.kernel  f32[2048,1024]\n"
        "  one source chunk is 24.0 MiB, and up to 4 copies of a block are held at once\n\n"
        "hint: `--max_memory 96MiB`"
    )
    assert not (tmp_path / "out").exists()


def test_the_hint_of_the_refusal_is_enough(one_chunk, tmp_path):
    options = {"layer_axis": 1, **UNSTACK}
    with pytest.raises(PlanError) as caught:
        nnxconv.convert(str(one_chunk), str(tmp_path / "out"), max_memory="64MiB", **options)
    enough = caught.value.hint.split()[-1].strip("`")
    nnxconv.convert(str(one_chunk), str(tmp_path / "out"), max_memory=enough, **options)
    assert (tmp_path / "out" / "_METADATA").exists()


def test_a_large_chunk_is_no_matter_where_nothing_is_decoded(one_chunk, tmp_path):
    nnxconv.convert(str(one_chunk), str(tmp_path / "out"), max_memory="1MiB", to="nnx")
    assert (tmp_path / "out" / "_METADATA").exists()


@pytest.mark.parametrize("text", ["0", "-1GiB", "lots", "1.5.2GiB", ""])
def test_what_is_no_size_is_refused(text, one_chunk, tmp_path):
    with pytest.raises(nnxconv.NnxconvError) as caught:
        nnxconv.convert(str(one_chunk), str(tmp_path / "out"), max_memory=text)
    assert caught.value.render() == (
        f"error: `{text}` is not a size\n\nhint: for example `2GiB` or `512MiB`"
    )
