"""Pairs of checkpoints, with the whole of what `nnxconv compare` says about them.

The expected output of each pair stands in `tests/golden/compare/`, one terminal session per file.
`NNXCONV_WRITE_GOLDEN=1 python -m pytest tests/comparing/test_compare.py` writes the files anew (and
reports those tests as skipped): read what changed before committing it.
"""

import json
import re
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx

import nnxconv
from nnxconv.errors import LayerError
from nnxconv.storage.orbax.reading import Reader
from nnxconv.tree.array_notation import notation
from tests.support import checkpoints
from tests.support.checkpoints import save_item, save_root, save_step
from tests.support.command import GOLDEN, check_golden, run, session

VALUES = "--compare_values"
ALL = ("--compare_only", "all")
LAYOUTS = {
    "linen": checkpoints.linen,
    "maxtext": checkpoints.maxtext,
    "nnx": checkpoints.nnx,
    "nnx-state": checkpoints.nnx_state,
    "nnx-pure": checkpoints.nnx_pure,
}


# --- small states whose numbers are the same with every version of numpy ------------------------


def ramp(*shape, start=0.0, dtype="float32"):
    """Eighths, counted up from `start`: exact in every float of 16 bits and more."""
    return (np.arange(np.prod(shape, dtype=int)).reshape(shape) / 8 + start).astype(dtype)


def one_layer(index):
    wi = {"kernel": ramp(4, 6, start=index), "bias": ramp(6, start=index)}
    return {"mlp": {"wi": wi, "wo": {"kernel": ramp(6, 4, start=index)}}}


def decoder(layers=3):
    return {f"layers_{index}": one_layer(index) for index in range(layers)}


def stacked(layers=3, *, axis=1):
    def together(*parts):
        return np.stack(parts, min(axis, parts[0].ndim))

    return {"layers": jax.tree.map(together, *(one_layer(index) for index in range(layers)))}


def weights_only(params):
    return {"params": {"params": params}}


def training(params, *, step=7):
    mu, nu = jax.tree.map(np.negative, params), jax.tree.map(np.square, params)
    adam = {"count": np.asarray(step, np.int32), "mu": {"params": mu}, "nu": {"params": nu}}
    chain = [adam, None, {"count": np.asarray(step, np.int32)}]
    return {"step": np.asarray(step, np.int32), **weights_only(params), "opt_state": chain}


def changed(tree, path, change):
    """A copy of a tree in which the leaf at `path` is `change(leaf)`, or gone for None."""
    copy = jax.tree.map(lambda leaf: leaf, tree, is_leaf=lambda leaf: leaf is None)
    place = copy
    *parents, last = path
    for name in parents:
        place = place[name]
    if change is None:
        del place[last]
    else:
        place[last] = change(place[last])
    return copy


def set_element(index, value):
    def change(array):
        array = array.copy()
        array[index] = value
        return array

    return change


# --- the pairs ---------------------------------------------------------------------------------

IN_PARAMS = ("params", "params")
KERNEL = (*IN_PARAMS, "layers_1", "mlp", "wi", "kernel")
THREE_CHUNKS = {"chunk_bytes": 48}
PAIRS = {}


def pair(*options, **saving):
    """Registers a function that makes the two trees of a row of the table."""

    def register(make):
        PAIRS[make.__name__] = (make, options, saving)
        return make

    return register


@pair(VALUES, *ALL)
def identical():
    return training(decoder()), training(decoder())


@pair()
def identical_metadata_only():
    return training(decoder()), training(decoder())


@pair(VALUES)
def nan_inside():
    tree = weights_only({"w": ramp(8).copy(), "v": ramp(8)})
    tree["params"]["params"]["w"][5] = np.nan
    return tree, tree


@pair(VALUES, "--no-equal_nan")
def nan_inside_strict():
    return nan_inside()


@pair(VALUES)
def nan_against_number():
    tree = weights_only({"w": ramp(8), "v": ramp(8)})
    return tree, changed(tree, (*IN_PARAMS, "w"), set_element(5, np.nan))


@pair(VALUES)
def infinities_by_sign():
    infinite = np.asarray([np.inf, -np.inf, 1.0, np.inf], np.float32)
    a = weights_only({"same": infinite, "other_sign": infinite, "finite": infinite})
    b = changed(a, (*IN_PARAMS, "other_sign"), set_element(1, np.inf))
    return a, changed(b, (*IN_PARAMS, "finite"), set_element(3, 3e38))


@pair(VALUES, **THREE_CHUNKS)
def last_element_of_three_chunks():
    tree = weights_only({"w": ramp(4, 9)})
    return tree, changed(tree, (*IN_PARAMS, "w"), set_element((3, 8), 100))


@pair(VALUES)
def layers_swapped():
    a, b = weights_only(decoder()), weights_only(decoder())
    layers = b["params"]["params"]
    layers["layers_1"], layers["layers_2"] = layers["layers_2"], layers["layers_1"]
    return a, b


