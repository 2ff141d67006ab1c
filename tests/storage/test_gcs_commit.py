"""A target on gs:// that looks whole is whole, whatever fails."""

import signal
import subprocess
import time
from collections import Counter

import pytest

import nnxconv
from nnxconv.commands.checksum import check_checksums, write_checksums
from nnxconv.errors import BadInput, DamagedCheckpoint, NotACheckpoint, StorageError
from tests.support.command import run
from tests.support.gcs import COMMITTED
from tests.support.gcs_proxy import Status
from tests.support.gcs_requests import Request
from tests.support.gcs_twins import (
    NAMES_ONLY,
    command,
    everywhere,
    is_finished,
    pytestmark,
    refused,
    whole,
    words,
)

__all__ = ["pytestmark"]

# Commit


def check_marks_come_last(requests: list[Request], folder: str, bucket: str) -> None:
    """Fails unless a folder's mark was asked for after all else in it had been answered."""
    inside = [
        request
        for request in requests
        if request.kind in ("upload", "copy", "move")
        and request.name.startswith(f"{bucket}/{folder}/")
    ]
    mark = f"{bucket}/{folder}/{COMMITTED}"
    marks = [request for request in inside if request.name == mark]
    others = [request for request in inside if request.name != mark]
    assert marks
    assert others
    late = [request for request in others if request.ended > min(r.started for r in marks)]
    assert [(request.kind, request.name) for request in late] == []


@pytest.mark.parametrize("source", ["step", "plain"])
@pytest.mark.parametrize("options", [NAMES_ONLY, {"scan_layers": True}], ids=["names", "stack"])
def test_the_mark_is_the_last_object(source, options, storage, sources):
    with storage.proxy.recording() as traffic:
        nnxconv.convert(sources[source], storage.path("out/x"), **options)
    for folder in {"step": ["out/x/items", "out/x/iter", "out/x"], "plain": ["out/x"]}[source]:
        check_marks_come_last(traffic.requests, folder, storage.bucket)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("source", "options"), [("step", NAMES_ONLY), ("plain", {"scan_layers": True})]
)
def test_whatever_object_cannot_be_written_nothing_is_left(source, options, storage, sources):
    writes = ("upload", "copy", "move", "compose")
    skip, target, outcome = 0, "", None
    while outcome is None or outcome.exit_code != 0:
        target = storage.path(f"out/{skip}")
        with storage.proxy.inject(Status(403, "no"), kind=writes, skip=skip) as injected:
            outcome = run("convert", sources[source], target, *words(options))
        assert outcome.exit_code == (2 if injected.hits else 0), outcome.stderr
        if injected.hits:
            refused(outcome)
            assert storage.names("out") == [], f"after write {skip}: {outcome.stderr}"
            skip += 8
    assert skip > 10
    assert is_finished(target)


def test_what_cannot_be_removed_is_named_with_the_command_that_removes_it(storage, sources):
    target = storage.path("out/x")
    with (
        storage.proxy.inject(Status(403, "no"), kind=("upload", "copy"), skip=9),
        storage.proxy.inject(Status(403, "no"), kind=("delete", "batch")),
    ):
        message = refused(run("convert", sources["step"], target))
    assert storage.names("out/x")
    assert message == (
        f"error: `{target}` is not complete, and could not be removed\n"
        "  the server refused access: no\n\n"
        f"hint: `gcloud storage rm -r {target}` removes it\n"
    )
    assert not is_finished(target)
    refused(run("inspect", target))


def test_the_old_target_is_there_until_the_new_one_is_complete(storage, sources, old):
    seen: list[set[str]] = []

    def look(request):
        if request.kind in ("upload", "copy", "move", "delete", "batch"):
            seen.append(everywhere(storage))

    with storage.proxy.watching(look):
        nnxconv.convert(sources["item"], old, overwrite=True)
    assert len(seen) > 10
    assert seen[0] == {"old"}
    assert all(seen)
    assert whole(storage, "out/x") == "new"
    assert {path.split("/")[0] for path in storage.names("out")} == {"x"}


