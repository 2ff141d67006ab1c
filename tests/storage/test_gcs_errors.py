"""What servers and networks do wrong is tried again, or told in one message."""

import os
import re
import subprocess

import pytest
import tensorstore as ts
from gcsfs.retry import HttpError
from google.auth.exceptions import DefaultCredentialsError, RefreshError
from rich.progress import Task, TaskID

import nnxconv
from nnxconv.cli.progress_bar import RepetitionsColumn
from nnxconv.errors import BadInput, StorageError
from nnxconv.storage.gcs import retries as patience
from nnxconv.storage.gcs.retries import for_tensorstore
from nnxconv.storage.gcs.server_errors import told_plainly
from nnxconv.storage.zarr import specs as arrays
from tests.support.command import run
from tests.support.gcs_proxy import Delay, Flip, Reset, Shorten, Status, Truncate
from tests.support.gcs_requests import Kind, Request
from tests.support.gcs_twins import NAMES_ONLY, command, everywhere, pytestmark, refused

__all__ = ["pytestmark"]

# Errors


@pytest.fixture
def impatient(monkeypatch):
    """Both libraries try again as usual, but after a fortieth of the time; Orbax' contexts too."""

    def new_context(spec=None, **options):
        return context({**(spec or {}), "gcs_request_retries": for_tensorstore()}, **options)

    context = ts.Context
    monkeypatch.setenv(patience.RETRIES, "5")
    monkeypatch.setattr(patience, "FIRST_PAUSE_SECONDS", 0.005)
    monkeypatch.setattr(patience, "LONGEST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(ts, "Context", new_context)
    arrays.context.cache_clear()
    yield
    arrays.context.cache_clear()


PASSING = {
    "429": Status(429, "slow down"),
    "503": Status(503, "unavailable"),
    "reset": Reset(),
    "lost answer": Reset(is_answered=True),
    "truncated": Truncate(),
    "slow": Delay(0.3),
}
KINDS: dict[str, tuple[Kind, ...]] = {
    "look": ("list", "stat"),
    "read": ("read",),
    "upload": ("upload",),
    "copy": ("copy",),
    "delete": ("delete",),
}


def is_repeatable(request: Request) -> bool:
    """False where the server, unlike Google's, forgets an upload as soon as it is complete."""
    return "upload_id=" not in request.target


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        *(("503", kind) for kind in KINDS),
        *(("lost answer", kind) for kind in KINDS),
        ("429", "read"),
        ("429", "upload"),
        ("reset", "look"),
        ("reset", "upload"),
        ("truncated", "look"),
        ("truncated", "read"),
        ("slow", "read"),
    ],
)
def test_what_passes_is_tried_again(fault, kind, impatient, storage, sources, old):
    with storage.proxy.inject(
        PASSING[fault], kind=KINDS[kind], where=is_repeatable, skip=1, times=2
    ) as injected:
        nnxconv.convert(sources["item"], old, overwrite=True, **NAMES_ONLY)
    assert len(injected.hits) == 2
    assert everywhere(storage) == {"new"}
    report = nnxconv.compare(sources["item"], old, compare_values=True, compare_only="all")
    assert report.is_match


@pytest.mark.parametrize("fault", ["503", "reset", "truncated"])
def test_data_that_comes_down_is_whole(fault, impatient, storage, sources, tmp_path):
    with storage.proxy.inject(PASSING[fault], kind="read", name="*/d/*", times=3) as injected:
        nnxconv.convert(sources["large"], str(tmp_path / "x"), **NAMES_ONLY)
    assert len(injected.hits) == 3
    assert nnxconv.compare(sources["large"], str(tmp_path / "x"), compare_values=True).is_match


@pytest.mark.sample(2)
@pytest.mark.parametrize("fault", ["503", "reset", "lost answer"])
def test_data_that_goes_up_is_whole(fault, impatient, storage, local):
    with storage.proxy.inject(
        PASSING[fault], kind="upload", name="*/d/*", where=is_repeatable, times=3
    ) as injected:
        nnxconv.convert(str(local / "large"), storage.path("out/x"), **NAMES_ONLY)
    assert len(injected.hits) == 3
    target = storage.path("out/x")
    assert nnxconv.compare(str(local / "large"), target, compare_values=True).is_match