@pair(VALUES)
def layers_swapped_within_a_stack():
    [whole] = stacked().values()
    swapped = jax.tree.map(lambda array: array[:, [0, 2, 1]], whole)
    return weights_only({"layers": whole}), weights_only({"layers": swapped})


@pair(VALUES, *ALL)
def mu_and_nu_swapped():
    a, b = training(decoder(1)), training(decoder(1))
    adam = b["opt_state"][0]
    adam["mu"], adam["nu"] = adam["nu"], adam["mu"]
    return a, b


@pair(VALUES)
def transposed_square_matrix():
    tree = weights_only({"w": ramp(5, 5), "v": ramp(5, 4)})
    return tree, changed(tree, (*IN_PARAMS, "w"), np.transpose)


@pair(VALUES)
def transposed_matrix():
    tree = weights_only({"w": ramp(5, 5), "v": ramp(5, 4)})
    return tree, changed(tree, (*IN_PARAMS, "v"), np.transpose)


@pair(VALUES)
def bf16_against_f32():
    tree = weights_only({"exact": ramp(8), "rounded": ramp(8, start=1000.5), "same": ramp(8)})
    b = changed(tree, (*IN_PARAMS, "exact"), lambda array: array.astype(ml_dtypes.bfloat16))
    return tree, changed(b, (*IN_PARAMS, "rounded"), lambda array: array.astype(ml_dtypes.bfloat16))


@pair(VALUES, "--ignore_dtype")
def bf16_against_f32_ignoring_dtype():
    return bf16_against_f32()


@pair(VALUES)
def missing_bias_in_layer_7():
    tree = weights_only(decoder(8))
    return tree, changed(tree, (*IN_PARAMS, "layers_7", "mlp", "wi", "bias"), None)


@pair(VALUES)
def missing_bias_in_layer_7_against_a_stack():
    tree = weights_only(decoder(8))
    without = changed(tree, (*IN_PARAMS, "layers_7", "mlp", "wi", "bias"), None)
    return weights_only(stacked(8)), without


@pair(VALUES, *ALL)
def extra_nnx_aux():
    return checkpoints.linen(), checkpoints.maxtext(axis=None)


@pair(VALUES, *ALL, "--no-ignore_rngs")
def extra_nnx_aux_not_ignored():
    return extra_nnx_aux()


@pair(VALUES)
def extra_nnx_aux_params_only():
    return extra_nnx_aux()


@pair(VALUES, *ALL)
def step_off_by_one():
    tree = training(decoder(1))
    return tree, changed(tree, ("step",), lambda step: step + 1)


@pair(VALUES)
def step_off_by_one_params_only():
    return step_off_by_one()


@pair(VALUES, *ALL)
def reordered_chain():
    a, b = training({"w": ramp(4, 6)}), training({"w": ramp(4, 6)})
    b["opt_state"] = b["opt_state"][::-1]
    return a, b


@pair(VALUES)
def stacked_against_unstacked():
    return weights_only(stacked()), weights_only(decoder())


@pair(VALUES)
def axis_0_against_axis_1():
    return weights_only(stacked(axis=0)), weights_only(stacked(axis=1))


@pair(VALUES)
def stacked_against_unstacked_one_element_changed():
    return weights_only(stacked()), changed(
        weights_only(decoder()), KERNEL, set_element((3, 5), -1)
    )


@pair(VALUES)
def another_number_of_layers():
    return weights_only(stacked(3)), weights_only(decoder(2))


@pair(VALUES)
def every_element_type():
    rows = {
        "bfloat16": ([1, 2, 3], [1, 2, 4], ml_dtypes.bfloat16),
        "bool": ([True, False], [True, True], bool),
        "complex64": ([1 + 1j, 2], [1 + 4j, 6], np.complex64),
        "float16": ([1, 2], [1, 2.5], np.float16),
        "float64": ([1, 2], [1, 2.5], np.float64),
        "float8_e4m3fn": ([1, 448], [1, -448], ml_dtypes.float8_e4m3fn),
        "float8_e5m2": ([1, np.inf], [1, -np.inf], ml_dtypes.float8_e5m2),
        "int4": ([-8, 7], [7, 7], ml_dtypes.int4),
        "int64": ([2**53, -(2**63)], [2**53 + 1, 2**63 - 1], np.int64),
        "int8": ([-128, 1], [127, 1], np.int8),
        "uint64": ([0, 2**53], [2**64 - 1, 2**53 + 1], np.uint64),
        "uint8": ([0, 255], [255, 0], np.uint8),
    }
    sides = ({name: np.asarray(row[side], row[2]) for name, row in rows.items()} for side in (0, 1))
    a, b = map(weights_only, sides)
    return a, b


@pair(VALUES, *ALL)
def integers_have_no_tolerance():
    a = weights_only({"big": np.asarray([10**9], np.int32), "float": np.asarray([1e9], np.float32)})
    b = changed(a, (*IN_PARAMS, "big"), lambda array: array + 1)
    return a, changed(b, (*IN_PARAMS, "float"), lambda array: array + 64)


