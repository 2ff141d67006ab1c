"""Manifests: the same for every layout and container, and never blind to damage."""

import json
import random
import re
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest
import xxhash

import nnxconv
from nnxconv.commands.checksum import check_checksums, write_checksums
from nnxconv.comparing.checksums import Manifest
from tests.support import checkpoints
from tests.support.checkpoints import save_item, save_root, save_step, save_with_manager
from tests.support.command import run

LAYOUTS = {
    "linen": checkpoints.linen,
    "maxtext": checkpoints.maxtext,
    "nnx": checkpoints.nnx,
    "nnx-state": checkpoints.nnx_state,
    "nnx-pure": checkpoints.nnx_pure,
}
CONTAINERS = {
    "OCDBT and zarr2": {},
    "OCDBT and zarr3": {"use_zarr3": True},
    "directories and zarr2": {"use_ocdbt": False},
    "directories and zarr3": {"use_ocdbt": False, "use_zarr3": True},
}


def leaves_of(item, **options):
    """The digests of an item by its leaves' keys."""
    manifest = item.parent / f"{item.name}.manifest.json"
    write_checksums(str(item), manifest=str(manifest), overwrite=True, **options)
    return json.loads(manifest.read_text())["leaves"]


# --- write and check ---------------------------------------------------------------------------


def test_a_manifest_is_written_beside_the_checkpoint_and_checks_it(tmp_path):
    item = save_item(tmp_path / "item", checkpoints.linen())
    before = {file: file.read_bytes() for file in item.rglob("*") if file.is_file()}
    written = run("checksum", item)
    assert (written.exit_code, written.stderr) == (0, "")
    assert written.stdout == (
        f"36 arrays and {len(before)} files -> {tmp_path / 'item.checksums.json'}\n"
    )
    checked = run("checksum", "--check", item)
    assert (checked.exit_code, checked.stderr) == (0, "")
    assert checked.stdout == f"match: 36 arrays and {len(before)} files are as recorded\n"
    assert {file: file.read_bytes() for file in item.rglob("*") if file.is_file()} == before


def test_a_manifest_may_be_any_file(tmp_path):
    item = save_item(tmp_path / "item", checkpoints.linen())
    file = tmp_path / "elsewhere.json"
    assert run("checksum", item, "--manifest", file).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere.json", "item"]
    assert run("checksum", "--check", item, "--manifest", file).exit_code == 0


def test_a_manifest_names_key_type_shape_and_digest_of_every_leaf(tmp_path):
    kernel = checkpoints.values((4, 6), seed=3)
    tree = {"step": np.asarray(7, np.int32), "params": {"params": {"dense": {"kernel": kernel}}}}
    item = save_item(tmp_path / "item", tree)
    write_checksums(str(item))
    manifest = json.loads((tmp_path / "item.checksums.json").read_text())
    assert (manifest["nnxconv_checksums"], manifest["algorithm"]) == (1, "xxh3_128")
    assert manifest["leaves"] == {
        "params.dense.kernel": {
            "dtype": "float32",
            "shape": [4, 6],
            "digest": xxhash.xxh3_128(kernel.tobytes()).hexdigest(),
        },
        "step": {
            "dtype": "integer",
            "shape": [],
            "digest": xxhash.xxh3_128(np.int64(7).tobytes()).hexdigest(),
        },
    }
    files = {f.relative_to(item).as_posix(): f for f in item.rglob("*") if f.is_file()}
    assert manifest["files"] == {
        name: xxhash.xxh3_128(file.read_bytes()).hexdigest() for name, file in files.items()
    }


def test_json_tells_the_same(tmp_path):
    item = save_item(tmp_path / "item", checkpoints.linen())
    written = json.loads(run("checksum", item, "--json").stdout)
    assert written["manifest"] == str(tmp_path / "item.checksums.json")
    assert written["leaves"] == 36
    checked = json.loads(run("checksum", "--check", item, "--json").stdout)
    assert checked == {
        "match": True,
        "exit_code": 0,
        "leaves": 36,
        "files": written["files"],
        "problems": [],
    }


