"""Conversions back and forth, over and over: nothing grows, and nothing is worn out.

A short run belongs to every run of the tests, 200 conversions in one process to `pytest -m trust`.
With `--verify` memory does grow: Orbax, which reads what we wrote, asks TensorStore for the spec of
every array, and TensorStore 0.1.86 gives the memory of what `to_json` returns never back.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nnxconv
from tests.support import checkpoints

SOME_FILES = 4
"""Of how many data files a save consists varies by so much."""
WARM = 22
"""Conversions after which caches are filled."""
ARRAYS = 37
"""Of the checkpoint that is converted."""
LOST_BYTES = 6 * 2**10
"""Of each array that Orbax reads, what TensorStore keeps at most: 3.9 KiB were measured."""

ROUNDS = """
import gc, json, os, pathlib, sys
import nnxconv

root, count, verify = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
here, there = root / "linen", root / "nnx"

def resident():
    gc.collect()
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024

def seen():
    files = [path for path in root.rglob("*") if path.is_file()]
    return {
        "memory": resident(),
        "open": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "disk": sum(path.stat().st_size for path in files),
        "files": len(files),
    }

told = []
for number in range(count):
    to_nnx = number % 2 == 0
    source, target = (here, there) if to_nnx else (there, here)
    nnxconv.convert(
        str(source),
        str(target),
        to="nnx-pure" if to_nnx else "linen",
        scan_layers=to_nnx,
        overwrite=True,
        verify=verify and number % 4 < 2,
        transfer="link" if number % 8 < 4 else "copy",
    )
    if number % 2:
        told.append(seen())
print(json.dumps(told))
"""


def rounds(root: Path, count: int, verify: bool) -> list[dict[str, int]]:
    """What is seen after every second conversion, in one process."""
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS, str(root), str(count), str(verify)],
        capture_output=True,
        text=True,
        timeout=560,
        env={**os.environ, "XLA_FLAGS": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.full
@pytest.mark.parametrize(
    ("processes", "count", "verify"),
    [
        pytest.param(1, WARM + 18, False, id="short"),
        pytest.param(1, WARM + 18, True, id="short, verified"),
        pytest.param(1, 200, False, id="one process", marks=pytest.mark.trust(only=True)),
        pytest.param(1, 200, True, id="verified", marks=pytest.mark.trust(only=True)),
        pytest.param(10, 4, True, id="many processes", marks=pytest.mark.trust(only=True)),
    ],
)
@pytest.mark.parametrize("use_ocdbt", [True, False], ids=["ocdbt", "plain"])
def test_nothing_grows(processes, count, verify, use_ocdbt, tmp_path, record_property):
    if count < 100 and processes == 1 and not use_ocdbt:
        pytest.skip("one container is enough for the short run")
    source = tmp_path / "linen"
    checkpoints.save_item(source, checkpoints.linen(), use_ocdbt=use_ocdbt)
    manifest = nnxconv.write_checksums(str(source), manifest=str(tmp_path / "digests")).path
    runs = [rounds(tmp_path, count, verify) for _ in range(processes)]
    for path in (source, tmp_path / "nnx"):
        found = nnxconv.check_checksums(str(path), manifest=manifest)
        assert [problem for problem in found.problems if not problem.startswith("file ")] == []
    told = [one for run in runs for one in run]
    start = runs[0][WARM // 2] if processes == 1 else runs[1][-1]
    end = told[-1]
    growth = end["memory"] / start["memory"] - 1
    readings = (count - WARM) // 2 if verify and processes == 1 else 0
    lost = readings * ARRAYS * LOST_BYTES / start["memory"]
    record_property(
        "figures",
        f"{processes * count} conversions in {processes} process(es): memory {growth:+.1%},"
        f" open files {start['open']} -> {end['open']}, files {start['files']} -> {end['files']},"
        f" {start['disk']:,} -> {end['disk']:,} bytes on disk",
    )
    assert growth < 0.02 + lost
    assert end["open"] <= start["open"]
    assert end["threads"] <= start["threads"] + 2
    assert end["files"] <= start["files"] + SOME_FILES
    assert end["disk"] <= start["disk"] + 4096