@pair(VALUES, "--filter", "*.wi.*", "--exclude", "*[[]2[]]*", "--exclude", "*.bias")
def filtered():
    a = weights_only(decoder())
    b = changed(a, (*IN_PARAMS, "layers_1", "mlp", "wo", "kernel"), np.negative)
    return a, changed(b, (*IN_PARAMS, "layers_2", "mlp", "wi", "kernel"), np.negative)


@pair(VALUES, "--filter", "*.wi.*", "--filter", "*.layers[0].*", "--exclude", "*[2]*")
def filtered_by_layer():
    return filtered()


@pair(VALUES)
def more_than_fifty_differences():
    a = {f"w_{index:02}": ramp(4) for index in range(60)}
    return weights_only(a), weights_only({name: array + 1 for name, array in a.items()})


@pair(VALUES, "--verbose")
def more_than_fifty_differences_verbose():
    return more_than_fifty_differences()


@pair(VALUES, "--verbose")
def marks():
    common = {"equal": ramp(4), "value": ramp(4), "shape": ramp(4), "dtype": ramp(4)}
    a = {**common, "only_in_a": ramp(3)}
    b = {**common, "value": ramp(4, start=1), "shape": ramp(2, 2), "only_in_b": ramp(3)}
    return weights_only(a), weights_only({**b, "dtype": ramp(4, dtype="float16")})


@pair(VALUES)
def every_kind_of_difference():
    return marks()


@pair(VALUES, "--atol", "0.5", "--rtol", "0")
def within_a_given_tolerance():
    tree = weights_only({"w": ramp(8)})
    return tree, weights_only({"w": ramp(8, start=0.5)})


@pair(VALUES, "--atol", "0", "--rtol", "0")
def exactly_equal():
    tree = weights_only({"w": ramp(8)})
    return tree, tree


@pytest.mark.parametrize("name", PAIRS)
def test_the_output_for_each_pair_is_the_golden_one(name, tmp_path):
    make, options, saving = PAIRS[name]
    trees = make()
    a, b = (
        save_item(tmp_path / side, tree, **saving) for side, tree in zip("ab", trees, strict=True)
    )
    outcome = run("compare", a, b, *options)
    check_golden(f"compare/{name}.txt", session(outcome, {"A": a, "B": b}))


def test_the_table_has_a_golden_file_for_each_pair_and_no_other():
    files = {path.stem for path in (GOLDEN / "compare").glob("*.txt")}
    assert files == PAIRS.keys() | BROKEN.keys()


def test_the_changed_array_of_the_table_has_three_chunks(tmp_path):
    tree, _ = last_element_of_three_chunks()
    item = save_item(tmp_path / "a", tree, use_ocdbt=False, **THREE_CHUNKS)
    assert len([f for f in (item / "params.params.w").iterdir() if f.name[0] != "."]) == 3


# --- layouts -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The same model in every layout, apart and stacked on either axis."""
    root = tmp_path_factory.mktemp("layouts")
    return {
        (layout, axis): save_item(root / f"{layout}_{axis}", make(axis=axis))
        for layout, make in LAYOUTS.items()
        for axis in (None, 0, 1)
    }


