"""Whatever fails on the way, source and target are as they were.

The failures are injected where the real ones come from: reading, writing, the merge, the commit.
"""

import errno
import shutil

import pytest
from etils import epath

from nnxconv.errors import NnxconvError, PlanError
from nnxconv.storage.orbax import commit as storage_commit
from nnxconv.storage.orbax import saving as storage_save
from nnxconv.storage.orbax import writer as storage_writer
from nnxconv.storage.orbax.data_files import DataFiles
from nnxconv.storage.orbax.reading import Reader
from nnxconv.storage.orbax.writer import Writer
from tests.support import checkpoints
from tests.support.safety import at_call, contents, convert, snapshot, step_of


class Stopped(Exception):
    """Stands for any failure that nobody expected."""


FAILURES = {
    "a defect": Stopped("injected"),
    "a full disk": OSError(errno.ENOSPC, "No space left on device"),
    "an interrupt": KeyboardInterrupt(),
}


POINTS = {
    "the first read": (Reader, "read", 0),
    "a later read": (Reader, "read", 9),
    "the first block written": (Writer, "put", 0),
    "a later block written": (Writer, "put", 3),
    "a value": (DataFiles, "write", 5),
    "the way to the disk": (DataFiles, "settle", 0),
    "the first array opened": (Writer, "open", 0),
    "a later array opened": (Writer, "open", 3),
    "a commit": (Writer, "commit", 0),
    "the merge": (Writer, "merge", 0),
    "the tree's metadata": (storage_save, "item_documents", 0),
    "the files beside the arrays": (storage_save, "write_files", 0),
    "the commit of the directory": (storage_commit, "write_files", 0),
    "the last rename": (type(epath.Path()), "rename", 0),
}


BY_TENSORSTORE = ("the first array opened", "a later array opened", "a commit")
"""Points that are only reached where TensorStore encodes the chunks."""


def fail_at(point, failure, patch):
    owner, name, number = POINTS[point]
    patch.setattr(owner, name, at_call(getattr(owner, name), number, failure))
    if point in BY_TENSORSTORE:
        patch.setattr(storage_writer, "codec_of", lambda array: None)


@pytest.mark.sample(4)
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(
    ("failure", "is_there"), [("a defect", False), *((failure, True) for failure in FAILURES)]
)
def test_a_failure_leaves_everything_as_it_was(
    point, failure, is_there, source, old, tmp_path, monkeypatch
):
    if not is_there:
        shutil.rmtree(old.parent)
    before = contents(tmp_path)
    directories = {path for path in tmp_path.rglob("*") if path.is_dir()}
    fail_at(point, FAILURES[failure], monkeypatch)
    with pytest.raises((Stopped, OSError, KeyboardInterrupt, NnxconvError)):
        convert(source, old, overwrite=is_there)
    monkeypatch.undo()
    assert contents(tmp_path) == before
    assert {path for path in tmp_path.rglob("*") if path.is_dir()} == directories
    convert(source, old, overwrite=is_there)
    assert step_of(old) == 7


def test_a_failure_that_is_not_reached_does_not_pass_for_a_test(source, tmp_path, monkeypatch):
    for point in POINTS:
        with monkeypatch.context() as patch:
            fail_at(point, Stopped(point), patch)
            with pytest.raises(Stopped, match=point):
                convert(source, tmp_path / point.replace(" ", "_"))


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_while_other_items_are_carried_leaves_everything_as_it_was(
    failure, tmp_path, monkeypatch
):
    root = checkpoints.save_root(
        tmp_path / "in", {1: checkpoints.linen()}, extra={"iter": {"at": 3}}
    )
    before = snapshot(tmp_path)
    copying = at_call(storage_save.copy_item, 0, FAILURES[failure])
    monkeypatch.setattr(storage_save, "copy_item", copying)
    with pytest.raises((Stopped, OSError, PlanError, KeyboardInterrupt)):
        convert(root, tmp_path / "out")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "options", [{}, {"to": "linen"}, {"to": "linen", "transfer": "link"}], ids=str
)
def test_a_failure_in_the_watcher_leaves_everything_as_it_was(options, source, tmp_path):
    before = snapshot(tmp_path)

    def broken(event):
        raise Stopped("no terminal")

    with pytest.raises(Stopped, match="no terminal"):
        convert(source, tmp_path / "new", watch=broken, **options)
    assert snapshot(tmp_path) == before


def test_a_failure_with_a_second_step_keeps_the_first(tmp_path, monkeypatch):
    trees = {step: checkpoints.linen(2, step=step) for step in (5, 60)}
    root = checkpoints.save_root(tmp_path / "in", trees)
    target = tmp_path / "out"
    convert(root, target, step=5)
    before = snapshot(tmp_path)
    monkeypatch.setattr(Reader, "read", at_call(Reader.read, 3, Stopped()))
    with pytest.raises(Stopped):
        convert(root, target, step=60, overwrite=True)
    with pytest.raises(Stopped):
        convert(root, target, step=5, overwrite=True)
    assert contents(tmp_path).keys() == {k for k, v in before.items() if v[2] or not _is_dir(v)}
    assert snapshot(target / "5") == {
        key.removeprefix("out/5/"): value
        for key, value in before.items()
        if key.startswith("out/5/")
    }


def _is_dir(entry: tuple) -> bool:
    return (entry[0] & 0o170000) == 0o040000
