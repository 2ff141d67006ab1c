"""Sources that several processes wrote, each into a database of its own: `ocdbt.process_N`.

Two processes save them together, as on a cluster: they find each other through
`jax.distributed` on this machine, and each has two devices and writes the shards that lie there.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore as ts
from jax.tree_util import keystr

import nnxconv
from nnxconv.errors import DamagedCheckpoint
from tests.support import checkpoints
from tests.support.trees import same_bits, values

PROCESSES = 2
LAYERS = 4

# source: layer axis, the axis over which large arrays are sharded, zarr3
SOURCES = {
    "apart": (None, 0, False),
    "apart zarr3": (None, 0, True),
    "stacked": (1, 0, False),  # every chunk has parts of all layers
    "stacked zarr3": (0, 1, True),
    "by layer": (1, 1, False),  # every chunk is one layer
}

SAVE = """
import sys
import jax

port, process, processes, root = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(process))

import pathlib
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
from tests.storage.test_many_databases import SOURCES, training_state

mesh = jax.make_mesh((len(jax.devices()),), ("x",))

def shard(array, axis):
    array = np.asarray(array)
    spec = ["x" if place == axis else None for place in range(array.ndim)]
    if array.nbytes < 2**20:
        spec = []
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

for name, (layer_axis, axis, use_zarr3) in SOURCES.items():
    tree = jax.tree.map(lambda array: shard(array, axis), training_state(layer_axis))
    handler = ocp.PyTreeCheckpointHandler(use_zarr3=use_zarr3)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(pathlib.Path(root, name), args=ocp.args.PyTreeSave(tree))
"""


def training_state(axis=None):
    """Layers of 4 MiB, apart or stacked, and as much for each moment."""
    tree = checkpoints.linen(LAYERS, axis=axis)
    kernels = [checkpoints.values((1024, 1024), seed) for seed in range(LAYERS)]
    decoder = tree["params"]["params"]["decoder"]
    if axis is None:
        for index, kernel in enumerate(kernels):
            decoder[f"layers_{index}"]["mlp"]["wi"]["kernel"] = kernel
    else:
        decoder["layers"]["mlp"]["wi"]["kernel"] = np.stack(kernels, axis)
    adam = {**tree["opt_state"][0], "mu": tree["params"]}
    adam["nu"] = jax.tree.map(np.square, tree["params"])
    return {**tree, "opt_state": [adam, *tree["opt_state"][1:]]}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("databases")
    port = str(free_port())
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SAVE, port, str(process), str(PROCESSES), str(root)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        )
        for process in range(PROCESSES)
    ]
    try:
        for process in running:
            printed, _ = process.communicate(timeout=120)
            assert process.returncode == 0, printed
    finally:
        for process in running:
            process.kill()
    yield {name: root / name for name in SOURCES}
    shutil.rmtree(root)


def chunks_in(database: Path) -> list[str]:
    """The chunks of the first layers' kernels in one database."""
    spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{database}/"}}
    keys = [key.decode() for key in ts.KvStore.open(spec).result().list().result()]
    return [
        key
        for key in keys
        if "mlp.wi.kernel/" in key and not key.endswith(("/.zarray", "/zarr.json"))
    ]


def same_values(a, b):
    return a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)


@pytest.mark.full
@pytest.mark.parametrize("name", SOURCES)
def test_every_process_has_written_its_own_chunks(name, sources):
    parts = [set(chunks_in(sources[name] / f"ocdbt.process_{n}")) for n in range(PROCESSES)]
    assert all(parts)
    assert set.union(*parts) == set(chunks_in(sources[name]))
    assert not set.intersection(*parts)


@pytest.mark.full
@pytest.mark.sample(1)
@pytest.mark.parametrize("name", SOURCES)
def test_the_processes_have_saved_one_checkpoint(name, sources):
    leaves = jax.tree.leaves_with_path(training_state(SOURCES[name][0]))
    saved = {
        tuple(keystr(path, simple=True, separator="/").split("/")): leaf for path, leaf in leaves
    }
    assert same_values(values(sources[name]), saved)


NNX_STACKED = {"to": "nnx", "scan_layers": True}
NNX_APART = {"to": "nnx", "scan_layers": False}
LINEN_STACKED = {"to": "linen", "scan_layers": True}
LINEN_APART = {"to": "linen", "scan_layers": False}

# conversion: source, options, options of the way back, how its kernels move
CONVERSIONS = {
    "names": ("apart", NNX_APART, LINEN_APART, "rename"),
    "names of stacks": ("stacked", NNX_STACKED, LINEN_STACKED, "rename"),
    "stack": ("apart", NNX_STACKED, LINEN_APART, "rename"),
    "stack zarr3": ("apart zarr3", NNX_STACKED, LINEN_APART, "rename"),
    "unstack": ("stacked", NNX_APART, LINEN_STACKED, "rewrite"),
    "unstack zarr3": ("stacked zarr3", NNX_APART, {**LINEN_STACKED, "layer_axis": 0}, "rewrite"),
    "unstack by layer": ("by layer", NNX_APART, LINEN_STACKED, "rename"),
    "other axis": (
        "stacked",
        {**NNX_STACKED, "layer_axis": 0},
        {**LINEN_STACKED, "layer_axis": 1},
        "rewrite",
    ),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("transfer", ["copy", "link"])
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_a_source_of_many_databases_goes_there_and_back_bit_for_bit(
    conversion, transfer, sources, tmp_path
):
    name, options, back, how = CONVERSIONS[conversion]
    source, there = shutil.copytree(sources[name], tmp_path / "in"), tmp_path / "there"
    result = nnxconv.convert(str(source), str(there), transfer=transfer, **options)
    assert {array.how for array in result.plan.arrays if "wi.kernel" in array.name} == {how}
    shutil.rmtree(source)
    kept = str(sources[name])
    assert nnxconv.compare(kept, str(there), compare_values=True, compare_only="all").is_match
    nnxconv.convert(str(there), str(tmp_path / "back"), transfer=transfer, **back)
    assert same_values(values(tmp_path / "back"), values(sources[name]))


@pytest.mark.parametrize("transfer", ["copy", "link"])
@pytest.mark.parametrize(
    ("conversion", "expected"),
    [
        ("stack", r"error: data file `ocdbt\.process_1/d/[0-9a-f]{32}` is missing\n  at \$/in"),
        ("other axis", r"error: array `.*mlp\.wi\.kernel` cannot be read: .*\n  at \$/in"),
    ],
)
def test_a_database_that_is_gone_is_missed(conversion, expected, transfer, sources, tmp_path):
    name, options, _, _ = CONVERSIONS[conversion]
    source = shutil.copytree(sources[name], tmp_path / "in")
    shutil.rmtree(source / "ocdbt.process_1")
    with pytest.raises(DamagedCheckpoint) as caught:
        nnxconv.convert(str(source), str(tmp_path / "out"), transfer=transfer, **options)
    assert re.fullmatch(expected, caught.value.render().replace(str(tmp_path), "$"))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
