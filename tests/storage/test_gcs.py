"""gs:// paths do what local ones do.

The server is a real fake-gcs-server on loopback, behind a proxy that counts and disturbs requests.
What is expected of a conversion is what the same conversion gives between local directories.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

import nnxconv
from nnxconv.errors import BadInput
from nnxconv.storage.orbax.reading import Reader
from tests.support import checkpoints, gcs, pax
from tests.support.command import run
from tests.support.gcs import COMMITTED
from tests.support.gcs_twins import (
    NAMES_ONLY,
    check_same,
    command,
    is_finished,
    pytestmark,
)
from tests.support.trees import same_bits

__all__ = ["pytestmark"]

# Every kind of conversion

CONVERSIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "names only": ("item", NAMES_ONLY),
    "names only, linked": ("item", {**NAMES_ONLY, "transfer": "link"}),
    "names only, a directory per array": ("plain", NAMES_ONLY),
    "names only, zarr3": ("zarr3", NAMES_ONLY),
    "names only, zarr3 in directories": ("plain zarr3", {**NAMES_ONLY, "transfer": "link"}),
    "names only, 24 MiB": ("large", NAMES_ONLY),
    "names only, another way": ("nnx", {"to": "linen", "scan_layers": True}),
    "names only, nnx_aux": ("maxtext", {"to": "nnx-state", "scan_layers": True}),
    "stack": ("item", {"to": "nnx", "scan_layers": True}),
    "stack on another axis": ("item", {"to": "maxtext", "scan_layers": True, "layer_axis": 0}),
    "stack, a directory per array": ("plain", {"to": "nnx", "scan_layers": True}),
    "unstack": ("stacked", {"to": "linen", "scan_layers": False}),
    "unstack, zarr3": ("stacked zarr3", {"to": "nnx", "scan_layers": False}),
    "rename": ("item", {"rename": "rules.toml", "scan_layers": True}),
    "params_only": ("item", {"params_only": True}),
    "dtype": ("item", {"params_only": True, "dtype": "bfloat16"}),
    "without": ("item", {"to": "linen", "without": ["opt_state"]}),
    "like": ("item", {"like": "template"}),
    "verify": ("item", {"verify": True}),
    "a step": ("step", {"to": "nnx-pure"}),
    "a root": ("lone", {}),
    "a root and a step": ("root", {"step": 2}),
}


@pytest.fixture(scope="module")
def expected(local):
    """Gives what a conversion makes between local directories."""

    def target_of(name: str) -> Path:
        target = local.parent / "expected" / name
        if not target.exists():
            source, options = CONVERSIONS[name]
            nnxconv.convert(str(local / source), str(target), **with_paths(options, local))
        return target

    return target_of


def with_paths(options: dict[str, Any], root: Any) -> dict[str, Any]:
    """The options, with the paths of the template and of the rules."""
    return {
        name: f"{root}/{value}" if name in ("like", "rename") else value
        for name, value in options.items()
    }


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", CONVERSIONS)
def test_from_gs_to_gs(name, storage, sources, expected, tmp_path):
    source, options = CONVERSIONS[name]
    options = with_paths(options, storage.path("in"))
    nnxconv.convert(sources[source], storage.path("out/x"), **options)
    check_same(storage.get("out/x", tmp_path / "x"), expected(name))
    assert {path.split("/")[0] for path in storage.names("out")} == {"x"}
    assert is_finished(storage.path("out/x"))


MIXED = [
    "names only",
    "names only, zarr3 in directories",
    "names only, 24 MiB",
    "stack",
    "unstack",
    "params_only",
    "rename",
    "like",
    "verify",
    "a step",
    "a root",
]


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", MIXED)
def test_from_gs_to_local(name, storage, sources, expected, tmp_path):
    source, options = CONVERSIONS[name]
    options = with_paths(options, storage.path("in"))
    nnxconv.convert(sources[source], str(tmp_path / "x"), **options)
    check_same(tmp_path / "x", expected(name))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_download_goes_on_unless_the_bucket_has_changed(storage, local, tmp_path, monkeypatch):
    source = storage.put(local / "stacked", "in/changing")
    options: dict[str, Any] = {"to": "linen", "scan_layers": False, "resume": True}
    options["max_memory"] = "64KiB"
    read = Reader.read
    count = 0

    async def failing(self, source, region):
        nonlocal count
        count += 1
        if count == 5:
            raise InterruptedError
        return await read(self, source, region)

    for target in ("out", "changed"):
        count = 0
        with monkeypatch.context() as patch:
            patch.setattr(Reader, "read", failing)
            with pytest.raises(InterruptedError):
                nnxconv.convert(source, str(tmp_path / target), **options)
    result = nnxconv.convert(source, str(tmp_path / "out"), **options)
    assert result.moved is not None and "an interrupted run" in result.moved.notes[0]
    nnxconv.convert(str(local / "stacked"), str(tmp_path / "wanted"), to="linen", scan_layers=False)
    check_same(tmp_path / "out", tmp_path / "wanted")
    storage.put(local / "stacked" / "_METADATA", "in/changing/_METADATA")
    with pytest.raises(BadInput, match="in/changing/_METADATA has changed"):
        nnxconv.convert(source, str(tmp_path / "changed"), **options)


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", MIXED)
def test_from_local_to_gs(name, storage, local, expected, tmp_path):
    source, options = CONVERSIONS[name]
    options = with_paths(options, local)
    nnxconv.convert(str(local / source), storage.path("out/x"), **options)
    check_same(storage.get("out/x", tmp_path / "x"), expected(name))
    assert is_finished(storage.path("out/x"))


def test_a_step_of_two_items_comes_and_goes(storage, sources, local, tmp_path):
    there, back = storage.path("out/x"), tmp_path / "back"
    nnxconv.convert(sources["step"], there, to="tunix")
    nnxconv.convert(str(local / "step"), str(tmp_path / "here"), to="tunix")
    for item in ("model_params", "optimizer_state"):
        assert is_finished(f"{there}/{item}")
        check_same(storage.get(f"out/x/{item}", tmp_path / item), tmp_path / "here" / item)
    assert is_finished(there)
    nnxconv.convert(there, str(back), to="linen")
    report = nnxconv.compare(str(local / "step"), str(back), compare_values=True)
    assert report.is_match


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


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("is_source_there", "is_target_there"), [(True, True), (True, False), (False, True)]
)
def test_gpt3_from_paxml(is_source_there, is_target_there, storage, sources, local, tmp_path):
    source = sources["pax"] if is_source_there else str(local / "pax")
    target = storage.path("out/x") if is_target_there else str(tmp_path / "x")
    nnxconv.gpt3_from_paxml(source, target, verify=True)
    nnxconv.gpt3_from_paxml(str(local / "pax"), str(tmp_path / "wanted"))
    if is_target_there:
        assert is_finished(storage.path("out/x/5"))
        storage.get("out/x", tmp_path / "x")
    check_same(tmp_path / "x", tmp_path / "wanted")


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


# compare, match, inspect, checksum, load


@pytest.mark.parametrize(
    ("b", "is_b_local"),
    [("step", False), ("plain", False), ("stacked", True), ("item", True)],
)
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


def test_match_proposes_the_rules_of_the_local_twins(sources, local, storage, tmp_path):
    here, there = tmp_path / "here.toml", storage.path("out/rules.toml")
    assert run("match", local / "renamed", local / "item", "--output", here).exit_code == 0
    assert run("match", sources["renamed"], sources["item"], "--output", there).exit_code == 0
    text = storage.read("out/rules.toml").decode()
    assert text.replace(storage.path("in"), str(local)) == here.read_text()
    with_rules = ("--rename", there, "--compare_values")
    assert run("compare", sources["renamed"], sources["item"], *with_rules).exit_code == 0


@pytest.mark.parametrize("name", ["item", "stacked", "plain", "nnx"])
def test_what_loads_is_what_the_local_twin_loads(name, sources, local):
    like = {"params": {"params": checkpoints.weights()}}
    options: dict[str, Any] = {"like": like, "note": lambda _: None}
    here, there = nnxconv.load(str(local / name), **options), nnxconv.load(sources[name], **options)
    assert pax.flat(here).keys() == pax.flat(there).keys()
    for key, wanted in pax.flat(here).items():
        assert same_bits(np.asarray(pax.flat(there)[key]), np.asarray(wanted))


def test_a_part_of_an_array_is_read_alone(sources, local, storage):
    key = "params.embed.embedding"
    with storage.proxy.recording() as traffic:
        found = nnxconv.open(sources["item"])[key][:3]
    assert same_bits(found, nnxconv.open(str(local / "item"))[key][:3])
    assert traffic.client_bytes < 100_000


@pytest.mark.full
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
