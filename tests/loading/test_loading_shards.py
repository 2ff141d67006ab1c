"""Loading onto eight devices: shardings of `like`, each chunk once, and no more than is needed."""

import json
import os
import socket
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import nnxconv
from nnxconv.running.events import Event
from tests.promises.test_readers import LAYERS, linen, numbers, save, sharded, weights
from tests.support.reads import count_reads

ROOT = Path(__file__).parents[2]


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("x", "y"))


def wanted(is_stacked: bool, axis: int = 1, abstract: bool = True) -> Any:
    """A decoder as `weights` has it, in other shardings: half replicated, rows over `y`."""

    def leaf(shape: tuple[int, ...], *axes: str | tuple[str, ...] | None) -> Any:
        sharding = NamedSharding(mesh(), PartitionSpec(*axes))
        if abstract:
            return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        return jax.device_put(np.zeros(shape, np.float32), sharding)

    embed = leaf((8, 16), None, ("x", "y"))
    if not is_stacked:
        layer = {"up": {"kernel": leaf((16, 32), "y", "x")}, "norm": leaf((32,), "x")}
        return {"embed": embed, **{f"layers_{i}": layer for i in range(LAYERS)}}
    up = (LAYERS, 16, 32) if axis == 0 else (16, LAYERS, 32)
    norm = (LAYERS, 32) if axis == 0 else (32, LAYERS)
    spec = (None, "y", None) if axis == 0 else ("y", None, None)
    return {"embed": embed, "layers": {"up": {"kernel": leaf(up, *spec)}, "norm": leaf(norm)}}


CASES = list(product((False, True), ("apart", "axis 0", "axis 1"), (False, True)))


@pytest.mark.sample(3)
@pytest.mark.parametrize(("from_stacked", "to", "abstract"), CASES, ids=str)
def test_every_chunk_is_read_once_and_lands_on_the_devices_of_like(
    from_stacked, to, abstract, tmp_path, monkeypatch
):
    source = save(tmp_path / "a", linen(from_stacked))
    like = wanted(to != "apart", int(to[-1] == "1"), abstract)
    reads = count_reads(monkeypatch)
    loaded = nnxconv.load(source, like={"params": like}, without=["opt_state", "step"])["params"]
    assert set(reads.values()) == {1}
    assert len({name for name, _ in reads}) == len(jax.tree.leaves(weights(from_stacked)))
    for new, old in zip(jax.tree.leaves(loaded), jax.tree.leaves(like), strict=True):
        assert new.sharding == old.sharding
        assert new.committed
    up, norm = numbers(16, LAYERS, 32), numbers(32, LAYERS)
    assert np.array_equal(loaded["embed"], numbers(8, 16))
    if to == "apart":
        for i in range(LAYERS):
            assert np.array_equal(loaded[f"layers_{i}"]["up"]["kernel"], up[:, i])
            assert np.array_equal(loaded[f"layers_{i}"]["norm"], norm[:, i])
    else:
        axis = int(to[-1])
        assert np.array_equal(loaded["layers"]["up"]["kernel"], np.moveaxis(up, 1, axis))
        assert np.array_equal(loaded["layers"]["norm"], np.moveaxis(norm, 1, axis))


def test_what_nobody_placed_stays_unplaced(tmp_path):
    source = save(tmp_path / "a", {"params": {"kernel": numbers(4, 2), "bias": numbers(2)}})
    device = jax.devices()[5]
    like = {"params": {"kernel": jnp.zeros((4, 2)), "bias": jax.device_put(jnp.zeros(2), device)}}
    loaded = nnxconv.load(source, like=like)["params"]
    assert not loaded["kernel"].committed
    assert loaded["bias"].sharding == SingleDeviceSharding(device)
    jax.jit(lambda a, b: a @ b)(loaded["kernel"], loaded["bias"])


def test_a_sharded_step_may_give_its_arrays_away(tmp_path):
    source = save(tmp_path / "a", linen(False))
    loaded = nnxconv.load(source, like={"params": wanted(True)}, without=["opt_state", "step"])
    doubled = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)(loaded)
    up = doubled["params"]["layers"]["up"]["kernel"]
    assert np.array_equal(up, 2 * numbers(16, LAYERS, 32))