@pytest.mark.full
def test_whatever_fails_while_overwriting_a_whole_checkpoint_stays(storage, sources, local):
    def is_data(request: Request) -> bool:
        """A lock that cannot be removed at the end is no failure."""
        return not request.name.endswith("-lock")

    writes = ("upload", "copy", "move", "compose", "delete", "batch")
    skip, outcome = 0, None
    while outcome is None or outcome.exit_code != 0:
        storage.clear("out")
        target = storage.put(local / "item", f"out/{skip}")
        fault = storage.proxy.inject(Status(403, "no"), kind=writes, where=is_data, skip=skip)
        with fault as injected:
            outcome = run("convert", sources["item"], target, "--overwrite")
        assert outcome.exit_code == (2 if injected.hits else 0), outcome.stderr
        if injected.hits:
            assert everywhere(storage), f"after write {skip}: {outcome.stderr}"
            if not whole(storage, f"out/{skip}"):  # then the message says where it lies
                places = {path.split("/")[0] for path in storage.names("out")} - {str(skip)}
                message = refused(outcome)
                assert any(storage.path(f"out/{place}") in message for place in places), message
            skip += 4
    assert skip > 20
    assert everywhere(storage) == {"new"}


def test_a_swap_that_fails_is_told_with_the_way_to_finish_it(storage, sources, old):
    def is_swap(request: Request) -> bool:
        return "x.nnxconv-new" in request.source

    with storage.proxy.inject(Status(403, "no"), kind="copy", where=is_swap, skip=3):
        message = refused(run("convert", sources["item"], old, "--overwrite"))
    new = f"{old}.nnxconv-new"
    assert message == (
        f"error: the new checkpoint is complete at `{new}`, but could not replace `{old}`\n"
        "  the server refused access: no\n\n"
        f"hint: `gcloud storage rm -r {old}`, then `gcloud storage mv {new} {old}`\n"
    )
    assert whole(storage, "out/x.nnxconv-new") == "new"
    assert refused(run("convert", sources["item"], old, "--overwrite")).startswith(
        f"error: `{new}` is a complete checkpoint, which an interrupted `--overwrite` left\n"
    )


def test_what_stays_beside_a_complete_checkpoint_is_named(storage, sources, old):
    new, is_swapped = f"{old}.nnxconv-new", False

    def is_after_the_swap(request: Request) -> bool:
        nonlocal is_swapped
        is_swapped |= request.kind == "copy" and request.name.endswith(f"/x/{COMMITTED}")
        return is_swapped and request.kind in ("delete", "batch")

    with storage.proxy.inject(Status(403, "no"), where=is_after_the_swap):
        message = refused(run("convert", sources["item"], old, "--overwrite"))
    assert message == (
        f"error: `{old}` is complete, but the copy beside it could not be removed\n"
        "  the server refused access: no\n\n"
        f"hint: `gcloud storage rm -r {new}` removes it\n"
    )
    assert whole(storage, "out/x") == "new"


def test_a_target_that_exists_is_refused(storage, sources, old):
    before = storage.digests("out")
    assert refused(run("convert", sources["item"], old)) == (
        f"error: `{old}` exists\n\nhint: add `--overwrite` to replace it\n"
    )
    assert storage.digests("out") == before


@pytest.mark.parametrize("target", ["in/item/x", "in", "in/item"])
def test_source_and_target_may_not_lie_in_each_other(target, storage, sources):
    before = storage.names("in")
    refused(run("convert", sources["item"], storage.path(target), "--overwrite"))
    assert storage.names("in") == before


def test_what_is_not_a_checkpoint_is_never_replaced(storage, sources):
    storage.write("out/thesis/chapter.tex", b"mine")
    refused(run("convert", sources["item"], storage.path("out/thesis"), "--overwrite"))
    refused(run("convert", sources["item"], storage.path("out/thesis/chapter.tex")))
    refused(run("convert", sources["item"], storage.path("out/thesis/chapter.tex"), "--overwrite"))
    assert storage.names("out") == ["thesis/chapter.tex"]


