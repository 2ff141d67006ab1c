"""What `--resume` keeps, goes on with, and refuses to go on with."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import orbax.checkpoint as ocp
import pytest

import nnxconv
import nnxconv.running.cluster
from nnxconv import __version__
from nnxconv.errors import BadInput, DamagedCheckpoint, NnxconvError, NotACheckpoint, PlanError
from nnxconv.storage.orbax.reading import Reader
from nnxconv.storage.resume.runs import FORMAT
from nnxconv.storage.transfer import checks as places
from tests.promises.test_resume_kill import check_same
from tests.support import checkpoints, pax
from tests.support.command import run
from tests.support.safety import contents, refusal, snapshot

OPTIONS = {"to": "nnx-pure", "params_only": True, "dtype": "bfloat16", "max_memory": "3MiB"}
KERNELS = 12
KEPT = "out.orbax-checkpoint-tmp-resume"


class Stopped(Exception):
    """What a test stops a conversion with."""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """An item of 12 kernels of 128 KiB, and what becomes of it."""
    root = tmp_path_factory.mktemp("resume")
    kernels = {f"dense_{n}": {"kernel": checkpoints.values((32, 1024), n)} for n in range(KERNELS)}
    tree = {"step": np.asarray(7, np.int32), "params": {"params": kernels}}
    checkpoints.save_item(root / "ocdbt", tree)
    checkpoints.save_item(root / "plain", tree, use_ocdbt=False)
    for name in ("ocdbt", "plain"):
        nnxconv.convert(str(root / name), str(root / f"{name} wanted"), **OPTIONS)
    return root


@pytest.fixture
def source(template, tmp_path):
    return shutil.copytree(template / "ocdbt", tmp_path / "in")


def convert(source: Path, target: Path | str, **options):
    return nnxconv.convert(str(source), str(target), **{"resume": True, **OPTIONS, **options})


def notes(result: nnxconv.Result) -> list[str]:
    """The remarks on how the arrays moved."""
    assert result.moved is not None
    return result.moved.notes


@contextmanager
def reads(monkeypatch, stop_at: int = 0):
    """Lists the kernels that are read, and stops when it is the turn of one of them."""
    found = []
    read = Reader.read

    async def watched(self, source, region):
        if "kernel" in source.name:
            found.append(source.name)
            if len(found) == stop_at:
                raise Stopped
        return await read(self, source, region)

    with monkeypatch.context() as patch:
        patch.setattr(Reader, "read", watched)
        yield found


@pytest.fixture
def interrupted(source, tmp_path, monkeypatch):
    """A target of which 9 kernels have been read."""
    with reads(monkeypatch, stop_at=9), pytest.raises(Stopped):
        convert(source, tmp_path / "out")
    return tmp_path / "out"


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


# Going on


@pytest.mark.sample(2)
@pytest.mark.parametrize("stored", ["ocdbt", "plain"])
@pytest.mark.parametrize("stop_at", [3, 5, 12])
def test_what_was_finished_is_not_done_again(stored, stop_at, template, tmp_path, monkeypatch):
    source, target = template / stored, tmp_path / "out"
    with reads(monkeypatch, stop_at) as first, pytest.raises(Stopped):
        convert(source, target)
    assert names(tmp_path) == [KEPT]
    with reads(monkeypatch) as second:
        result = convert(source, target)
    assert len(first) + len(second) <= KERNELS + 2  # two are a window
    check_same(target, template / f"{stored} wanted")
    assert names(tmp_path) == ["out"]
    assert [note for note in notes(result) if "an interrupted run was continued" in note]


def test_the_counts_are_those_of_an_undisturbed_run(source, interrupted, tmp_path):
    events = []
    result = convert(source, interrupted, watch=events.append)
    undisturbed = convert(source, tmp_path / "other")
    assert events[-1].done_bytes == events[-1].total_bytes == undisturbed.plan.total_bytes
    assert events[-1].arrays == events[-1].total_arrays
    for name in ("copied_files", "copied_chunks", "nbytes"):
        assert getattr(result.moved, name) == getattr(undisturbed.moved, name)


def test_copied_files_are_not_copied_again(tmp_path, monkeypatch):
    tree = checkpoints.linen()
    kernels = {f"k_{n}": {"kernel": checkpoints.values((512, 1024), n)} for n in range(4)}
    tree["params"]["params"] |= kernels
    source = checkpoints.save_item(tmp_path / "in", tree, use_ocdbt=False)
    options = {"to": "linen", "layer_axis": None, "scan_layers": True, "max_memory": "8MiB"}
    options |= {"params_only": False, "dtype": None, "resume": True}
    with reads(monkeypatch, stop_at=1), pytest.raises(Stopped):
        convert(source, tmp_path / "out", **options)
    inodes = {file.stat().st_ino for file in (tmp_path / KEPT).rglob("*k_*/*")}
    assert len(inodes) > 4
    convert(source, tmp_path / "out", **options)
    assert inodes == {file.stat().st_ino for file in (tmp_path / "out").rglob("*k_*/*")}


def test_the_command_goes_on_and_says_so(source, interrupted):
    words = ["--to", "nnx-pure", "--params_only", "--dtype", "bfloat16", "--max_memory", "3MiB"]
    outcome = run("convert", source, interrupted, *words, "--resume")
    assert outcome.exit_code == 0
    assert "an interrupted run was continued" in outcome.stdout


def test_an_import_goes_on(tmp_path, monkeypatch):
    source = pax.write(tmp_path / "in", pax.leaves())
    nnxconv.gpt3_from_paxml(str(source), str(tmp_path / "wanted"))
    read = Reader.read
    count = 0

    async def failing(self, source, region):
        nonlocal count
        count += 1
        if count == 30:
            raise Stopped
        return await read(self, source, region)

    options = {"resume": True, "max_memory": "256KiB"}
    with monkeypatch.context() as patch:
        patch.setattr(Reader, "read", failing)
        with pytest.raises(Stopped):
            nnxconv.gpt3_from_paxml(str(source), str(tmp_path / "out"), **options)
    result = nnxconv.gpt3_from_paxml(str(source), str(tmp_path / "out"), **options)
    assert any("an interrupted run was continued" in note for note in notes(result))
    check_same(tmp_path / "out", tmp_path / "wanted")
    assert len(names(tmp_path / "out")) == 1


def test_nothing_to_go_on_with_is_a_run_like_any_other(source, template, tmp_path):
    result = convert(source, tmp_path / "deep" / "er" / "out")
    assert notes(result) == []
    check_same(tmp_path / "deep" / "er" / "out", template / "ocdbt wanted")
    assert names(tmp_path / "deep" / "er") == ["out"]


def test_a_run_that_was_killed_before_it_said_what_it_does_is_begun_anew(source, tmp_path):
    (tmp_path / KEPT / "0" / "work").mkdir(parents=True)
    (tmp_path / KEPT / "0" / "work" / "half").write_text("x")
    convert(source, tmp_path / "out")
    assert names(tmp_path) == ["in", "out"]
    assert not (tmp_path / "out" / "half").exists()


def test_without_hard_links_the_work_is_moved(source, interrupted, template, monkeypatch):
    def refused(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    convert(source, interrupted)
    check_same(interrupted, template / "ocdbt wanted")


def test_the_old_target_stays_until_the_new_one_is_complete(
    source, template, tmp_path, monkeypatch
):
    old = checkpoints.save_item(tmp_path / "out", checkpoints.nnx_pure(2))
    before = contents(old)
    with reads(monkeypatch, stop_at=9), pytest.raises(Stopped):
        convert(source, old, overwrite=True)
    assert contents(old) == before
    convert(source, old, overwrite=True)
    check_same(old, template / "ocdbt wanted")
    assert names(tmp_path) == ["in", "out"]


def test_room_for_what_is_finished_is_not_asked_for_again(source, interrupted, monkeypatch):
    needed = []

    def check(nbytes, target):
        needed.append(nbytes)
        raise PlanError("full")

    monkeypatch.setattr("nnxconv.storage.transfer.check_space", check)
    with pytest.raises(PlanError):
        convert(source, interrupted)
    with pytest.raises(PlanError):
        convert(source, interrupted.with_name("other"))
    kept = interrupted.with_name(KEPT) / "0" / "work" / "d"
    finished = sum(file.stat().st_size for file in kept.iterdir())
    assert needed[1] - needed[0] == finished > 3 * 2**16


# Verifying


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "a flipped bit": _flip,
    "a file that is too short": lambda file: os.truncate(file, file.stat().st_size - 1),
    "a file that is not there": Path.unlink,
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("which", ["values", "nodes"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_work_is_done_again_and_told(
    damage, which, source, interrupted, template, monkeypatch
):
    files = sorted(interrupted.with_name(KEPT).rglob("d/*"))
    files = [file for file in files if file.name.startswith("v") == (which == "values")]
    file = files[len(files) // 2]
    DAMAGES[damage](file)
    result = convert(source, interrupted)
    assert notes(result)[0] == (
        f"`{file}` is not as the interrupted run wrote it: what came from there on was done again"
    )
    check_same(interrupted, template / "ocdbt wanted")


@pytest.mark.sample(2)
@pytest.mark.parametrize("part", [0.0, 0.4, 0.999])
@pytest.mark.parametrize("damage", ["torn", "flipped"])
def test_a_damaged_journal_counts_as_far_as_it_is_whole(
    damage, part, source, interrupted, template
):
    journal = interrupted.with_name(KEPT) / "0" / "journal"
    content = bytearray(journal.read_bytes())
    place = int(part * len(content))
    if damage == "torn":
        content = content[:place]
    else:
        content[place] ^= 0xFF
    journal.write_bytes(content)
    convert(source, interrupted)
    check_same(interrupted, template / "ocdbt wanted")
    assert names(interrupted.parent) == ["in", "out"]


def test_a_proof_that_fails_leaves_nothing_to_go_on_with(source, tmp_path, monkeypatch):
    def wrong(*_):
        async def proof(writer):
            raise DamagedCheckpoint("the new checkpoint does not hold the same values")

        return proof

    monkeypatch.setattr("nnxconv.comparing.verifier", wrong)
    with pytest.raises(DamagedCheckpoint):
        convert(source, tmp_path / "out", verify=True)
    assert names(tmp_path) == ["in"]


def test_the_proof_covers_what_an_interrupted_run_has_done(source, interrupted, monkeypatch):
    with reads(monkeypatch) as found:
        assert convert(source, interrupted, verify=True).is_verified
    assert {name.split(".")[-2] for name in found} == {f"dense_{n}" for n in range(KERNELS)}


# Refusing


HINT = f"hint: `rm -r $/{KEPT}` removes its work; leave `--resume` out to keep it aside"


def _refusal_of(details: str) -> str:
    return (
        "error: the interrupted run to `$/out` cannot be continued: it was not the same\n"
        f"  at $/{KEPT}\n{details}\n\n{HINT}"
    )


def _touch(source: Path) -> None:
    os.utime(source / "manifest.ocdbt")


def _another(source: Path) -> None:
    (source / "note").write_text("new")


@pytest.mark.parametrize(
    ("change", "options", "details"),
    [
        (_touch, {}, "  $/in/manifest.ocdbt has changed"),
        (_another, {}, "  $/in/note is new"),
        (None, {"max_memory": "4MiB"}, "  `--max_memory` was 3MiB, and is 4MiB"),
        (None, {"compression": "none"}, "  `--compression` was not given, and is none"),
        (
            None,
            {"to": "nnx-state", "dtype": None, "without": ["step"], "params_only": False},
            "  `--dtype` was bfloat16, and is not given\n"
            "  `--params_only` was on, and is off\n"
            "  `--to` was nnx-pure, and is nnx-state\n"
            "  `--without` was not given, and is step",
        ),
    ],
)
def test_another_source_or_other_options_are_refused(
    change, options, details, source, interrupted, tmp_path
):
    if change is not None:
        change(source)
    before = snapshot(tmp_path)
    with pytest.raises(BadInput) as caught:
        convert(source, interrupted, **options)
    assert refusal(caught.value, tmp_path) == _refusal_of(details)
    after = snapshot(tmp_path)
    assert after == before


def test_another_place_of_the_source_is_refused(source, interrupted, tmp_path):
    source.rename(tmp_path / "moved")
    with pytest.raises(BadInput) as caught:
        convert(tmp_path / "moved", interrupted)
    assert refusal(caught.value, tmp_path) == _refusal_of("  it reads $/in, and not $/moved")


def _edit(change):
    def edit(file: Path) -> None:
        told = json.loads(file.read_text())
        file.write_text(json.dumps(change(told)))

    return edit


@pytest.mark.parametrize(
    ("change", "details"),
    [
        (
            _edit(lambda told: {**told, "version": "0.0.9"}),
            f"  nnxconv was 0.0.9, and is {__version__}",
        ),
        (
            _edit(lambda told: {**told, "format": FORMAT + 1, "version": "9.0"}),
            "  it was begun by nnxconv 9.0, which keeps it otherwise",
        ),
        (_edit(lambda told: []), "  it does not say what was begun"),
        (_edit(lambda told: {"format": FORMAT}), "  it does not say what was begun"),
        (lambda file: file.write_bytes(b"\xff{"), "  it does not say what was begun"),
    ],
)
def test_work_of_another_version_is_refused(change, details, source, interrupted, tmp_path):
    change(tmp_path / KEPT / "begun")
    with pytest.raises(BadInput) as caught:
        convert(source, interrupted)
    assert refusal(caught.value, tmp_path) == _refusal_of(details)


def test_two_runs_at_once_are_refused(source, interrupted, tmp_path):
    def second(event):
        with pytest.raises(BadInput) as caught:
            convert(source, interrupted)
        assert refusal(caught.value, tmp_path) == (
            "error: another run with `--resume` is writing `$/out`\n\n"
            "hint: wait until it has ended, or choose another target"
        )

    convert(source, interrupted, watch=second)
    assert names(tmp_path) == ["in", "out"]


def test_several_processes_are_refused(source, tmp_path, monkeypatch):
    @contextmanager
    def joined(*_):
        yield SimpleNamespace(count=2)

    monkeypatch.setattr(nnxconv.running.cluster, "joined", joined)
    with pytest.raises(BadInput) as caught:
        convert(source, tmp_path / "out")
    assert caught.value.render() == (
        "error: `--resume` does not go on with what several processes have begun\n\n"
        "hint: leave out `--resume` or `--distributed`"
    )
    assert names(tmp_path) == ["in"]


# What stands around it


def test_a_run_that_finishes_nothing_keeps_nothing(source, tmp_path, monkeypatch):
    before = snapshot(tmp_path)
    monkeypatch.setattr(places, "_free_bytes", lambda target: (1, tmp_path))
    with pytest.raises(PlanError):
        convert(source, tmp_path / "deep" / "er" / "out")
    assert snapshot(tmp_path).keys() == before.keys()


def test_without_the_option_nothing_is_kept(source, tmp_path, monkeypatch):
    with reads(monkeypatch, stop_at=9), pytest.raises(Stopped):
        convert(source, tmp_path / "out", resume=False)
    assert names(tmp_path) == ["in"]


def test_without_the_option_kept_work_is_left_alone(source, interrupted, template, tmp_path):
    before = contents(tmp_path / KEPT)
    convert(source, interrupted, resume=False)
    check_same(interrupted, template / "ocdbt wanted")
    assert contents(tmp_path / KEPT) == before


def test_a_dry_run_leaves_kept_work_as_it_is(source, interrupted, tmp_path):
    before = snapshot(tmp_path)
    convert(source, interrupted, dry_run=True)
    assert snapshot(tmp_path) == before


def test_kept_work_is_no_checkpoint_to_anybody(tmp_path, monkeypatch):
    source = checkpoints.save_root(tmp_path / "in", {7: checkpoints.linen()})
    target = tmp_path / "out"
    options = {"resume": True, "max_memory": "100KiB"}
    with reads(monkeypatch, stop_at=7), pytest.raises(Stopped):
        nnxconv.convert(str(source), str(target), **options)
    [kept] = target.iterdir()
    with ocp.CheckpointManager(target) as manager:
        assert list(manager.all_steps()) == []
    for path in (target, kept):
        with pytest.raises(NotACheckpoint, match="unfinished save"):
            nnxconv.inspect(str(path))
    nnxconv.convert(str(source), str(target), **options)
    with ocp.CheckpointManager(target) as manager:
        assert list(manager.all_steps()) == [7]


def test_errors_come_through_as_they_are(source, interrupted, tmp_path):
    kernel = next((tmp_path / "in").rglob("d/*"))
    stamp = kernel.stat()
    with kernel.open("rb+") as file:
        file.write(bytes(stamp.st_size))
    os.utime(kernel, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(NnxconvError):
        convert(source, interrupted)
    assert KEPT in names(tmp_path)
