"""safetensors on gs://: read by ranges, written shard by shard, the index last."""

import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

import nnxconv
from nnxconv.errors import BadInput, DamagedCheckpoint, PlanError, StorageError, with_notes
from nnxconv.storage.files import operations
from nnxconv.storage.gcs import filesystem, retries
from nnxconv.storage.gcs.retries import LEASE
from nnxconv.storage.resume.journal import Unit
from tests.support.gcs_proxy import Reset, Shorten, Status, Truncate
from tests.support.gcs_twins import pytestmark
from tests.support.hugging_face import Sizes, arrays_of, save_folder
from tests.support.kills import serving

__all__ = ["pytestmark"]

SIZES = Sizes(64, 4, 2, 16, 128, 300, 3, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of Hugging Face in shards."""
    root = tmp_path_factory.mktemp("hf")
    whole = save_folder(root / "whole", "llama", SIZES, arrays_of("llama", SIZES))
    nnxconv.convert(str(whole), str(root / "hf"), to="safetensors", shard_size="150kB")
    return root / "hf"


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("to", ["maxtext", "safetensors", "nnx-pure"])
def test_a_folder_in_a_bucket_is_read_as_its_twin_here(to, storage, folder, tmp_path):
    path = storage.put(folder, "in/hf", is_committed=False)
    nnxconv.convert(path, str(tmp_path / "out"), to=to)
    nnxconv.convert(str(folder), str(tmp_path / "wanted"), to=to)
    compared = nnxconv.compare(str(tmp_path / "out"), str(tmp_path / "wanted"), compare_values=True)
    assert compared.is_match
    if to == "safetensors":
        assert content(tmp_path / "out").keys() == content(tmp_path / "wanted").keys()
        # default shard size: one file
        assert content(tmp_path / "out") == content(tmp_path / "wanted")


def test_one_file_in_a_bucket_is_read(storage, folder, tmp_path):
    nnxconv.convert(str(folder), str(tmp_path / "one.safetensors"), to="safetensors")
    path = storage.put(tmp_path / "one.safetensors", "in/one.safetensors")
    assert nnxconv.compare(path, str(folder), compare_values=True).is_match


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", ["out/x", "out/x.safetensors"])
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("verify", [False, True])
def test_what_is_written_to_a_bucket_is_what_is_written_here(
    name, resume, verify, storage, folder, tmp_path
):
    how: dict[str, Any] = {"to": "safetensors", "shard_size": "150kB"}
    wanted = tmp_path / name.removeprefix("out/")
    nnxconv.convert(str(folder), str(wanted), **how)
    nnxconv.convert(str(folder), storage.path(name), **how, resume=resume, verify=verify)
    if wanted.is_file():
        assert storage.read(name) == wanted.read_bytes()
    else:
        assert content(storage.get(name, tmp_path / "got")) == content(wanted)
    assert {n.split("/")[0] for n in storage.names("out")} == {name.removeprefix("out/")}


HOW: dict[str, Any] = {"to": "safetensors", "shard_size": "150kB"}
KEPT = ".orbax-checkpoint-tmp-resume"


@pytest.fixture(scope="module")
def wanted(folder, tmp_path_factory) -> dict[str, bytes]:
    """What is written, by name."""
    path = tmp_path_factory.mktemp("wanted") / "x"
    nnxconv.convert(str(folder), str(path), **HOW, dtype="bfloat16")
    return content(path)


def convert(folder: Path, target: str, **more) -> nnxconv.Result:
    return nnxconv.convert(str(folder), target, **{**HOW, "dtype": "bfloat16", **more})


def denied(storage, shard: int):
    """The server refuses one of the shards."""
    return storage.proxy.inject(Status(403, "no"), kind="upload", name=f"*/model-0000{shard}-*")


def test_a_failed_upload_leaves_nothing(storage, folder):
    with denied(storage, 2), pytest.raises(StorageError):
        convert(folder, storage.path("out/x"))
    assert storage.names("out") == []


def test_shards_that_are_up_are_not_sent_again(storage, folder, tmp_path):
    """What an interrupted run has sent stays, and the index comes last."""
    how: dict[str, Any] = {"shard_size": "30kB", "resume": True}
    denied = storage.proxy.inject(Status(403, "no"), kind="upload", name="*/0/work/*", skip=5)
    with denied, pytest.raises(StorageError) as failed:
        convert(folder, storage.path("out/x"), **how)
    assert with_notes("", failed.value) == (
        f"\n\nkept: `{storage.path('out/x' + KEPT)}` has what is finished;"
        " the same command with `--resume` goes on with it"
    )
    journal = f"out/x{KEPT}/0/journal"
    told = "".join(storage.read(f"{journal}/{n}").decode() for n in storage.names(journal))
    units = [Unit.from_line(line) for line in told.splitlines(keepends=True)]
    done = {file for unit in units if unit is not None for file in unit.files}
    assert len(done) >= 2
    with storage.proxy.recording() as traffic:
        result = convert(folder, storage.path("out/x"), **how)
    assert result.moved is not None
    assert "an interrupted run was continued" in result.moved.notes[-1]
    sent = [r.name.rpartition("/")[2] for r in traffic.of("upload") if "/out/x/" in f"/{r.name}"]
    assert sent[-1] == "model.safetensors.index.json"
    assert not done & {request.name.rpartition("/")[2] for request in traffic.of("upload")}
    convert(folder, str(tmp_path / "wanted"), shard_size="30kB")
    assert content(storage.get("out/x", tmp_path / "x")) == content(tmp_path / "wanted")
    assert {name.split("/")[0] for name in storage.names("out")} == {"x"}


@pytest.mark.parametrize("resume", [False, True])
def test_an_old_folder_is_replaced_when_the_new_one_is_complete(
    resume, storage, folder, wanted, tmp_path
):
    target = storage.path("out/x")
    nnxconv.convert(str(folder), target, **HOW)
    storage.write("out/x/README.md", b"kept")
    before = storage.digests("out/x")
    with pytest.raises(BadInput, match="exists"):
        convert(folder, target, resume=resume)
    with denied(storage, 2), pytest.raises(StorageError):
        convert(folder, target, overwrite=True, resume=resume)
    assert storage.digests("out/x") == before
    convert(folder, target, overwrite=True, resume=resume)
    assert content(storage.get("out/x", tmp_path / "x")) == wanted | {"README.md": b"kept"}
    assert {name.split("/")[0] for name in storage.names("out")} == {"x"}


@pytest.mark.full
@pytest.mark.parametrize("resume", [False, True])
def test_what_a_killed_run_leaves_has_no_index_and_is_told(
    resume, storage, folder, wanted, tmp_path, monkeypatch
):
    """Killed when a shard goes up; a reader takes nothing for complete."""
    monkeypatch.setenv(LEASE, "1")
    target = storage.path("out/x")
    with serving() as server:

        def look(request):
            is_it = request.kind == "copy" if resume else "/model-00002-of" in request.name
            if is_it:
                server.kill()

        with storage.proxy.watching(look):
            options: dict[str, Any] = {**HOW, "dtype": "bfloat16", "resume": resume}
            status, _ = server.convert(folder, target, None, **options)
        assert status == -signal.SIGKILL
        assert "model.safetensors.index.json" not in storage.names("out/x")
        time.sleep(3.1)
        if resume:
            convert(folder, target, resume=True)
        else:
            with pytest.raises(BadInput) as refused:
                convert(folder, target)
            assert f"`gcloud storage rm -r {target}` removes it" in refused.value.render()
            storage.clear("out/x")
            convert(folder, target)
    assert content(storage.get("out/x", tmp_path / "x")) == wanted
    assert {name.split("/")[0] for name in storage.names("out")} == {"x"}


def test_temporary_files_without_room_are_told(storage, folder, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(PlanError) as refused:
        convert(folder, storage.path("out/x"))
    told = refused.value.render()
    assert "shards that are not complete yet need up to 1" in told
    assert "`TMPDIR` names another folder" in told
    assert storage.names("out") == []


def test_a_bucket_is_no_target(storage, folder):
    with pytest.raises(BadInput, match="is a bucket"):
        convert(folder, storage.path(""))


def test_a_truncated_object_is_told(storage, folder, tmp_path):
    nnxconv.convert(str(folder), str(tmp_path / "one.safetensors"), to="safetensors")
    whole = (tmp_path / "one.safetensors").read_bytes()
    for content_, told in (
        (whole[:-4], "it is cut off"),
        (b"", "of 0 bytes"),
        (whole[:100], "of 100 bytes"),
    ):
        storage.write("in/cut.safetensors", content_)
        with pytest.raises(DamagedCheckpoint) as damaged:
            nnxconv.inspect(storage.path("in/cut.safetensors"))
        assert told in damaged.value.render()


@pytest.mark.sample(4)
@pytest.mark.parametrize("fault", [Status(503), Reset(), Truncate(), Shorten()])
@pytest.mark.parametrize("skip", [0, 5])
def test_reads_that_fail_are_made_again(skip, fault, storage, folder, wanted, tmp_path):
    """Those of headers, which are the first five, and of arrays."""
    path = storage.put(folder, "in/hf", is_committed=False)
    faults = storage.proxy.inject(fault, kind="read", name="*.safetensors", skip=skip, times=2)
    with faults as injected:
        nnxconv.convert(path, str(tmp_path / "x"), **HOW, dtype="bfloat16")
    assert injected.hits
    assert content(tmp_path / "x") == wanted


@pytest.mark.parametrize("fault", [Status(503), Reset()])
def test_uploads_that_fail_are_made_again(fault, storage, folder, wanted, tmp_path):
    with storage.proxy.inject(fault, kind="upload", name="*/model-00002*", times=1) as injected:
        convert(folder, storage.path("out/x"))
    assert injected.hits
    assert content(storage.get("out/x", tmp_path / "x")) == wanted


def damaging(monkeypatch, times: int) -> list[str]:
    """The first uploads of shards of so many are changed in one bit on the way; all are noted."""
    put_file, seen = filesystem().put_file, []

    def put(source: str, target: str, **how: Any) -> None:
        seen.append(target)
        if len(seen) > times:
            put_file(source, target, **how)
            return
        content = bytearray(Path(source).read_bytes())
        content[-1] ^= 1
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(content)
            put_file(file.name, target, **how)

    monkeypatch.setattr(filesystem(), "put_file", put)
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.005)
    monkeypatch.setenv(retries.RETRIES, "2")
    return seen


def test_a_shard_that_was_damaged_on_the_way_is_sent_again_in_its_pieces(
    storage, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(operations, "_UPLOAD_BYTES", 2**18)
    monkeypatch.setattr(retries, "LONGEST_PAUSE_SECONDS", 0.1)
    sent = damaging(monkeypatch, 1)
    convert(folder, storage.path("out/x"), shard_size="500kB")
    assert sent[0] == sent[1]
    assert len(sent) == len(set(sent)) + 1
    assert max(storage.sizes("out/x").values()) > 2**18
    convert(folder, str(tmp_path / "here"), shard_size="500kB")
    assert content(storage.get("out/x", tmp_path / "x")) == content(tmp_path / "here")


def test_damage_of_uploads_that_lasts_is_one_message(storage, folder, monkeypatch):
    damaging(monkeypatch, 100)
    with pytest.raises(StorageError) as raised:
        convert(folder, storage.path("out/x"))
    assert raised.value.message == "the object was damaged on the way, again and again"
    assert raised.value.details == ("its checksum is another one than that of the file",)
    assert storage.names("out") == []