def test_an_unfinished_target_of_somebody_else_is_not_touched(storage, sources, local):
    """It may be a training job that is saving right now."""
    target = storage.put(local / "item", "out/x", is_committed=False)
    before = storage.digests("out")
    assert refused(run("convert", sources["item"], target)) == (
        f"error: `{target}` exists\n\nhint: it is no finished checkpoint: if nobody is writing it,"
        f" `gcloud storage rm -r {target}` removes it\n"
    )
    assert storage.digests("out") == before


# Two conversions


@pytest.mark.trust(only=True)
@pytest.mark.parametrize("days", [-400, 400])
def test_a_clock_that_is_set_meanwhile_gives_no_lock_away(days, storage, sources, monkeypatch):
    clock, told = time.time, []

    def second(event):
        if told:
            return
        monkeypatch.setattr(time, "time", lambda: clock() + days * 86_400)
        with pytest.raises(BadInput) as caught:
            nnxconv.convert(sources["step"], storage.path("out/x"), to="linen", overwrite=True)
        told.append(caught.value.render())

    nnxconv.convert(sources["item"], storage.path("out/x"), dtype="bfloat16", watch=second)
    assert told[0].startswith("error: another conversion is writing")
    assert COMMITTED in storage.names("out/x")


@pytest.mark.sample(2)
@pytest.mark.trust
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_while_one_conversion_writes_a_target_another_one_says_so_and_harms_nothing(
    overwrite, storage, sources, local
):
    target = storage.put(local / "step", "out/x") if overwrite else storage.path("out/x")
    source = sources["step"] if overwrite else sources["item"]
    told = []

    def second(event):
        if not told:
            with pytest.raises(BadInput) as caught:
                nnxconv.convert(sources["step"], storage.path("out/x"), to="linen", overwrite=True)
            told.append(caught.value.render())

    nnxconv.convert(source, target, overwrite=overwrite, dtype="bfloat16", watch=second)
    assert told[0].startswith(
        f"error: another conversion is writing `{target}`, or was killed less than 60 seconds ago\n"
    )
    assert nnxconv.compare(source, target, ignore_dtype=True).is_match
    assert {name.partition("/")[0] for name in storage.names("out")} == {"x"}


@pytest.mark.trust
def test_a_conversion_that_was_taken_over_removes_nothing_whatever_else_fails(storage, sources):
    target = storage.path("out/x")

    def take_over(event):
        storage.write("out/x.orbax-checkpoint-tmp-lock", b"")
        storage.write("out/x/theirs", b"")
        raise ValueError("something else")

    with pytest.raises(StorageError) as caught:
        nnxconv.convert(sources["item"], target, dtype="bfloat16", watch=take_over)
    assert caught.value.render().startswith(
        f"error: another conversion has taken over `{target}`\n  at {target}.orbax-checkpoint-tmp"
    )
    assert "theirs" in storage.names("out/x")


def test_a_bucket_is_no_target(storage, sources):
    bucket = f"gs://{storage.bucket}"
    assert refused(run("convert", sources["item"], bucket)) == (
        f"error: `{bucket}` is a bucket\n\nhint: name the target in it: `{bucket}/NAME`\n"
    )


# A source that changes


@pytest.mark.sample(1)
@pytest.mark.trust
@pytest.mark.parametrize("name", ["large", "plain"])
def test_a_source_that_is_saved_again_meanwhile_is_never_read_as_a_mixture(name, storage, local):
    source = storage.put(local / name, "out/source")
    saved = []

    def save_again(event):
        if not saved:
            saved.append(storage.put(local / name, "out/source"))

    with pytest.raises(DamagedCheckpoint) as caught:
        nnxconv.convert(source, storage.path("out/x"), dtype="bfloat16", watch=save_again)
    told = caught.value.render().splitlines()
    assert told[:2] == ["error: the checkpoint was changed while it was read", f"  at {source}"]
    assert "  `_METADATA` is another one" in told
    assert storage.names("out/x") == []