@pytest.mark.sample(5)
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_every_layout_matches_every_other_however_its_layers_are_arranged(first, second, saved):
    names = f"match: {36:,} arrays equal within atol 1e-05, rtol 1e-05\n"
    if "maxtext" in (first, second):
        names += "\n2 arrays left aside (--ignore_rngs)\n"
    for axis_a, axis_b in [(None, None), (None, 1), (1, 0), (0, None)]:
        a, b = saved[first, axis_a], saved[second, axis_b]
        outcome = run("compare", a, b, VALUES, *ALL)
        assert (outcome.stdout, outcome.stderr, outcome.exit_code) == (names, "", 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_changed_element_is_found_in_every_layout(layout, saved, tmp_path):
    tree = LAYOUTS[layout](axis=1)
    at = {"linen": "params", "maxtext": "params"}.get(layout, "model")
    root = tree["params"]["params"] if at == "params" else tree["model"]
    leaf = root["decoder"]["layers"]["mlp"]["wi"]["kernel"]
    kernel = leaf["value"] if isinstance(leaf, dict) else leaf
    kernel[15, 2, 31] += 1
    changed_item = save_item(tmp_path / "b", tree)
    outcome = run("compare", saved["linen", None], changed_item, VALUES)
    assert outcome.exit_code == 1
    verdict, _, row, *_ = outcome.stdout.splitlines()
    assert verdict.startswith("1 of 11 arrays differ")
    name, array, difference = row.split(maxsplit=2)
    assert (name, array) == ("params.decoder.layers[2].mlp.wi.kernel", "f32[16,32]")
    assert difference.startswith("max |a-b| 1 at [15,31]")


@pytest.mark.parametrize("container", [{"use_ocdbt": False}, {"use_zarr3": True}])
@pytest.mark.parametrize("chunk_bytes", [None, 256])
def test_containers_and_chunks_do_not_matter(container, chunk_bytes, saved, tmp_path):
    tree = checkpoints.linen(axis=1)
    other = save_item(tmp_path / "b", tree, chunk_bytes=chunk_bytes, **container)
    for axis in (None, 1):
        assert run("compare", saved["linen", axis], other, VALUES, *ALL).exit_code == 0


def test_items_steps_and_roots_of_one_step_are_all_paths_to_a_checkpoint(saved, tmp_path):
    save_root(tmp_path / "root", {3: checkpoints.linen()})
    for path in ("root", "root/3", "root/3/items"):
        assert run("compare", tmp_path / path, saved["linen", 1], VALUES).exit_code == 0


# --- steps and counts --------------------------------------------------------------------------

HOLDERS = {
    "int32": lambda step: np.asarray(step, np.int32),
    "uint32": lambda step: np.asarray(step, np.uint32),
    "int64": lambda step: np.asarray(step, np.int64),
    "python": int,
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("first", HOLDERS)
@pytest.mark.parametrize("second", HOLDERS)
def test_steps_compare_by_value_whatever_holds_them(first, second, tmp_path):
    def save(name, step):
        return save_item(tmp_path / name, {**weights_only({"w": ramp(2)}), "step": step})

    a = save("a", HOLDERS[first](7))
    equal, other = save("b", HOLDERS[second](7)), save("c", HOLDERS[second](8))
    assert run("compare", a, equal, VALUES, *ALL).exit_code == 0
    assert run("compare", a, equal, *ALL).exit_code == 0
    outcome = run("compare", a, other, VALUES, *ALL)
    assert outcome.exit_code == 1
    assert outcome.stdout.splitlines()[2].split() == ["step", *_notation(a), "a:", "7", "b:", "8"]


def _notation(item):
    report = nnxconv.compare(str(item), str(item), compare_only="all")
    return [notation(report.leaves[("step",)])]


def test_large_steps_of_different_types_differ_by_one(tmp_path):
    def save(name, step):
        return save_item(tmp_path / name, {**weights_only({"w": ramp(2)}), "step": step})

    a = save("a", np.asarray(2**53 + 1, np.int64))
    b = save("b", np.asarray(2**53, np.uint64))
    outcome = run("compare", a, b, VALUES, *ALL)
    assert outcome.exit_code == 1
    assert outcome.stdout.splitlines()[0].startswith("1 of 2 arrays differ")


def test_types_that_were_not_compared_are_not_called_the_same(tmp_path):
    a, b = save_pair(tmp_path, bf16_against_f32)
    outcome = run("compare", a, b, "--ignore_dtype")
    assert outcome.exit_code == 0
    assert outcome.stdout.startswith("match: 3 arrays ")
    assert "shapes and types" not in outcome.stdout


def test_a_difference_beyond_the_type_names_both_types(tmp_path):
    a, b = save_pair(tmp_path, bf16_against_f32)
    outcome = run("compare", a, b, VALUES, "--ignore_dtype")
    [row] = outcome.stdout.splitlines()[2:]
    assert "f32[8]" in row and "bf16" in row


# --- what convert makes ------------------------------------------------------------------------


def test_layers_of_another_name_match_their_conversion(tmp_path):
    params = {name.replace("layers", "blocks"): layer for name, layer in decoder().items()}
    source = save_item(tmp_path / "a", weights_only(params))
    options = ("--to", "linen-variables", "--layer_group", "blocks", "--scan_layers")
    assert run("convert", source, tmp_path / "b", *options).exit_code == 0
    outcome = run("compare", source, tmp_path / "b", VALUES)
    assert (outcome.exit_code, outcome.stdout) == (
        0,
        "match: 9 arrays equal within atol 1e-05, rtol 1e-05\n",
    )


@pytest.mark.sample(3)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "name",
    [
        "main_linen_llama2_scan_adamw",
        "main_linen_llama2_unscan_adamw",
        "main_linen_llama2_scan_adamw_axis0",
        "main_linen_llama2_scan_muon",
        "main_linen_gemma3_scan_adamw",
        "main_linen_deepseek_scan_adamw",
        "main_nnx_llama2_scan_adamw",
        "feat_nnx_llama2_scan_sgd",
    ],
)
def test_what_convert_makes_of_a_shared_checkpoint_matches_it(name, layout, conformance, tmp_path):
    source = conformance / "maxtext" / name
    nnxconv.convert(str(source), str(tmp_path / "b"), to=layout)
    exactly = ("--atol", "0", "--rtol", "0")
    outcome = run("compare", source, tmp_path / "b", VALUES, *ALL, *exactly)
    assert outcome.exit_code == 0, outcome.stdout


@pytest.mark.sample(3)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["linen", "nnx"])
def test_of_parameters_only_the_step_is_all_that_conversion_adds_or_drops(
    family, layout, conformance, tmp_path
):
    source = conformance / "maxtext" / f"main_{family}_llama2_scan_adamw_paramonly_unroll_true"
    nnxconv.convert(str(source), str(tmp_path / "b"), to=layout)
    assert run("compare", source, tmp_path / "b", VALUES).exit_code == 0
    found = nnxconv.compare(
        str(source), str(tmp_path / "b"), compare_values=True, compare_only="all"
    )
    assert {finding.key for finding in found.findings} <= {("step",)}


