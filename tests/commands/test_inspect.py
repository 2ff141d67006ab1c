"""What `nnxconv inspect` shows of every layout, of foreign trees, and of what is no checkpoint.

Golden files as in `tests/support/command.py`; those of this module are in `tests/golden/inspect/`.
"""

import json
import re
import time
from collections import Counter

import jax
import numpy as np
import pytest
import tensorstore as ts
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import nnxconv
from nnxconv.commands.inspect import inspect
from nnxconv.render.inspection import inspection_text
from nnxconv.storage.orbax.reading import Reader
from tests.support import checkpoints
from tests.support.checkpoints import save_item, save_root, save_step, save_with_manager
from tests.support.command import check_golden, run, session

LAYOUTS = {
    "linen": checkpoints.linen,
    "maxtext": checkpoints.maxtext,
    "nnx": checkpoints.nnx,
    "nnx-state": checkpoints.nnx_state,
    "nnx-pure": checkpoints.nnx_pure,
}


def check(name, item, *options):
    outcome = run("inspect", item, *options)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    check_golden(f"inspect/{name}.txt", session(outcome, {"PATH": item}))


# --- every layout ------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_output_for_each_layout_is_the_golden_one(layout, axis, tmp_path):
    item = save_item(tmp_path / "item", LAYOUTS[layout](axis=axis))
    check(f"{layout}_{'apart' if axis is None else 'stacked'}", item)


def test_containers_chunks_compressors_and_metadata_are_shown(tmp_path):
    item = save_item(
        tmp_path / "item",
        checkpoints.linen(axis=0),
        use_ocdbt=False,
        use_zarr3=True,
        chunk_bytes=512,
        custom_metadata={"note": "a " * 60, "run": 7},
    )
    check("zarr3_directories", item)


def test_a_checkpoint_of_parameters_only_has_no_optimizer_and_no_step(tmp_path):
    weights = {"params": {"params": checkpoints.weights(axis=1)}}
    check("parameters_only", save_item(tmp_path / "item", weights))


def test_a_stack_whose_layer_axis_is_unclear_is_shown_with_the_reason(tmp_path):
    stack = {"layers": {"w": np.zeros((3, 3, 5), np.float32)}}
    check("unclear_stack", save_item(tmp_path / "item", {"params": {"params": stack}}))


def test_a_conversion_shows_that_it_is_one(tmp_path):
    source = save_item(tmp_path / "a", checkpoints.linen())
    nnxconv.convert(str(source), str(tmp_path / "b"), to="nnx-pure", scan_layers=True)
    outcome = run("inspect", tmp_path / "b")
    assert outcome.exit_code == 0
    assert re.search(r"^  converted +by nnxconv, from linen$", outcome.stdout, re.MULTILINE)


def test_the_command_is_a_function_of_the_library():
    assert nnxconv.inspect is inspect
    assert "inspect" in nnxconv.__all__


# --- trees -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    return save_item(tmp_path_factory.mktemp("inspect") / "item", checkpoints.linen(axis=1))


TREES = {
    "tree": ("--tree",),
    "tree_depth_2": ("--depth", "2"),
    "tree_filtered": ("--filter", "params.*.mlp.*"),
    "tree_filtered_depth_3": ("--tree", "--depth", "3", "--filter", "*.mlp.*"),
}


@pytest.mark.parametrize("name", TREES)
def test_the_tree_is_the_golden_one(name, stacked):
    check(name, stacked, *TREES[name])


