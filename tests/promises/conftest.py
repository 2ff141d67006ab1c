"""A checkpoint to be converted, and one to be overwritten, in directories of their own."""

import shutil
from pathlib import Path

import pytest

from tests.support import checkpoints
from tests.support.safety import convert


@pytest.fixture(scope="session")
def templates(tmp_path_factory) -> Path:
    """A Linen item, and the NNX item that another one was converted to, to be copied."""
    root = tmp_path_factory.mktemp("templates")
    checkpoints.save_item(root / "linen", checkpoints.linen())
    checkpoints.save_item(root / "other", checkpoints.linen(2, step=1))
    convert(root / "other", root / "nnx")
    return root


@pytest.fixture
def source(templates, tmp_path) -> Path:
    """A Linen item in a directory of its own, so that its surroundings can be watched."""
    return shutil.copytree(templates / "linen", tmp_path / "in" / "linen")


@pytest.fixture
def old(templates, tmp_path) -> Path:
    """A finished conversion of another checkpoint, to be overwritten."""
    return shutil.copytree(templates / "nnx", tmp_path / "out" / "nnx")