DENIED = "ann@example.com does not have storage.objects.get access"
ANONYMOUS = "Anonymous caller does not have storage.objects.get access"
REFUSED = "the server refused access"
UNREACHABLE = "the server could not be reached, or did not answer"
LOG_IN = "`gcloud auth application-default login` makes new ones"
PERMISSIONS = "ask for `storage.objects.get`, `list`, `create` and `delete` on the bucket"
LASTING = {
    # what the server does; what is told: the error, the server's words, the way out
    "403": (Status(403, DENIED), REFUSED, DENIED, PERMISSIONS),
    "401": (
        Status(401, "Invalid Credentials"),
        "the server did not accept the credentials",
        "Invalid Credentials",
        LOG_IN,
    ),
    "anonymous": (
        Status(401, ANONYMOUS),
        "no credentials were found, or they have expired",
        ANONYMOUS,
        LOG_IN,
    ),
    "429": (
        Status(429, "slow down"),
        "the server asked to slow down, again and again",
        "slow down",
        "try later, or with fewer processes",
    ),
    "503": (Status(503, "unavailable"), UNREACHABLE, "unavailable", "try again later"),
    "reset": (Reset(), UNREACHABLE, r"\[Errno 104\] Connection reset by peer", "try again later"),
    "truncated": (
        Truncate(),
        UNREACHABLE,
        "the answer ended before it was complete",
        "try again later",
    ),
}
BY_GCSFS = [
    # command, and the requests that fail
    ("inspect", "list", "*"),
    ("inspect", "read", "*_METADATA"),
    ("compare", "read", "*/_METADATA"),
    ("checksum", "upload", "*.json"),
    ("match", "list", "*"),
    ("load", "read", "*_METADATA"),
    ("gpt3-from-paxml", "list", "*"),
    ("convert", "list", "*"),
    ("convert", "upload", "*_METADATA"),
    ("convert", "copy", "*"),
    ("convert, overwriting", "copy", "*"),
    ("convert down", "read", "*_METADATA"),
    ("convert up", "upload", "*/_METADATA"),
]


def arguments_of(command: str, storage, sources, local, tmp_path) -> list[object]:
    """A command by its name in a table."""
    new, rewrite = storage.path("out/new"), "--scan_layers"
    return {
        "inspect": ["inspect", sources["item"]],
        "compare": ["compare", local / "step", sources["item"], "--compare_values"],
        "compare plain": ["compare", local / "step", sources["plain"], "--compare_values"],
        "checksum": ["checksum", sources["item"], "--manifest", storage.path("out/sums.json")],
        "match": ["match", sources["renamed"], sources["item"]],
        "gpt3-from-paxml": ["gpt3-from-paxml", sources["pax"], new],
        "convert": ["convert", sources["large"], new, "--to", "nnx-pure", "--no-scan_layers"],
        "convert, overwriting": ["convert", sources["large"], storage.path("out/x"), "--overwrite"],
        "convert down": ["convert", sources["item"], tmp_path / "x", "--to", "nnx-pure"],
        "convert up": ["convert", local / "item", new, rewrite],
        "rewrite": ["convert", sources["item"], new, rewrite],
        "rewrite plain": ["convert", sources["plain"], new, rewrite],
    }[command]


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("fault", "command", "kind", "name"),
    [
        *(("403", *row) for row in BY_GCSFS),
        *(("503", *row) for row in BY_GCSFS if row[1] in ("list", "copy")),
        *(("401", *row) for row in BY_GCSFS if row[0] in ("inspect", "convert up")),
        *(("429", *row) for row in BY_GCSFS if row[0] in ("inspect", "convert up")),
        *(("anonymous", *row) for row in BY_GCSFS if row[0] == "inspect"),
        *(("reset", *row) for row in BY_GCSFS if row[0] in ("inspect", "convert")),
        *(("truncated", *row) for row in BY_GCSFS if row[0] == "inspect"),
    ],
)
def test_what_lasts_is_told_in_one_message(
    fault, command, kind, name, impatient, storage, sources, local, old, tmp_path, capfd
):
    injected, error, said, hint = LASTING[fault]
    with storage.proxy.inject(injected, kind=kind, name=name) as hits:
        if command == "load":
            with pytest.raises(StorageError) as caught:
                nnxconv.load(sources["item"], like={})
            message = caught.value.render() + "\n"
        else:
            message = refused(run(*arguments_of(command, storage, sources, local, tmp_path)))
    places = {re.escape(f"gs://{request.name}".rstrip("/")) for request in hits.hits}
    wanted = rf"error: {error}\n  at ({'|'.join(places)})\n  {said}\n\nhint: {re.escape(hint)}\n"
    if command == "convert, overwriting" and "replace" in message:
        wanted = (
            rf"error: the new checkpoint is complete at `{old}.nnxconv-new`.*\n.*\n\nhint: .*\n"
        )
    assert re.fullmatch(wanted, message), message
    assert "Traceback" not in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert everywhere(storage) == {"old"}


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("fault", "command", "kind", "name"),
    [
        ("403", "compare", "read", "*/manifest.ocdbt"),
        ("403", "compare", "read", "*/d/*"),
        ("403", "compare plain", "read", "*/.zarray"),
        ("503", "compare plain", "read", "*/0.0"),
        ("503", "convert down", "read", "*/d/*"),
        ("403", "rewrite plain", "read", "*/0.0"),
        ("403", "rewrite plain", "upload", "*/0.0.0"),
        ("503", "rewrite plain", "upload", "*/0.0.0"),
        ("403", "rewrite", "upload", "*/d/*"),
    ],
)
def test_what_lasts_while_arrays_move_is_told_in_one_message(
    fault, command, kind, name, impatient, storage, sources, local, tmp_path, capfd
):
    """These requests are TensorStore's, which does not always say which object it asked for."""
    injected, error, said, hint = LASTING[fault]
    with storage.proxy.inject(injected, kind=kind, name=name) as hits:
        message = refused(run(*arguments_of(command, storage, sources, local, tmp_path)))
    assert hits.hits
    wanted = rf"error: {error}\n  at gs://\S+\n  .*{said}\n\nhint: {re.escape(hint)}\n"
    assert re.fullmatch(wanted, message), message
    assert "Traceback" not in capfd.readouterr().err
    assert storage.names("out") == []


