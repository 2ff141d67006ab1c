"""Every command answers a signal at any moment: soon, in one line, nothing left."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support import checkpoints

pytestmark = pytest.mark.trust

COMMAND = [sys.executable, "-c", "from nnxconv.cli import main; main()"]

COMMANDS = {
    "convert": "convert SRC OUT",
    "convert by links": "convert SRC OUT --to nnx-pure --transfer link",
    "convert, unstacking": "convert STACKED OUT --no-scan_layers --layer_axis 1",
    "convert, to be resumed": "convert STACKED OUT --no-scan_layers --layer_axis 1 --resume",
    "convert, verifying": "convert SRC OUT --verify",
    "convert many chunks": "convert MANY OUT --to linen --transfer link",
    "convert many chunks, rewriting": "convert MANY OUT --to linen --params_only --dtype bfloat16",
    "convert, dry": "convert MANY OUT --to linen --dry_run",
    "inspect": "inspect MANY",
    "compare": "compare SRC NNX --compare_values",
    "compare itself": "compare MANY MANY --compare_values",
    "checksum": "checksum STACKED --overwrite",
    "match": "match SRC SRC",
}

LONGEST_SECONDS = 3.0
"""Two for the answer, and one for a machine that is busy."""


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("interrupts")
    kernel = np.random.default_rng(0).standard_normal((512, 8, 512), np.float32)
    stacked = {"params": {"params": {"decoder": {"layers": {"kernel": kernel}}}}}
    rows = np.random.default_rng(0).standard_normal((6000, 512), np.float32)
    many = checkpoints.linen_with([rows, rows])
    return {
        "SRC": checkpoints.save_item(root / "src", checkpoints.linen()),
        "NNX": checkpoints.save_item(root / "nnx", checkpoints.nnx()),
        "STACKED": checkpoints.save_item(root / "stacked", stacked),
        "MANY": checkpoints.save_item(root / "many", many, chunk_bytes=2048),
    }


def started(command: str, places: dict[str, Path], out: Path) -> subprocess.Popen:
    words = [str({**places, "OUT": out / "x"}.get(word, word)) for word in command.split()]
    return subprocess.Popen(
        [*COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=out,
        env={**os.environ, "XLA_FLAGS": ""},
    )


def seconds_of(command: str, places: dict[str, Path], out: Path) -> float:
    """How long the command takes when nobody interrupts it."""
    out.mkdir()
    begun = time.monotonic()
    process = started(command, places, out)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode in (0, 1), stderr
    return time.monotonic() - begun


def has_begun(process: subprocess.Popen) -> bool:
    """True when the command's own code runs; what Python itself does before is not ours."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    blocked = next(line for line in status.splitlines() if line.startswith("SigBlk"))
    number = 1 << (signal.SIGTERM - 1)
    return any(int(line.split()[1], 16) & number for line in (caught, blocked))


ENDS = {
    signal.SIGINT: (130, "\ninterrupted: nothing was committed\n"),
    signal.SIGTERM: (143, "\nterminated: nothing was committed\n"),
}


def check_answer(command, number, moment, places, out):
    """Interrupts a command so long after its beginning, and looks at what is said and left."""
    out.mkdir()
    process = started(command, places, out)
    while not has_begun(process):
        time.sleep(0.001)
    time.sleep(moment)
    process.send_signal(number)
    sent = time.monotonic()
    stdout, stderr = process.communicate(timeout=60)
    took = time.monotonic() - sent
    left = [path.relative_to(out).as_posix() for path in out.iterdir()]
    if process.returncode in (0, 1):  # it was done already
        assert stderr == ""
        return
    code, said = ENDS[number]
    assert process.returncode == code, (stdout, stderr)
    if "--resume" in command and left:
        assert stderr.startswith(said), stderr
        assert left == ["x.orbax-checkpoint-tmp-resume"]
    else:
        assert stderr == said
        assert left == []
    assert took < LONGEST_SECONDS


@pytest.mark.sample(5)
@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("name", ["convert", "compare"])
@pytest.mark.parametrize("moment", [0.0, 0.1, 0.3])
def test_a_signal_is_answered_from_the_first_moment_on(name, number, moment, places, tmp_path):
    check_answer(COMMANDS[name], number, moment, places, tmp_path / "out")


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", COMMANDS)
def test_without_a_signal_each_command_does_its_work(name, places, tmp_path):
    seconds_of(COMMANDS[name], places, tmp_path / "whole")


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_is_answered_at_any_moment(name, places, tmp_path):
    whole = seconds_of(COMMANDS[name], places, tmp_path / "whole")
    moments = random.Random(name)
    for count in range(50):
        number = list(ENDS)[count % 2]
        moment = moments.uniform(0.0, whole)
        check_answer(COMMANDS[name], number, moment, places, tmp_path / str(count))


HELD_UP = """
import ctypes, os, sys
from nnxconv.storage.transfer import carrying

def held_up(source, target):  # as a library that comes back late; the GIL is not held
    os.write(1, b"held up\\n")
    ctypes.CDLL(None).sleep(60)

from nnxconv.storage.orbax import Writer

async def held_up_in_main(self, *args):
    os.write(1, b"held up\\n")
    while ctypes.CDLL(None).sleep(60):
        pass

if sys.argv.pop(1) == "main":
    Writer.merge = held_up_in_main
else:
    carrying._copy_file = held_up
from nnxconv.cli import main
main()
"""


@pytest.mark.sample(1)
@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("thread", ["main", "another"])
def test_a_library_that_does_not_come_back_is_not_waited_for(thread, number, places, tmp_path):
    words = ["convert", str(places["SRC"]), str(tmp_path / "deep" / "x"), "--to", "linen"]
    process = subprocess.Popen(
        [sys.executable, "-c", HELD_UP, thread, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held up\n"
    process.send_signal(number)
    sent = time.monotonic()
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == ENDS[number]
    assert time.monotonic() - sent < LONGEST_SECONDS
    assert list(tmp_path.iterdir()) == []


SWALLOWED = """
import os, signal, sys, time
from nnxconv.commands import compare

class Late:
    def __del__(self):  # what is raised in here is printed, and lost
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(200):
            time.sleep(0.01)

def compare_in_a_destructor(*args, **options):
    Late()
    print("it went on")

import nnxconv.commands.compare as module
module.compare = compare_in_a_destructor
from nnxconv.cli import main
main()
"""


def test_a_signal_within_a_destructor_is_not_lost(places):
    command = [sys.executable, "-c", SWALLOWED, "compare", str(places["SRC"]), str(places["SRC"])]
    process = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (process.returncode, process.stderr) == ENDS[signal.SIGTERM]
    assert process.stdout == ""