def test_json_holds_the_whole_tree_and_everything_that_the_text_says(stacked):
    outcome = run("inspect", stacked, "--json")
    found = json.loads(outcome.stdout)
    tree = {tuple(row["key"]): (row["array"], row["value_type"]) for row in found.pop("tree")}
    assert len(tree) == 19
    assert tree["params", "params", "decoder", "layers", "mlp", "wi", "kernel"] == (
        "f32[16,3,32]",
        "np.ndarray",
    )
    assert tree["opt_state", 1] == ("None", "None")
    assert found == {
        "path": str(stacked),
        "layout": "linen",
        "evidence": [
            "weights under `params/params`",
            "`opt_state` at the root, its chains are sequences",
        ],
        "decided": [],
        "problem": None,
        "container": {
            "kind": "orbax",
            "ocdbt": True,
            "zarr_format": 2,
            "processes": ["ocdbt.process_0"],
            "compressors": {"zstd level 1": 18},
            "chunks": {"whole": 18},
        },
        "restore": f'ocp.StandardCheckpointer().restore("{stacked}", train_state)',
        "step": 7,
        "layers": [
            {
                "group": "decoder.layers",
                "count": 3,
                "arrangement": "stacked on axis 1",
                "problem": None,
            }
        ],
        "parts": {
            "params": {"arrays": 11, "elements": 4160, "bytes": 16640},
            "opt_state": {"arrays": 24, "elements": 8322, "bytes": 33288},
            "step": {"arrays": 1, "elements": 1, "bytes": 4},
        },
        "optimizer": [
            {"place": "[0]", "names": ["count", "mu", "nu"], "moments": ["mu", "nu"]},
            {"place": "[2]", "names": ["count"], "moments": []},
        ],
        "dtypes": {"int32": 3, "float32": 15},
        "custom_metadata": {},
        "shardings": {},
        "states": [
            {
                "at": "",
                "layout": "linen",
                "parameters": 5,
                "evidence": found["evidence"],
                "unsure": [],
                "replicas": None,
                "copies": [],
            }
        ],
        "ledger": {
            "parameters": {"leaves": 5, "bytes": 16640},
            "optimizer": {"leaves": 12, "bytes": 33288},
            "step": {"leaves": 1, "bytes": 4},
            "variables": {"leaves": 0, "bytes": 0},
            "rng": {"leaves": 0, "bytes": 0},
            "other": {"leaves": 0, "bytes": 0},
        },
    }


def test_an_unknown_layout_still_shows_container_and_tree(tmp_path):
    tree = {"alpha": {"w": np.zeros((3, 4), np.float32)}, "beta": [np.zeros(2, np.int32)]}
    item = save_item(tmp_path / "item", tree)
    check("unknown_layout", item, "--tree")
    found = json.loads(run("inspect", item, "--json").stdout)
    assert found["layout"] is None
    assert found["problem"].startswith("this is none of the layouts that nnxconv knows")
    assert [row["key"] for row in found["tree"]] == [["alpha", "w"], ["beta", 0]]
    assert found["container"]["ocdbt"]


# --- where it looks ----------------------------------------------------------------------------


def test_items_steps_and_roots_with_a_chosen_step_are_shown(tmp_path):
    root = save_root(tmp_path / "root", {1: checkpoints.linen(), 2: checkpoints.linen(step=9)})
    for path, options in [(root, ("--step", "2")), (root / "2", ()), (root / "2" / "items", ())]:
        outcome = run("inspect", path, *options)
        first, *rows = outcome.stdout.splitlines()
        assert first == str(root / "2" / "items")
        assert "  step       9" in rows


def test_what_a_step_says_about_itself_is_shown(tmp_path):
    save_step(tmp_path / "7", checkpoints.linen(), custom_metadata={"scan_layers": False})
    outcome = run("inspect", tmp_path / "7")
    assert "  metadata   scan_layers = false" in outcome.stdout.splitlines()


NO_CHECKPOINT = {
    "unfinished_saves_only": (
        lambda path: (path / "7.orbax-checkpoint-tmp-1700000000").mkdir(parents=True),
        "`PATH` is not an Orbax checkpoint",
        "it holds only unfinished saves, which were interrupted before they were committed",
    ),
    "pax": (
        lambda path: [(path / name).mkdir(parents=True) for name in ("metadata", "state")],
        "`PATH` is not an Orbax checkpoint",
        "it looks like a Pax checkpoint: `nnxconv gpt3-from-paxml` imports those of GPT-3",
    ),
    "empty": (
        lambda path: path.mkdir(),
        "`PATH` is not an Orbax checkpoint",
        "it is empty",
    ),
    "anything_else": (
        lambda path: write(path / "notes.txt"),
        "`PATH` is not an Orbax checkpoint",
        "expected `_METADATA`, an item that has it, or numbered steps",
    ),
    "nothing": (lambda path: None, "`PATH` does not exist", ""),
    "file": (lambda path: write(path), "`PATH` is a file, not a checkpoint directory", ""),
}


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"anything")