# --- stacks that their shapes do not explain ---------------------------------------------------


def unclear(*, axis=None, layers=3, rows=3):
    """Layers of one matrix with as many rows as there are layers, or not; apart or stacked."""
    apart = [{"w": {"kernel": ramp(rows, 5, start=100 * index)}} for index in range(layers)]
    if axis is None:
        return weights_only({f"layers_{index}": layer for index, layer in enumerate(apart)})
    return weights_only({"layers": jax.tree.map(lambda *parts: np.stack(parts, axis), *apart)})


def test_two_stacks_whose_axis_is_unclear_are_compared_as_they_are(tmp_path):
    a, b = (save_item(tmp_path / name, unclear(axis=1)) for name in "ab")
    other = save_item(tmp_path / "c", changed(
        unclear(axis=1),
        (*IN_PARAMS, "layers", "w", "kernel"),
        set_element((2, 1, 4), 0),
    ))  # fmt: skip
    outcome = run("compare", a, b, VALUES)
    assert (outcome.exit_code, outcome.stdout) == (
        0,
        "match: 1 array equal within atol 1e-05, rtol 1e-05\n",
    )
    outcome = run("compare", a, other, VALUES)
    assert outcome.exit_code == 1
    assert outcome.stdout.splitlines()[2].startswith(
        "  params.layers.w.kernel  f32[3,3,5]  max |a-b| 102 at [2,1,4]"
    )


@pytest.mark.parametrize("axis", [0, 1])
def test_layers_that_are_apart_tell_the_axis_of_the_other_sides_stack_by_their_number(
    axis, tmp_path
):
    a = save_item(tmp_path / "a", unclear(layers=4, rows=3))
    b = save_item(tmp_path / "b", unclear(layers=4, rows=3, axis=axis))
    for first, second in [(a, b), (b, a)]:
        outcome = run("compare", first, second, VALUES)
        assert (outcome.exit_code, outcome.stdout) == (
            0,
            "match: 4 arrays equal within atol 1e-05, rtol 1e-05\n",
        )


@pytest.mark.parametrize("axis", [0, 1])
def test_a_stack_with_as_many_layers_as_rows_is_never_called_different_by_a_guess(axis, tmp_path):
    a = save_item(tmp_path / "a", unclear())
    b = save_item(tmp_path / "b", unclear(axis=axis))
    try:
        report = nnxconv.compare(str(a), str(b), compare_values=True)
    except LayerError:
        return  # to say that it cannot be told is right as well
    assert report.is_match


# --- broken inputs -----------------------------------------------------------------------------

BROKEN = {}
NAME = "params.params.decoder.layers_1.mlp.wi.kernel"


def broken(*options, **saving):
    """Registers a function that harms the saved checkpoint at the path it is given."""

    def register(harm):
        BROKEN[harm.__name__] = (harm, options, saving)
        return harm

    return register


def data_file(item):
    """The file of an OCDBT database that holds the arrays; beside it there are only indices."""
    inside = [file for file in item.rglob("*") if file.is_file() and file.parent.name == "d"]
    return max(inside, key=lambda file: file.stat().st_size)


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@broken(VALUES, use_ocdbt=False)
def truncated_chunk(item):
    truncate(item / NAME / "0.0")


@broken(VALUES, use_ocdbt=False)
def missing_chunk(item):
    (item / NAME / "0.0").unlink()


@broken(VALUES, use_ocdbt=False, use_zarr3=True)
def missing_chunk_of_zarr3(item):
    (item / NAME / "c" / "0" / "0").unlink()


@broken(use_ocdbt=False)
def missing_zarray(item):
    (item / NAME / ".zarray").unlink()


@broken()
def missing_manifest(item):
    (item / "manifest.ocdbt").unlink()


@broken()
def tree_metadata_is_not_json(item):
    truncate(item / "_METADATA")


@broken()
def empty_directory(item):
    shutil.rmtree(item)
    item.mkdir()


@broken()
def nothing_there(item):
    shutil.rmtree(item)


@broken()
def a_file(item):
    shutil.rmtree(item)
    item.write_text("not a checkpoint")


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_compared_is_named_and_ends_in_exit_code_2(name, tmp_path):
    harm, options, saving = BROKEN[name]
    a, b = (save_item(tmp_path / side, checkpoints.linen(), **saving) for side in "ab")
    harm(b)
    outcome = run("compare", a, b, *options)
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    check_golden(f"compare/{name}.txt", session(outcome, {"A": a, "B": b}))


