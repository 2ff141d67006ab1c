"""A target that exists is refused, or replaced when all is complete; and what is never replaced."""

import pytest

from nnxconv.errors import BadInput, NnxconvError
from nnxconv.storage.orbax import commit as storage_commit
from nnxconv.storage.orbax import saving as storage_save
from nnxconv.storage.orbax.writer import Writer
from tests.support import checkpoints
from tests.support.safety import contents, convert, leftovers, refusal, snapshot, step_of


def test_a_target_that_exists_is_refused(source, old, tmp_path):
    before = snapshot(tmp_path)
    with pytest.raises(BadInput) as caught:
        convert(source, old)
    assert refusal(caught.value, tmp_path) == (
        "error: `$/out/nnx` exists\n\nhint: add `--overwrite` to replace it"
    )
    assert snapshot(tmp_path) == before


def test_a_target_that_exists_is_replaced_when_asked(source, old):
    convert(source, old, overwrite=True)
    assert step_of(old) == 7
    assert [child.name for child in old.parent.iterdir()] == [old.name]


def test_a_dry_run_writes_nothing(source, old, tmp_path):
    before = snapshot(tmp_path)
    convert(source, old, overwrite=True, dry_run=True)
    convert(source, tmp_path / "new" / "nnx", dry_run=True)
    assert snapshot(tmp_path) == before


def test_a_dry_run_refuses_what_the_run_would_refuse(source, old):
    with pytest.raises(BadInput, match="exists"):
        convert(source, old, dry_run=True)


def test_the_old_target_is_there_until_the_new_one_is_complete(source, old, monkeypatch):
    before = contents(old)
    seen = []

    def check(event):
        seen.append(contents(old) == before)

    for owner, name in (
        (Writer, "commit"),
        (storage_save, "write_files"),
        (storage_commit, "write_files"),
        (storage_commit, "exchange"),
    ):
        watched = _watched(getattr(owner, name), lambda: check(None))
        monkeypatch.setattr(owner, name, watched)
    convert(source, old, overwrite=True, watch=check)
    assert len(seen) > 4
    assert all(seen)


def _watched(function, look):
    def call(*args, **options):
        look()
        return function(*args, **options)

    return call


@pytest.mark.parametrize("option", [{}, {"overwrite": True}], ids=["plain", "overwrite"])
def test_what_is_not_a_checkpoint_is_never_replaced(option, source, tmp_path):
    targets = {
        "a file": tmp_path / "notes",
        "an empty directory": tmp_path / "empty",
        "a directory of other things": tmp_path / "thesis",
    }
    targets["a file"].write_text("mine")
    targets["an empty directory"].mkdir()
    targets["a directory of other things"].mkdir()
    (targets["a directory of other things"] / "chapter.tex").write_text("mine")
    before = snapshot(tmp_path)
    for target in targets.values():
        with pytest.raises(BadInput):
            convert(source, target, **option)
    assert snapshot(tmp_path) == before


def test_the_refusal_to_replace_what_is_not_a_checkpoint_says_so(source, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    with pytest.raises(BadInput) as caught:
        convert(source, tmp_path / "thesis", overwrite=True)
    assert refusal(caught.value, tmp_path) == (
        "error: `$/thesis` exists and is not an item of a checkpoint, so it is not replaced\n\n"
        "hint: remove it yourself, or choose another target"
    )


def test_a_project_that_holds_checkpoints_among_other_things_is_not_replaced(source, tmp_path):
    project = tmp_path / "project"
    checkpoints.save_item(project / "best", checkpoints.linen(2))
    (project / "train.py").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(BadInput):
        convert(source, project, overwrite=True)
    assert snapshot(tmp_path) == before


def test_a_directory_of_several_items_is_not_replaced_by_one_item(source, tmp_path):
    runs = tmp_path / "runs"
    for name in ("best", "last"):
        checkpoints.save_item(runs / name, checkpoints.linen(2))
    before = snapshot(tmp_path)
    with pytest.raises(BadInput):
        convert(source, runs, overwrite=True)
    assert snapshot(tmp_path) == before


def test_a_step_that_is_not_a_checkpoint_is_not_replaced_in_a_root(tmp_path):
    root = checkpoints.save_root(tmp_path / "in", {5: checkpoints.linen()})
    target = checkpoints.save_root(tmp_path / "out", {1: checkpoints.nnx()})
    (target / "5").mkdir()
    (target / "5" / "notes.txt").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(BadInput):
        convert(root, target, overwrite=True)
    assert snapshot(tmp_path) == before


def test_a_root_is_not_replaced_by_one_item_or_step(source, tmp_path):
    root = checkpoints.save_root(tmp_path / "out", {1: checkpoints.nnx(), 2: checkpoints.nnx()})
    before = snapshot(tmp_path)
    with pytest.raises(BadInput) as caught:
        convert(source, root, overwrite=True)
    assert refusal(caught.value, tmp_path) == (
        "error: `$/out` is a root of steps, so it is not replaced by one step\n\n"
        "hint: name the step in it, for example `$/out/0`"
    )
    assert snapshot(tmp_path) == before


def test_an_item_is_not_replaced_by_a_root(source, tmp_path):
    root = checkpoints.save_root(tmp_path / "root", {3: checkpoints.linen()})
    before = snapshot(tmp_path)
    with pytest.raises(BadInput) as caught:
        convert(root, source, overwrite=True)
    assert refusal(caught.value, tmp_path) == (
        "error: `$/in/linen` is not a root of steps as the source is, so it is not replaced\n\n"
        "hint: give the item itself as the source: `$/root/3/items`"
    )
    assert snapshot(tmp_path) == before
    convert(root / "3" / "items", source, overwrite=True)


def test_what_is_no_checkpoint_is_not_replaced_by_a_root(tmp_path):
    root = checkpoints.save_root(tmp_path / "root", {3: checkpoints.linen()})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("kept")
    with pytest.raises(BadInput) as caught:
        convert(root, tmp_path / "notes", overwrite=True)
    assert refusal(caught.value, tmp_path) == (
        "error: `$/notes` is not a root of steps as the source is, so it is not replaced\n\n"
        "hint: remove it yourself, or choose another target"
    )


def test_overwriting_a_link_to_a_checkpoint_ends_in_one_whole_checkpoint(source, old, tmp_path):
    link = tmp_path / "latest"
    link.symlink_to(old)
    convert(source, link, overwrite=True)
    assert step_of(link) == 7
    assert leftovers(tmp_path) == []


def test_a_parent_that_is_a_file_is_refused(source, tmp_path):
    (tmp_path / "notes").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(NnxconvError):
        convert(source, tmp_path / "notes" / "nnx")
    assert snapshot(tmp_path) == before