def test_the_commands_are_functions_of_the_library():
    assert nnxconv.write_checksums is write_checksums
    assert nnxconv.check_checksums is check_checksums


# --- differences -------------------------------------------------------------------------------


def weights_and_step(step=7):
    return {"step": np.asarray(step, np.int32), "params": {"params": checkpoints.weights(1)}}


def test_the_whole_output_for_a_checkpoint_that_differs(tmp_path):
    item = save_item(tmp_path / "item", weights_and_step())
    run("checksum", item)
    tree = weights_and_step(step=8)
    params = tree["params"]["params"]
    decoder = params["decoder"]
    decoder["layers_0"]["mlp"]["wi"]["kernel"] = decoder["layers_0"]["mlp"]["wi"]["kernel"].T
    decoder["norm"]["scale"] = decoder["norm"]["scale"].astype("bfloat16")
    decoder["layers_0"]["mlp"]["wo"]["bias"] = np.zeros(16, np.float32)
    del decoder["layers_0"]["norm"]
    params["embed"]["embedding"] = params["embed"]["embedding"] + 1
    other = save_item(tmp_path / "other", tree)
    manifest = tmp_path / "item.checksums.json"
    outcome = run("checksum", "--check", other, "--manifest", manifest)
    assert (outcome.exit_code, outcome.stderr) == (1, "")
    assert outcome.stdout == (
        "6 differ from the manifest\n"
        "\n"
        "  params.decoder.layers[0].mlp.wi.kernel  is float32[32,16], and was float32[16,32]\n"
        "  params.decoder.layers[0].mlp.wo.bias  is not in the manifest\n"
        "  params.decoder.layers[0].norm.scale  is missing\n"
        "  params.decoder.norm.scale  is bfloat16[16], and was float32[16]\n"
        "  params.embed.embedding  has other values\n"
        "  step  has other values\n"
    )


def test_one_changed_element_in_the_last_chunk_is_found(tmp_path):
    tree = {"params": {"params": {"w": np.zeros((3, 64), np.float32)}}}
    run("checksum", save_item(tmp_path / "a", tree, chunk_bytes=256))
    tree["params"]["params"]["w"] = tree["params"]["params"]["w"].copy()
    tree["params"]["params"]["w"][2, 63] = 1e-30
    b = save_item(tmp_path / "b", tree, chunk_bytes=256)
    outcome = run("checksum", "--check", b, "--manifest", tmp_path / "a.checksums.json")
    assert outcome.exit_code == 1
    assert "  params.w  has other values\n" in outcome.stdout


def test_two_swapped_layers_are_found(tmp_path):
    run("checksum", save_item(tmp_path / "a", checkpoints.linen()))
    tree = checkpoints.linen()
    decoder = tree["params"]["params"]["decoder"]
    decoder["layers_0"], decoder["layers_2"] = decoder["layers_2"], decoder["layers_0"]
    b = save_item(tmp_path / "b", tree)
    outcome = run("checksum", "--check", b, "--manifest", tmp_path / "a.checksums.json")
    assert outcome.exit_code == 1
    assert "  params.decoder.layers[0].mlp.wi.kernel  has other values\n" in outcome.stdout


@pytest.mark.parametrize("name", ["_METADATA", "_CHECKPOINT_METADATA", "array_metadatas"])
def test_a_file_that_is_gone_is_found_although_every_value_can_be_read(name, tmp_path):
    item = save_item(tmp_path / "item", checkpoints.linen(1))
    (item / "array_metadatas").mkdir(exist_ok=True)
    (item / "array_metadatas" / "process_0").write_text('{"array_metadatas": []}')
    run("checksum", item)
    if (item / name).is_dir():
        shutil.rmtree(item / name)
    else:
        (item / name).unlink()
    assert run("checksum", "--check", item).exit_code in (1, 2)