@pytest.mark.sample(2)
@pytest.mark.parametrize("kept", [None, 0.0, 0.01, 0.5])
def test_a_missing_or_truncated_file_of_an_ocdbt_database_is_told_by_the_arrays_in_it(
    kept, tmp_path
):
    a, b = (save_item(tmp_path / side, checkpoints.linen()) for side in "ab")
    file = data_file(b)
    if kept is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    done = command("compare", a, b, VALUES, *ALL)
    assert (done.returncode, done.stdout) == (2, "")
    message = rf"error: array `\S+` cannot be read: .+\n  at {b}\n"
    assert re.fullmatch(message, done.stderr), done.stderr


def test_an_unfinished_save_cannot_be_compared(tmp_path):
    a = save_item(tmp_path / "a", weights_only(decoder(1)))
    unfinished = a.rename(tmp_path / "7.orbax-checkpoint-tmp")
    outcome = run("compare", unfinished, unfinished)
    assert outcome.exit_code == 2
    assert outcome.stderr == (
        f"error: `{unfinished}` is an unfinished save\n"
        "\n"
        "hint: it was interrupted before it was committed; use a finished step\n"
    )


def test_a_step_whose_only_item_is_unfinished_cannot_be_compared(tmp_path):
    save_step(tmp_path / "root" / "7", weights_only(decoder(1)))
    step = tmp_path / "root" / "7"
    (step / "items").rename(step / "items.orbax-checkpoint-tmp")
    outcome = run("compare", step, step)
    assert outcome.exit_code == 2
    assert "unfinished" in outcome.stderr


def test_of_several_steps_of_a_root_the_newest_is_compared(tmp_path):
    root = save_root(tmp_path / "root", {1: weights_only(decoder(1)), 2: weights_only(decoder(1))})
    outcome = run("compare", root, root)
    assert outcome.exit_code == 0
    assert str(root / "2" / "items") in outcome.stdout


def test_a_broken_side_is_found_whichever_side_it_is(tmp_path):
    a, b = (save_item(tmp_path / name, checkpoints.linen(), use_ocdbt=False) for name in "ab")
    missing_chunk(b)
    assert run("compare", b, a, VALUES).exit_code == 2
    assert run("compare", b, b, VALUES).exit_code == 2


# --- metadata only -----------------------------------------------------------------------------


def test_without_compare_values_no_array_is_read(tmp_path, monkeypatch):
    reads = []
    read = Reader.read

    async def counted(self, source, region):
        reads.append(source.name)
        return await read(self, source, region)

    monkeypatch.setattr(Reader, "read", counted)
    a = save_item(tmp_path / "a", checkpoints.linen())
    b = save_item(tmp_path / "b", checkpoints.nnx_pure(axis=1))
    assert run("compare", a, b, *ALL).exit_code == 0
    assert reads == []
    assert run("compare", a, b, *ALL, VALUES).exit_code == 0
    assert reads != []


def test_without_compare_values_it_does_not_matter_that_the_chunks_are_gone(tmp_path):
    a, b = (save_item(tmp_path / name, checkpoints.linen(), use_ocdbt=False) for name in "ab")
    for item in (a, b):
        for chunk in item.rglob("*"):
            if chunk.is_file() and chunk.name.replace(".", "").isdigit():
                chunk.unlink()
    outcome = run("compare", a, b, *ALL)
    assert (outcome.exit_code, outcome.stdout) == (
        0,
        "match: 36 arrays have the same names, shapes and types; values were not compared\n",
    )
    assert run("compare", a, b, *ALL, VALUES).exit_code == 2


# --- for programs ------------------------------------------------------------------------------


def no_constant(text):
    raise ValueError(f"{text} is no JSON")


def read_json(text):
    """The text as strict JSON, which has no Infinity and no NaN."""
    return json.loads(text, parse_constant=no_constant)


def save_pair(tmp_path, make):
    return tuple(save_item(tmp_path / side, tree) for side, tree in zip("ab", make(), strict=True))


def test_json_holds_everything_and_spells_infinities(tmp_path):
    a, b = save_pair(tmp_path, infinities_by_sign)
    outcome = run("compare", a, b, VALUES, "--json")
    found = read_json(outcome.stdout)
    assert outcome.exit_code == found["exit_code"] == 1
    seconds = found.pop("seconds")
    assert isinstance(seconds, float)
    infinite = {
        "count": 4,
        "unequal": 1,
        "beyond_tolerance": 1,
        "max_abs": "inf",
        "mean_abs": "inf",
        "max_rel": "inf",
    }
    equal = {
        "count": 4,
        "unequal": 0,
        "beyond_tolerance": 0,
        "max_abs": 0.0,
        "mean_abs": 0.0,
        "max_rel": 0.0,
        "worst": None,
    }
    row = {"kind": "value", "a": "f32[4]", "b": "f32[4]", **infinite}
    assert found == {
        "match": False,
        "exit_code": 1,
        "a": {"path": str(a), "layout": "linen-variables"},
        "b": {"path": str(b), "layout": "linen-variables"},
        "arrays": 3,
        "compared_values": True,
        "tolerance": {"atol": 1e-5, "rtol": 1e-5, "equal_nan": True},
        "counts": {"missing": 0, "extra": 0, "shape": 0, "dtype": 0, "value": 2},
        "ignored": {},
        "notes": [],
        "differences": [
            {**row, "key": "params.finite", "worst": [3]},
            {**row, "key": "params.other_sign", "worst": [1]},
        ],
        "statistics": {
            "params.finite": {**infinite, "worst": [3]},
            "params.other_sign": {**infinite, "worst": [1]},
            "params.same": equal,
        },
        "read_bytes": 64,
        "equal_chunk_bytes": 16,
    }


