"""Nothing is lost: whatever goes wrong, source and target are as they were, and the error says why.

A snapshot is every file's bytes and time of change. The failures here are injected where the real
ones come from: reading, writing, the merge and the commit, and signals at any moment.
"""

import asyncio
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from etils import epath

import nnxconv
from nnxconv.errors import BadInput, DamagedCheckpoint, NnxconvError, NotACheckpoint, PlanError
from nnxconv.storage.orbax import commit as storage_commit
from nnxconv.storage.orbax import saving as storage_save
from nnxconv.storage.orbax.reading import Reader
from nnxconv.storage.orbax.writer import Writer
from nnxconv.storage.transfer import carrying as storage_transfer
from tests.support import checkpoints

UNFINISHED = ".orbax-checkpoint-tmp"
KERNEL = "params.params.decoder.layers_1.mlp.wi.kernel"


def snapshot(path: Path) -> dict[str, tuple]:
    """Everything under a path: kinds, times of change, and the bytes of files."""
    found = {}
    for child in sorted(path.rglob("*")):
        status = child.lstat()
        content = child.read_bytes() if child.is_file() and not child.is_symlink() else b""
        found[child.relative_to(path).as_posix()] = (status.st_mode, status.st_mtime_ns, content)
    return found


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of every file under a path."""
    files = [child for child in path.rglob("*") if child.is_file()]
    return {child.relative_to(path).as_posix(): child.read_bytes() for child in files}


def refusal(error: NnxconvError, root: Path) -> str:
    """The whole text of an error, with `$` for the test's own directory."""
    return error.render().replace(str(root), "$")


def is_checkpoint(item: Path) -> bool:
    """True when Orbax restores the item."""
    return bool(jax.tree.leaves(checkpoints.restore(item)))


def convert(source: Path, target: Path, **options) -> None:
    nnxconv.convert(str(source), str(target), **options)


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


def step_of(item: Path) -> int:
    return int(checkpoints.restore(item)["optimizer"]["step"])


# A target that exists


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
        "hint: give the step itself as the source: `$/root/3`"
    )
    assert snapshot(tmp_path) == before


def test_overwriting_a_link_to_a_checkpoint_ends_in_one_whole_checkpoint(source, old, tmp_path):
    link = tmp_path / "latest"
    link.symlink_to(old)
    convert(source, link, overwrite=True)
    assert step_of(link) == 7
    assert _leftovers(tmp_path) == []


def test_a_parent_that_is_a_file_is_refused(source, tmp_path):
    (tmp_path / "notes").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(NnxconvError):
        convert(source, tmp_path / "notes" / "nnx")
    assert snapshot(tmp_path) == before


# Source and target in each other


LINKS = ("in", "here", "in/link_to_linen")


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


# Failures on the way


class Stopped(Exception):
    """Stands for any failure that nobody expected."""


FAILURES = {
    "a defect": Stopped("injected"),
    "a full disk": OSError(errno.ENOSPC, "No space left on device"),
    "an interrupt": KeyboardInterrupt(),
}


def _at_call(function, number: int, failure: BaseException):
    """The function, failing at the given call."""
    calls = iter(range(number + 1))

    def count() -> None:
        if next(calls, number) == number:
            raise failure

    if asyncio.iscoroutinefunction(function):

        async def failing(*args, **options):
            count()
            return await function(*args, **options)

    else:

        def failing(*args, **options):
            count()
            return function(*args, **options)

    return failing


POINTS = {
    "the first read": (Reader, "read", 0),
    "a later read": (Reader, "read", 9),
    "the first array opened": (Writer, "open", 0),
    "a later array opened": (Writer, "open", 3),
    "a commit": (Writer, "commit", 0),
    "the merge": (Writer, "merge", 0),
    "the tree's metadata": (storage_save, "item_documents", 0),
    "the files of the item": (storage_save, "write_files", 0),
    "the files of the step": (storage_save, "write_files", 1),
    "the commit of the directory": (storage_commit, "write_files", 0),
    "the last rename": (type(epath.Path()), "rename", 0),
}