# --- what the digests do not depend on -----------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A Linen checkpoint and its manifest."""
    root = tmp_path_factory.mktemp("recorded")
    item = save_item(root / "linen", checkpoints.linen())
    run("checksum", item)
    return item, root / "linen.checksums.json"


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("layout", ["linen", "nnx", "nnx-state", "nnx-pure"])
def test_the_manifest_of_a_linen_checkpoint_checks_its_conversions(
    layout, axis, recorded, tmp_path
):
    source, manifest = recorded
    out = tmp_path / "out"
    options = {"scan_layers": axis is not None}
    if axis is not None:
        options["layer_axis"] = axis
    nnxconv.convert(str(source), str(out), to=layout, **options)
    outcome = run("checksum", "--check", out, "--manifest", manifest)
    assert outcome.exit_code == 0
    # where whole files are taken over, the files are still not those of the source
    assert outcome.stdout == "match: 36 arrays are as recorded\n"


def test_the_manifest_of_a_linen_checkpoint_checks_maxtext_but_for_the_variables_it_adds(
    recorded, tmp_path
):
    _, manifest = recorded
    item = save_item(tmp_path / "maxtext", checkpoints.maxtext())
    outcome = run("checksum", "--check", item, "--manifest", manifest)
    assert outcome.exit_code == 1
    assert outcome.stdout == (
        "2 differ from the manifest\n"
        "\n"
        "  aux.rngs.decoder.dropout.rngs.params.count  is not in the manifest\n"
        "  aux.rngs.decoder.dropout.rngs.params.key  is not in the manifest\n"
    )


@pytest.mark.sample(2)
@pytest.mark.parametrize("source", LAYOUTS)
def test_a_manifest_of_any_layout_checks_every_conversion(source, tmp_path):
    item = save_item(tmp_path / "source", LAYOUTS[source](axis=1))
    run("checksum", item)
    for layout in LAYOUTS:
        for scan_layers in (True, False):
            out = tmp_path / f"{layout}_{scan_layers}"
            without = ["aux"] if source == "maxtext" and layout == "linen" else []
            nnxconv.convert(
                str(item), str(out), to=layout, scan_layers=scan_layers, without=without
            )
            words = ("--check", out, "--manifest", tmp_path / "source.checksums.json", "--json")
            problems = json.loads(run("checksum", *words).stdout)["problems"]
            assert [line for line in problems if not line.startswith("aux.rngs")] == []


@pytest.mark.sample(6)
@pytest.mark.parametrize("chunk_bytes", [None, 128, 1024])
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("axis", [None, 1])
def test_digests_do_not_depend_on_chunks_compressor_zarr_version_or_container(
    container, chunk_bytes, axis, recorded, tmp_path
):
    item, _ = recorded
    tree = checkpoints.linen(axis=axis)
    other = save_item(tmp_path / "b", tree, chunk_bytes=chunk_bytes, **CONTAINERS[container])
    assert leaves_of(other) == leaves_of(item)


@pytest.mark.sample(4)
@pytest.mark.parametrize("chunk_bytes", [None, 1024])
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("source", ["OCDBT and zarr2", "directories and zarr2"])
def test_a_manifest_checks_the_same_values_in_another_container(
    source, container, chunk_bytes, tmp_path
):
    run("checksum", save_item(tmp_path / "a", checkpoints.linen(1), **CONTAINERS[source]))
    other = save_item(
        tmp_path / "b", checkpoints.linen(1), chunk_bytes=chunk_bytes, **CONTAINERS[container]
    )
    outcome = run("checksum", "--check", other, "--manifest", tmp_path / "a.checksums.json")
    assert outcome.exit_code == 0, outcome.stdout


def test_digests_do_not_depend_on_memory(recorded):
    item, _ = recorded
    assert leaves_of(item, max_memory="64KiB") == leaves_of(item, max_memory="1GiB")


