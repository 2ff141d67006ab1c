"""`--resume` with a target on gs://: what was finished stays, and one run at a time writes."""

import signal
import subprocess
import threading
import time

import numpy as np
import pytest

import nnxconv
from nnxconv.errors import BadInput, StorageError, with_notes
from nnxconv.storage.gcs.retries import LEASE
from nnxconv.storage.resume.journal import Unit
from tests.support import checkpoints
from tests.support.command import run
from tests.support.gcs_proxy import Reset, Status
from tests.support.gcs_requests import Kind
from tests.support.gcs_twins import check_same, command, is_finished, pytestmark, whole, words
from tests.support.kills import serving

__all__ = ["pytestmark"]

KERNELS = 12
KEPT = ".orbax-checkpoint-tmp-resume"
REWRITE = {"to": "nnx-pure", "params_only": True, "dtype": "bfloat16", "max_memory": "3MiB"}
RENAME = {"to": "nnx-pure", "scan_layers": False, "max_memory": "3MiB"}
WINDOW = 2
"""How many kernels of 128 KiB are written together."""

# kind: the source, options, after how many objects of which kind a run shall fail
KINDS = {
    "a database": ("ocdbt", REWRITE, 4, "upload"),
    "a directory per array": ("plain", REWRITE, 18, "upload"),
    "copied files": ("plain", RENAME, 9, "copy"),
}


@pytest.fixture(scope="module")
def twins(tmp_path_factory, gcs_server):
    """12 kernels of 128 KiB in local checkpoints, their gs:// paths, and what becomes of them."""
    root = tmp_path_factory.mktemp("resume")
    kernels = {f"dense_{n}": {"kernel": checkpoints.values((32, 1024), n)} for n in range(KERNELS)}
    tree = {"step": np.asarray(7, np.int32), "params": {"params": kernels}}
    checkpoints.save_item(root / "ocdbt", tree)
    checkpoints.save_item(root / "plain", tree, use_ocdbt=False)
    checkpoints.save_root(root / "root", {7: tree})
    for kind, (source, options, *_) in KINDS.items():
        nnxconv.convert(str(root / source), str(root / f"{kind} wanted"), **options)
    nnxconv.convert(str(root / "root"), str(root / "root wanted"), **REWRITE)
    for name in ("ocdbt", "plain", "root"):
        gcs_server.put(root / name, f"resume/{name}")
    return root


@pytest.fixture
def source(storage, twins):
    return storage.path("resume/ocdbt")


def convert(source: str, target: str, **options):
    return nnxconv.convert(source, target, **{"resume": True, **REWRITE, **options})


def notes(result: nnxconv.Result) -> list[str]:
    assert result.moved is not None
    return result.moved.notes


def units(storage, name: str = "out/x") -> list[Unit]:
    """What the journal of an interrupted run says."""
    folder = f"{name}{KEPT}/0/journal"
    text = "".join(storage.read(f"{folder}/{n}").decode() for n in storage.names(folder))
    found = [Unit.from_line(line) for line in text.splitlines(keepends=True)]
    return [unit for unit in found if unit is not None]


def fail(storage, source: str, after: int, kind: Kind = "upload", **options) -> StorageError:
    """Lets a conversion to `out/x` fail after so many objects in the work, and what it raised."""
    denied = storage.proxy.inject(Status(403, "no"), kind=kind, name="*/0/work/*", skip=after)
    with denied as injected, pytest.raises(StorageError) as caught:
        convert(source, storage.path("out/x"), **options)
    assert injected.hits
    assert f"x{KEPT}/lock" not in storage.names("out")
    return caught.value


@pytest.fixture
def interrupted(storage, source):
    """A target of which some windows have been written."""
    fail(storage, source, 4)
    assert len(units(storage)) > 2
    return storage.path("out/x")


def places(storage) -> set[str]:
    return {name.split("/")[0] for name in storage.names("out")}


# Going on


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_finished_is_verified_by_a_listing_and_not_written_again(
    kind, storage, twins, tmp_path
):
    name, options, after, written = KINDS[kind]
    options = {"params_only": False, "dtype": None, **options}
    error = fail(storage, storage.path(f"resume/{name}"), after, written, **options)
    assert with_notes("", error) == (
        f"\n\nkept: `{storage.path('out/x' + KEPT)}` has what is finished;"
        " the same command with `--resume` goes on with it"
    )
    assert places(storage) == {f"x{KEPT}"}
    done = {file for unit in units(storage) for file in unit.files}
    assert len(done) >= 2
    work = f"{storage.bucket}/out/x{KEPT}/0/work/"
    with storage.proxy.recording() as traffic:
        result = convert(storage.path(f"resume/{name}"), storage.path("out/x"), **options)
    assert "an interrupted run was continued" in notes(result)[-1]
    again = {request.name.removeprefix(work) for request in traffic.of("upload", "copy")}
    assert not done & again
    values = {f"{work}{file}" for file in done}
    read = [r.downloaded_bytes for r in traffic.of("read") if r.name in values]
    assert sum(read) < 2**16  # nodes of the database
    check_same(storage.get("out/x", tmp_path / "x"), twins / f"{kind} wanted")
    assert is_finished(storage.path("out/x"))
    assert places(storage) == {"x"}


