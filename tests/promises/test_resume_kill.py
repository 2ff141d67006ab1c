"""A run with `--resume` that is killed goes on where it stopped, and nothing of it shows.

The moments are drawn from the time that a conversion takes undisturbed, at its quickest. In every
run of the tests there are 2 of each kind, in `pytest -m trust` 9 more of each, or 50 with
`NNXCONV_LARGE=1`. A run is killed, and so may be the one that goes on with it.
"""

import json
import os
import random
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

import nnxconv
from nnxconv.storage.resume.journal import Unit
from tests.support import checkpoints
from tests.support.kills import serving
from tests.support.trees import entries, same_bits, values

MIB = 2**20
LITTLE = 2**13
"""What a run reads before it writes anything, such as the step."""

UNSTACK = {"to": "linen", "scan_layers": False, "max_memory": "24MiB"}

# kind: the source, options
KINDS = {
    "files": ("apart", {"to": "nnx-pure", "scan_layers": False}),
    "links": ("apart", {"to": "nnx-pure", "scan_layers": False, "transfer": "link"}),
    "large blocks": ("stacked", UNSTACK),
    "windows of many blocks": ("small", {"params_only": True, "dtype": "bfloat16"}),
    "a directory per array": ("plain", UNSTACK),
    "two items": ("stacked", {"to": "tunix", "scan_layers": False, "max_memory": "24MiB"}),
}
FEW, SOME, MANY = 2, 9, 50
KILLS = [
    FEW,
    pytest.param(
        MANY if os.environ.get("NNXCONV_LARGE") == "1" else SOME,
        marks=pytest.mark.trust(only=True),
    ),
]

pytestmark = pytest.mark.trust


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Roots of one step each, by name."""
    root = tmp_path_factory.mktemp("sources")
    small = {
        "step": np.asarray(7, np.int32),
        "params": {"params": {f"dense_{n}": {"kernel": _kernel(n, 64)} for n in range(96)}},
    }
    checkpoints.save_root(root / "apart", {7: _state(None)})
    checkpoints.save_root(root / "stacked", {7: _state(1)})
    checkpoints.save_root(root / "plain", {7: _state(1)}, use_ocdbt=False)
    checkpoints.save_root(root / "small", {7: small})
    yield root
    shutil.rmtree(root)


def _kernel(seed: int, rows: int) -> np.ndarray:
    return checkpoints.values((rows, 1024), seed)


def _state(axis: int | None) -> checkpoints.Tree:
    """Kernels of 1 MiB in 6 layers, and as much for each moment: 18 MiB."""
    tree = checkpoints.linen(6, axis=axis)
    kernels = [_kernel(seed, 256) for seed in range(6)]
    weights = tree["params"]["params"]["decoder"]
    if axis is None:
        for index, kernel in enumerate(kernels):
            weights[f"layers_{index}"]["mlp"]["wi"]["kernel"] = kernel
    else:
        weights["layers"]["mlp"]["wi"]["kernel"] = np.stack(kernels, axis)
    moments = dict.fromkeys(("mu", "nu"), tree["params"])
    return {**tree, "opt_state": [{**tree["opt_state"][0], **moments}, *tree["opt_state"][1:]]}


def snapshot(path: Path) -> dict[str, tuple]:
    """Every file under a path: time of change and bytes."""
    files = [file for file in path.rglob("*") if file.is_file()]
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def metadata(path: Path) -> dict[str, object]:
    """The metadata files of a checkpoint, without the times of saving."""
    found = {}
    for file in (*path.rglob("_METADATA"), *path.rglob("_CHECKPOINT_METADATA")):
        told = json.loads(file.read_text())
        times = ("init_timestamp_nsecs", "commit_timestamp_nsecs")
        found[str(file.relative_to(path))] = {k: v for k, v in told.items() if k not in times}
    return found


def check_same(found: Path, wanted: Path) -> None:
    """Fails unless two checkpoints have the same metadata, trees and bits."""
    assert metadata(found) == metadata(wanted)
    for file in wanted.rglob("_METADATA"):
        item = found / file.parent.relative_to(wanted)
        assert entries(item) == entries(file.parent)
        a, b = values(item), values(file.parent)
        assert a.keys() == b.keys()
        assert [key for key in b if not same_bits(a[key], b[key])] == []


def finished(target: Path) -> set[int]:
    """The inodes of all files of values that a killed run says it has finished.

    The nodes of its database, in `d/` under names without `v`, are written once more at the end.
    """
    found = set()
    for journal in target.glob("*-resume/*/journal"):
        units = [Unit.from_line(line) for line in journal.read_text().splitlines(keepends=True)]
        files = {file for unit in units if unit is not None for file in unit.files}
        files = {file for file in files if not re.match("d/[^v]", file)}
        found |= {(journal.parent / "work" / file).stat().st_ino for file in files}
    return found


def bytes_read(log: Path) -> int:
    return sum(map(int, log.read_text().split())) if log.exists() else 0


@pytest.mark.sample(1)
@pytest.mark.slow
@pytest.mark.parametrize("asked", KILLS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_and_repeats_at_most_one_window(
    kind, asked, server, sources, tmp_path, record_property
):
    name, options = KINDS[kind]
    options = {"resume": True, "max_memory": "12MiB", **options}
    source, wanted, log = sources / name, tmp_path / "wanted", tmp_path / "reads"
    before = snapshot(source)
    times = []
    for _ in range(3):
        shutil.rmtree(wanted, ignore_errors=True)
        log.unlink(missing_ok=True)
        status, seconds = server.convert(source, wanted, None, log=log, **options)
        assert status == 0
        times.append(seconds)
    whole = bytes_read(log)
    assert nnxconv.compare(
        str(source), str(wanted), compare_values=True, ignore_dtype=True, atol=0.05
    ).is_match
    plan = nnxconv.convert(str(source), str(tmp_path / "no"), dry_run=True, **options).plan
    window = max(plan.window_bytes, plan.largest_block_bytes) if plan.rewritten else 0
    drawn = random.Random(kind)
    kills = kept = 0
    while kills < asked:
        target = tmp_path / f"out{kills}"
        log.unlink(missing_ok=True)
        status, runs = -signal.SIGKILL, 0
        inodes = set()
        while status != 0:
            moment = drawn.uniform(0, min(times)) if runs < 2 else None
            status, _ = server.convert(source, target, moment, log=log, **options)
            runs += 1
            if status != 0:
                assert status == -signal.SIGKILL
                if (target / "7").exists():  # killed after the last rename
                    break
                inodes |= finished(target)
        check_same(target, wanted)
        assert bytes_read(log) <= whole + (runs - 1) * (window + LITTLE)
        assert inodes <= {file.stat().st_ino for file in target.rglob("*")}
        if status == 0:
            assert [path.name for path in target.iterdir()] == ["7"]
        kills += runs - 1
        kept += len(inodes)
        shutil.rmtree(target)
    record_property(
        "figures", f"{kills} kills, after which {kept} finished files were kept, none written twice"
    )
    if asked == MANY and kind not in ("files", "links"):  # which take little time after the start
        assert kept
    assert snapshot(source) == before
