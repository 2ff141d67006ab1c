"""Checkpoints that are saved once in a run: each test has its own files, and what it asked for."""

from tests.support import checkpoints, saved
from tests.support.trees import same_bits, values


def files(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_who_asks_again_gets_the_same_files_and_may_change_them(tmp_path, monkeypatch):
    monkeypatch.setattr(saved, "_folder", tmp_path / "kept")
    first, second, third = (
        checkpoints.save_item(tmp_path / name, checkpoints.linen()) for name in "abc"
    )
    before = files(first)
    assert files(second) == before
    (second / "_METADATA").write_text("changed")
    assert files(first) == files(third) == before
    again = checkpoints.save_item(tmp_path / "again", checkpoints.linen())
    assert files(again) == before


def test_other_values_options_and_kinds_are_saved_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(saved, "_folder", tmp_path / "kept")
    item = checkpoints.save_item(tmp_path / "item", checkpoints.linen())
    other = checkpoints.save_item(tmp_path / "other", checkpoints.linen(step=8))
    assert not same_bits(values(item)["step",], values(other)["step",])
    plain = checkpoints.save_item(tmp_path / "plain", checkpoints.linen(), use_ocdbt=False)
    assert not (plain / "manifest.ocdbt").exists()
    step = checkpoints.save_step(tmp_path / "step", checkpoints.linen())
    assert (step / "items" / "manifest.ocdbt").exists()


def test_a_path_that_is_taken_is_left_to_orbax(tmp_path, monkeypatch):
    monkeypatch.setattr(saved, "_folder", tmp_path / "kept")
    checkpoints.save_item(tmp_path / "a", checkpoints.linen())
    (tmp_path / "b").mkdir()
    told = []
    saved.once(tmp_path / "b", ("item", checkpoints.linen(), ()), told.append)
    assert told == [tmp_path / "b"]
