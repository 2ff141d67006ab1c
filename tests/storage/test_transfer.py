"""Encoded chunks that are taken over as they are: copied or linked, and never tangled up."""

import errno
import os
import shutil

import numpy as np
import pytest

import nnxconv
from tests.support import checkpoints
from tests.support.trees import same_bits, values

MIB = 2**20


@pytest.fixture(params=["copy", "link"])
def transfer(request):
    return request.param


def large(axis=None, layers=3):
    """A Linen checkpoint whose chunks are too large to be merged."""
    tree = checkpoints.linen(layers, axis=axis)
    kernel = checkpoints.values((512, 640), 5)
    decoder = tree["params"]["params"]["decoder"]
    for index in range(layers if axis is None else 0):
        decoder[f"layers_{index}"]["mlp"]["wi"]["kernel"] = kernel + index
    moments = {name: {"params": tree["params"]["params"]} for name in ("mu", "nu")}
    return {**tree, "opt_state": [{**tree["opt_state"][0], **moments}, *tree["opt_state"][1:]]}


def same_values(a, b):
    left, right = values(a), values(b)
    return left.keys() == right.keys() and all(same_bits(left[k], right[k]) for k in left)


def files_below(path):
    return {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}


@pytest.mark.sample(2)
@pytest.mark.parametrize("use_zarr3", [False, True])
@pytest.mark.parametrize("use_ocdbt", [False, True])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_the_way_of_transfer_makes_no_difference(
    use_ocdbt, use_zarr3, scan_layers, transfer, tmp_path
):
    source = checkpoints.save_item(
        tmp_path / "source", large(), use_ocdbt=use_ocdbt, use_zarr3=use_zarr3
    )
    there, back = tmp_path / "there", tmp_path / "back"
    result = nnxconv.convert(
        str(source), str(there), scan_layers=scan_layers, transfer=transfer, verify=True
    )
    assert result.plan.renamed
    assert result.moved.linked_files == 0 if transfer == "copy" else result.moved.linked_files
    assert nnxconv.compare(
        str(source), str(there), compare_values=True, compare_only="all"
    ).is_match
    nnxconv.convert(str(there), str(back), scan_layers=False, transfer=transfer)
    assert same_values(source, back)


def test_large_layers_are_stacked_by_renaming_and_small_ones_are_merged(tmp_path):
    source = checkpoints.save_item(tmp_path / "source", large())
    result = nnxconv.convert(str(source), str(tmp_path / "out"))
    how = {array.name: (array.how, array.why) for array in result.plan.arrays}
    kernel = "model.decoder.layers.mlp.wi.kernel.value"
    assert how[kernel] == ("rename", "")
    assert how["model.decoder.layers.norm.scale.value"] == (
        "rewrite",
        "its chunks would be small: they are merged",
    )
    assert how["optimizer.step"] == ("rewrite", "cast to uint32")


def test_a_target_survives_its_source(transfer, tmp_path):
    source = checkpoints.save_item(tmp_path / "source", large())
    kept = shutil.copytree(source, tmp_path / "kept")
    nnxconv.convert(str(source), str(tmp_path / "out"), to="nnx-pure", transfer=transfer)
    shutil.rmtree(source)
    report = nnxconv.compare(
        str(kept), str(tmp_path / "out"), compare_values=True, compare_only="all"
    )
    assert report.is_match


def test_a_source_survives_its_linked_target(tmp_path):
    source = checkpoints.save_item(tmp_path / "source", large())
    before = {name: file.read_bytes() for name, file in files_below(source).items()}
    nnxconv.convert(str(source), str(tmp_path / "out"), to="nnx-pure", transfer="link")
    other = checkpoints.save_item(tmp_path / "other", checkpoints.nnx_pure())
    nnxconv.convert(str(other), str(tmp_path / "out"), to="nnx-pure", overwrite=True)
    shutil.rmtree(tmp_path / "out")
    assert {name: file.read_bytes() for name, file in files_below(source).items()} == before


@pytest.mark.full
def test_nothing_grows_when_a_checkpoint_is_converted_again_and_again(transfer, tmp_path):
    source = checkpoints.save_item(tmp_path / "0", large())
    sizes = []
    for number in range(20):
        to = "nnx-pure" if number % 2 == 0 else "linen"
        nnxconv.convert(
            str(tmp_path / str(number)), str(tmp_path / str(number + 1)), to=to, transfer=transfer
        )
        files = files_below(tmp_path / str(number + 1))
        stored = sum(file.stat().st_size for file in files.values())
        sizes.append((len(files), max(map(len, files)), stored))
        shutil.rmtree(tmp_path / str(number)) if number else None
    assert same_values(source, tmp_path / "20")
    (few, short, small), (many, long, big) = sizes[1], sizes[-1]
    assert long == short
    assert many <= few + 2 * 18  # at most the nodes of one commit, and what it rewrote, each time
    assert big <= small * 1.1


def test_where_links_fail_files_are_copied_and_the_result_says_so(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    source = checkpoints.save_item(tmp_path / "source", large())
    result = nnxconv.convert(str(source), str(tmp_path / "out"), transfer="link")
    assert (result.moved.linked_files, result.moved.copied_files > 0) == (0, True)
    assert set(result.moved.notes) == {
        "files were copied, because links failed: Invalid cross-device link"
    }


def test_of_a_file_that_is_little_needed_only_chunks_are_copied(tmp_path):
    tree = {"params": {"params": {"big": np.zeros(1), "dense": {"kernel": np.ones((64, 64))}}}}
    tree["params"]["params"]["big"] = checkpoints.values((1024, 1024), 1)
    tree["batch_stats"] = {"noise": {"mean": checkpoints.values((2048, 2048), 2)}}
    source = checkpoints.save_item(tmp_path / "source", tree)
    result = nnxconv.convert(str(source), str(tmp_path / "out"), to="linen", without=["aux"])
    stored = sum(file.stat().st_size for file in files_below(tmp_path / "out").values())
    assert stored < 8 * MIB  # the 16 MiB that are not wanted are not there
    assert len(result.plan.renamed) == 2
    assert nnxconv.compare(str(source), str(tmp_path / "out"), compare_values=True).is_match
