"""Orbax as a witness of what we write: it saves the same files, and restores ours as its own."""

import json
import re
import warnings
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint.experimental import v1

import nnxconv
from nnxconv.errors import DamagedCheckpoint
from nnxconv.storage.orbax import documents as storage_documents
from nnxconv.storage.orbax import witness as storage_witness
from nnxconv.storage.orbax.documents import pointed_at
from tests.support.checkpoints import linen, save_item, save_root, save_step
from tests.support.witness import OWN_DATABASE, documents, files, saved_again, without_devices

TREES = {
    "arrays of numpy": {"a": np.arange(24.0).reshape(4, 6), "b": {"c": np.ones(3, np.int8)}},
    "arrays of jax": {"a": jnp.arange(6.0), "b": [jnp.ones((2, 3), jnp.bfloat16), jnp.int32(3)]},
    "numbers of python": {"a": 3, "b": 2.5, "c": True, "d": np.float32(1.5), "e": [1, 2.0]},
    "texts": {"a": "hello", "b": ["x", {"c": "ü "}], "d/e": "slash", "f": np.ones(2)},
    "nothing": {"a": None, "b": {}, "c": [], "d": (), "e": np.ones(1), "f": [None, {}]},
    "typed keys": {"one": jax.random.key(0), "more": jax.random.split(jax.random.key(1), 3)},
    "keys of another kind": {"k": jax.random.key(0, impl="unsafe_rbg"), "a": jnp.ones(2)},
    "sequences": {"l": [np.ones(2), (np.ones(3), [np.ones(4)])], "t": (1, "two", None)},
    "mapping keys that are numbers": {"0": np.ones(1), "10": np.ones(2), "2": {"1": np.ones(3)}},
    "names with dots and slashes": {"a.b": np.ones(1), "c": {"d": np.ones(2)}, "e f": np.ones(3)},
    "arrays without axes": {"a": np.array(7, np.uint8), "b": np.float64(2), "c": np.ones((1, 1))},
    "small element types": {
        "f8": np.ones(4, ml_dtypes.float8_e4m3fn),
        "b": np.array([True, False]),
        "h": np.ones(2, np.float16),
    },
    "a training state": linen(),
}


VERSION = tuple(map(int, re.findall("[0-9]+", metadata.version("orbax-checkpoint"))[:3]))
with_marker = pytest.mark.skipif(
    VERSION < (0, 12, 4), reason="this Orbax writes no `commit_success.txt` on a disk"
)


@pytest.mark.sample(6)
@with_marker
@pytest.mark.parametrize("use_zarr3", [False, True], ids=["zarr2", "zarr3"])
@pytest.mark.parametrize("use_ocdbt", [False, True], ids=["plain", "ocdbt"])
@pytest.mark.parametrize("name", TREES)
def test_an_item_has_the_files_that_orbax_writes(name, use_ocdbt, use_zarr3, tmp_path):
    theirs = save_item(
        tmp_path / "theirs",
        TREES[name],
        use_ocdbt=use_ocdbt,
        use_zarr3=use_zarr3,
        custom_metadata={"note": "kept"},
    )
    saved_again(theirs, tmp_path / "ours")
    told = without_devices(documents(theirs))
    assert documents(tmp_path / "ours") == told
    gone = {"_sharding", "array_metadatas/process_0"} - told.keys()
    expected = {file for file in files(theirs) - gone if not OWN_DATABASE.fullmatch(file)}
    assert files(tmp_path / "ours") == expected
    assert_same(restored(tmp_path / "ours"), restored(theirs))


