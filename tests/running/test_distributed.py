"""Several processes do what one does: the same trees, values and messages, or nothing at all.

They run on loopback, one coordinator for each group. A process takes a second or two to start, so
that a group makes all its conversions one after the other, by library calls.
"""

import json
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest

import nnxconv
from tests.support import checkpoints, pax, processes
from tests.support.command import run
from tests.support.trees import entries, same_bits, values

STEP = 7
UNFINISHED = ".orbax-checkpoint-tmp"
COUNTS = [2, pytest.param(4, marks=pytest.mark.full)]

# case: source, function, options
CASES = {
    "renamed": ("apart", "convert", {"to": "nnx", "scan_layers": True}),
    "linked": ("apart", "convert", {"to": "nnx", "scan_layers": True, "transfer": "link"}),
    "unstacked": ("stacked", "convert", {"to": "linen", "scan_layers": False, "verify": True}),
    "cast": ("apart", "convert", {"to": "maxtext", "params_only": True, "dtype": "bfloat16"}),
    "in directories": ("directories", "convert", {"to": "nnx-pure", "scan_layers": False}),
    "directories renamed": ("directories", "convert", {"to": "nnx-state"}),
    "from Pax": ("pax", "gpt3_from_paxml", {"verify": True}),
    "from Pax, apart": ("pax", "gpt3_from_paxml", {"scan_layers": False, "max_memory": "64KiB"}),
}


def state(axis=None, megabytes=2):
    """A small training state, but for kernels that are worth a chunk of their own."""
    kernels = [checkpoints.values((megabytes * 256, 1024), seed) for seed in range(4)]
    return checkpoints.linen_with(kernels, axis=axis)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """What is converted, by name."""
    root = tmp_path_factory.mktemp("sources")
    chunks = pax.cut(pax.SMALL, D=8, F=14, L=1)
    yield {
        "apart": checkpoints.save_root(
            root / "apart", {STEP: state()}, use_zarr3=True, extra={"iter": {"at": 3}}
        ),
        "stacked": checkpoints.save_item(root / "stacked", state(axis=1)),
        "directories": checkpoints.save_item(root / "directories", state(axis=0), use_ocdbt=False),
        "pax": pax.write(root / "pax", chunks=chunks),
    }
    shutil.rmtree(root)


def convert(sources, folder, case, **more):
    source, function, options = CASES[case]
    getattr(nnxconv, function)(str(sources[source]), str(folder / case), **options, **more)


@pytest.fixture(scope="module")
def by_one(sources, tmp_path_factory):
    """What one process alone makes, by case."""
    folder = tmp_path_factory.mktemp("by one")
    for case in CASES:
        convert(sources, folder, case)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=COUNTS)
def by_many(request, sources, by_one, tmp_path_factory):
    """What several processes make, by case; and what each of them said of comparisons."""
    folder = tmp_path_factory.mktemp("by many")
    conversions = [
        (function, (sources[source], folder / case), options)
        for case, (source, function, options) in CASES.items()
    ]
    reports = processes.call([*conversions, *comparisons(sources, by_one)], request.param)
    yield folder, reports
    shutil.rmtree(folder)


def comparisons(sources, by_one):
    """One that finds nothing, one that finds differences in many leaves, one of layouts."""
    values = {"compare_values": True, "compare_only": "all"}
    return [
        ("compare", (sources["stacked"], by_one / "unstacked"), values),
        ("compare", (sources["apart"], by_one / "cast"), {**values, "ignore_dtype": True}),
        ("compare", (sources["stacked"], sources["directories"]), {}),
    ]


def items(target: Path) -> list[Path]:
    return sorted(file.parent for file in target.rglob("_METADATA"))


@pytest.mark.sample(1)
@pytest.mark.parametrize("case", CASES)
def test_several_processes_write_what_one_writes(case, by_one, by_many):
    [expected], [found] = items(by_one / case), items(by_many[0] / case)
    assert found.relative_to(by_many[0]) == expected.relative_to(by_one)
    assert entries(found) == entries(expected)
    wanted, stored = values(expected), values(found)
    assert stored.keys() == wanted.keys()
    assert [key for key in wanted if not same_bits(wanted[key], stored[key])] == []
    nnxconv.write_checksums(str(expected))
    manifest = str(expected) + ".checksums.json"
    check = nnxconv.check_checksums(str(found), manifest=manifest)
    assert check.is_match
    Path(manifest).unlink()


@pytest.mark.full
def test_two_items_of_a_step_are_written_by_several_processes(tmp_path):
    source = checkpoints.save_step(tmp_path / "source", checkpoints.linen())
    target = tmp_path / "out"
    options = {"to": "tunix", "verify": True}
    values = {"compare_values": True, "compare_only": "all"}
    calls = [("convert", (source, target), options), ("compare", (source, target), values)]
    [first, second] = processes.call(calls, 2)
    assert first == second and first[0].startswith("match: ")
    assert [item.name for item in items(target)] == ["model_params", "optimizer_state"]


