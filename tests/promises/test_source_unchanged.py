"""The source is only read, and the target needs nothing of it afterwards."""

import shutil

import jax
import numpy as np
import pytest

from tests.support import checkpoints
from tests.support.safety import convert, snapshot, step_of


@pytest.mark.sample(2)
@pytest.mark.parametrize("transfer", ["copy", "link"])
@pytest.mark.parametrize("storage", [{}, {"use_ocdbt": False}, {"use_zarr3": True}], ids=str)
def test_the_source_is_never_changed(storage, transfer, tmp_path):
    root = checkpoints.save_root(
        tmp_path / "in",
        {5: checkpoints.linen()},
        extra={"iter": {"at": 3}},
        custom_metadata={"scan_layers": False},
        **storage,
    )
    before = snapshot(tmp_path / "in")
    convert(root, tmp_path / "out", transfer=transfer)
    convert(root / "5", tmp_path / "step", scan_layers=False, verify=True, transfer=transfer)
    convert(root / "5" / "items", tmp_path / "item", to="linen", transfer=transfer)
    convert(root, tmp_path / "like", like=str(tmp_path / "step"), transfer=transfer)
    convert(root, tmp_path / "like", overwrite=True, transfer=transfer)
    assert snapshot(tmp_path / "in") == before


@pytest.mark.parametrize("transfer", ["copy", "link"])
def test_the_target_needs_nothing_of_the_source_afterwards(transfer, source, tmp_path):
    convert(source, tmp_path / "linen", to="linen", transfer=transfer)
    expected = checkpoints.restore(source)
    shutil.rmtree(source)
    restored = checkpoints.restore(tmp_path / "linen")
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_a_source_that_may_only_be_read_is_converted(source, tmp_path):
    for path in [source, *source.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = snapshot(source.parent)
    try:
        convert(source, tmp_path / "nnx")
        assert snapshot(source.parent) == before
    finally:
        for path in [source, *source.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert step_of(tmp_path / "nnx") == 7


def test_the_target_may_be_written_to_though_the_source_may_not(tmp_path):
    root = checkpoints.save_root(
        tmp_path / "in", {5: checkpoints.linen()}, extra={"iter": {"at": 3}}
    )
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        convert(root, tmp_path / "out")
        convert(root, tmp_path / "out", overwrite=True)
        directories = [path for path in (tmp_path / "out").rglob("*") if path.is_dir()]
        assert all(path.stat().st_mode & 0o200 for path in directories)
    finally:
        for path in [root, *root.rglob("*"), *(tmp_path / "out").rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
