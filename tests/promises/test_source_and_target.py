"""Source and target that lie in each other, by any path or link, are refused."""

from contextlib import suppress
from pathlib import Path

import jax
import pytest

import nnxconv
from nnxconv.errors import BadInput, NnxconvError
from tests.support import checkpoints
from tests.support.safety import convert, snapshot


def is_checkpoint(item: Path) -> bool:
    """True when Orbax restores the item."""
    return bool(jax.tree.leaves(checkpoints.restore(item)))


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ("in/linen", "in/linen"),  # equal
        ("in/linen", "in/linen/nnx"),  # the target in the source
        ("in/linen", "in/linen/deep/er/nnx"),  # deep in it
        ("in/linen", "in"),  # the source in the target
        ("in/linen", "."),  # far up
        ("in/linen/", "in/../in/linen"),  # by another spelling
        ("in/linen", "here/linen"),  # by a link to a parent
        ("in/linen", "in/link_to_linen"),  # by a link to the source
        ("in/link_to_linen", "in/linen"),  # from a link to it
        ("in/link_to_linen", "in/linen/nnx"),
        ("here/linen", "in"),
    ],
)
@pytest.mark.parametrize("is_relative", [False, True], ids=["absolute", "relative"])
def test_source_and_target_in_each_other_are_refused(
    given, target, is_relative, source, tmp_path, monkeypatch
):
    (tmp_path / "here").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "link_to_linen").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    start = "" if is_relative else f"{tmp_path}/"
    with pytest.raises(BadInput) as caught:
        nnxconv.convert(start + given, start + target, overwrite=True)
    assert caught.value.render() == (
        "error: source and target lie in each other\n"
        f"  source: {start}{given}\n  target: {start}{target}\n\n"
        "hint: write to a directory beside the source"
    )
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ("root", "root/2"),  # another step of the same root
        ("root", "root/1/new"),  # a further item of the step
        ("root/1", "root/1/items"),
        ("root/1", "root"),
        ("root/1/items", "root/1"),
        ("root/1/items", "root"),
    ],
)
def test_a_target_within_the_source_root_or_step_is_refused(given, target, tmp_path):
    checkpoints.save_root(tmp_path / "root", {1: checkpoints.linen()}, extra={"iter": {"at": 3}})
    before = snapshot(tmp_path)
    with pytest.raises(BadInput, match="lie in each other"):
        convert(tmp_path / given, tmp_path / target, overwrite=True)
    assert snapshot(tmp_path) == before


def test_a_step_that_links_back_to_the_source_is_not_replaced(tmp_path):
    root = checkpoints.save_root(tmp_path / "in", {1: checkpoints.linen()})
    target = checkpoints.save_root(tmp_path / "out", {2: checkpoints.nnx()})
    (target / "1").symlink_to(root / "1")
    before = snapshot(root)
    with suppress(NnxconvError):
        convert(root, target, overwrite=True)
    assert snapshot(root) == before


def test_a_relative_target_is_written_where_the_user_stands(source, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    nnxconv.convert("../in/linen", "nnx")
    assert is_checkpoint(tmp_path / "work" / "nnx")


def test_names_that_begin_alike_are_not_in_each_other(source, tmp_path):
    convert(source, source.parent / "linen_nnx")
    assert is_checkpoint(source.parent / "linen_nnx")