@pytest.mark.parametrize("max_memory", ["256KiB", "1MiB", "1GiB"])
def test_large_stacks_are_digested_layer_by_layer_within_the_memory(max_memory, tmp_path):
    apart = [checkpoints.values((96, 128), seed=index) for index in range(3)]
    stack = {"layers": {"w": {"kernel": np.stack(apart, 1)}, "b": np.ones((7, 3), np.float32)}}
    item = save_item(tmp_path / "a", {"params": {"params": stack}}, chunk_bytes=24_576)
    found = leaves_of(item, max_memory=max_memory)
    assert {name: leaf for name, leaf in found.items() if "kernel" in name} == {
        f"params.layers[{index}].w.kernel": {
            "dtype": "float32",
            "shape": [96, 128],
            "digest": xxhash.xxh3_128(layer.tobytes()).hexdigest(),
        }
        for index, layer in enumerate(apart)
    }


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float8_e4m3fn", "int4", "bool", "complex64", "float64", "uint64", "int8"]
)
def test_every_element_type_is_digested_by_its_bytes(dtype, tmp_path):
    values = np.arange(-3, 3).astype(np.dtype(dtype)).reshape(2, 3)
    item = save_item(tmp_path / "a", {"params": {"params": {"w": values}}})
    [leaf] = leaves_of(item).values()
    assert leaf["digest"] == xxhash.xxh3_128(values.tobytes()).hexdigest()
    assert (leaf["dtype"], leaf["shape"]) == (dtype, [2, 3])


def test_steps_of_every_integer_type_have_one_digest(tmp_path):
    digests = set()
    for name, step in {
        "a": np.asarray(7, np.int32),
        "b": np.asarray(7, np.uint32),
        "c": np.asarray(7, np.int64),
        "d": 7,
    }.items():
        tree = {"step": step, "params": {"params": {"w": np.ones(3, np.float32)}}}
        digests.add(json.dumps(leaves_of(save_item(tmp_path / name, tree))["step"]))
    assert len(digests) == 1


# --- damage ------------------------------------------------------------------------------------

FLIPS = 200


@pytest.mark.full
@pytest.mark.parametrize("container", ["OCDBT and zarr2", "directories and zarr2"])
def test_every_flipped_bit_is_found(container, tmp_path):
    item = save_item(tmp_path / "item", checkpoints.linen(2), **CONTAINERS[container])
    assert run("checksum", item).exit_code == 0
    files = sorted(file for file in item.rglob("*") if file.is_file() and file.stat().st_size)
    sizes = [file.stat().st_size for file in files]
    choose = random.Random(20261121)
    for number in range(FLIPS):
        # half of them anywhere by size, half in any file however small
        file = choose.choices(files, sizes)[0] if number % 2 else choose.choice(files)
        bit = choose.randrange(file.stat().st_size * 8)
        intact = file.read_bytes()
        harmed = bytearray(intact)
        harmed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(harmed)
        outcome = run("checksum", "--check", item)
        assert outcome.exit_code in (1, 2), f"bit {bit} of {file.relative_to(item)}"
        assert "match" not in outcome.stdout
        file.write_bytes(intact)
    assert run("checksum", "--check", item).exit_code == 0


def test_a_flipped_bit_that_still_decodes_is_told_by_the_leaf_and_the_file(tmp_path):
    item = save_item(tmp_path / "item", checkpoints.linen(1), use_ocdbt=False, use_zarr3=False)
    chunk = item / "params.params.embed.embedding" / "0.0"
    zarray = chunk.parent / ".zarray"
    # an uncompressed chunk: any bit is a number
    zarray.write_text(json.dumps({**json.loads(zarray.read_text()), "compressor": None}))
    values = checkpoints.linen(1)["params"]["params"]["embed"]["embedding"]
    chunk.write_bytes(values.tobytes())
    assert run("checksum", item).exit_code == 0
    harmed = bytearray(chunk.read_bytes())
    harmed[5] ^= 1
    chunk.write_bytes(harmed)
    outcome = run("checksum", "--check", item)
    assert outcome.exit_code == 1
    assert outcome.stdout == (
        "2 differ from the manifest\n"
        "\n"
        "  params.embed.embedding  has other values\n"
        "  file `params.params.embed.embedding/0.0`  has other bytes\n"
    )