def restored(item: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a sharding is read from a file
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(item)


def assert_same(ours, theirs) -> None:
    """Trees of equal structure, kinds of numbers, and values."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if isinstance(other, (np.ndarray, jax.Array)):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            if jnp.issubdtype(other.dtype, jax.dtypes.prng_key):
                one, other = jax.random.key_data(one), jax.random.key_data(other)
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
        else:
            assert type(one) is type(other)
            assert one == other


@with_marker
@pytest.mark.sample(2)
@pytest.mark.parametrize("use_ocdbt", [False, True], ids=["plain", "ocdbt"])
@pytest.mark.parametrize("extra", [{}, {"iter": {"at": 3}, "config": {"lr": 0.1}}], ids=len)
@pytest.mark.parametrize("custom", [{}, {"scan_layers": True, "note": [1, {"x": None}]}], ids=len)
def test_a_step_has_the_files_that_orbax_writes(custom, extra, use_ocdbt, tmp_path):
    theirs = save_step(
        tmp_path / "7", linen(), extra=extra, use_ocdbt=use_ocdbt, custom_metadata=custom or None
    )
    saved_again(theirs, tmp_path / "out" / "7")
    expected = {file for file in files(theirs) if not OWN_DATABASE.fullmatch(file)}
    assert files(tmp_path / "out" / "7") == expected
    assert documents(tmp_path / "out" / "7") == documents(theirs)
    for name in extra:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            assert checkpointer.restore(tmp_path / "out" / "7" / name) == extra[name]


def test_no_handler_of_ours_is_named(tmp_path):
    step = save_step(tmp_path / "in" / "7", linen(), extra={"iter": {"at": 3}})
    (step / "_CHECKPOINT_METADATA").unlink()
    nnxconv.convert(str(step), str(tmp_path / "out"))
    told = json.loads((tmp_path / "out" / "_CHECKPOINT_METADATA").read_text())
    assert set(told["item_handlers"]) == {"items"}
    assert "nnxconv" not in json.dumps(told["item_handlers"])


def test_a_number_that_stands_in_no_array_is_written_as_orbax_writes_it(tmp_path):
    source = save_item(tmp_path / "in", linen())
    nnxconv.convert(str(source), str(tmp_path / "ours"), to="linen", params_only=True)
    ours = restored(tmp_path / "ours")
    assert type(ours["step"]) is int
    theirs = save_item(tmp_path / "theirs", ours, custom_metadata=record(tmp_path / "ours"))
    assert documents(tmp_path / "ours")["_METADATA"] == documents(theirs)["_METADATA"]


def record(item: Path):
    return json.loads((item / "_METADATA").read_text())["custom_metadata"]


def test_texts_stand_where_their_names_point():
    texts = {"a": "1", "b.c": "2", "d/e": "3", "d/f": "4", "g~1h": "5", "i~0j": "6"}
    expected = {"a": "1", "b.c": "2", "d": {"e": "3", "f": "4"}, "g/h": "5", "i~j": "6"}
    assert pointed_at(texts) == expected


# Readers of our checkpoints


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """A root with one step, converted."""
    root = tmp_path_factory.mktemp("converted")
    save_root(root / "in", {7: linen()})
    nnxconv.convert(str(root / "in"), str(root / "out"), to="linen")
    return root / "out"


def abstract(tree):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), tree
    )


def read_with_manager(root):
    with ocp.CheckpointManager(root) as manager:
        args = ocp.args.Composite(items=ocp.args.PyTreeRestore())
        return manager.restore(manager.latest_step(), args=args)["items"]


def read_as_standard(root):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(root / "7" / "items", abstract(linen()))


def read_in_part(root):
    with ocp.PyTreeCheckpointer() as checkpointer:
        wanted = {"params": abstract(linen()["params"])}
        args = ocp.args.PyTreeRestore(wanted, partial_restore=True)
        part = checkpointer.restore(root / "7" / "items", args=args)
        return {**linen(), **part}


def read_with_v1(root):
    return v1.load_checkpointables(root / "7")["items"]


def read_as_asked_with_v1(root):
    return v1.load_checkpointables(root / "7", {"items": abstract(linen())})["items"]


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "read",
    [read_with_manager, read_as_standard, read_in_part, read_with_v1, read_as_asked_with_v1],
    ids=lambda read: read.__name__,
)
def test_every_reader_of_orbax_reads_a_conversion(read, converted):
    found, expected = read(converted), linen()
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


# With `--verify`


def test_orbax_is_asked_before_a_verified_conversion_is_committed(tmp_path, monkeypatch):
    source = save_item(tmp_path / "in", {**linen(), "step": np.asarray(7, np.int32)})
    complete = storage_documents.item_documents

    def without_a_leaf(*args, **options):
        texts = complete(*args, **options)
        told = json.loads(texts["_METADATA"])
        told["tree_metadata"].popitem()
        return {**texts, "_METADATA": json.dumps(told)}

    monkeypatch.setattr("nnxconv.storage.orbax.saving.item_documents", without_a_leaf)
    with pytest.raises(DamagedCheckpoint) as caught:
        nnxconv.convert(str(source), str(tmp_path / "out"), to="linen", verify=True)
    assert caught.value.render() == (
        "error: Orbax reads other arrays than were written; nothing was committed\n  step"
    )
    assert not (tmp_path / "out").exists()


def test_what_orbax_cannot_read_is_told_in_its_words(tmp_path, monkeypatch):
    source = save_item(tmp_path / "in", linen())
    monkeypatch.setattr(
        "nnxconv.storage.orbax.saving.item_documents", lambda *_, **__: {"_METADATA": "{"}
    )
    with pytest.raises(DamagedCheckpoint, match="Orbax cannot read the new checkpoint"):
        nnxconv.convert(str(source), str(tmp_path / "out"), to="linen", verify=True)


def test_where_there_is_no_orbax_a_conversion_is_verified_all_the_same(tmp_path, monkeypatch):
    source = save_item(tmp_path / "in", linen())
    monkeypatch.setattr(storage_witness, "find_spec", lambda name: None)
    nnxconv.convert(str(source), str(tmp_path / "out"), to="linen", verify=True)
    assert (tmp_path / "out" / "_METADATA").exists()