@pytest.mark.sample(8)
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
    owner, name, number = POINTS[point]
    monkeypatch.setattr(owner, name, _at_call(getattr(owner, name), number, FAILURES[failure]))
    with pytest.raises((Stopped, OSError, KeyboardInterrupt, NnxconvError)):
        convert(source, old, overwrite=is_there)
    monkeypatch.undo()
    assert contents(tmp_path) == before
    assert {path for path in tmp_path.rglob("*") if path.is_dir()} == directories
    convert(source, old, overwrite=is_there)
    assert step_of(old) == 7


def test_a_failure_that_is_not_reached_does_not_pass_for_a_test(source, tmp_path, monkeypatch):
    for point, (owner, name, number) in POINTS.items():
        with monkeypatch.context() as patch:
            failing = _at_call(getattr(owner, name), number, Stopped(point))
            patch.setattr(owner, name, failing)
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
    copying = _at_call(storage_save.copy_item, 0, FAILURES[failure])
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


# Signals

CHILD = """
import json, os, shutil, signal, sys, time
import nnxconv
from etils import epath
from nnxconv.storage.orbax import saving

source, target, name, point, seconds = json.loads(sys.argv[1])

def stop():
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(0.2)

def watch(event):
    time.sleep(seconds)
    if point == "watch":
        stop()

def stopping(function):
    def call(*args, **options):
        stop()
        return function(*args, **options)
    return call

if point == "rmtree":
    shutil.rmtree = lambda *_, **__: stop()
if point == "documents":
    saving.item_documents = stopping(saving.item_documents)
if point == "rename":
    kind = type(epath.Path())
    kind.rename = stopping(kind.rename)
overwrite = os.path.exists(target)
print("ready", flush=True)
try:
    nnxconv.convert(source, target, watch=watch, max_memory="64KiB", overwrite=overwrite)
except KeyboardInterrupt:
    sys.exit(130)
"""


def child(source: Path, target: Path, point: str = "", name: str = "SIGINT", seconds: float = 0.0):
    """A conversion in a process of its own; it says `ready` when its imports are done."""
    argument = json.dumps([str(source), str(target), name, point, seconds])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, argument],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
    )


def _leftovers(root: Path) -> list[str]:
    """Directories that an unfinished or replaced save left."""
    names = [path.relative_to(root).as_posix() for path in root.rglob("*")]
    return [name for name in names if UNFINISHED in name]


@pytest.mark.sample(1)
@pytest.mark.parametrize("is_there", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("point", ["watch", "documents", "rename"])
def test_an_interrupt_leaves_a_whole_target_or_none(point, is_there, source, old, tmp_path):
    if not is_there:
        shutil.rmtree(old.parent)
    before = snapshot(source.parent)
    old_contents = contents(old)
    process = child(source, old, point)
    _, printed = process.communicate(timeout=60)
    # an interrupt that comes with the last rename comes too late: the target is there
    assert process.returncode == (0 if point == "rename" else 130), printed
    assert snapshot(source.parent) == before
    assert _leftovers(tmp_path) == []
    if is_there:
        assert contents(old) == old_contents or step_of(old) == 7
    else:
        assert not old.exists() or step_of(old) == 7


@pytest.mark.sample(2)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupt", "kill"])
@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(s, marks=pytest.mark.slow) for s in range(3, 12))]
)
def test_a_signal_at_any_moment_leaves_no_half_checkpoint(number, seed, source, old, tmp_path):
    moment = random.Random(seed).uniform(0.0, 0.8)
    before = snapshot(source.parent)
    old_contents = contents(old)
    process = child(source, old, seconds=0.02)
    assert process.stdout.readline() == "ready\n"
    time.sleep(moment)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert snapshot(source.parent) == before
    assert old.exists()
    assert contents(old) == old_contents or step_of(old) == 7
    visible = [path for path in old.parent.iterdir() if UNFINISHED not in path.name]
    assert visible == [old]
    if number == signal.SIGINT:
        assert _leftovers(tmp_path) == []
    convert(source, old, overwrite=True)
    assert step_of(old) == 7
    assert _leftovers(tmp_path) == []


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", ["item", "step", "root"])
def test_after_a_kill_the_same_command_succeeds(kind, tmp_path):
    root = checkpoints.save_root(tmp_path / "in", {5: checkpoints.linen()})
    given = {"item": root / "5" / "items", "step": root / "5", "root": root}[kind]
    target = tmp_path / "out" / kind
    process = child(given, target, "watch", "SIGKILL")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    left = _leftovers(tmp_path)
    assert left
    parents = {Path("out"), Path("out", kind)} if kind == "root" else {Path("out")}
    for path in (tmp_path / "out").rglob("*"):
        name = path.relative_to(tmp_path)
        assert UNFINISHED in name.as_posix() or name in parents
    convert(given, target)
    written = {"item": target, "step": target / "items", "root": target / "5" / "items"}[kind]
    assert step_of(written) == 7
    assert _leftovers(tmp_path) == []