@pytest.mark.trust(only=True)
@pytest.mark.parametrize("is_watched", [False, True], ids=["never", "meanwhile"])
@pytest.mark.parametrize("name", ["item", "plain", "zarr3"])
def test_objects_that_come_late_are_never_taken_for_zeros(
    name, is_watched, storage, local, record_property
):
    source = storage.put(local / name, "out/source")
    manifest = write_checksums(source, manifest=str(local / f"{name}.late.json"), overwrite=True)
    ended = Counter[str]()
    for late in storage.names("out/source"):
        content = storage.read(f"out/source/{late}")
        storage.delete(f"out/source/{late}")

        def come(event, late=late, content=content):
            if is_watched:
                storage.write(f"out/source/{late}", content)

        target = storage.path("out/x")
        try:
            nnxconv.convert(
                source, target, dtype="bfloat16", allow_uncommitted=True, overwrite=True, watch=come
            )
            nnxconv.convert(source, target, to="linen", allow_uncommitted=True, overwrite=True)
            ended["right"] += check_checksums(target, manifest=manifest.path).is_match
        except (DamagedCheckpoint, NotACheckpoint, BadInput, StorageError) as error:
            assert error.render().startswith("error: ")
            ended["refused"] += 1
        storage.write(f"out/source/{late}", content)
    record_property("figures", f"{name}: {dict(ended)}")
    assert ended.total() == len(storage.names("out/source"))
    assert ended["refused"]


# Uncommitted sources


@pytest.mark.sample(2)
@pytest.mark.parametrize("missing", ["step", "items"])
@pytest.mark.parametrize("command", ["convert", "compare", "inspect", "checksum"])
def test_an_uncommitted_source_is_refused_with_the_reason(
    command, missing, storage, local, tmp_path
):
    path = storage.put(local / "step", "out/step")
    storage.delete(f"out/step/{'' if missing == 'step' else 'items/'}{COMMITTED}")
    others = {
        "convert": [path, tmp_path / "x"],
        "compare": [local / "step", path],
        "inspect": [path],
        "checksum": [path, "--manifest", tmp_path / "manifest"],
    }[command]
    place = path if missing == "step" else f"{path}/items"
    assert refused(run(command, *others)) == (
        f"error: `{place}` has no `{COMMITTED}`: it is an unfinished save, or a copy of a"
        " checkpoint from a local disk\n\nhint: `--allow_uncommitted` reads it all the same\n"
    )
    assert list(tmp_path.iterdir()) == []
    assert run(command, *others, "--allow_uncommitted").exit_code == 0


def test_an_item_by_itself_needs_the_mark_too(storage, local):
    path = storage.put(local / "item", "out/item", is_committed=False)
    with pytest.raises(NotACheckpoint, match=COMMITTED):
        nnxconv.inspect(path)
    assert nnxconv.inspect(path, allow_uncommitted=True).step == 7


def test_a_step_that_is_being_saved_is_not_one_of_the_steps(storage, local):
    path = storage.put(local / "root", "out/root")
    for mark in (f"2/{COMMITTED}", f"2/items/{COMMITTED}"):
        storage.delete(f"out/root/{mark}")
    assert nnxconv.inspect(path).step == 7
    assert COMMITTED in refused(run("inspect", path, "--step", "2"))
    assert nnxconv.inspect(path, step=2, allow_uncommitted=True).step == 9


# Processes of their own


@pytest.mark.sample(1)
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_process_that_is_stopped_leaves_no_checkpoint(sent, code, storage, sources, monkeypatch):
    monkeypatch.setenv("NNXCONV_GCS_LEASE", "1")
    target = storage.path("out/x")
    process = subprocess.Popen(
        command("convert", sources["item"], target), stderr=subprocess.PIPE, text=True
    )

    def stop(request):
        if request.kind == "upload" and request.name.endswith("/_METADATA"):
            process.send_signal(sent)

    with storage.proxy.watching(stop):
        _, message = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in message
    assert not is_finished(target)
    if sent == signal.SIGINT:
        assert storage.names("out") == []
    else:
        assert storage.names("out")
        refused(run("inspect", target))
        assert f"gcloud storage rm -r {target}" in refused(run("convert", sources["item"], target))
        storage.clear("out/x")
        time.sleep(3)  # until its lock counts no more
    nnxconv.convert(sources["item"], target)
    assert is_finished(target)
