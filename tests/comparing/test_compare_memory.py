"""Comparing large checkpoints takes no more memory than promised: `--max_memory` and the program.

512 MiB per checkpoint, or 4 GiB with `NNXCONV_LARGE=1`. Memory is that of a process of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import tensorstore as ts

GIB = 2**30
MIB = 2**20
LAYERS = 8
MATRIX = (2048, 8192)
MATRICES = 8 if os.environ.get("NNXCONV_LARGE") == "1" else 1
CHECKPOINT_BYTES = LAYERS * MATRICES * MATRIX[0] * MATRIX[1] * 4
MAX_MEMORY = 256 * MIB
PROGRAM = 300 * MIB

pytestmark = pytest.mark.slow


def matrices(name, sign):
    """The layers of one parameter; of values that no compressor makes much smaller."""
    noise = np.random.default_rng(name).standard_normal(MATRIX, np.float32)
    return (sign * (noise + layer) for layer in range(LAYERS))


def write(item, name, array, chunks):
    """Stores one array as Orbax does, a layer at a time."""
    spec = {
        "driver": "zarr",
        "kvstore": {
            "driver": "ocdbt",
            "base": {"driver": "file", "path": f"{item}/"},
            "path": f"params.params.{name}/",
        },
        "metadata": {
            "shape": array.shape,
            "chunks": chunks,
            "dtype": "<f4",
            "compressor": {"id": "zstd", "level": 1},
        },
    }
    ts.open(spec, create=True).result().write(array).result()


def finish(item, names):
    """Writes what Orbax says about the tree."""
    tree = {
        name: {
            "key_metadata": [
                {"key": part, "key_type": 2} for part in ("params", "params", *name.split("."))
            ],
            "value_metadata": {"value_type": "np.ndarray"},
        }
        for name in names
    }
    metadata = {"tree_metadata": tree, "use_ocdbt": True, "use_zarr3": False}
    (item / "_METADATA").write_text(json.dumps(metadata))
    return item


def save_apart(item, sign=1):
    item.mkdir()
    names = []
    for matrix in range(MATRICES):
        for layer, array in enumerate(matrices(matrix, sign)):
            names.append(f"layers_{layer}.w{matrix}.kernel")
            write(item, names[-1], array, (512, 8192))
    return finish(item, names)


def save_stacked(item):
    item.mkdir()
    names = []
    for matrix in range(MATRICES):
        names.append(f"layers.w{matrix}.kernel")
        stack = np.stack(list(matrices(matrix, 1)), 1)
        write(item, names[-1], stack, (256, LAYERS, 2048))
    return finish(item, names)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The path of a checkpoint by its name; it is written when it is asked for first."""
    root = tmp_path_factory.mktemp("large")
    writers = {
        "a": save_apart,
        "negated": lambda item: save_apart(item, -1),
        "stacked": save_stacked,
        "copy": lambda item: shutil.copytree(path("a"), item, copy_function=os.link),
    }

    @cache
    def path(name):
        return writers[name](root / name)

    yield path
    shutil.rmtree(root)


MEASURED = """
import json, sys
from pathlib import Path
from nnxconv.cli import main
try:
    main()
except SystemExit as end:
    # the peak of this process alone: ru_maxrss starts at that of the process that started it
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps({"exit_code": end.code, "peak_bytes": peak}), file=sys.stderr)
"""


def compare(a, b):
    """The report as JSON, with the exit code and the peak memory of the process."""
    words = ["compare", str(a), str(b), "--compare_values", "--max_memory", "256MiB", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout), json.loads(done.stderr.splitlines()[-1])


CASES = {
    "equal": ("a", "copy", 0),
    "unequal": ("a", "negated", 1),
    "apart_against_stacked": ("a", "stacked", 0),
    "unequal_stacked_against_apart": ("stacked", "negated", 1),
}


@pytest.mark.full
@pytest.mark.sample(1)
@pytest.mark.parametrize("name", CASES)
def test_memory_stays_within_max_memory_and_300_mib(name, saved, capsys):
    first, second, exit_code = CASES[name]
    report, measured = compare(saved(first), saved(second))
    assert measured["exit_code"] == report["exit_code"] == exit_code
    assert report["arrays"] == LAYERS * MATRICES
    if exit_code:
        assert report["counts"]["value"] == LAYERS * MATRICES
    assert report["read_bytes"] + 2 * report["equal_chunk_bytes"] == 2 * CHECKPOINT_BYTES
    with capsys.disabled():
        peak = measured["peak_bytes"] / MIB
        print(f"\n{name}: {CHECKPOINT_BYTES / GIB:.1f} GiB each,", end=" ")
        print(f"peak {peak:.0f} MiB, {report['seconds']} s")
    assert measured["peak_bytes"] <= MAX_MEMORY + PROGRAM