def test_other_items_and_files_of_a_step_travel_once(by_many):
    step = by_many[0] / "renamed" / str(STEP)
    assert (step / "iter" / "metadata").read_text() == '{"at": 3}'
    assert UNFINISHED not in " ".join(path.name for path in by_many[0].rglob("*"))


def test_every_process_has_the_report_that_one_makes(sources, by_one, by_many):
    wanted = []
    for _, paths, options in comparisons(sources, by_one):
        wanted.append(nnxconv.compare(*map(str, paths), **options).render())
    assert by_many[1] == [wanted] * len(by_many[1])
    assert ["differ" in report.splitlines()[0] for report in wanted] == [False, True, False]


# --- one fails, all fail ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """96 MiB in chunks of 1 MiB, whose conversion takes a while; and how it is converted."""
    path = tmp_path_factory.mktemp("large") / "stacked"
    checkpoints.save_item(path, state(1, megabytes=8), chunk_bytes=2**20)
    yield path
    shutil.rmtree(path)


def begun(source, target, count, code=processes.COMMAND):
    """Processes that have begun to write."""
    options = ["--to", "linen", "--no-scan_layers", "--max_memory", "16MiB"]
    started = processes.start("convert", source, target, *options, count=count, code=code)
    unfinished = target.parent / (target.name + UNFINISHED)
    while not list(unfinished.glob("ocdbt.process_1/d/*")):
        assert all(process.poll() is None for process in started.started), started.ended()
        time.sleep(0.01)
    return started


def lost(process):
    return (
        f"error: process {process} is lost: it was killed, or its machine cannot be reached\n"
        "\nhint: look into its own output; when the reason is gone, run the command again\n"
    )


@pytest.mark.full
@pytest.mark.parametrize("process", [0, pytest.param(1, marks=pytest.mark.full)])
def test_when_one_is_killed_all_others_end_within_a_minute_and_nothing_is_there(
    process, large, tmp_path
):
    started = begun(large, tmp_path / "out", 3)
    started.started[process].kill()
    ended = started.ended(60)
    assert ended.pop(process).exit_code == -signal.SIGKILL
    assert ended == [processes.Ended("", lost(process), 2)] * 2
    left = {path.name for path in tmp_path.iterdir()}
    leftovers = {f"out{UNFINISHED}", f"out{UNFINISHED}-lock"}
    assert left <= (leftovers if process == 0 else set())


@pytest.mark.full
@pytest.mark.parametrize(
    ("process", "number", "code", "message"),
    [
        (1, signal.SIGTERM, 143, "terminated: nothing was committed"),
        (0, signal.SIGINT, 130, "interrupted: nothing was committed"),
    ],
)
def test_a_signal_to_one_stops_all(process, number, code, message, large, tmp_path):
    started = begun(large, tmp_path / "out", 2)
    started.started[process].send_signal(number)
    ended = started.ended(60)
    assert [(one.stdout, one.stderr.strip(), one.exit_code) for one in ended] == (
        [("", message, code)] * 2
    )
    assert list(tmp_path.iterdir()) == []


HELD_UP = f"""
import nnxconv.storage.interrupts
nnxconv.storage.interrupts.ANSWER_SECONDS = 0
{processes.COMMAND}
"""
"""The main thread is never in time to answer a signal: another one ends the process."""