def test_repetitions_are_counted_and_shown(impatient, storage, sources):
    column = RepetitionsColumn()
    with storage.proxy.inject(Status(503), kind="read", name="*/_METADATA", times=2):
        nnxconv.inspect(sources["item"])
    assert column.render(Task(TaskID(0), "", 1, 0, _get_time=float)).plain == (
        "2 requests tried again"
    )
    with storage.proxy.inject(Status(503), kind="read", name="*/manifest.ocdbt", times=3):
        nnxconv.inspect(sources["item"])
    assert column.render(Task(TaskID(0), "", 1, 0, _get_time=float)).plain == (
        "5 requests tried again"
    )


@pytest.mark.full
@pytest.mark.parametrize("name", ["*/_METADATA", "*/manifest.ocdbt"], ids=["gcsfs", "TensorStore"])
def test_a_server_that_falls_silent_is_asked_again(name, storage, sources):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TENSORSTORE_CURL")}
    variables = {**kept, patience.TIMEOUT: "1", patience.RETRIES: "1"}
    for times, code in ((1, 0), (None, 2)):
        with storage.proxy.inject(Delay(3600), kind="read", name=name, times=times) as injected:
            done = subprocess.run(
                command("inspect", sources["item"]),
                env=variables,
                capture_output=True,
                text=True,
                timeout=60,
            )
        assert done.returncode == code, done.stderr
        assert len(injected.hits) == (times or 2)
        assert "Traceback" not in done.stderr
        assert (f"error: {UNREACHABLE}" in done.stderr) == (code == 2)


@pytest.mark.parametrize("variable", [patience.RETRIES, patience.TIMEOUT])
def test_settings_are_whole_numbers(variable, monkeypatch):
    monkeypatch.setenv(variable, "often")
    ask = patience.retries if variable == patience.RETRIES else patience.timeout_seconds
    with pytest.raises(BadInput, match=f"^`{variable}` is `often`, which is no whole number$"):
        ask()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            DefaultCredentialsError("Your default credentials were not found."),
            "no credentials were found, or they have expired\n"
            f"  Your default credentials were not found.\n\nhint: {LOG_IN}",
        ),
        (
            RefreshError("invalid_grant: Token has been expired or revoked."),
            "no credentials were found, or they have expired\n"
            f"  invalid_grant: Token has been expired or revoked.\n\nhint: {LOG_IN}",
        ),
        (
            OSError("Forbidden: http://127.0.0.1/b/x/o/y\nno access"),
            f"{REFUSED}\n  no access\n\nhint: {PERMISSIONS}",
        ),
        (
            HttpError({"code": 503, "message": "unavailable"}),
            f"{UNREACHABLE}\n  unavailable, 503\n\nhint: try again later",
        ),
        (
            ValueError("RESOURCE_EXHAUSTED: Error writing gs://b/x/d/1: quota [a='b']"),
            "the server asked to slow down, again and again\n  at gs://b/x/d/1\n  quota\n\n"
            "hint: try later, or with fewer processes",
        ),
    ],
)
def test_errors_that_no_emulator_makes(error, told):
    with pytest.raises(StorageError) as caught, told_plainly():
        raise error
    assert str(caught.value) == told


