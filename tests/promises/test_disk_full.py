"""A full disk: refused before anything is written, and undone where it fills up on the way.

The disk is a real file system of a few MiB, in memory, that is mounted anew for each conversion
by a process in a mount namespace of its own: nothing else sees it, and it goes with the process.
That process has imported nnxconv, and runs the command in a child.
"""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore as ts

import nnxconv
from nnxconv.tree.sizes import format_bytes, parse_bytes
from tests.support import checkpoints

pytestmark = pytest.mark.trust

MIB = 2**20
KIB = 2**10

SERVER = """
import contextlib, hashlib, json, os, pathlib, shutil, subprocess, sys, warnings

warnings.simplefilter("ignore")  # that forking a process with threads may go wrong
disk = pathlib.Path(sys.argv[1])
import nnxconv.commands.convert, nnxconv.comparing.verification, nnxconv.render.conversion
import nnxconv.running.execution, nnxconv.storage.transfer.checks
from nnxconv.cli import main

def fill(left):
    status = os.statvfs(disk)
    with (disk / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, status.f_bavail * status.f_frsize - left)

def fill_after_the_check(left):
    check = nnxconv.storage.transfer.check_space

    def check_and_fill(*arguments):
        check(*arguments)
        fill(left)

    nnxconv.storage.transfer.check_space = check_and_fill

def command(words, left, outputs):
    for number in (1, 2):
        os.dup2(os.open(outputs[number - 1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if left is not None:
        fill_after_the_check(left)
    sys.argv = ["nnxconv", "convert", *words]
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code or 0)
    os._exit(99)

def files():
    found = [path for path in disk.rglob("*") if path != disk / "filler"]
    return {
        path.relative_to(disk).as_posix():
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in found
    }

def run(nbytes, words, old, left, keep, outputs):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", disk], check=True)
    try:
        if old:
            shutil.copytree(old, disk / "out")
        before = files()
        free = shutil.disk_usage(disk).free
        child = os.fork()
        if child == 0:
            command(words, left, outputs)
        exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        after = files()
        if keep:
            shutil.copytree(disk / "out", keep)
        return exit_code, free, before, after
    finally:
        subprocess.run(["umount", disk], check=True)

for line in sys.stdin:
    print(json.dumps(run(**json.loads(line))), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """What the command said, and the disk before and after it: files, and bytes free."""

    exit_code: int
    stdout: str
    stderr: str
    free: int
    before: dict[str, str]
    after: dict[str, str]


class Disk:
    """A small file system, new for every conversion."""

    def __init__(self, process: subprocess.Popen, root: Path) -> None:
        self._process = process
        self._outputs = [str(root / name) for name in ("stdout", "stderr")]
        self.path = root / "disk"

    def convert(self, source, *words, nbytes, old=None, left=None, keep=None) -> Outcome:
        """Converts to `out` on a disk of so many bytes, on which there may be an old target.

        With `left`, another file takes all but so many bytes once the space has been checked.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin and stdout
        request = {
            "nbytes": nbytes,
            "words": [str(source), str(self.path / "out"), *words],
            "old": old and str(old),
            "left": left,
            "keep": keep and str(keep),
            "outputs": self._outputs,
        }
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        exit_code, free, before, after = json.loads(stdout.readline())
        printed, error = (Path(file).read_text() for file in self._outputs)
        return Outcome(exit_code, printed, error, free, before, after)


def namespace(root: Path) -> list[str]:
    """The words that start a process which may mount: as a user, or else as root."""
    for words in (["unshare", "-rm"], ["unshare", "-m"]):
        mount = [*words, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(root)]
        if shutil.which("unshare") and not subprocess.run(mount, capture_output=True).returncode:
            return words
    pytest.skip("no small file system can be mounted here, neither as a user nor as root")


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    root = tmp_path_factory.mktemp("full")
    (root / "disk").mkdir()
    words = [*namespace(root / "disk"), sys.executable, "-c", SERVER, str(root / "disk")]
    with subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
    ) as process:
        yield Disk(process, root)


def training_state(axis=None, sign=1, layers=4):
    """Layers of 2 MiB, and as much for each moment: 24 MiB."""
    kernels = [sign * checkpoints.values((512, 1024), seed) for seed in range(layers)]
    return checkpoints.linen_with(kernels, axis=axis)


def zeros(tree):
    return jax.tree.map(np.zeros_like, tree)


def database(item: Path) -> ts.KvStore:
    spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{item}/"}}
    return ts.KvStore.open(spec, context=ts.Context()).result()


def save_in_one_file(item: Path) -> Path:
    """Weights of 8 MiB and statistics of 7 MiB, in one data file.

    TensorStore writes the first value of a commit to a file of its own: that is a small one.
    """
    kernel, mean = (checkpoints.values((rows, 1024), rows) for rows in (2048, 1792))
    weights = {"params": {"params": {"w": {"kernel": kernel}}}}
    statistics = {"batch_stats": {"a": {"mean": mean[:1]}, "b": {"mean": mean}}}
    checkpoints.save_item(item, {**weights, **statistics})
    store = database(item)
    stored = {key: store.read(key).result().value for key in store.list().result()}
    (item / "manifest.ocdbt").unlink()
    for directory in (item / "d", item / "ocdbt.process_0"):
        shutil.rmtree(directory)
    with ts.Transaction(atomic=True) as transaction:
        store = database(item).with_transaction(transaction)
        for key, value in stored.items():
            store.write(key, value).result()
    assert max(file.stat().st_size for file in item.glob("d/*")) > 12 * MIB
    return item


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    trees = {
        "apart": training_state(),
        "stacked": training_state(axis=1),
        "new": {**training_state(), "opt_state": zeros(training_state()["opt_state"])},
        "old": checkpoints.linen(),
    }
    saved = {name: checkpoints.save_item(root / name, tree) for name, tree in trees.items()}
    yield {**saved, "one file": save_in_one_file(root / "one")}
    shutil.rmtree(root)