@pytest.mark.parametrize("name", NO_CHECKPOINT)
def test_what_is_no_checkpoint_is_explained_with_exit_code_2(name, tmp_path):
    make, message, hint = NO_CHECKPOINT[name]
    path = tmp_path / "path"
    make(path)
    outcome = run("inspect", path)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    expected = f"error: {message}\n" + (f"\nhint: {hint}\n" if hint else "")
    assert outcome.stderr.replace(str(path), "PATH") == expected


def test_an_unfinished_save_is_explained(tmp_path):
    path = save_item(tmp_path / "a", checkpoints.linen(1)).rename(
        tmp_path / "7.orbax-checkpoint-tmp"
    )
    outcome = run("inspect", path)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith(f"error: `{path}` is an unfinished save\n\nhint: ")


def test_a_step_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    root = save_root(tmp_path / "root", {1: checkpoints.linen(1), 20: checkpoints.linen(1)})
    outcome = run("inspect", root, "--step", "3")
    assert outcome.exit_code == 2
    assert outcome.stderr == f"error: `{root}` has no step 3\n\nhint: it has 1, 20\n"


# --- metadata only -----------------------------------------------------------------------------


def test_only_the_step_is_read(tmp_path, monkeypatch):
    reads = []
    read = Reader.read

    async def counted(self, source, region):
        reads.append(source.name)
        return await read(self, source, region)

    monkeypatch.setattr(Reader, "read", counted)
    item = save_item(tmp_path / "item", checkpoints.linen())
    assert run("inspect", item, "--tree", "--shardings").exit_code == 0
    assert reads == ["step"]


def test_it_does_not_matter_that_the_chunks_are_gone(tmp_path):
    item = save_item(tmp_path / "item", checkpoints.linen(), use_ocdbt=False)
    expected = run("inspect", item).stdout
    for chunk in item.rglob("*.0"):
        chunk.unlink()
    assert run("inspect", item).stdout == expected


def write_item(path, shapes):
    """An item of arrays without chunks, in an OCDBT database: what `inspect` may read, no more."""
    path.mkdir()
    kvstore = ts.KvStore.open(
        {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}}
    ).result()
    tree = {}
    with ts.Transaction() as transaction:
        view = kvstore.with_transaction(transaction)
        for key, shape in shapes.items():
            name = ".".join(map(str, key))
            zarray = {
                "zarr_format": 2,
                "shape": shape,
                "chunks": shape,
                "dtype": "<f4",
                "compressor": {"id": "zstd", "level": 1},
                "fill_value": None,
                "filters": None,
                "order": "C",
            }
            view.write(f"{name}/.zarray", json.dumps(zarray).encode()).result()
            tree[str(key)] = {
                "key_metadata": [
                    {"key": str(part), "key_type": 1 if isinstance(part, int) else 2}
                    for part in key
                ],
                "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
            }
    metadata = {"tree_metadata": tree, "use_ocdbt": True, "use_zarr3": False}
    (path / "_METADATA").write_text(json.dumps(metadata))
    return path