@pytest.mark.full
def test_a_signal_to_a_first_process_that_is_held_up_is_what_the_others_end_of(large, tmp_path):
    started = begun(large, tmp_path / "out", 2, HELD_UP)
    started.started[0].send_signal(signal.SIGINT)
    ended = started.ended(60)
    told = [(one.stdout, one.stderr.strip(), one.exit_code) for one in ended]
    assert told == [("", "interrupted: nothing was committed", 130)] * 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_an_error_of_one_is_told_by_all(tmp_path):
    source = checkpoints.save_item(
        tmp_path / "source", state(axis=1), use_ocdbt=False, chunk_bytes=2**20
    )
    name = "params.params.decoder.layers.mlp.wi.kernel"
    chunk = sorted((source / name).glob("0.*"))[0]
    chunk.write_bytes(b"not what was written")
    ended = processes.start(
        "convert", source, tmp_path / "out", "--to", "linen", "--no-scan_layers", count=3
    ).ended(60)
    assert [(one.stdout, one.exit_code) for one in ended] == [("", 2)] * 3
    [own] = [number for number, one in enumerate(ended) if "in process" not in one.stderr]
    message = ended[own].stderr
    assert message.startswith(f"error: array `{name}` cannot be read: ")
    assert message.endswith(f"\n  at {source}\n")
    others = [one.stderr for number, one in enumerate(ended) if number != own]
    assert others == [f"{message}  in process {own}\n"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.full
@pytest.mark.parametrize(
    ("option", "given"), [("to", ("linen", "nnx")), ("compression", ("none", "zstd:1"))]
)
def test_processes_that_do_not_do_the_same_do_nothing(option, given, sources, tmp_path):
    """As with two versions of a program, or a source that is another one on another machine."""
    layouts = (
        f"import os, sys; sys.argv += ['--{option}', {given}[int(os.environ['JAX_PROCESS_ID'])]]"
    )
    arguments = ["convert", str(sources["apart"]), str(tmp_path / "out"), "--distributed"]
    started = processes.Processes(f"{layouts}\n{processes.COMMAND}", arguments, 2)
    message = (
        "error: processes 0 and 1 see different checkpoints, or were started differently\n"
        "\nhint: every process needs the same command, the same version, and SRC where all see it\n"
    )
    assert started.ended(60) == [processes.Ended("", message, 2)] * 2
    assert list(tmp_path.iterdir()) == []


# --- in a bucket ------------------------------------------------------------------------------


@pytest.mark.full
def test_several_processes_write_to_a_bucket_and_within_one(gcs_server, sources, by_one):
    """Up from a disk, renamed by the server, and rewritten; what is there is what one writes."""
    from tests.support import gcs

    there = gcs_server.path("several")
    values = {"compare_values": True, "compare_only": "all"}
    calls = [
        ("convert", (sources["apart"], f"{there}/nnx"), {"to": "nnx", "scan_layers": True}),
        ("convert", (f"{there}/nnx", f"{there}/state"), {"to": "nnx-state"}),
        ("convert", (f"{there}/state", f"{there}/nnx"), {"to": "nnx", "overwrite": True}),
        ("convert", (f"{there}/nnx", f"{there}/back"), {"to": "linen", "scan_layers": False}),
        ("compare", (by_one / "renamed", f"{there}/nnx"), values),
        ("compare", (sources["apart"], f"{there}/back"), values),
    ]
    reports = processes.call(calls, 2, **gcs.environment(gcs_server.proxy.url))
    verdicts = [[report.splitlines()[0].partition(":")[0] for report in one] for one in reports]
    assert verdicts == [["match", "match"]] * 2
    names = gcs_server.names("several/nnx")
    assert f"{STEP}/items/commit_success.txt" in names
    assert [name for name in names if "nnxconv-new" in name or UNFINISHED in name] == []


# --- what a process prints, and how it is told who it is --------------------------------------


@pytest.mark.full
def test_the_first_process_alone_prints_the_result(sources, tmp_path):
    arguments = ["convert", sources["stacked"], tmp_path / "out", "--to", "nnx", "--json"]
    first, second = processes.start(*arguments, count=2).ended()
    assert second == processes.Ended("", "", 0)
    assert (first.stderr, first.exit_code) == ("", 0)
    result = json.loads(first.stdout)
    assert result["processes"] == 2
    reports = tmp_path / "report.json"
    arguments = ["compare", sources["stacked"], sources["apart"], "--report", reports]
    first, second = processes.start(*arguments, "--compare_values", count=2).ended()
    assert (first.exit_code, first.stderr, second) == (0, "", processes.Ended("", "", 0))
    assert first.stdout.startswith("match: ")
    assert json.loads(reports.read_text())["match"] is True


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        (
            ["--num_processes", "2"],
            {},
            "error: `--num_processes` is given, but not `--distributed`\n"
            "\nhint: add `--distributed`, on every process\n",
        ),
        (
            ["--distributed", "--coordinator_address", "localhost:1"],
            {},
            "error: JAX detects no cluster that tells `--num_processes`, `--process_id`\n"
            "\nhint: give all three, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and"
            " JAX_PROCESS_ID\n",
        ),
        (
            ["--distributed"],
            {"JAX_PROCESS_ID": "first"},
            "error: JAX_PROCESS_ID is `first`, which is no number\n",
        ),
        (
            ["--distributed", "--process_id", "2", "--num_processes", "2"],
            {},
            "error: there is no process 2 of 2: they are counted from 0\n",
        ),
        (
            ["--distributed", "--num_processes", "0"],
            {},
            "error: 0 is not a number of processes\n",
        ),
        (
            ["--distributed", "--coordinator_address", "localhost"],
            {},
            "error: the coordinator's address is `localhost`, not HOST:PORT\n",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_told(options, environment, message, monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    outcome = run("compare", "a", "b", *options)
    assert (outcome.stdout, outcome.stderr, outcome.exit_code) == ("", message, 2)


def test_a_program_that_has_joined_others_itself_is_told(monkeypatch):
    monkeypatch.setattr("jax._src.distributed.global_state.client", object())
    outcome = run("compare", "a", "b", "--distributed")
    assert (outcome.stderr, outcome.exit_code) == (
        "error: this program has called `jax.distributed.initialize` itself\n"
        "\nhint: share the work in processes of its own: `nnxconv ... --distributed`\n",
        2,
    )


def test_a_port_that_somebody_else_has_is_told(monkeypatch):
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        port = taken.getsockname()[1]
        options = ["--num_processes", 2, "--process_id", 0, "--distributed"]
        outcome = run("compare", "a", "b", "--coordinator_address", f"localhost:{port}", *options)
    assert (outcome.stderr, outcome.exit_code) == (
        f"error: process 0 cannot have the port {port} of `localhost:{port}`: Address already in"
        " use\n\nhint: give all processes an address with a port that is free\n",
        2,
    )