# kind: source, options
KINDS = {
    "copy": ("apart", []),
    "link": ("apart", ["--transfer", "link"]),  # which cannot be, to another file system
    "rewrite": ("stacked", ["--to", "linen", "--no-scan_layers"]),
}
PARTS = {
    # a data file of which a little more than half is needed
    "half of a file": ("one file", ["--to", "linen", "--without", "aux"]),
    # what is left out is zeros, which took no room
    "weights of a new model": ("new", ["--without", "opt_state"]),
}
OLD = pytest.mark.parametrize("is_there", [False, True], ids=["new", "overwrite"])


def contents(path: Path) -> dict[str, bytes]:
    files = [child for child in path.rglob("*") if child.is_file()]
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def refusal(needed: str, free: str, place: Path) -> str:
    return (
        f"error: the target needs about {needed}, but {free} are free\n  at {place}\n\n"
        "hint: free some space, or choose a target on another file system\n"
    )


def needed_bytes(source: Path) -> int:
    """What a conversion of everything needs: as much again, and something for metadata."""
    return MIB + sum(map(len, contents(source).values()))


@pytest.mark.sample(2)
@OLD
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    kind, is_there, disk, sources
):
    name, options = KINDS[kind]
    before = contents(sources[name])
    old = sources["old"] if is_there else None
    outcome = disk.convert(sources[name], "--overwrite", *options, nbytes=20 * MIB, old=old)
    [needed] = re.findall(r"needs about (\S+ \S+),", outcome.stderr)
    assert parse_bytes(needed) == pytest.approx(needed_bytes(sources[name]), abs=0.1 * MIB)
    assert outcome.stderr == refusal(needed, format_bytes(outcome.free), disk.path)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.after == outcome.before
    assert bool(outcome.before) == is_there
    assert contents(sources[name]) == before


@pytest.mark.sample(3)
@OLD
@pytest.mark.parametrize("left", [0, 8 * KIB, 12 * MIB], ids=format_bytes)
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fills_up_on_the_way_is_an_error_with_numbers_and_all_is_undone(
    kind, left, is_there, disk, sources
):
    name, options = KINDS[kind]
    before = contents(sources[name])
    old = sources["old"] if is_there else None
    outcome = disk.convert(
        sources[name], "--overwrite", *options, nbytes=40 * MIB, old=old, left=left
    )
    assert outcome.after == outcome.before
    assert bool(outcome.before) == is_there
    assert contents(sources[name]) == before
    needed = format_bytes(needed_bytes(sources[name]))
    told = re.sub(r"but [0-9.]+ (bytes|KiB|MiB) are", "but $FREE are", outcome.stderr)
    assert told == refusal(needed, "$FREE", disk.path)
    assert (outcome.exit_code, outcome.stdout) == (2, "")


TENSORS = ["--to", "safetensors", "--params_only", "--shard_size", "3MB"]
"""8 MiB of weights, in files of 2 MiB and less."""


@pytest.mark.sample(2)
@pytest.mark.parametrize("left", [None, 0, 8 * KIB, 5 * MIB], ids=str)
def test_safetensors_for_which_there_is_no_room_are_refused_or_undone(left, disk, sources):
    """Their files have their whole size from the start, and are filled on the way."""
    before = contents(sources["apart"])
    nbytes = 5 * MIB if left is None else 40 * MIB
    outcome = disk.convert(sources["apart"], *TENSORS, nbytes=nbytes, left=left)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert re.fullmatch(
        r"error: the target needs about [0-9.]+ MiB, but [0-9.]+ (bytes|KiB|MiB) are free\n"
        rf"  at {disk.path}\n\n"
        r"hint: free some space, or choose a target on another file system\n",
        outcome.stderr,
    )
    assert outcome.after == outcome.before == {}
    assert contents(sources["apart"]) == before
    assert disk.convert(sources["apart"], *TENSORS, nbytes=40 * MIB).exit_code == 0


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", [*KINDS, *PARTS])
def test_the_room_that_is_said_to_be_needed_is_enough(kind, disk, sources):
    name, options = {**KINDS, **PARTS}[kind]
    refused = disk.convert(sources[name], *options, nbytes=MIB // 2)
    match = re.search(r"needs about ([0-9.]+ MiB)", refused.stderr)
    assert match, refused.stderr
    rounding = MIB // 10
    outcome = disk.convert(sources[name], *options, nbytes=parse_bytes(match[1]) + rounding)
    assert (outcome.exit_code, outcome.stderr) == (0, "")


NOTE = "files were copied, because links failed: Invalid cross-device link"


@pytest.mark.parametrize("kind", KINDS)
def test_links_to_another_file_system_become_copies_and_the_command_says_so(
    kind, disk, sources, tmp_path
):
    name, options = KINDS[kind]
    kept = tmp_path / "kept"
    outcome = disk.convert(sources[name], *options, nbytes=64 * MIB, keep=kept)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert outcome.stdout.count(NOTE) == ("--transfer" in options)
    source = str(sources[name])
    assert nnxconv.compare(source, str(kept), compare_values=True, compare_only="all").is_match


def test_that_links_failed_is_said_once_however_many_were_tried_at_once(tmp_path, monkeypatch):
    def refuse(*_):
        time.sleep(0.05)
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    source = checkpoints.save_item(tmp_path / "in", checkpoints.linen(), use_ocdbt=False)
    result = nnxconv.convert(str(source), str(tmp_path / "out"), transfer="link")
    assert result.moved is not None
    assert result.moved.notes == [NOTE]
