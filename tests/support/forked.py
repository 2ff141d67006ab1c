"""Commands in children of a process that has imported nnxconv: at once, or on a failing disk.

```
with commands(folder) as run:
    run([words, words])                    two of them, begun within a millisecond or so
    run([words], fails_at=30)              from the 30th write below the folder on, none succeeds
```
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SERVER = """
import ctypes, importlib, json, os, pkgutil, sys, time, warnings

warnings.simplefilter("ignore")  # that forking a process with threads may go wrong
import nnxconv
for module in pkgutil.walk_packages(nnxconv.__path__, "nnxconv."):
    if module.name != "nnxconv.__main__":
        importlib.import_module(module.name)
from nnxconv.cli import main

def command(words, outputs, moment, fails_at, error, done):
    for number in (1, 2):
        os.dup2(os.open(outputs[number - 1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if fails_at is not None:
        ctypes.CDLL(None).fail_from(fails_at, error)
    sys.argv = ["nnxconv", *words]
    time.sleep(max(0, moment - time.monotonic() - 1e-3))
    while time.monotonic() < moment:
        pass
    late = time.monotonic() - moment
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        writes = 0 if fails_at is None else ctypes.CDLL(None).writes_so_far()
        os.write(done, json.dumps([late, writes]).encode())
        os._exit(code)

def run(each, outputs, fails_at, error):
    moment = time.monotonic() + 0.05
    children = []
    for words, files in zip(each, outputs):
        told, done = os.pipe()
        child = os.fork()
        if child == 0:
            command(words, files, moment, fails_at, error, done)
        os.close(done)
        children.append((child, told))
    ended = []
    for child, told in children:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        late, writes = json.loads(os.read(told, 100) or "[0, 0]")
        os.close(told)
        ended.append((code, late, writes))
    return ended

for line in sys.stdin:
    print(json.dumps(run(**json.loads(line))), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
      late: seconds from the moment at which it should have begun.
      writes: calls that would have written to the failing disk, where it was asked to fail.
    """

    exit_code: int
    late: float
    writes: int
    stdout: str
    stderr: str


class Commands:
    """Runs commands in children of a process of its own."""

    def __init__(self, process: subprocess.Popen, folder: Path) -> None:
        self._process = process
        self._folder = folder

    def __call__(
        self,
        each: Sequence[Sequence[object]],
        fails_at: int | None = None,
        error: int = errno.ENOSPC,
    ) -> list[Ended]:
        """How each of these commands, which begin at one moment, ended."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin and stdout
        outputs = [[str(self._folder / f"{n}.{name}") for name in "12"] for n in range(len(each))]
        words = [list(map(str, one)) for one in each]
        request = {"each": words, "outputs": outputs, "fails_at": fails_at, "error": error}
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        answers = json.loads(stdout.readline())
        texts = [[Path(file).read_text() for file in files] for files in outputs]
        return [Ended(*answer, *text) for answer, text in zip(answers, texts, strict=True)]


@contextmanager
def commands(folder: Path, failing: Path | None = None) -> Iterator[Commands]:
    """Runs commands; what they write below `failing` may be told to fail.

    The folder is for what they print.
    """
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    if failing is not None:
        env |= {"FAILING_DISK": str(failing), "LD_PRELOAD": str(_compiled(folder))}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        yield Commands(process, folder)


def _compiled(folder: Path) -> Path:
    """The library that makes calls fail; a machine that cannot make it skips the test."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler, or not Linux: a disk cannot be made to fail")
    library = folder / "failing_disk.so"
    source = Path(__file__).with_name("failing_disk.c")
    words = [compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]
    subprocess.run(words, check=True)
    return library
