"""Signals at any moment leave a whole target or none, and do not hinder the next run."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import orbax.checkpoint as ocp
import pytest

from nnxconv.errors import NotACheckpoint
from nnxconv.storage.orbax.writer import Writer
from nnxconv.storage.transfer import carrying as storage_transfer
from tests.support import checkpoints
from tests.support.safety import (
    UNFINISHED,
    at_call,
    contents,
    convert,
    leftovers,
    snapshot,
    step_of,
)

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
    assert leftovers(tmp_path) == []
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
        assert leftovers(tmp_path) == []
    convert(source, old, overwrite=True)
    assert step_of(old) == 7
    assert leftovers(tmp_path) == []


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", ["item", "step", "root"])
def test_after_a_kill_the_same_command_succeeds(kind, tmp_path):
    root = checkpoints.save_root(tmp_path / "in", {5: checkpoints.linen()})
    given = {"item": root / "5" / "items", "step": root / "5", "root": root}[kind]
    target = tmp_path / "out" / kind
    process = child(given, target, "watch", "SIGKILL")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    left = leftovers(tmp_path)
    assert left
    parents = {Path("out"), Path("out", kind)} if kind == "root" else {Path("out")}
    for path in (tmp_path / "out").rglob("*"):
        name = path.relative_to(tmp_path)
        assert UNFINISHED in name.as_posix() or name in parents
    convert(given, target)
    written = {"item": target, "step": target / "items", "root": target / "5" / "items"}[kind]
    assert step_of(written) == 7
    assert leftovers(tmp_path) == []


def test_a_kill_while_the_old_target_is_removed_is_no_obstacle_to_the_next_run(
    source, old, tmp_path
):
    process = child(source, old, "rmtree", "SIGKILL")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert step_of(old) in (1, 7)
    convert(source, old, overwrite=True)
    assert step_of(old) == 7
    assert leftovers(tmp_path) == []


def test_an_interrupt_does_not_hinder_the_next_run_of_the_same_program(source, old, monkeypatch):
    for number in range(6):
        with monkeypatch.context() as patch:
            interrupt = KeyboardInterrupt()
            patch.setattr(Writer, "put", at_call(Writer.put, number, interrupt))
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