@pytest.mark.parametrize("error", [ValueError("NOT_FOUND: x"), OSError(13, "no", "/x"), KeyError()])
def test_errors_that_are_not_of_a_server_stay_as_they_are(error):
    with pytest.raises(type(error)) as caught, told_plainly():
        raise error
    assert caught.value is error


NOT_THERE = "error: `gs://nnxconv-nowhere/run` does not exist\n"
NO_BUCKET = "error: there is no such bucket or object\n  at gs://nnxconv-nowhere\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["inspect", "NOWHERE"], NOT_THERE),
        (["convert", "NOWHERE", "HERE"], NOT_THERE),
        (["compare", "ITEM", "NOWHERE"], NOT_THERE),
        (["checksum", "NOWHERE"], NOT_THERE),
        (["gpt3-from-paxml", "NOWHERE", "HERE"], NOT_THERE),
        (["convert", "ITEM", "NOWHERE"], NO_BUCKET),
    ],
)
def test_no_such_bucket(arguments, told, storage, sources, tmp_path):
    places = {
        "NOWHERE": "gs://nnxconv-nowhere/run",
        "HERE": tmp_path / "x",
        "ITEM": sources["item"],
    }
    message = refused(run(*(places.get(word, word) for word in arguments)))
    hint = "\nhint: `gcloud storage ls gs://nnxconv-nowhere` lists what is there\n"
    assert message == told + hint
    assert list(tmp_path.iterdir()) == []


def test_no_such_checkpoint(storage):
    message = refused(run("inspect", storage.path("out/nothing")))
    assert message == (
        f"error: `{storage.path('out/nothing')}` does not exist\n\n"
        f"hint: `gcloud storage ls gs://{storage.bucket}` lists what is there\n"
    )


def test_a_data_object_that_is_gone_is_named(storage, local, tmp_path):
    path = storage.put(local / "large", "out/large")
    data = max((size, name) for name, size in storage.sizes("out/large").items())[1]
    storage.delete(f"out/large/{data}")
    for target in (storage.path("out/x"), str(tmp_path / "x")):
        message = refused(run("convert", path, target, "--to", "nnx-pure", "--no-scan_layers"))
        assert data in message
    assert storage.names("out/x") == []
    assert list(tmp_path.iterdir()) == []


# What is damaged on the way


DAMAGES = {"a flipped bit": Flip(), "a short body": Shorten()}


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", ["*/_METADATA", "*/d/*"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_the_server_has_another_checksum_for_is_asked_for_again(
    damage, name, impatient, storage, sources, tmp_path
):
    """Metadata, and data files that are copied whole."""
    with storage.proxy.inject(DAMAGES[damage], kind="read", name=name, times=2) as injected:
        nnxconv.convert(sources["large"], str(tmp_path / "x"), **NAMES_ONLY)
    assert len(injected.hits) == 2
    report = nnxconv.compare(sources["large"], str(tmp_path / "x"), compare_values=True)
    assert report.is_match


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_that_lasts_is_one_message(damage, impatient, storage, sources, tmp_path):
    with storage.proxy.inject(DAMAGES[damage], kind="read", name="*/_METADATA"):
        message = refused(run("convert", sources["item"], tmp_path / "x", "--to", "nnx-pure"))
    assert message == (
        f"error: {UNREACHABLE}\n  at {sources['item']}/_METADATA\n"
        "  the answer was damaged on the way: its checksum is another one\n\n"
        "hint: try again later\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sample(3)
@pytest.mark.parametrize("command", ["convert down", "rewrite", "convert, overwriting"])
@pytest.mark.parametrize("name", ["*/manifest.ocdbt", "*/d/*"])
def test_damage_to_what_tensorstore_reads_is_one_message(
    command, name, impatient, storage, sources, local, old, tmp_path
):
    """Of nodes and manifests; TensorStore asks for parts of objects, which have no checksum."""
    with storage.proxy.inject(Shorten(), kind="read", name=name):
        message = refused(run(*arguments_of(command, storage, sources, local, tmp_path)))
    assert message.startswith("error: ")
    assert list(tmp_path.iterdir()) == []
    assert everywhere(storage) == {"old"}


def test_a_body_that_is_none_of_the_format_is_not_somebody_else_s_write():
    error = ValueError("FAILED_PRECONDITION: Error opening gs://b/x/.zarray: Invalid JSON")
    with pytest.raises(ValueError, match="Invalid JSON") as caught, told_plainly():
        raise error
    assert caught.value is error
