"""Where a checkpoint may lie, what may lie there instead, and what stands around an item."""

import json
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

import nnxconv
from nnxconv.errors import BadInput, NotACheckpoint
from nnxconv.storage.orbax.foreign import FORMATS, seems_to_be
from tests.support import checkpoints
from tests.support.command import run
from tests.support.safety import snapshot

# a name that a file of the format has, or names that a folder of it has
FOREIGN = {
    "a T5X checkpoint": ["checkpoint", "target.encoder.norm.scale"],
    "a checkpoint of Levanter": ["metadata.json", "manifest.ocdbt"],
    "a TensorFlow SavedModel": ["saved_model.pb", "variables"],
    "a TensorFlow checkpoint": ["model.ckpt-7.index", "model.ckpt-7.data-00000-of-00001"],
    "parameters streamed by EasyLM": ["streaming_params_100"],
    "one array of numpy": ["embedding.npy"],
    "a PyTorch checkpoint": ["config.json", "pytorch_model.bin"],
    "a pickle, which runs code when it is opened, so that nnxconv does not": ["params.pkl"],
    "a Keras model": ["model.weights.h5"],
    "a module of Equinox": ["model.eqx"],
    "a GGUF file": ["llama-7b.Q4_K_M.gguf"],
    "an archive": ["checkpoint.tar.gz"],
    "arrays of TensorStore or Zarr without Orbax's `_METADATA`": ["zarr.json", "c"],
}


def test_every_format_stands_in_the_table():
    assert [one.name for one in FORMATS] == list(FOREIGN)


@pytest.mark.parametrize(("name", "files"), FOREIGN.items())
def test_a_folder_of_another_format_is_called_what_it_is(name, files, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for file in files:
        (folder / file).write_bytes(b"x")
    with pytest.raises(NotACheckpoint) as refused:
        nnxconv.inspect(str(folder))
    assert name in refused.value.hint
    told = "which nnxconv reads" in refused.value.hint
    assert told or refused.value.hint.endswith("`ocp.StandardCheckpointer().save(NEW, tree)`")


@pytest.mark.parametrize("file", [files[-1] for files in FOREIGN.values() if len(files) == 1])
def test_a_file_of_another_format_is_called_what_it_is(file, tmp_path):
    (tmp_path / file).write_bytes(b"x")
    known = seems_to_be(file)
    with pytest.raises(NotACheckpoint) as refused:
        nnxconv.inspect(str(tmp_path / file))
    assert refused.value.hint == ("" if known is None else known.hint)


SCHEMES = {
    "s3://bucket/run": "copy it to a local disk first, with `aws s3 cp --recursive`",
    "hf://google/gemma": "copy it to a local disk first, with `hf download`",
    "az://container/run": "copy it to a local disk first, with `azcopy copy --recursive`",
    "https://host/run": "copy it to a local disk first",
}


@pytest.mark.parametrize(("path", "hint"), SCHEMES.items())
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_scheme_that_is_not_read_is_named(path, hint, side, tmp_path):
    item = checkpoints.save_item(tmp_path / "item", checkpoints.linen())
    source, target = (path, tmp_path / "new") if side == "source" else (item, path)
    before = snapshot(tmp_path)
    with pytest.raises(BadInput) as refused:
        nnxconv.convert(str(source), str(target))
    scheme = path.partition("://")[0]
    assert refused.value.message == (
        f"`{path}`: nnxconv reads and writes local disks and gs:// buckets, not {scheme}://"
    )
    assert refused.value.hint == hint
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["checkpoints", "checkpoint", "ckpts", "ckpt"])
def test_the_folder_of_a_run_is_given_for_its_steps(name, tmp_path):
    tree = checkpoints.linen()
    checkpoints.save_root(tmp_path / "run" / name, {3: tree, 4: tree})
    (tmp_path / "run" / "tensorboard").mkdir()
    shown = run("inspect", tmp_path / "run").stdout
    items = tmp_path / "run" / name
    assert shown.splitlines()[0] == f"{items / '4' / 'items'} (the newest of 2 steps)"
    assert nnxconv.inspect(str(tmp_path / "run"), step=3).item.path == items / "3" / "items"