@pytest.mark.full
def test_a_run_that_is_killed_again_and_again_repeats_a_window_each_time(
    storage, twins, tmp_path, monkeypatch
):
    """The target is a root; what a killed run left there makes way for the next."""
    monkeypatch.setenv(LEASE, "1")
    target, log = storage.path("out/x"), tmp_path / "log"
    moments = [
        (lambda r: r.kind == "upload" and r.name.endswith("/00000005"), 1),
        (lambda r: r.kind == "upload" and r.name.endswith("/00000003"), 1),
        (lambda r: r.kind == "upload" and r.name.endswith("/_METADATA"), 1),
    ]
    options = {"resume": True, **REWRITE}
    with serving() as server:
        for fits, count in moments:
            seen = 0

            def look(request, fits=fits, count=count):
                nonlocal seen
                seen += fits(request)
                if seen == count:
                    server.kill()

            with storage.proxy.watching(look):
                status, _ = server.convert(
                    storage.path("resume/root"), target, None, log=log, **options
                )
            assert (status, seen >= count) == (-signal.SIGKILL, True)
            assert storage.names("out/x/7")
            wait_until_stale(storage, f"out/x/7{KEPT}/lock")
        assert server.convert(storage.path("resume/root"), target, None, log=log, **options) == [
            0,
            pytest.approx(0, abs=60),
        ]
    kernels = [nbytes for nbytes in map(int, log.read_text().split()) if nbytes == 2**17]
    assert len(kernels) <= KERNELS + 2 * WINDOW  # two of the moments fall into the work
    check_same(storage.get("out/x", tmp_path / "x"), twins / "root wanted")
    assert storage.names("out") and {n.split("/")[1] for n in storage.names("out")} == {"7"}
    assert is_finished(target)


def wait_until_stale(storage, name: str) -> None:
    """Until the lock of a killed run counts no more: a second, by the server's whole seconds."""
    before = storage.listed(name.rpartition("/")[0])["lock"]["generation"]
    time.sleep(2.1)
    assert storage.listed(name.rpartition("/")[0])["lock"]["generation"] == before


def test_the_old_target_stays_until_the_new_one_is_complete(storage, source, old, tmp_path, twins):
    before = storage.digests("out/x")
    fail(storage, source, 4, overwrite=True)
    assert storage.digests("out/x") == before
    assert "an interrupted run was continued" in notes(convert(source, old, overwrite=True))[-1]
    check_same(storage.get("out/x", tmp_path / "x"), twins / "a database wanted")
    assert places(storage) == {"x"}


@pytest.mark.parametrize("how", ["changed", "removed"])
def test_work_that_is_not_as_it_was_is_done_again_and_told(
    how, storage, source, interrupted, twins, tmp_path
):
    file = next(iter(units(storage)[2].files))
    name = f"out/x{KEPT}/0/work/{file}"
    if how == "changed":
        storage.write(name, storage.read(name))
    else:
        storage.delete(name)
    result = convert(source, interrupted)
    assert notes(result)[0] == (
        f"`{storage.path(name)}` is not as the interrupted run wrote it:"
        " what came from there on was done again"
    )
    check_same(storage.get("out/x", tmp_path / "x"), twins / "a database wanted")
    assert places(storage) == {"x"}


def test_a_run_that_finishes_nothing_keeps_nothing(storage, source):
    fail(storage, source, 0)
    assert storage.names("out") == []


# Refusing


def test_another_source_or_other_options_are_refused(storage, source, interrupted):
    before = storage.digests("out")
    file = "resume/ocdbt/_METADATA"
    with pytest.raises(BadInput) as options:
        convert(source, interrupted, max_memory="4MiB")
    storage.write(file, storage.read(file))
    with pytest.raises(BadInput) as changed:
        convert(source, interrupted)
    for caught, details in (
        (options, "`--max_memory` was 3MiB, and is 4MiB"),
        (changed, f"{storage.path(file)} has changed"),
    ):
        assert caught.value.render() == (
            f"error: the interrupted run to `{interrupted}` cannot be continued:"
            " it was not the same\n"
            f"  at {interrupted}{KEPT}\n  {details}\n\n"
            f"hint: `gcloud storage rm -r {interrupted}{KEPT}` removes its work;"
            " leave `--resume` out to keep it aside"
        )
    assert storage.digests("out") == before


def test_what_somebody_else_saves_at_the_target_is_not_taken_for_ours(
    storage, source, interrupted, local
):
    storage.put(local / "item", "out/x", is_committed=False)
    before = storage.digests("out")
    outcome = run("convert", source, interrupted, "--resume", *words(REWRITE))
    assert outcome.stderr == (
        f"error: `{interrupted}` exists\n\nhint: it is no finished checkpoint: if nobody is writing"
        f" it, `gcloud storage rm -r {interrupted}` removes it\n"
    )
    assert storage.digests("out") == before