def test_an_array_that_cannot_be_read_is_named_with_exit_code_2(tmp_path):
    item = save_item(tmp_path / "item", checkpoints.linen(1), use_ocdbt=False)
    run("checksum", item)
    (item / "params.params.embed.embedding" / "0.0").unlink()
    outcome = run("checksum", "--check", item)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith(
        "error: array `params.params.embed.embedding` cannot be read: "
    )


# --- manifests that are none -------------------------------------------------------------------


def test_a_manifest_that_is_not_there_is_an_error_with_the_command_that_writes_it(tmp_path):
    item = save_item(tmp_path / "item", checkpoints.linen(1))
    outcome = run("checksum", "--check", item)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr == (
        f"error: `{tmp_path / 'item.checksums.json'}` is not there\n"
        "\n"
        f"hint: `nnxconv checksum {item}` writes it\n"
    )


NO_MANIFEST = {
    "not JSON": ("{", "is not a checksum manifest"),
    "an empty file": ("", "is not a checksum manifest"),
    "a list": ("[1]", "is not a checksum manifest"),
    "another mapping": ('{"a": 1}', "is not a checksum manifest"),
    "null": ("null", "is not a checksum manifest"),
    "another version": (
        '{"nnxconv_checksums": 2, "algorithm": "xxh3_128", "leaves": {}, "files": {}}',
        "is a checksum manifest of another version",
    ),
    "another algorithm": (
        '{"nnxconv_checksums": 1, "algorithm": "md5", "leaves": {}, "files": {}}',
        "is a checksum manifest of another version",
    ),
    "leaves without digests": (
        '{"nnxconv_checksums": 1, "algorithm": "xxh3_128", "leaves": {"w": {}}, "files": {}}',
        "is not a checksum manifest",
    ),
    "leaves that are a list": (
        '{"nnxconv_checksums": 1, "algorithm": "xxh3_128", "leaves": [], "files": {}}',
        "is not a checksum manifest",
    ),
    "bytes that are no text": (b"\xff\xfe\x00", "is no text in UTF-8"),
    "lists of many levels": ("[" * 100_000, "is not a checksum manifest"),
}


@pytest.mark.parametrize("name", NO_MANIFEST)
def test_what_is_no_manifest_is_refused(name, tmp_path):
    content, message = NO_MANIFEST[name]
    item = save_item(tmp_path / "item", checkpoints.linen(1))
    file = tmp_path / "manifest.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    outcome = run("checksum", "--check", item, "--manifest", file)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr == f"error: `{file}` {message}\n"


def test_a_manifest_that_is_a_directory_is_refused(tmp_path):
    item = save_item(tmp_path / "item", checkpoints.linen(1))
    assert run("checksum", "--check", item, "--manifest", tmp_path).exit_code == 2


def test_a_manifest_survives_its_json():
    item = Manifest.from_json(
        {
            "nnxconv_checksums": 1,
            "algorithm": "xxh3_128",
            "leaves": {"w": {"dtype": "float32", "shape": [2, 3], "digest": "00"}},
            "files": {"_METADATA": "11"},
        },
        "here",
    )
    assert Manifest.from_json(json.loads(json.dumps(item.to_json())), "here") == item


def test_what_is_no_checkpoint_has_no_checksums(tmp_path):
    outcome = run("checksum", tmp_path)
    assert outcome.exit_code == 2
    assert sorted(tmp_path.iterdir()) == []


# --- steps and roots ---------------------------------------------------------------------------


def test_a_manifest_beside_a_step_leaves_the_root_to_the_manager(tmp_path):
    root = save_with_manager(
        tmp_path / "root", {step: checkpoints.linen(1, step=step) for step in (1, 2)}
    )
    for step in (1, 2):
        assert run("checksum", root / str(step)).exit_code == 0
        assert (root / f"{step}.checksums.json").is_file()
    with ocp.CheckpointManager(root) as manager:
        assert sorted(manager.all_steps()) == [1, 2]
        assert manager.latest_step() == 2
        restored = manager.restore(2, args=ocp.args.PyTreeRestore())
        manager.save(3, args=ocp.args.PyTreeSave(checkpoints.linen(1, step=3)))
    assert restored["step"] == 2
    for step in (1, 2):
        assert run("checksum", "--check", root / str(step)).exit_code == 0
    outcome = run("inspect", root)
    assert outcome.stdout.splitlines()[0] == f"{root / '3' / 'default'} (the newest of 3 steps)"