def test_a_kill_while_the_old_target_is_removed_is_no_obstacle_to_the_next_run(
    source, old, tmp_path
):
    process = child(source, old, "rmtree", "SIGKILL")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert step_of(old) in (1, 7)
    convert(source, old, overwrite=True)
    assert step_of(old) == 7
    assert _leftovers(tmp_path) == []


def test_an_interrupt_does_not_hinder_the_next_run_of_the_same_program(source, old, monkeypatch):
    for number in range(6):
        with monkeypatch.context() as patch:
            interrupt = KeyboardInterrupt()
            patch.setattr(Writer, "open", _at_call(Writer.open, number, interrupt))
            with pytest.raises(KeyboardInterrupt):
                convert(source, old, overwrite=True)
        convert(source, old, overwrite=True)
        assert step_of(old) == 7


def test_an_interrupt_does_not_wait_for_all_files_to_be_copied(tmp_path, monkeypatch):
    source = checkpoints.save_item(tmp_path / "in", checkpoints.linen(14), use_ocdbt=False)
    copied = []

    def copy(old, new):
        copied.append(old)
        if len(copied) == 1:
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.01)
        shutil.copyfile(old, new)

    monkeypatch.setattr(storage_transfer, "_copy_file", copy)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "linen", to="linen")
    assert len(copied) < 60
    assert not (tmp_path / "linen").exists()


def test_orbax_takes_nothing_that_a_kill_left_for_a_step(tmp_path):
    root = checkpoints.save_root(tmp_path / "in", {5: checkpoints.linen()})
    process = child(root, tmp_path / "out", "watch", "SIGKILL")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    with ocp.CheckpointManager(tmp_path / "out") as manager:
        assert manager.all_steps() == []
    with pytest.raises(NotACheckpoint):
        convert(tmp_path / "out", tmp_path / "again")


# The source is only read


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


# Damaged sources


def _database(item: Path) -> ts.KvStore:
    """An item's OCDBT database; each with its own context, so that nothing is cached."""
    base = {"driver": "file", "path": f"{item}/"}
    return ts.KvStore.open({"driver": "ocdbt", "base": base}, context=ts.Context()).result()


def _delete_keys(item: Path, prefix: str) -> None:
    """Deletes keys from an item's OCDBT database."""
    store = _database(item)
    keys = [key for key in store.list().result() if key.decode().startswith(prefix)]
    assert keys
    for key in keys:
        store.write(key, None).result()


def _write_key(item: Path, key: str, content: bytes) -> None:
    store = _database(item)
    assert store.read(key).result().state == "value"
    store.write(key, content).result()


