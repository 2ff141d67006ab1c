"""Several processes of nnxconv on loopback, as a cluster's launcher would start them."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COMMAND = "from nnxconv.cli import main; main()"

CALLS = """
import json, sys, nnxconv
for name, paths, options in json.loads(sys.argv[1]):
    result = getattr(nnxconv, name)(*paths, distributed=True, **options)
    if name == "compare":
        print(json.dumps(result.render()))
"""


@dataclass(frozen=True)
class Ended:
    """What one process printed, and its exit code."""

    stdout: str
    stderr: str
    exit_code: int


class Processes:
    """Processes that have been started together."""

    def __init__(self, code: str, arguments: Sequence[str], count: int, **env: str) -> None:
        address = f"127.0.0.1:{free_port()}"
        self.started = [
            subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**_environment(), **env, **told(address, count, number)},
            )
            for number in range(count)
        ]

    def ended(self, seconds: float = 120) -> list[Ended]:
        """What became of each; all are killed where one takes longer."""
        try:
            texts = [process.communicate(timeout=seconds) for process in self.started]
        finally:
            for process in self.started:
                process.kill()
        codes = [process.wait() for process in self.started]
        return [Ended(*text, code) for text, code in zip(texts, codes, strict=True)]


def start(*arguments: object, count: int, code: str = COMMAND, **env: str) -> Processes:
    """So many processes of one command, which get `--distributed` as well."""
    return Processes(code, [*map(str, arguments), "--distributed"], count, **env)


def call(calls: Sequence[tuple[str, Sequence[object], Mapping[str, Any]]], count: int, **env: str):
    """What each process printed that made these library calls, one after the other."""
    told = json.dumps([(name, list(map(str, paths)), options) for name, paths, options in calls])
    ended = Processes(CALLS, [told], count, **env).ended()
    assert [one.exit_code for one in ended] == [0] * count, "\n".join(o.stderr for o in ended)
    return [[json.loads(line) for line in one.stdout.splitlines()] for one in ended]


def told(address: str, count: int, number: int) -> dict[str, str]:
    """What a launcher tells a process."""
    return {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(number),
    }


def _environment() -> dict[str, str]:
    """Without the simulated devices of tests, which take time to set up."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def free_port() -> int:
    """A port on loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