@pytest.mark.sample(8)
@pytest.mark.parametrize("name", PAIRS)
def test_json_has_the_same_verdict_counts_and_differences_as_the_text(name, tmp_path):
    make, options, _ = PAIRS[name]
    a, b = save_pair(tmp_path, make)
    text = run("compare", a, b, *options)
    outcome = run("compare", a, b, *options, "--json")
    found = read_json(outcome.stdout)
    assert outcome.exit_code == text.exit_code == found["exit_code"]
    assert found["match"] == text.stdout.startswith("match: ") == (not found["differences"])
    assert sum(found["counts"].values()) == len(found["differences"])
    if not found["match"]:
        count = f"{len(found['differences'])} of {found['arrays']} array"
        assert text.stdout.startswith(count)


def test_json_names_scalars_by_their_values(tmp_path):
    a, b = save_pair(tmp_path, step_off_by_one)
    [row] = read_json(run("compare", a, b, VALUES, *ALL, "--json").stdout)["differences"]
    assert (row["key"], row["values"]) == ("step", ["7", "8"])


def test_a_report_file_holds_the_json(tmp_path):
    a, b = save_pair(tmp_path, every_kind_of_difference)
    file = tmp_path / "report.json"
    outcome = run("compare", a, b, VALUES, "--report", file)
    printed = read_json(run("compare", a, b, VALUES, "--json").stdout)
    written = read_json(file.read_text())
    assert {**written, "seconds": 0} == {**printed, "seconds": 0}
    assert outcome.stdout.startswith("5 of 6 arrays differ: ")


def test_a_report_that_is_there_is_replaced_only_when_asked(tmp_path):
    a, b = save_pair(tmp_path, every_kind_of_difference)
    file = tmp_path / "report.json"
    file.write_text("mine")
    outcome = run("compare", tmp_path / "no_a", tmp_path / "no_b", "--report", file)
    assert (outcome.exit_code, outcome.stderr, file.read_text()) == (
        2,
        f"error: `{file}` exists\n\nhint: add `--overwrite` to replace it\n",
        "mine",
    )
    assert run("compare", a, b, "--report", file, "--overwrite").exit_code == 1
    assert read_json(file.read_text())["match"] is False


def test_a_report_of_unknown_ending_is_refused_before_anything_is_read(tmp_path):
    outcome = run("compare", tmp_path / "no_a", tmp_path / "no_b", "--report", "report.txt")
    assert (outcome.exit_code, outcome.stderr) == (
        2,
        "error: `--report report.txt` is neither .json nor .html\n",
    )


def test_the_report_is_a_dataclass_that_counts_renders_and_owns_the_exit_code(tmp_path):
    a, b = save_pair(tmp_path, every_kind_of_difference)
    report = nnxconv.compare(str(a), str(b), compare_values=True)
    assert dict(report.counts) == {"missing": 1, "extra": 1, "shape": 1, "dtype": 1, "value": 1}
    assert report.exit_code == 1
    assert report.render() + "\n" == run("compare", a, b, VALUES).stdout
    assert report.render(verbose=True) + "\n" == run("compare", a, b, VALUES, "--verbose").stdout


# --- options -----------------------------------------------------------------------------------


def test_paths_may_be_options_and_the_needless_flag_is_said_once(tmp_path):
    a, b = save_pair(tmp_path, identical)
    expected = run("compare", a, b, VALUES)
    outcome = run(
        "compare", "--ckpt_path_1", a, "--ckpt_path_2", b, VALUES, "--transpose_nnx_layers"
    )
    assert (outcome.stdout, outcome.exit_code) == (expected.stdout, 0)
    assert outcome.stderr == "`--transpose_nnx_layers` is not needed: layer axes are found\n"
    mixed = run("compare", a, "--ckpt_path_2", b, VALUES)
    assert (mixed.stdout, mixed.stderr, mixed.exit_code) == (expected.stdout, "", 0)


def test_options_may_be_spelled_with_dashes(tmp_path):
    a, b = save_pair(tmp_path, identical)
    assert run("compare", a, b, "--compare-values", "--compare-only", "all").exit_code == 0


def test_a_path_that_is_given_twice_or_not_at_all_is_refused(tmp_path):
    twice = run("compare", "a", "b", "--ckpt_path_1", "a")
    assert (twice.exit_code, twice.stderr) == (
        2,
        "Error: A and --ckpt_path_1 mean the same: give one of them\n",
    )
    missing = run("compare", "a")
    assert (missing.exit_code, missing.stderr) == (2, "Error: B is missing\n")