@pytest.fixture
def step(tmp_path) -> Path:
    """A step of two items, of which one is being deleted."""
    tree = checkpoints.linen()
    step = checkpoints.save_step(tmp_path / "7", tree, item="items")
    checkpoints.save_item(step / "old", tree)
    (step / "_CHECKPOINT_DELETION").write_text(json.dumps({"checkpointable_name": "old"}))
    return step


def test_an_item_that_is_being_deleted_is_no_item_of_its_step(step, tmp_path):
    assert nnxconv.inspect(str(step)).item.path == step / "items"
    nnxconv.convert(str(step), str(tmp_path / "new"))
    assert not (tmp_path / "new" / "old").exists()


def test_an_item_that_is_being_deleted_is_refused(step):
    with pytest.raises(NotACheckpoint, match="is being deleted"):
        nnxconv.inspect(str(step / "old"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"checkpointable_name": 3}'])
def test_a_record_of_a_deletion_that_is_none_is_refused(text, step):
    (step / "_CHECKPOINT_DELETION").write_text(text)
    with pytest.raises(nnxconv.NnxconvError):
        nnxconv.inspect(str(step))


def test_the_marker_of_orbax_v1_stays_in_the_step(tmp_path):
    step = checkpoints.save_step(tmp_path / "7", checkpoints.linen())
    (step / "orbax.checkpoint").touch()
    nnxconv.convert(str(step), str(tmp_path / "new"))
    assert (tmp_path / "new" / "orbax.checkpoint").read_bytes() == b""


def test_an_item_of_a_step_becomes_an_item_that_its_manager_finds(tmp_path):
    tree = checkpoints.linen()
    source = checkpoints.save_step(tmp_path / "a" / "100", tree) / "items"
    target = tmp_path / "b" / "100" / "items"
    nnxconv.convert(str(source), str(target), to="linen", scan_layers=False)
    with ocp.CheckpointManager(tmp_path / "b", item_names=("items",)) as manager:
        assert manager.latest_step() == 100
        restored = manager.restore(100, args=ocp.args.Composite(items=ocp.args.PyTreeRestore()))
    kernel = restored["items"]["params"]["params"]["embed"]["embedding"]
    assert np.array_equal(kernel, tree["params"]["params"]["embed"]["embedding"])


def test_the_metadata_of_a_step_that_is_there_are_left_alone(tmp_path):
    source = checkpoints.save_step(tmp_path / "a" / "100", checkpoints.linen()) / "items"
    (tmp_path / "b" / "100").mkdir(parents=True)
    metadata = tmp_path / "b" / "100" / "_CHECKPOINT_METADATA"
    metadata.write_text("{}")
    nnxconv.convert(str(source), str(tmp_path / "b" / "100" / "items"))
    assert metadata.read_text() == "{}"


def test_long_names_that_orbax_writes_are_read(tmp_path):
    tree = {"params": {"x" * 300: {"kernel": np.ones((2, 3), np.float32)}}}
    source = checkpoints.save_item(tmp_path / "a", tree)
    nnxconv.convert(str(source), str(tmp_path / "b"), to="nnx-pure")
    assert nnxconv.compare(str(source), str(tmp_path / "b"), compare_values=True).is_match


def test_further_names_of_layers_are_told_to_every_command(tmp_path):
    apart = checkpoints.weights(spelling="blocks_{}")
    stacked = checkpoints.weights(axis=0)
    stacked["decoder"]["blocks"] = stacked["decoder"].pop("layers")
    a = checkpoints.save_item(tmp_path / "a", {"params": {"params": apart}})
    b = checkpoints.save_item(tmp_path / "b", {"params": {"params": stacked}})
    assert run("compare", a, b).exit_code == 1
    same = run("compare", a, b, "--layer_group", "blocks", "--compare_values")
    assert same.exit_code == 0
    shown = run("inspect", b, "--layer_group", "blocks").stdout
    assert "decoder.blocks: 3 layers, stacked on axis 0" in shown
