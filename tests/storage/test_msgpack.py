"""Trees in msgpack: what flax.serialization writes is read as it restores it; nothing is run."""

import json
import random
import time
from contextlib import suppress

import flax.serialization
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import nnxconv
from nnxconv.errors import DamagedCheckpoint
from nnxconv.storage.msgpack import read_tree
from nnxconv.storage.orbax import absolute
from tests.support import checkpoints
from tests.support.command import run


def state(dtype="float32"):
    params = {f"layers_{n}": {"kernel": jnp.full((3, 4), n, dtype)} for n in range(2)}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    made = TrainState.create(apply_fn=None, params=params, tx=tx)
    return made.apply_gradients(grads=jax.tree.map(jnp.ones_like, params)).replace(step=300)


def same_leaves(item, wanted):
    found = {
        ".".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(checkpoints.restore(item))[0]
    }
    leaves = {
        ".".join(str(getattr(k, "key", k)) for k in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(wanted)[0]
    }
    assert found.keys() == leaves.keys()
    for name, array in leaves.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("chunk", [None, 16])
def test_a_file_of_flax_is_converted_with_all_it_holds(dtype, chunk, monkeypatch, tmp_path):
    if chunk is not None:  # arrays of more than a gibibyte are written in parts
        monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", chunk)
    saved = state(dtype)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoint_300").write_bytes(flax.serialization.to_bytes(saved))
    result = nnxconv.convert(str(tmp_path / "run"), str(tmp_path / "out"), to="linen")
    assert result.conversion.source.codec.name == "linen"
    same_leaves(tmp_path / "out", flax.serialization.to_state_dict(saved))


def test_of_several_files_the_newest_is_taken_and_any_can_be_named(tmp_path):
    (tmp_path / "run").mkdir()
    for step in (2, 10, 9):
        file = tmp_path / f"run/checkpoint_{step}"
        file.write_bytes(flax.serialization.to_bytes(state().replace(step=step)))
    assert nnxconv.inspect(str(tmp_path / "run")).step == 10
    assert nnxconv.inspect(str(tmp_path / "run"), step=9).step == 9
    assert nnxconv.inspect(str(tmp_path / "run/checkpoint_2")).step == 2
    with pytest.raises(nnxconv.NnxconvError, match="has no step 3"):
        nnxconv.inspect(str(tmp_path / "run"), step=3)


def test_a_folder_of_hugging_face_for_flax_is_its_msgpack_file(tmp_path):
    tree = {"model": {"layer": {"0": {"kernel": np.ones((2, 3), np.float32)}}}}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    found = nnxconv.open(str(tmp_path))
    [array] = found.values()
    np.testing.assert_array_equal(np.asarray(array), tree["model"]["layer"]["0"]["kernel"])


def packed(value, **options):
    return msgpack.packb(value, **options)


REFUSED = {
    "an object of another program": packed({"a": msgpack.ExtType(42, b"x")}),
    "a name twice": b"\x82\xa1a\x01\xa1a\x02",
    "a name that is a list": b"\x81\x90\x01",
    "cut off": packed({"a": 1, "b": [1, 2, 3]})[:-2],
    "more after it": packed({"a": 1}) + b"\x00",
    "nested without end": b"\x81\xa1a" * 100 + b"\x01",
    "an empty tree": b"\x80",
    "an array of objects": packed({"a": msgpack.ExtType(1, packed(((2,), "object", b"x" * 16)))}),
    "an array of too few bytes": packed(
        {"a": msgpack.ExtType(1, packed(((2,), "float32", b"x" * 7)))}
    ),
    "an array of negative size": packed(
        {"a": msgpack.ExtType(1, packed(((-2,), "float32", b"x" * 8)))}
    ),
    "a large array whose parts differ": packed(
        {
            "a": {
                "__msgpack_chunked_array__": True,
                "shape": {"0": 4},
                "chunks": {
                    "0": msgpack.ExtType(1, packed(((2,), "float32", b"x" * 8))),
                    "1": msgpack.ExtType(1, packed(((2,), "int32", b"x" * 8))),
                },
            }
        }
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_flax_does_not_write_is_refused(name, tmp_path):
    file = tmp_path / "model.msgpack"
    file.write_bytes(REFUSED[name])
    with pytest.raises(DamagedCheckpoint) as refused:
        nnxconv.inspect(str(file))
    assert refused.value.message.startswith(f"`{file}` is not a msgpack tree of Flax: ")


def test_mutated_bytes_are_read_or_refused_soon(tmp_path):
    whole = flax.serialization.to_bytes(state())
    file, made = tmp_path / "model.msgpack", random.Random(0)
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(made.randint(1, 5)):
            changed[made.randrange(1, len(changed))] = made.randrange(256)
        file.write_bytes(changed)
        started = time.monotonic()
        with suppress(DamagedCheckpoint):
            read_tree(absolute(str(file)))
        assert time.monotonic() - started < 1


@pytest.mark.parametrize("name", ["plain", "aggregated", "manager", "flax-orbax", "flax-msgpack"])
def test_the_files_of_2023_hold_what_they_held(name, conformance, tmp_path):
    root = conformance / "old-orbax"
    nnxconv.convert(str(root / name), str(tmp_path / "out"), to="linen", verify=True)
    [item] = [path.parent for path in (tmp_path / "out").rglob("_METADATA")]
    values = np.load(root / "values.npz")
    tree = {}
    for key in values:
        *path, last = key.split(".")
        inner = tree
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = values[key]
    same_leaves(item, tree)


# --- npz -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", ["/", "."])
def test_an_npz_file_is_a_tree_by_its_names(separator, tmp_path):
    made = np.random.default_rng(0)
    arrays = {
        "params/Dense_0/kernel": made.standard_normal((3, 4)).astype(np.float32),
        "params/Dense_0/bias": np.arange(4, dtype=np.float32),
        "params/Dense_1/kernel": np.asfortranarray(made.standard_normal((4, 2, 3))),
    }
    file = tmp_path / "weights.npz"
    np.savez(file, **{name.replace("/", separator): array for name, array in arrays.items()})
    nnxconv.convert(str(file), str(tmp_path / "out"), to="linen-variables")
    same_leaves(
        tmp_path / "out",
        {
            "params": {
                "Dense_0": {n: arrays[f"params/Dense_0/{n}"] for n in ("kernel", "bias")},
                "Dense_1": {"kernel": arrays["params/Dense_1/kernel"]},
            }
        },
    )


def test_a_compressed_npz_file_is_refused_with_what_to_do(tmp_path):
    file = tmp_path / "weights.npz"
    np.savez_compressed(file, a=np.zeros(3), b=np.array(["text"]))
    with pytest.raises(nnxconv.NnxconvError) as refused:
        nnxconv.inspect(str(file))
    assert refused.value.render() == (
        f"error: 2 arrays of `{file}` do not lie in it as they are\n"
        "  a: is compressed\n"
        "  b: is compressed\n\n"
        "hint: `np.savez(NEW, **np.load(FILE))` writes them so"
    )


def test_a_zip_that_is_cut_off_is_refused(tmp_path):
    file = tmp_path / "weights.npz"
    np.savez(file, a=np.zeros(300))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DamagedCheckpoint, match="is not an npz file of numpy"):
        nnxconv.inspect(str(file))


def test_texts_and_empty_leaves_of_a_file_are_listed(tmp_path):
    tree = {"params": {"w": np.ones((2, 3), np.float32)}, "name": "run", "nothing": None, "e": {}}
    file = tmp_path / "checkpoint_1"
    file.write_bytes(flax.serialization.msgpack_serialize(tree))
    done = run("inspect", str(file), "--json")
    assert done.exit_code == 0, done.stderr
    listed = {tuple(leaf["key"]): leaf["value_type"] for leaf in json.loads(done.stdout)["tree"]}
    assert listed[("params", "w")] == "np.ndarray"
    assert {("name",), ("nothing",), ("e",)} <= listed.keys()
