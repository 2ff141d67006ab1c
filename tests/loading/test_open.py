"""`nnxconv.open`: shapes now, values when they are asked for, and no more chunks than needed."""

import asyncio
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import nnxconv
from tests.support import checkpoints
from tests.support.reads import count_reads

WI = "params.decoder.layers[1].mlp.wi.kernel"
EXAMPLE = Path(__file__).parents[2] / "examples" / "linen_checkpoint"

LAYOUTS = {
    "linen": lambda: checkpoints.linen(),
    "linen, stacked": lambda: checkpoints.linen(axis=1),
    "maxtext": lambda: checkpoints.maxtext(),
    "nnx": lambda: checkpoints.nnx(),
    "nnx-pure, stacked": lambda: checkpoints.nnx_pure(axis=0),
    "nnx-state": lambda: checkpoints.nnx_state(),
}


@pytest.fixture(params=LAYOUTS)
def opened(request, tmp_path):
    path = checkpoints.save_item(tmp_path / "a", LAYOUTS[request.param]())
    return request.param.partition(",")[0], nnxconv.open(path)


def test_every_layout_has_the_same_keys_shapes_and_values(opened):
    layout, tree = opened
    assert tree.layout == layout
    assert tree.step == 7
    layers = checkpoints.weights()["decoder"]
    assert np.array_equal(tree[WI], layers["layers_1"]["mlp"]["wi"]["kernel"])
    assert tree.shape(WI) == (16, 32)
    assert tree["opt_state[0].nu.decoder.norm.scale"].shape == (16,)


def test_opening_reads_no_array(tmp_path, monkeypatch):
    path = checkpoints.save_item(tmp_path / "a", checkpoints.linen())
    reads = count_reads(monkeypatch)
    tree = nnxconv.open(str(path))
    assert WI in tree and len(tree) == len(list(tree)) == len(tree.keys()) > 30
    assert {array.dtype.name for array in tree.values()} == {"float32", "int32"}
    assert sum(array.nbytes for array in tree.values()) > 4 * 16 * 32
    assert not reads
    assert tree.step == tree.step == 7
    assert sum(reads.values()) == 1


def test_globs_choose_keys(tmp_path):
    tree = nnxconv.open(checkpoints.save_item(tmp_path / "a", checkpoints.linen(axis=1)))
    chosen = tree.filter("params.*layers[2].*")
    assert list(chosen) == [
        "params.decoder.layers[2].mlp.wi.kernel",
        "params.decoder.layers[2].mlp.wo.kernel",
        "params.decoder.layers[2].norm.scale",
    ]
    assert chosen.step is None
    assert len(tree.filter("params.embed.*", "*.norm.scale")) == 13
    assert len(tree.filter("nothing")) == 0


def test_of_a_root_of_steps_the_newest_is_opened_unless_one_is_named(tmp_path):
    steps = {3: checkpoints.linen(step=3), 4: checkpoints.linen(step=4)}
    root = checkpoints.save_root(tmp_path / "root", steps)
    assert nnxconv.open(root, step=3).step == 3
    assert nnxconv.open(root).step == 4
    with pytest.raises(nnxconv.NnxconvError, match="has no step 5"):
        nnxconv.open(root, step=5)


# Indexing

ARRAY = np.arange(12 * 10 * 6, dtype=np.float32).reshape(12, 10, 6)


def rows_over(devices: int) -> NamedSharding:
    """The rows of an array over so many devices, each of which writes a chunk."""
    mesh = jax.make_mesh((devices,), ("x",), devices=jax.devices()[:devices])
    return NamedSharding(mesh, PartitionSpec("x"))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """An array in four chunks of (3, 10, 6)."""
    path = tmp_path_factory.mktemp("open") / "a"
    array = jax.device_put(ARRAY, rows_over(4))
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, {"params": {"embed": {"embedding": array}}})
    return nnxconv.open(path)["params.embed.embedding"]


@pytest.mark.parametrize(
    "index",
    [
        np.s_[...],
        np.s_[:],
        np.s_[3],
        np.s_[-1, 2:5],
        np.s_[:, :, -2],
        np.s_[..., 1],
        np.s_[2:9:3, ::-1],
        np.s_[5:5],
        np.s_[20:],
        np.s_[1, 2, 3],
        np.s_[np.int64(4), ..., 0:2],
    ],
    ids=str,
)
def test_an_index_gives_what_numpy_gives(index, stored):
    assert np.array_equal(stored[index], ARRAY[index])
    assert np.shape(stored[index]) == ARRAY[index].shape


def test_a_slice_reads_only_the_chunks_that_it_lies_in(stored, monkeypatch):
    reads = count_reads(monkeypatch)
    stored[3:6, 2]
    assert reads == {("params.embed.embedding", (1, 0, 0)): 1}
    stored[8:]
    assert [index[0] for _, index in reads] == [1, 2, 3]


