"""`kill -9` at any moment leaves the source as it was, and a whole target or none.

The moments are drawn from the whole time that such a conversion takes undisturbed: every day 2 of
each kind, in the full run 50 in all, or 50 of each kind with `NNXCONV_LARGE=1`. One that comes when
the conversion is over is drawn anew.
"""

import os
import random
import shutil
import signal
import statistics
from pathlib import Path

import orbax.checkpoint as ocp
import pytest

import nnxconv
from tests.support import checkpoints
from tests.support.kills import Server, serving
from tests.support.trees import same_bits, values

pytestmark = pytest.mark.trust

STEP = 7
UNFINISHED = ".orbax-checkpoint-tmp"

LINEN = {"to": "linen", "scan_layers": False}

# kind: the sources that take turns, options
KINDS = {
    "copy": (["apart"], {"transfer": "copy"}),
    "link": (["apart"], {"transfer": "link"}),
    "rewrite": (["stacked"], LINEN),
    "overwrite": (["apart", "other"], {"overwrite": True}),
    "overwrite links": (["apart", "other"], {"overwrite": True, "transfer": "link"}),
}
FEW = 2
KILLS = 50 if os.environ.get("NNXCONV_LARGE") == "1" else 50 // len(KINDS)


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


def training_state(axis=None, sign=1, layers=8):
    """Layers of 2 MiB, and as much for each moment: 48 MiB."""
    kernels = [sign * checkpoints.values((512, 1024), seed) for seed in range(layers)]
    return checkpoints.linen_with(kernels, axis=axis)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Roots of one step each, by name."""
    root = tmp_path_factory.mktemp("kill")
    trees = {
        "apart": training_state(),
        "other": training_state(sign=-1),
        "stacked": training_state(axis=1),
    }
    yield {
        name: checkpoints.save_root(root / name, {STEP: tree}, extra={"iter": {"at": 3}})
        for name, tree in trees.items()
    }
    shutil.rmtree(root)


def snapshot(path: Path) -> dict[str, tuple]:
    """Every file under a path: kind, time of change, bytes."""
    found = {}
    for file in path.rglob("*"):
        status = file.stat()
        content = file.read_bytes() if file.is_file() else b""
        found[file.relative_to(path).as_posix()] = (status.st_mode, status.st_mtime_ns, content)
    return found


def item_of(root: Path) -> Path:
    return root / str(STEP) / "items"


def unfinished(root: Path) -> list[Path]:
    """What a killed run left under a root, besides steps."""
    return [path for path in root.glob("*") if UNFINISHED in path.name]


def whole_checkpoint(root: Path, wanted: dict[str, dict]) -> str | None:
    """Which of the wanted checkpoints is what Orbax finds under a root; None if it finds none."""
    visible = [path.name for path in root.glob("*") if UNFINISHED not in path.name]
    with ocp.CheckpointManager(root) as manager:
        assert list(map(str, manager.all_steps())) == visible
    if not visible:
        return None
    assert (root / str(STEP) / "iter" / "metadata").read_text() == '{"at": 3}'
    found = values(item_of(root))
    whole = [
        name
        for name, arrays in wanted.items()
        if arrays.keys() == found.keys() and all(same_bits(arrays[k], found[k]) for k in arrays)
    ]
    assert whole, "Orbax takes for a checkpoint what is none"
    return whole[0]


def undisturbed(kind: str, server: Server, sources: dict[str, Path], target: Path):
    """What becomes of each source, and how many seconds it takes; the last one is left there."""
    names, options = KINDS[kind]
    wanted, times = {}, []
    for name in 3 * names:
        shutil.rmtree(target, ignore_errors=True)
        status, seconds = server.convert(sources[name], target, None, **options)
        assert status == 0
        times.append(seconds)
        wanted[name] = values(item_of(target))
    source = str(item_of(sources[names[-1]]))
    assert nnxconv.compare(
        source, str(item_of(target)), compare_values=True, compare_only="all"
    ).is_match
    return wanted, statistics.median(times)


@pytest.mark.sample(2)
@pytest.mark.parametrize("kills", [FEW, pytest.param(KILLS, marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_any_moment_leaves_the_source_and_a_whole_target_or_none(
    kind, kills, server, sources, tmp_path, record_property
):
    names, options = KINDS[kind]
    target = tmp_path / "out"
    before = {name: snapshot(sources[name]) for name in names}
    wanted, duration = undisturbed(kind, server, sources, target)
    drawn = random.Random(kind)
    there = whole_checkpoint(target, wanted)
    hits, found_unfinished = 0, 0
    for _ in range(3 * kills):
        if not options.get("overwrite"):
            shutil.rmtree(target / str(STEP), ignore_errors=True)
            there = None
        name = next(name for name in names if name != there)
        moment = drawn.uniform(0, duration)
        status, _ = server.convert(sources[name], target, moment, **options)
        assert status in (0, -signal.SIGKILL)
        assert {name: snapshot(sources[name]) for name in names} == before
        now = whole_checkpoint(target, wanted)
        assert now in ((name,) if status == 0 else (name, there))
        there = now
        hits += status != 0
        found_unfinished += bool(unfinished(target))
        if hits == kills:
            break
    assert hits == kills
    record_property(
        "figures", f"{hits} kills, of which {found_unfinished} left an unfinished directory"
    )
    if kind != "overwrite links":  # which is too quick to be found in the middle
        assert found_unfinished >= kills // 10
    shutil.rmtree(target / str(STEP), ignore_errors=True)
    assert server.convert(sources[names[0]], target, None, **options)[0] == 0
    assert whole_checkpoint(target, wanted) == names[0]
    assert not unfinished(target)


def test_half_a_checkpoint_does_not_pass_for_a_whole_one(sources, tmp_path):
    half = shutil.copytree(sources["apart"], tmp_path / "half")
    wanted = {"apart": values(item_of(half))}
    assert whole_checkpoint(half, wanted) == "apart"
    assert whole_checkpoint(tmp_path / "none", wanted) is None
    next(item_of(half).rglob("manifest.ocdbt")).unlink()
    with pytest.raises((AssertionError, ValueError)):
        whole_checkpoint(half, wanted)
