"""A process that converts in children of its own, and kills them at given moments.

It has imported nnxconv and has opened nothing yet; the moment of a kill counts from the child's
start, so that none falls on imports.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER = """
import json, math, os, signal, sys, time, traceback, warnings

warnings.simplefilter("ignore")  # that forking a process with threads may go wrong
import nnxconv, nnxconv.commands.convert, nnxconv.running.execution
import nnxconv.storage.resume.runs, nnxconv.comparing.verification
from nnxconv.tree import item_bytes

from nnxconv.storage.orbax.reading import Reader
read = Reader.read

def told(log):
    async def reads(self, source, region):
        nbytes = math.prod(part.stop - part.start for part in region) * item_bytes(source.dtype)
        os.write(log, b"%d\\n" % nbytes)
        return await read(self, source, region)
    return reads

def convert(source, target, options, log, started):
    signal.alarm(60)
    if log is not None:
        Reader.read = told(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    os.write(started, b".")
    try:
        nnxconv.convert(source, target, **options)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

for line in sys.stdin:
    source, target, options, moment, log = json.loads(line)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        convert(source, target, options, log, writer)
    os.read(reader, 1)
    started = time.monotonic()
    if moment is not None:
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([status, time.monotonic() - started]), flush=True)
    os.close(reader)
    os.close(writer)
"""


class Server:
    """Converts in children of a process of its own, and kills them."""

    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process

    def convert(
        self,
        source: Path,
        target: Path | str,
        moment: float | None,
        *,
        log: Path | None = None,
        **options,
    ):
        """Exit code and seconds of a conversion that is killed at a moment, if at any.

        The log is a file to which the bytes of each read are added before it is done.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin and stdout
        told = None if log is None else str(log)
        stdin.write(json.dumps([str(source), str(target), options, moment, told]) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())

    def kill(self) -> None:
        """Kills the conversion that is under way."""
        own = self._process.pid
        for child in Path(f"/proc/{own}/task/{own}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)


@contextmanager
def serving() -> Iterator[Server]:
    """A server; it ends when its input does."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
    ) as process:
        yield Server(process)
