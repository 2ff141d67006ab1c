"""Runs commands and measures them: seconds, processor seconds, memory.

The process that measures stays small: the kernel's account of a child's memory starts from the size
of the process that started it.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NNXCONV = [sys.executable, "-m", "nnxconv"]
EAGER = [sys.executable, "-m", "tests.benchmarks.eager"]
GENERATE = [sys.executable, "-m", "tests.benchmarks.generate"]
Command = Sequence[str] | str
"""Words, or a line for the shell."""


@dataclass(frozen=True)
class Timed:
    """One run of a command.

    Attributes:
      wall: seconds of the whole process.
      cpu: seconds of processors, of the whole process.
      peak: the most memory that it had, in MiB.
      told: what it printed as JSON.
    """

    wall: float
    cpu: float
    peak: float
    told: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.wall:.2f} s (processors {self.cpu:.2f} s), {self.peak:,.0f} MiB"

    @property
    def work(self) -> float:
        """The seconds that nnxconv says its work took, without its start."""
        return float(self.told.get("seconds", self.wall))


@dataclass(frozen=True)
class Row:
    """One line of the table; `is_met` is None where there is no goal."""

    case: str
    measured: str
    against: str = ""
    goal: str = ""
    is_met: bool | None = None


@dataclass(frozen=True)
class Bench:
    """Where is measured, how often, and with how much.

    Attributes:
      folder: for checkpoints; empty at first.
      gigabytes: of a checkpoint, in GiB.
      runs: of each command.
      linked: GiB of further checkpoints that are linked.
      chunks: how many small chunks, in growing order.
    """

    folder: Path
    gigabytes: float
    runs: int
    linked: Sequence[float]
    chunks: Sequence[int]

    def made(self, kind: str, *words: object) -> str:
        """A checkpoint that `tests.benchmarks.generate` makes, once."""
        path = self.folder / "_".join([kind, *map(str, words)])
        if not path.exists():
            run([*GENERATE, kind, str(path), *map(str, words)])
        return str(path)

    def out(self, name: str = "out") -> str:
        """Where a command writes; it is removed before each run."""
        return str(self.folder / "written" / name)

    def best(self, *commands: Command, runs: int = 0, cores: int = 0) -> list[Timed]:
        """The quickest run of each command; they take turns, so that all see the same machine."""
        found: list[list[Timed]] = [[] for _ in commands]
        for _ in range(runs or self.runs):
            for timings, command in zip(found, commands, strict=True):
                self._clear()
                timings.append(run(command, cores=cores))
        self._clear()
        return [min(timings, key=lambda one: one.wall) for timings in found]

    def _clear(self) -> None:
        shutil.rmtree(self.folder / "written", ignore_errors=True)
        (self.folder / "written").mkdir()
        os.sync()


def run(command: Command, *, cores: int = 0, environment: dict[str, str] | None = None) -> Timed:
    """Runs a command to its end, on so many of the cores.

    Raises:
      RuntimeError: it failed; with what it said.
    """
    if cores:
        chosen = ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))
        command = ["taskset", "-c", chosen, *command]
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        shell=isinstance(command, str),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - started
    process.stdout.close()
    if process.returncode != 0:
        raise RuntimeError(f"{command} ended with {process.returncode}: {output[-2000:]}")
    return Timed(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, _json_in(output))


def _json_in(output: str) -> dict[str, Any]:
    """The JSON object that a command printed, on one line or on several."""
    start = output.find("{")
    try:
        told = json.loads(output[start:]) if start >= 0 else {}
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