def test_a_layer_of_a_stack_in_chunks_of_one_reads_its_own_chunks_only(tmp_path, monkeypatch):
    tree = checkpoints.linen(8, axis=0)
    kernels = tree["params"]["params"]["decoder"]["layers"]["mlp"]["wi"]
    kernels["kernel"] = jax.device_put(kernels["kernel"], rows_over(8))
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", tree)
    array = nnxconv.open(tmp_path / "a")["params.decoder.layers[5].mlp.wi.kernel"]
    reads = count_reads(monkeypatch)
    values = array.read()
    assert np.array_equal(
        values, checkpoints.weights(8)["decoder"]["layers_5"]["mlp"]["wi"]["kernel"]
    )
    assert reads == {("params.params.decoder.layers.mlp.wi.kernel", (5, 0, 0)): 1}


def test_numpy_takes_an_array_as_its_own(stored):
    assert np.array_equal(np.asarray(stored), ARRAY)
    assert np.asarray(stored, dtype=np.float64).dtype == np.float64
    assert np.abs(stored).max() == ARRAY.max()
    assert len(stored) == 12
    assert (stored.ndim, stored.size, stored.nbytes) == (3, ARRAY.size, ARRAY.nbytes)
    assert repr(stored) == "<params.embed.embedding  f32[12,10,6]>"
    with pytest.raises(ValueError, match="cannot be had without reading a copy"):
        np.asarray(stored, copy=False)


def test_an_index_of_another_kind_is_refused(stored):
    for index in ([1, 2], None, True, np.array([0])):
        with pytest.raises(nnxconv.NnxconvError) as caught:
            stored[index]
        assert caught.value.render() == (
            "error: a stored array is indexed by numbers and slices only\n"
            "  at params.embed.embedding\n\n"
            "hint: `.read()` gives a numpy array, which takes every index"
        )


def test_an_index_outside_is_an_index_error(stored):
    with pytest.raises(IndexError):
        stored[12]
    with pytest.raises(IndexError, match=r"4 indices for the 3 axes of `params.embed.embedding`"):
        stored[0, 0, 0, 0]
    with pytest.raises(KeyError, match="`nowhere` fits no key"):
        nnxconv.open(EXAMPLE)["nowhere"]
    there = r"`params.layers_1.up` fits no key; one is spelt `params.layers\[0\].up`"
    with pytest.raises(KeyError, match=there):
        nnxconv.open(EXAMPLE)["params.layers_1.up"]


def test_typed_keys_are_their_data(tmp_path):
    tree = checkpoints.nnx_pure()
    key = jax.random.key(3)
    tree["model"]["decoder"]["rngs"] = {"key": key, "count": np.uint32(5)}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", tree)
    array = nnxconv.open(tmp_path / "a")["aux.rngs.decoder.rngs.key"]
    assert array.prng_impl == "threefry2x32"
    assert np.array_equal(array, jax.random.key_data(key))


def test_a_chunk_that_does_not_fit_is_refused_and_not_read(tmp_path, monkeypatch):
    tree = {"params": {"embed": {"embedding": np.zeros((1024, 1024), np.float32)}}}
    path = checkpoints.save_item(tmp_path / "a", tree)
    reads = count_reads(monkeypatch)
    array = nnxconv.open(path, max_memory="8MiB")["params.embed.embedding"]
    with pytest.raises(nnxconv.NnxconvError) as caught:
        array[:1]
    assert caught.value.render() == (
        "error: the plan needs 12.0 MiB, but max_memory is 8.0 MiB\n"
        "  at params.embed.embedding  f32[1024,1024]\n"
        "  one source chunk is 4.0 MiB, and up to 3 copies of a block are held at once\n\n"
        'hint: `max_memory="12MiB"`'
    )
    assert not reads
    assert nnxconv.open(path, max_memory="12MiB")["params.embed.embedding"][:1].sum() == 0


def test_a_damaged_array_is_an_error_that_names_it(tmp_path, monkeypatch):
    path = checkpoints.save_item(tmp_path / "a", checkpoints.linen(), use_ocdbt=False)
    (path / "params.params.embed.embedding" / "0.0").unlink()
    tree = nnxconv.open(path)
    assert tree[WI].read().shape == (16, 32)
    with pytest.raises(
        nnxconv.NnxconvError, match=r"`params.params.embed.embedding` cannot be read"
    ):
        tree["params.embed.embedding"].read()


def test_arrays_are_read_within_a_running_event_loop(stored):
    async def cell() -> np.ndarray:
        return stored[0]

    assert np.array_equal(asyncio.run(cell()), ARRAY[0])


def test_opening_and_reading_need_no_jax():
    code = (
        f"import sys, nnxconv; t = nnxconv.open({str(EXAMPLE)!r}); t['params.head.kernel'].read();"
        "print(sorted({'jax', 'flax', 'orbax'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