def _truncate_data(item: Path) -> None:
    largest = max(item.rglob("d/*"), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size // 2)


def _edit(item: Path, change) -> None:
    metadata = json.loads((item / "_METADATA").read_text())
    change(metadata)
    (item / "_METADATA").write_text(json.dumps(metadata))


def _add_leaf(metadata) -> None:
    entries = metadata["tree_metadata"]
    entry = json.loads(json.dumps(next(iter(entries.values()))))
    entry["key_metadata"] = [{"key": "phantom", "key_type": 2}]
    entries["('phantom',)"] = entry


CANNOT = "error: array `{}` cannot be read: "
UNREADABLE = "error: 1 of 36 arrays cannot be read\n  at $/in/linen\n  {}: `.zarray` is missing"

# name: storage, damage, how the message begins
DAMAGES = {
    "a deleted array directory": (
        {"use_ocdbt": False},
        lambda item: shutil.rmtree(item / KERNEL),
        UNREADABLE.format(KERNEL),
    ),
    "an array deleted from OCDBT": (
        {},
        lambda item: _delete_keys(item, f"{KERNEL}/"),
        UNREADABLE.format(KERNEL),
    ),
    "a deleted chunk": (
        {"use_ocdbt": False},
        lambda item: (item / KERNEL / "0.0").unlink(),
        CANNOT.format(KERNEL),
    ),
    "a chunk deleted from OCDBT": (
        {},
        lambda item: _delete_keys(item, f"{KERNEL}/0.0"),
        CANNOT.format(KERNEL),
    ),
    "a zarr3 chunk deleted from OCDBT": (
        {"use_zarr3": True},
        lambda item: _delete_keys(item, f"{KERNEL}/c/0/0"),
        CANNOT.format(KERNEL),
    ),
    "a truncated chunk": (
        {"use_ocdbt": False},
        lambda item: os.truncate(item / KERNEL / "0.0", 100),
        CANNOT.format(KERNEL),
    ),
    "an empty chunk": (
        {"use_ocdbt": False},
        lambda item: os.truncate(item / KERNEL / "0.0", 0),
        CANNOT.format(KERNEL),
    ),
    "a garbled chunk": (
        {},
        lambda item: _write_key(item, f"{KERNEL}/0.0", b"garbage"),
        CANNOT.format(KERNEL),
    ),
    "metadata of an array that is not JSON": (
        {},
        lambda item: _write_key(item, f"{KERNEL}/.zarray", b"{"),
        "error: 1 of 36 arrays cannot be read\n  at $/in/linen\n  " + KERNEL,
    ),
    "metadata of an array that lacks its shape": (
        {},
        lambda item: _write_key(item, f"{KERNEL}/.zarray", b"{}"),
        "error: 1 of 36 arrays cannot be read\n  at $/in/linen\n  " + KERNEL,
    ),
    "no manifest": (
        {},
        lambda item: (item / "manifest.ocdbt").unlink(),
        "error: the OCDBT database has no `manifest.ocdbt`\n  at $/in/linen",
    ),
    "a truncated manifest": (
        {},
        lambda item: os.truncate(item / "manifest.ocdbt", 10),
        "error: ",
    ),
    "truncated data files": ({}, _truncate_data, "error: "),
    "no data files": (
        {},
        lambda item: [path.unlink() for path in item.rglob("d/*")],
        "error: ",
    ),
    "no _METADATA": (
        {},
        lambda item: (item / "_METADATA").unlink(),
        "error: `$/in/linen` is not an Orbax checkpoint",
    ),
    "a _METADATA that is not JSON": (
        {},
        lambda item: (item / "_METADATA").write_text("not JSON"),
        "error: `$/in/linen/_METADATA` is not JSON: ",
    ),
    "an empty _METADATA": (
        {},
        lambda item: (item / "_METADATA").write_text(""),
        "error: `$/in/linen/_METADATA` is not JSON: ",
    ),
    "a _METADATA of something else": (
        {},
        lambda item: (item / "_METADATA").write_text("{}"),
        "error: `$/in/linen/_METADATA` is not the metadata of an Orbax tree",
    ),
    "a _METADATA that is a list": (
        {},
        lambda item: (item / "_METADATA").write_text("[]"),
        "error: `$/in/linen/_METADATA` is not what Orbax writes: it holds no mapping",
    ),
    "a _METADATA of bytes": (
        {},
        lambda item: (item / "_METADATA").write_bytes(b"\xff\xfe\x00"),
        "error: `$/in/linen/_METADATA` is not JSON: ",
    ),
    "a leaf that is not stored": (
        {},
        lambda item: _edit(item, _add_leaf),
        "error: 1 of 37 arrays cannot be read\n  at $/in/linen\n  phantom: `.zarray` is missing",
    ),
    "array_metadatas that are not JSON": (
        {},
        lambda item: _put_file(item / "array_metadatas" / "process_0", "not JSON"),
        "error: `$/in/linen/array_metadatas/process_0` is not JSON",
    ),
    "array_metadatas of something else": (
        {},
        lambda item: _put_file(item / "array_metadatas" / "process_0", '{"array_metadatas": [1]}'),
        "error: ",
    ),
    "a _CHECKPOINT_METADATA that is not JSON": (
        {},
        lambda item: (item / "_CHECKPOINT_METADATA").write_text("not JSON"),
        "error: `$/in/linen/_CHECKPOINT_METADATA` is not JSON: ",
    ),
    "a _CHECKPOINT_METADATA that is a list": (
        {},
        lambda item: (item / "_CHECKPOINT_METADATA").write_text("[1]"),
        "error: ",
    ),
}


def _put_file(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def _damaged(name: str, root: Path) -> tuple[Path, str]:
    """A checkpoint with one of the damages, and how the error about it begins."""
    storage, damage, beginning = DAMAGES[name]
    item = root / "in" / "linen"
    checkpoints.save_item(item, checkpoints.linen(), **storage)
    damage(item)
    return item, beginning


@pytest.mark.sample(8)
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_source_is_one_clear_error_and_nothing_is_written(name, tmp_path):
    item, beginning = _damaged(name, tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises((DamagedCheckpoint, NotACheckpoint)) as caught:
        convert(item, tmp_path / "out" / "nnx")
    text = refusal(caught.value, tmp_path)
    assert text.startswith(beginning), text
    assert len(text) < 4000
    assert snapshot(tmp_path) == before


# Chunks that are taken over as they are do not have to be decoded; these damages show anyway.
SEEN_WITHOUT_DECODING = [
    "a deleted array directory",
    "an array deleted from OCDBT",
    "a deleted chunk",
    "a chunk deleted from OCDBT",
    "a zarr3 chunk deleted from OCDBT",
    "no manifest",
    "a truncated manifest",
    "truncated data files",
    "no data files",
    "a leaf that is not stored",
]


@pytest.mark.sample(5)
@pytest.mark.parametrize("transfer", ["copy", "link"])
@pytest.mark.parametrize("name", SEEN_WITHOUT_DECODING)
def test_what_is_missing_is_missed_though_nothing_is_decoded(name, transfer, tmp_path):
    item, _ = _damaged(name, tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(DamagedCheckpoint) as caught:
        convert(item, tmp_path / "out" / "linen", to="linen", transfer=transfer)
    assert len(refusal(caught.value, tmp_path)) < 4000
    assert snapshot(tmp_path) == before


def test_a_damaged_source_leaves_the_target_that_it_should_replace(source, old):
    _delete_keys(source, f"{KERNEL}/0.0")
    before = snapshot(old.parent)
    with pytest.raises(DamagedCheckpoint):
        convert(source, old, overwrite=True)
    assert snapshot(old.parent) == before


def test_the_error_of_a_missing_chunk_names_array_and_checkpoint(tmp_path):
    item = checkpoints.save_item(tmp_path / "linen", checkpoints.linen(), use_ocdbt=False)
    (item / KERNEL / "0.0").unlink()
    with pytest.raises(DamagedCheckpoint) as caught:
        convert(item, tmp_path / "nnx")
    text = refusal(caught.value, tmp_path)
    assert text.splitlines()[0].startswith(CANNOT.format(KERNEL))
    assert "missing" in text
    assert text.splitlines()[1] == "  at $/linen"
    assert "\n" in text and len(text) < 400


# What is there, and what is not


def _file(root: Path) -> Path:
    (root / "file").write_text("text")
    return root / "file"


def _empty(root: Path) -> Path:
    (root / "empty").mkdir()
    return root / "empty"


def _holding(root: Path, *names: str) -> Path:
    for name in names:
        (root / "dir" / name).mkdir(parents=True)
    return root / "dir"


def _unfinished(root: Path) -> Path:
    item = checkpoints.save_item(root / "linen", checkpoints.linen(1))
    return item.rename(root / f"linen{UNFINISHED}-17")


def _only_unfinished(root: Path) -> Path:
    checkpoints.save_step(root / "dir" / "5", checkpoints.linen(1))
    (root / "dir" / "5").rename(root / "dir" / f"5{UNFINISHED}-17")
    return root / "dir"


def _safetensors(root: Path) -> Path:
    path = _empty(root)
    (path / "model.safetensors").write_bytes(b"")
    return path


def _steps(*steps: int):
    return lambda root: checkpoints.save_root(
        root / "root", {step: checkpoints.linen(1) for step in steps}
    )


def _step_without_item(root: Path) -> Path:
    (root / "root" / "5").mkdir(parents=True)
    return root / "root"


EXPECTED = "hint: expected `_METADATA`, an item that has it, or numbered steps"

# name: builder, --step, error
NOT_FOUND = {
    "nothing": (lambda root: root / "nope", None, "error: `$/nope` does not exist"),
    "a file": (_file, None, "error: `$/file` is a file, not a checkpoint directory"),
    "an empty directory": (
        _empty,
        None,
        "error: `$/empty` is not an Orbax checkpoint\n\nhint: it is empty",
    ),
    "a directory of other things": (
        lambda root: _holding(root, "src", "docs"),
        None,
        f"error: `$/dir` is not an Orbax checkpoint\n\n{EXPECTED}",
    ),
    "an unfinished save": (
        _unfinished,
        None,
        "error: `$/linen.orbax-checkpoint-tmp-17` is an unfinished save\n\n"
        "hint: it was interrupted before it was committed; use a finished step",
    ),
    "only unfinished saves": (
        _only_unfinished,
        None,
        "error: `$/dir` is not an Orbax checkpoint\n\n"
        "hint: it holds only unfinished saves, which were interrupted before they were committed",
    ),
    "a Pax checkpoint": (
        lambda root: _holding(root, "metadata", "state"),
        None,
        "error: `$/dir` is not an Orbax checkpoint\n\n"
        "hint: it looks like a Pax checkpoint: `nnxconv gpt3-from-paxml` imports those of GPT-3",
    ),
    "a directory of Pax checkpoints": (
        lambda root: _holding(root, "checkpoint_00004000/metadata", "checkpoint_00004000/state"),
        None,
        "error: step `$/dir/checkpoint_00004000` has no item with arrays\n\n"
        "hint: it looks like a Pax checkpoint: `nnxconv gpt3-from-paxml` imports those of GPT-3",
    ),
    "safetensors": (
        _safetensors,
        None,
        "error: `$/empty` is not an Orbax checkpoint\n\n"
        "hint: it holds safetensors files, which are not Orbax checkpoints",
    ),
    "a step without an item": (
        _step_without_item,
        None,
        "error: step `$/root/5` has no item with arrays\n\nhint: it is empty",
    ),
    "another step": (
        _steps(100, 20),
        7,
        "error: `$/root` has no step 7\n\nhint: it has 20, 100",
    ),
    "a step of a step": (
        lambda root: _steps(100)(root) / "100",
        7,
        "error: `$/root/100` is one step of a checkpoint, and it is not step 7",
    ),
    "a step of an item": (
        lambda root: _steps(100)(root) / "100" / "items",
        100,
        "error: `$/root/100/items` is one item of a checkpoint, so `--step` has no meaning",
    ),
}


@pytest.mark.parametrize("name", NOT_FOUND)
def test_a_path_that_is_no_checkpoint_is_told_from_one(name, tmp_path):
    build, step, expected = NOT_FOUND[name]
    path = build(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises((NotACheckpoint, BadInput)) as caught:
        nnxconv.convert(str(path), str(tmp_path / "out"), step=step)
    assert refusal(caught.value, tmp_path) == expected
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("given", "step", "written"),
    [
        ("5/items", None, ""),  # an item
        ("5", None, "items"),  # a step
        ("5", 5, "items"),
        ("", 5, "5/items"),  # a root of several steps
        ("", 60, "60/items"),
    ],
)
def test_the_target_has_the_structure_that_the_source_was_given_in(given, step, written, tmp_path):
    trees = {step: checkpoints.linen(2, step=step) for step in (5, 60)}
    root = checkpoints.save_root(
        tmp_path / "in",
        trees,
        extra={"iter": {"at": 3}},
        custom_metadata={"scan_layers": False, "note": "kept"},
    )
    target = tmp_path / "out"
    nnxconv.convert(f"{root}/{given}", str(target), step=step)
    assert step_of(target / written) == (60 if written.startswith("60") else 5)
    if written:
        around = (target / written).parent
        carried = contents(around / "iter")
        assert carried["metadata"] == contents(root / str(step or 5) / "iter")["metadata"]
        custom = json.loads((around / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
        assert custom == {"scan_layers": True, "note": "kept"}


def test_unfinished_steps_beside_a_finished_one_are_left_aside(tmp_path):
    root = _steps(5)(tmp_path)
    shutil.copytree(root / "5", root / f"6{UNFINISHED}-17")
    convert(root, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["5"]


def test_steps_converted_one_after_another_stand_side_by_side(tmp_path):
    trees = {step: checkpoints.linen(2, step=step) for step in (5, 60)}
    root = checkpoints.save_root(tmp_path / "in", trees)
    target = tmp_path / "out"
    convert(root, target, step=5)
    first = snapshot(target / "5")
    with pytest.raises(BadInput, match="exists"):
        convert(root, target, step=60)
    convert(root, target, step=60, overwrite=True)
    assert snapshot(target / "5") == first
    convert(root, target, step=60, overwrite=True)
    assert snapshot(target / "5") == first
    with ocp.CheckpointManager(target) as manager:
        assert sorted(manager.all_steps()) == [5, 60]
    for step in (5, 60):
        assert step_of(target / str(step) / "items") == step


def test_a_failure_with_a_second_step_keeps_the_first(tmp_path, monkeypatch):
    trees = {step: checkpoints.linen(2, step=step) for step in (5, 60)}
    root = checkpoints.save_root(tmp_path / "in", trees)
    target = tmp_path / "out"
    convert(root, target, step=5)
    before = snapshot(tmp_path)
    monkeypatch.setattr(Reader, "read", _at_call(Reader.read, 3, Stopped()))
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


# The command


def command(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", "from nnxconv.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "XLA_FLAGS": ""},
        check=False,
    )


def test_the_command_says_the_same_and_exits_with_2(source, old, tmp_path):
    before = snapshot(tmp_path)
    run = command("convert", source, old)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.replace(str(tmp_path), "$") == (
        "error: `$/out/nnx` exists\n\nhint: add `--overwrite` to replace it\n"
    )
    assert snapshot(tmp_path) == before


def test_the_command_prints_no_traceback_for_a_damaged_source(source, tmp_path):
    _delete_keys(source, f"{KERNEL}/0.0")
    before = snapshot(tmp_path)
    run = command("convert", source, tmp_path / "nnx")
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith(CANNOT.format(KERNEL))
    assert "Traceback" not in run.stderr
    assert "WARNING" not in run.stderr
    assert snapshot(tmp_path) == before


def test_the_command_prints_nothing_but_the_error_where_it_may_not_write(source, tmp_path):
    (tmp_path / "notes").write_text("mine")
    run = command("convert", source, tmp_path / "notes" / "nnx")
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert "Traceback" not in run.stderr