def test_a_filter_that_fits_nothing_is_no_match(tmp_path):
    a, b = save_pair(tmp_path, layers_swapped)
    outcome = run("compare", a, b, "--filter", "params.misspelled.*", "--filter", "*.ayers_1*")
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    assert outcome.stderr.splitlines()[0] == (
        "error: there is nothing to compare: no key is selected"
    )
    assert [line for line in outcome.stderr.splitlines() if "--filter:" in line] == [
        "  --filter: `params.misspelled.*` fits no key",
        "  --filter: `*.ayers_1*` fits no key",
    ]


def test_a_filter_that_spells_layers_in_another_way_is_told_how(tmp_path):
    a, b = save_pair(tmp_path, layers_swapped)
    outcome = run("compare", a, b, "--filter", "*.layers_1*")
    assert outcome.exit_code == 2
    assert (
        "  --filter: `*.layers_1*` fits no key; one is spelt `params.layers[0]`\n" in outcome.stderr
    )


@pytest.mark.parametrize("size", ["1KiB", "64KiB"])
def test_a_block_that_does_not_fit_in_the_memory_is_refused(size, tmp_path):
    a = save_item(tmp_path / "a", weights_only({"w": np.ones((256, 256), np.float32)}))
    b = save_item(tmp_path / "b", weights_only({"w": np.ones((256, 256), np.float32)}))
    outcome = run("compare", a, b, VALUES, "--max_memory", size)
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith(
        f"error: the plan needs 1.5 MiB, but --max_memory is {size.replace('K', '.0 K')}\n"
        "  at params.w  f32[256,256]\n"
    )
    assert run("compare", a, b, VALUES, "--max_memory", "2MiB").exit_code == 0


def test_comparison_goes_on_after_the_first_difference_and_after_missing_leaves(tmp_path):
    a = weights_only(decoder())
    b = changed(a, (*IN_PARAMS, "layers_0", "mlp", "wi", "bias"), None)
    b = changed(b, (*IN_PARAMS, "layers_0", "mlp", "wi", "kernel"), np.transpose)
    b = changed(b, KERNEL, np.negative)
    b = changed(b, (*IN_PARAMS, "layers_2", "mlp", "wo", "kernel"), np.negative)
    items = [str(save_item(tmp_path / name, tree)) for name, tree in (("a", a), ("b", b))]
    report = nnxconv.compare(*items, compare_values=True)
    assert [finding.kind for finding in report.findings] == ["missing", "shape", "value", "value"]
    assert len(report.statistics) == 7


def test_equal_encoded_chunks_are_not_decoded(tmp_path, monkeypatch):
    items = [str(save_item(tmp_path / name, weights_only(decoder()))) for name in "ab"]

    async def refuse(self, source, region):
        raise AssertionError(f"{source.name} is decoded")

    monkeypatch.setattr(Reader, "read", refuse)
    report = nnxconv.compare(*items, compare_values=True)
    assert report.is_match
    assert (report.read_bytes, report.equal_chunk_bytes) == (0, 3 * (24 + 6 + 24) * 4)


# --- the installed command ---------------------------------------------------------------------


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-c", "from nnxconv.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_itself_has_the_exit_codes_of_diff(tmp_path):
    a, b = save_pair(tmp_path, every_kind_of_difference)
    same, other, wrong = (
        command("compare", *words, VALUES) for words in [(a, a), (a, b), (a, tmp_path / "c")]
    )
    assert (same.returncode, same.stderr) == (0, "")
    assert same.stdout == "match: 5 arrays equal within atol 1e-05, rtol 1e-05\n"
    assert (other.returncode, other.stderr) == (1, "")
    assert other.stdout == run("compare", a, b, VALUES).stdout
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == f"error: `{tmp_path / 'c'}` does not exist\n"


def test_a_defect_of_the_program_is_not_mistaken_for_a_difference(tmp_path):
    code = (
        "import nnxconv.commands.compare\n"
        "def defect(*args, **options): raise ZeroDivisionError\n"
        "nnxconv.commands.compare.compare = defect\n"
        "from nnxconv.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", "a", "b"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode not in (0, 1)


def test_rngs_of_a_copy_are_left_aside_as_the_models_are(tmp_path):
    class Module(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(2, 3, rngs=rngs)
            self.drop = nnx.Dropout(0.1, rngs=rngs)

    model = Module(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    tree = {"model": nnx.state(model), "optimizer": nnx.state(optimizer), "ema": nnx.state(model)}
    source = checkpoints.save_item(tmp_path / "a", tree)
    nnxconv.convert(str(source), str(tmp_path / "b"), to="linen")
    outcome = run("compare", source, tmp_path / "b", *ALL)
    assert (outcome.exit_code, outcome.stdout.splitlines()[-1]) == (
        0,
        "4 arrays left aside (--ignore_rngs)",
    )