def test_typed_keys_land_on_the_devices_of_like(tmp_path):
    keys = jax.random.split(jax.random.key(3), 8)
    sharding = NamedSharding(mesh(), PartitionSpec("x"))
    tree = {"up": {"kernel": numbers(2)}, "rngs": {"key": keys, "count": np.uint32([1] * 8)}}
    source = save(tmp_path / "a", {"model": tree, "optimizer": {"step": np.uint32(1)}})
    model = {
        "up": {"kernel": jnp.zeros(2)},
        "rngs": {
            "key": jax.ShapeDtypeStruct((8,), keys.dtype, sharding=sharding),
            "count": jnp.zeros(8, jnp.uint32),
        },
    }
    loaded = nnxconv.load(source, like={"model": model, "optimizer": {"step": jnp.uint32(0)}})
    found = loaded["model"]["rngs"]["key"]
    assert found.dtype == keys.dtype and found.sharding == sharding
    assert np.array_equal(jax.random.key_data(found), jax.random.key_data(keys))


def test_a_sharded_nnx_model_is_filled_in_place(tmp_path):
    class Layer(nnx.Module):
        def __init__(self) -> None:
            self.kernel = nnx.Param(sharded(np.zeros((16, 32), np.float32), "y", "x"))

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.layers = nnx.List([Layer() for _ in range(LAYERS)])

    stacked = {"layers": {"kernel": sharded(numbers(16, LAYERS, 32), "x")}}
    source = save(tmp_path / "a", {"params": stacked})
    model = Model()
    before = model.layers[1].kernel[...].sharding
    nnxconv.load_into(model, source, layer_axis=1)
    assert model.layers[1].kernel[...].sharding == before
    assert np.array_equal(model.layers[1].kernel[...], numbers(16, LAYERS, 32)[:, 1])


def test_events_count_arrays_and_bytes(tmp_path):
    source = save(tmp_path / "a", linen(False))
    events: list[Event] = []
    like = {"params": wanted(True)}
    nnxconv.load(source, like=like, without=["opt_state", "step"], watch=events.append)
    last = events[-1]
    assert last.arrays == last.total_arrays == 3
    assert last.done_bytes == last.total_bytes == 4 * (8 * 16 + 16 * 3 * 32 + 32 * 3)


def test_a_chunk_that_does_not_fit_is_refused_and_nothing_is_read(tmp_path, monkeypatch):
    kernel = np.zeros((1024, 1024), np.float32)
    source = save(tmp_path / "a", {"params": {"kernel": kernel, "bias": numbers(2)}})
    reads = count_reads(monkeypatch)
    like = {"params": {"kernel": kernel, "bias": numbers(2)}}
    with pytest.raises(nnxconv.NnxconvError) as caught:
        nnxconv.load(source, like=like, max_memory="8MiB")
    assert caught.value.render() == (
        "error: the plan needs 12.0 MiB, but max_memory is 8.0 MiB\n"
        "  at params.kernel  f32[1024,1024]\n"
        "  one source chunk is 4.0 MiB, and up to 3 copies of a block are held at once\n\n"
        'hint: `max_memory="12MiB"`'
    )
    assert not reads
    assert np.array_equal(
        nnxconv.load(source, like=like, max_memory="12MiB")["params"]["kernel"], kernel
    )


OF_TWO = """
import json, sys
import jax, numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

address, process, path = sys.argv[1:]
jax.distributed.initialize(address, 2, int(process))
assert jax.device_count() == 4 and jax.local_device_count() == 2

import nnxconv
from tests.support.reads import count_reads

reads = count_reads(pytest.MonkeyPatch())
mesh = jax.make_mesh((4,), ("x",))
sharding = NamedSharding(mesh, PartitionSpec("x"))
like = {"params": {"layers": {
    "kernel": jax.ShapeDtypeStruct((8, 4), "float32", sharding=sharding),
}}}
found = nnxconv.load(path, like=like)["params"]["layers"]["kernel"]
shards = {
    shard.index[0].start: np.asarray(shard.data).tolist() for shard in found.addressable_shards
}
print(json.dumps([shards, sorted([*index] for _, index in reads)]))
"""


@pytest.mark.full
def test_each_of_two_processes_reads_its_own_chunks_only(tmp_path):
    kernel = numbers(8, 4)
    source = save(tmp_path / "a", {"params": {"layers": {"kernel": sharded(kernel, ("x", "y"))}}})
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(ROOT),
    }
    with socket.create_server(("localhost", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", OF_TWO, address, str(i), str(source)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process, run in enumerate(runs):
        output, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
        shards, chunks = json.loads(output.splitlines()[-1])
        rows = range(4 * process, 4 * process + 4)
        assert chunks == [[row, 0] for row in rows]
        assert shards == {str(row): kernel[row : row + 2].tolist() for row in rows[::2]}