# One run at a time


def test_of_two_runs_at_once_one_wins(storage, source, interrupted, twins, tmp_path):
    def second(event):
        outcome = run("convert", source, interrupted, "--resume", *words(REWRITE))
        assert outcome.exit_code == 2
        message, left = outcome.stderr.split(" again in ")
        assert message == (
            f"error: another run with `--resume` is writing `{interrupted}`, or was killed less"
            f" than 60 seconds ago\n  at {interrupted}{KEPT}/lock\n\n"
            "hint: wait until it has ended, or choose another target; if it was killed, run the"
            " command"
        )
        assert 50 < int(left.removesuffix(" seconds\n")) <= 61

    convert(source, interrupted, watch=second)
    check_same(storage.get("out/x", tmp_path / "x"), twins / "a database wanted")
    assert places(storage) == {"x"}


def test_what_another_conversion_writes_is_not_taken_for_remains_of_a_killed_run(
    storage, interrupted, source, twins, tmp_path
):
    storage.write(f"out/x{KEPT}/writing", b"")  # as `kill -9` leaves it
    told = []

    def go_on(event):
        if not told:
            with pytest.raises(BadInput) as caught:
                convert(source, interrupted)
            told.append(caught.value.render())

    nnxconv.convert(source, interrupted, watch=go_on, **REWRITE)
    assert told[0].startswith(
        f"error: another conversion is writing `{interrupted}`, or was killed"
    )
    check_same(storage.get("out/x", tmp_path / "x"), twins / "a database wanted")


def test_a_run_that_was_taken_over_stops_and_leaves_everything(storage, source, monkeypatch):
    monkeypatch.setenv(LEASE, "1")
    target, seen = storage.path("out/x"), []

    def take_over(event):
        if len(units(storage)) == 3 and not seen:
            storage.write("out/x/theirs", b"")
            storage.write(f"out/x{KEPT}/lock", b"")
            time.sleep(0.6)
            seen.append(storage.digests("out"))

    with pytest.raises(StorageError) as caught:
        convert(source, target, watch=take_over)
    assert caught.value.render() == (
        f"error: another run with `--resume` has taken over `{target}`\n  at {target}{KEPT}/lock\n"
        "  nothing was heard of this one for 1 second, or its lock was removed\n\n"
        "hint: wait until the other one has ended; if there is none,"
        f" `gcloud storage rm -r {target}` removes what this one has written"
    )
    lock = "x.orbax-checkpoint-tmp-lock"  # of conversions of any kind
    assert seen[0].items() - storage.digests("out").items() == {(lock, seen[0][lock])}
    assert len(units(storage)) == 3


@pytest.mark.full
def test_a_run_that_wakes_up_when_another_has_gone_on_stops_and_harms_nothing(
    storage, source, twins, tmp_path, monkeypatch
):
    """It was stopped within a commit, and goes on with that commit before it can know."""
    monkeypatch.setenv(LEASE, "1")
    target, reads, events = storage.path("out/x"), [], []
    asked = ["convert", source, target, "--resume", *words(REWRITE)]
    sleeper = subprocess.Popen(command(*asked), stderr=subprocess.PIPE, text=True)
    stopped = threading.Event()

    def stop(request):
        reads.extend([request] if request.kind == "read" and "/0/work/" in request.name else [])
        if len(reads) == 4 and not stopped.is_set():
            sleeper.send_signal(signal.SIGSTOP)
            stopped.set()

    def wake(event):
        events.append(event)
        if len(events) == 2:
            sleeper.send_signal(signal.SIGCONT)
            time.sleep(0.5)

    with storage.proxy.watching(stop):
        assert stopped.wait(30)
        wait_until_stale(storage, f"out/x{KEPT}/lock")
    convert(source, target, watch=wake)
    _, message = sleeper.communicate(timeout=60)
    assert (sleeper.returncode, message.count("has taken over")) == (2, 1)
    check_same(storage.get("out/x", tmp_path / "x"), twins / "a database wanted")
    assert places(storage) == {"x"}


def test_a_lock_whose_answer_was_lost_is_held(storage, source, tmp_path, twins):
    with storage.proxy.inject(Reset(is_answered=True), name="*/lock", times=1) as injected:
        convert(source, storage.path("out/x"))
    assert injected.hits
    assert places(storage) == {"x"}


# What stands around it


def test_what_cannot_be_removed_beside_a_complete_target_is_named(storage, source):
    target = storage.path("out/x")
    with storage.proxy.inject(Status(403, "no"), kind=("delete", "batch"), name=f"*{KEPT}/begun"):
        outcome = run("convert", source, target, "--resume", *words(REWRITE))
    assert outcome.stderr == (
        f"error: `{target}` is complete, but what `--resume` kept could not be removed\n"
        "  the server refused access: no\n\n"
        f"hint: `gcloud storage rm -r {target}{KEPT}` removes it\n"
    )
    assert is_finished(target)
    assert whole(storage, "out/x")
