"""SIGINT and SIGTERM end the command with its own exit code, and with nothing left behind."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.support import checkpoints

pytestmark = pytest.mark.trust

COMMAND = [sys.executable, "-c", "from nnxconv.cli import main; main()", "convert"]

# signal, exit code, what is said
SIGNALS = [
    pytest.param(signal.SIGINT, 130, "\ninterrupted: nothing was committed\n", id="SIGINT"),
    pytest.param(signal.SIGTERM, 143, "\nterminated: nothing was committed\n", id="SIGTERM"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Stacked layers in many small chunks: to take them apart takes some seconds."""
    kernel = np.random.default_rng(0).standard_normal((1024, 8, 1024), np.float32)
    params = {"params": {"params": {"decoder": {"layers": {"kernel": kernel}}}}}
    return checkpoints.save_item(tmp_path_factory.mktemp("signals") / "in", params)


@pytest.mark.sample(1)
@pytest.mark.parametrize(("number", "code", "message"), SIGNALS)
@pytest.mark.parametrize("is_there", [False, True], ids=["new", "overwrite"])
def test_a_signal_ends_the_command_and_leaves_nothing(
    number, code, message, is_there, source, tmp_path
):
    target = tmp_path / "out"
    if is_there:
        checkpoints.save_item(target, checkpoints.linen())
    before = files(tmp_path)
    process = started(source, target, "--overwrite")
    until(lambda: len(files(tmp_path)) > len(before))
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (code, "", message)
    assert files(tmp_path) == before


def test_a_signal_leaves_what_is_finished_to_a_run_with_resume_and_says_where(source, tmp_path):
    target, kept = tmp_path / "out", tmp_path / "out.orbax-checkpoint-tmp-resume"
    process = started(source, target, "--resume")
    journal = kept / "0" / "journal"
    until(lambda: journal.exists() and journal.stat().st_size)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert stderr == (
        "\ninterrupted: nothing was committed\n\n"
        f"kept: `{kept}` has what is finished; the same command with `--resume` goes on with it\n"
    )
    assert list(tmp_path.iterdir()) == [kept]


def started(source, target, *words):
    """The command that takes a stack apart, in a process."""
    words = [*words, "--max_memory", "128MiB", "--no-scan_layers", "--layer_axis", "1"]
    return subprocess.Popen(
        [*COMMAND, str(source), str(target), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
    )


def files(path):
    return {file: file.stat().st_size for file in path.rglob("*") if file.is_file()}


def until(claim):
    """Waits until a claim is true, at most half a minute."""
    for _ in range(6000):
        if claim():
            return
        time.sleep(0.005)
    pytest.fail("it never came true")