def test_a_manager_that_keeps_few_steps_is_not_held_up_by_manifests(tmp_path):
    root = save_with_manager(tmp_path / "root", {1: checkpoints.linen(1)})
    run("checksum", root / "1")
    options = ocp.CheckpointManagerOptions(max_to_keep=1)
    with ocp.CheckpointManager(root, options=options) as manager:
        manager.save(2, args=ocp.args.PyTreeSave(checkpoints.linen(1, step=2)))
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["2"]


def test_steps_of_a_root_can_be_chosen(tmp_path):
    root = save_root(tmp_path / "root", {step: checkpoints.linen(1, step=step) for step in (1, 2)})
    assert run("checksum", root, "--step", "2").exit_code == 0
    assert run("checksum", "--check", root, "--step", "2").exit_code == 0
    outcome = run("checksum", "--check", root, "--step", "1")
    assert outcome.exit_code == 1
    assert "  step  has other values\n" in outcome.stdout


def test_a_step_with_other_items_is_digested_by_its_arrays(tmp_path):
    step = save_step(tmp_path / "7", checkpoints.linen(1), extra={"iter": {"position": 5}})
    assert run("checksum", step).exit_code == 0
    words = ("--check", step / "items", "--manifest", f"{step}.checksums.json")
    assert run("checksum", *words).exit_code == 0


def test_a_manifest_of_a_root_is_held_against_the_step_that_it_is_of(tmp_path):
    root = save_root(tmp_path / "root", {1: checkpoints.linen(1, step=1)})
    assert run("checksum", root).exit_code == 0
    manifest = tmp_path / "root.checksums.json"
    assert json.loads(manifest.read_text())["step"] == "1"
    save_step(root / "2", checkpoints.linen(1, step=2))
    checked = run("checksum", "--check", root)
    assert re.fullmatch(
        r"match: \d+ arrays and \d+ files of step 1 are as recorded\n", checked.stdout
    )
    assert json.loads(run("checksum", "--check", root, "--json").stdout)["step"] == "1"
    other = run("checksum", "--check", root, "--step", "2")
    assert other.stdout.startswith("3 of step 2 differ from the manifest\n\n")
    shutil.rmtree(root / "1")
    assert run("checksum", "--check", root).exit_code == 2


def test_a_manifest_is_not_replaced_unasked(tmp_path):
    item = save_item(tmp_path / "item", checkpoints.linen(1))
    manifest = tmp_path / "item.checksums.json"
    manifest.write_text("precious")
    refused = run("checksum", item)
    assert (refused.exit_code, refused.stderr) == (
        2,
        f"error: `{manifest}` exists\n\nhint: add `--overwrite` to replace it\n",
    )
    assert manifest.read_text() == "precious"
    assert run("checksum", item, "--overwrite").exit_code == 0
    assert run("checksum", "--check", item).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["item", "item.checksums.json"]


def test_a_check_replaces_nothing(tmp_path):
    refused = run("checksum", "--check", tmp_path, "--overwrite")
    assert refused.exit_code == 2
    assert "`--overwrite` replaces a manifest, and `--check` writes none" in refused.stderr


def test_of_several_steps_the_one_that_was_taken_is_named(tmp_path):
    for step in (1, 2):
        save_step(tmp_path / "run" / str(step), checkpoints.linen())
    done = run("checksum", str(tmp_path / "run"))
    assert " files of step 2, the newest of 2 steps -> " in done.stdout
    told = json.loads(run("checksum", str(tmp_path / "run"), "--json", "--overwrite").stdout)
    assert told["step"] == "step 2, the newest of 2 steps"