@pytest.mark.full
def test_ten_thousand_leaves_take_about_a_second(tmp_path):
    weights = {
        ("decoder", f"layers_{layer}", f"module_{module}", "kernel"): (8, 16)
        for layer in range(96)
        for module in range(35)
    }
    shapes = {("params", "params", *key): shape for key, shape in weights.items()}
    for moment in ("mu", "nu"):
        shapes |= {
            ("opt_state", 0, moment, "params", *key): shape for key, shape in weights.items()
        }
    assert len(shapes) == 10_080
    item = write_item(tmp_path / "item", shapes)
    seconds: list[float] = []
    while len(seconds) < 4 and min(seconds, default=1.0) >= 1.0:  # cores may be shared
        started = time.process_time()
        found = inspect(str(item))
        text = inspection_text(found, tree=True)
        seconds.append(time.process_time() - started)
    assert "  layers     decoder.layers: 96 layers, apart as name_0" in text.splitlines()
    assert found.parts["params"].arrays == 96 * 35
    assert min(seconds) < 2.0, seconds  # where another test shares the core


# --- shardings ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Parameters on a mesh of 2 by 4 devices, saved as `jax.Array`."""
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4, 1), ("data", "fsdp", "tensor"))

    def put(shape, *spec):
        return jax.device_put(
            np.zeros(shape, np.float32), NamedSharding(mesh, PartitionSpec(*spec))
        )

    params = {
        "embedding": put((16, 8), ("data", "fsdp"), None),
        "kernel": put((8, 16), "fsdp", "tensor"),
        "on_the_host": np.zeros(3, np.float32),
        "scale": put((4,)),
    }
    path = tmp_path_factory.mktemp("sharded") / "item"
    return save_item(path, {"params": {"params": params}})


def test_shardings_show_mesh_and_partition_spec(sharded):
    check("shardings", sharded, "--shardings")


def test_shardings_can_be_filtered(sharded):
    outcome = run("inspect", sharded, "--shardings", "--filter", "*.kernel")
    [row] = [line for line in outcome.stdout.splitlines() if line.startswith("params.")]
    assert row.split(maxsplit=1)[1] == "P('fsdp', 'tensor') on data=2, fsdp=4"


def test_shardings_that_were_not_saved_are_said_to_be_so(stacked):
    outcome = run("inspect", stacked, "--shardings")
    assert outcome.stdout.splitlines()[-1] == "no shardings were saved"


def test_shardings_are_in_the_json_as_the_writer_saved_them(sharded):
    found = json.loads(run("inspect", sharded, "--json").stdout)["shardings"]
    assert found.keys() == {f"params.params.{name}" for name in ("embedding", "kernel", "scale")}
    kernel = found["params.params.kernel"]
    assert kernel["axis_names"] == ["data", "fsdp", "tensor"]
    assert kernel["shape"] == [2, 4, 1]
    assert kernel["partition_spec"] == ["fsdp", "tensor"]


def test_a_damaged_sharding_file_is_named(sharded, tmp_path):
    item = save_item(tmp_path / "item", checkpoints.linen(1))
    (item / "_sharding").write_text("{")
    outcome = run("inspect", item)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith(f"error: `{item / '_sharding'}` is not what Orbax writes")


# --- what other programs wrote -----------------------------------------------------------------


def test_every_shared_checkpoint_is_understood(conformance):
    layouts = Counter()
    for path in sorted((conformance / "maxtext").iterdir()):
        found = inspect(str(path))
        assert found.problem == "", path.name
        assert not any(group.problem for group in found.understood.groups), path.name
        layouts[found.understood.codec.name] += 1
    assert layouts["linen"] and layouts["nnx-pure"] and layouts["maxtext"] and layouts["nnx-state"]


@pytest.mark.parametrize("name", ["genuine", "genuine-52k"])
def test_shared_pax_checkpoints_are_recognised_as_such(name, conformance):
    outcome = run("inspect", next((conformance / "pax" / name / "checkpoints").iterdir()))
    assert outcome.exit_code == 2
    assert "Pax" in outcome.stderr


def test_a_manager_s_step_is_shown(tmp_path):
    root = save_with_manager(tmp_path / "root", {3: checkpoints.linen(1)})
    outcome = run("inspect", root)
    assert outcome.exit_code == 0
    assert outcome.stdout.splitlines()[0] == str(root / "3" / "default")
