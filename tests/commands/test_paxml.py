"""`gpt3-from-paxml`: a Pax GPT-3 checkpoint becomes the one that MaxText would have written.

The sizes of the small checkpoints here are all different, and none is 3: that is what lets these
tests see an axis in the wrong place. See `tests/support/pax.py`.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

import nnxconv
from nnxconv.errors import BadInput
from tests.support import checkpoints, gpt3, pax
from tests.support.checkpoints import restore
from tests.support.command import check_golden, run, session
from tests.support.trees import same_bits, shape_tree, values

MIB = 2**20
LAYOUTS = ["linen", "maxtext", "nnx", "nnx-pure", "nnx-state"]
STEP = 5
LEAVES = pax.leaves(step=STEP)

# Chunks that do not divide their arrays, so that those at the edge are cut off.
UNEVEN = pax.cut(pax.SMALL, D=6, N=1, F=9, V=15, P=8)
WITHIN_LAYERS = pax.cut(pax.SMALL, D=6, L=2)
# Every padded dimension ends within a chunk, and V begins its padding where a chunk begins.
PADDED = {"D": 18, "N": 4, "F": 32, "V": 45, "P": 24}
PADDED_CHUNKS = pax.cut(pax.SMALL, D=6, N=2, F=16, V=41, P=12)

ARRANGEMENTS = [
    pytest.param({"scan_layers": True, "layer_axis": 1}, id="axis 1"),
    pytest.param({"scan_layers": True, "layer_axis": 0}, id="axis 0"),
    pytest.param({"scan_layers": False}, id="apart"),
]
QKV = [pytest.param(True, id="fused"), pytest.param(False, id="split")]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A checkpoint of version 1.1 in several chunks, zstd."""
    return pax.write(tmp_path_factory.mktemp("pax"), LEAVES, chunks=UNEVEN)


def convert(source: Path, target: Path, **options: Any) -> Path:
    """The item that the conversion wrote."""
    return Path(nnxconv.gpt3_from_paxml(str(source), str(target), **options).target_path)


def expected(leaves: pax.Leaves = LEAVES, **options: Any) -> pax.Tree:
    """What the tests' own mapping gives, for options by their names in `gpt3_from_paxml`."""
    names = {"fused_qkv": "fused", "scan_layers": "scan", "layer_axis": "axis"}
    return pax.expected(leaves, **{names.get(name, name): of for name, of in options.items()})


def check(found: Any, wanted: Any, same: Callable[[Any, Any], bool] | None = None) -> None:
    """Fails unless both trees have the same containers, keys and bits."""
    same = same or is_same
    found, wanted = pax.flat(found), pax.flat(wanted)
    assert sorted(map(str, found)) == sorted(map(str, wanted))
    assert [path for path in wanted if not same(found[path], wanted[path])] == []


def is_same(found: Any, wanted: Any) -> bool:
    if not isinstance(wanted, np.ndarray | np.generic):
        return found == wanted
    return same_bits(np.asarray(found), np.asarray(wanted))


def is_close(found: Any, wanted: Any) -> bool:
    """Equal but for the last bits of a float."""
    if not isinstance(wanted, np.ndarray) or wanted.dtype.kind != "f":
        return is_same(found, wanted)
    return found.dtype == wanted.dtype and np.allclose(found, wanted, rtol=3e-7, atol=0)


# The fixtures themselves


def test_the_sizes_tell_every_axis_apart():
    sizes = [getattr(pax.SMALL, letter) for letter in "DNHFVPL"]
    assert len({*sizes, 3, pax.SMALL.N * pax.SMALL.H}) == len(sizes) + 2


def test_no_value_comes_twice():
    floats = [array.ravel() for array in LEAVES.values() if array.dtype == np.float32]
    everything = np.concatenate(floats)
    assert len(np.unique(everything)) == len(everything)
    assert everything.min() > 0


@pytest.mark.sample(5)
@pytest.mark.parametrize("padded", [{}, PADDED], ids=["not padded", "padded"])
@pytest.mark.parametrize("chunks", [{}, UNEVEN], ids=["one chunk", "several"])
@pytest.mark.parametrize("compressor", pax.COMPRESSORS)
def test_the_writer_writes_what_it_is_given(compressor, chunks, padded, tmp_path):
    written = pax.write(tmp_path, compressor=compressor, chunks=chunks, padded=padded)
    found = pax.read(written)
    assert found.keys() == LEAVES.keys()
    assert len(found) == 57
    for leaf, array in LEAVES.items():
        inside = tuple(slice(size) for size in array.shape)
        assert same_bits(np.asarray(found[leaf][inside]), array)
        assert np.count_nonzero(found[leaf]) == np.count_nonzero(array)


@pytest.mark.parametrize("name", ["genuine", "genuine-52k"])
def test_the_writer_writes_what_paxml_writes(name, conformance, tmp_path):
    genuine = next((conformance / "pax" / name / "checkpoints").iterdir())
    arrays = pax.read(genuine)
    written = pax.write(tmp_path, arrays)
    assert written.name == genuine.name
    for leaf in arrays:
        for file in (genuine / "state" / leaf).iterdir():
            ours = written / "state" / leaf / file.name
            assert ours.exists()
            if file.name == ".zarray":
                assert json.loads(ours.read_text()) == json.loads(file.read_text())
    metadata = Path("metadata") / "metadata"
    assert json.loads((written / metadata).read_text()) == json.loads(
        (genuine / metadata).read_text()
    )


# Values and trees


@pytest.mark.sample(3)
@pytest.mark.parametrize("fused_qkv", QKV)
@pytest.mark.parametrize("layers", ARRANGEMENTS)
@pytest.mark.parametrize("to", LAYOUTS)
def test_every_value_is_where_the_layout_has_it(to, layers, fused_qkv, source, tmp_path):
    options = {"to": to, "fused_qkv": fused_qkv, **layers}
    item = convert(source, tmp_path / "out", **options)
    check(restore(item), expected(**options))


SOURCES = {
    # of 2022: leaves in the step directory
    "version 0": {"version": "0", "compressor": "gzip"},
    "version 0 in chunks": {"version": "0", "compressor": "gzip", "chunks": UNEVEN},
    # of 2023: a version, and no shapes
    "version 1.0": {"version": "1.0", "compressor": "gzip", "chunks": UNEVEN},
    "zstd": {"compressor": "zstd"},
    "zlib": {"compressor": "zlib"},
    "blosc": {"compressor": "blosc", "chunks": UNEVEN},
    "raw": {"compressor": None, "chunks": UNEVEN},
    "a few layers to a chunk": {"chunks": WITHIN_LAYERS},
    # for uneven sharding, moments too
    "padded": {"padded": PADDED},
    "padded in chunks": {"compressor": None, "padded": PADDED, "chunks": PADDED_CHUNKS},
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("fused_qkv", QKV)
@pytest.mark.parametrize("name", SOURCES)
def test_every_way_to_store_a_checkpoint_gives_the_same(name, fused_qkv, tmp_path):
    written = pax.write(tmp_path / "in", LEAVES, **SOURCES[name])
    item = convert(written, tmp_path / "out", fused_qkv=fused_qkv)
    check(restore(item), expected(fused_qkv=fused_qkv))


def test_the_default_is_what_the_configuration_of_maxtext_expects(source, tmp_path):
    item = convert(source, tmp_path / "out")
    check(restore(item), expected(to="linen", fused_qkv=True, scan_layers=True, layer_axis=1))


def test_one_layer_is_stacked_all_the_same(tmp_path):
    leaves = pax.leaves(pax.SIZES_52K)
    item = convert(pax.write(tmp_path / "in", leaves), tmp_path / "out")
    check(restore(item), expected(leaves))


# The step


@pytest.mark.sample(2)
@pytest.mark.parametrize("step", [0, 5, 4000, 123456789])
def test_the_step_is_int32_and_names_the_directory(step, tmp_path):
    written = pax.write(tmp_path / "in", pax.leaves(step=step))
    item = convert(written, tmp_path / "out")
    assert item == tmp_path / "out" / str(step) / "items"
    assert same_bits(values(item)[("step",)], np.asarray(step, np.int32))


def test_checkpoint_manager_opens_the_target(source, tmp_path):
    convert(source, tmp_path / "out")
    with ocp.CheckpointManager(tmp_path / "out", item_names=("items",)) as manager:
        assert manager.all_steps() == [STEP]
        arguments = ocp.args.Composite(items=ocp.args.PyTreeRestore())
        check(manager.restore(STEP, args=arguments)["items"], expected())


@pytest.mark.sample(3)
@pytest.mark.parametrize("version", ["0", "1.1"])
@pytest.mark.parametrize("given", ["root", "step", "leaves"])
def test_a_source_is_found_wherever_in_it_the_path_ends(given, version, tmp_path):
    step = pax.write(tmp_path / "in", LEAVES, version=version)
    leaves = step if version == "0" else step / "state"
    paths = {"root": step.parent, "step": step, "leaves": leaves}
    item = convert(paths[given], tmp_path / "out")
    assert item == tmp_path / "out" / str(STEP) / "items"
    check(restore(item), expected())


def test_a_step_of_several_is_chosen(tmp_path):
    pax.write(tmp_path, pax.leaves(step=5))
    root = pax.write(tmp_path, pax.leaves(step=7)).parent
    item = convert(root, tmp_path / "out", step=7)
    check(restore(item), expected(pax.leaves(step=7)))


# The optimizer


@pytest.mark.sample(4)
@pytest.mark.parametrize("layers", ARRANGEMENTS)
@pytest.mark.parametrize("to", LAYOUTS)
def test_adamw_gets_moments_without_their_correction_of_bias(to, layers, source, tmp_path):
    options = {"to": to, "optimizer": "adamw", **layers}
    item = convert(source, tmp_path / "out", **options)
    check(restore(item), expected(**options), is_close)


@pytest.mark.parametrize("fused_qkv", QKV)
def test_the_decays_of_adam_can_be_given(fused_qkv, source, tmp_path):
    options = {"optimizer": "adamw", "b1": 0.8, "b2": 0.999, "fused_qkv": fused_qkv}
    item = convert(source, tmp_path / "out", **options)
    check(restore(item), expected(**options), is_close)


def test_adamw_at_step_0_has_no_moments_yet(tmp_path):
    leaves = pax.leaves(step=0)
    item = convert(pax.write(tmp_path / "in", leaves), tmp_path / "out", optimizer="adamw")
    check(restore(item), expected(leaves, optimizer="adamw"))


def test_adamw_s_moments_are_those_that_optax_would_have(tmp_path):
    """Three steps of Adam by hand: Pax keeps them corrected for bias, optax does not."""
    b1, b2, steps = 0.9, 0.95, 3
    leaves = pax.leaves(step=steps)
    gradients = {name: np.random.default_rng(7).normal(size=steps) for name in pax.PARAMETERS}
    optax: dict[str, pax.Leaves] = {"m": {}, "v": {}}
    for name, array in pax.weights(leaves).items():
        m = v = np.zeros(array.shape)
        for gradient in gradients[name]:
            m = b1 * m + (1 - b1) * gradient
            v = b2 * v + (1 - b2) * gradient**2
        optax["m"][name], optax["v"][name] = m, v
        for kind, moment, b in (("m", m, b1), ("v", v, b2)):
            leaf = pax.moment(kind, name, pax.SMALL.L)
            leaves[leaf] = (moment / (1 - b**steps)).astype(np.float32)
    item = convert(pax.write(tmp_path / "in", leaves), tmp_path / "out", optimizer="adamw")
    adam = restore(item)["opt_state"][0]
    for name, kind in (("mu", "m"), ("nu", "v")):
        wanted = pax.flat(pax.maxtext_params(optax[kind]))
        found = pax.flat(adam[name]["params"])
        assert found.keys() == wanted.keys()
        for path, array in wanted.items():
            np.testing.assert_allclose(found[path], array, rtol=1e-6)


def test_the_count_is_adam_s_own_and_a_disagreement_is_reported(tmp_path):
    odd = {
        "opt_states_0.no_prefix_2.count": np.asarray(4, np.int32),
        "opt_states_0.no_prefix_0.count": np.asarray(3, np.int32),
    }
    written = pax.write(tmp_path / "in", LEAVES | odd)
    outcome = run("gpt3-from-paxml", written, tmp_path / "out")
    assert outcome.exit_code == 0
    tree = restore(tmp_path / "out" / "5" / "items")
    assert (tree["opt_state"]["count"], tree["step"]) == (4, 5)
    told = outcome.stdout + outcome.stderr
    assert [leaf for leaf in odd if leaf not in told] == []


def test_nothing_is_reported_of_counters_that_agree(source, tmp_path):
    outcome = run("gpt3-from-paxml", source, tmp_path / "out")
    assert ".count" not in outcome.stdout + outcome.stderr


# Parameters alone


@pytest.mark.parametrize("layers", ARRANGEMENTS)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_params_only_is_what_decoding_takes(dtype, layers, source, tmp_path):
    item = convert(source, tmp_path / "out", params_only=True, dtype=dtype, **layers)
    wanted = expected(**layers)["params"]
    if dtype is not None:
        wanted = cast(wanted, ml_dtypes.bfloat16)
    tree = restore(item)
    check(tree["params"], wanted)
    assert tree["opt_state"] == {}


def test_the_dtype_is_that_of_the_parameters_alone(source, tmp_path):
    tree = restore(convert(source, tmp_path / "out", dtype="bfloat16"))
    wanted = expected()
    check(tree["params"], cast(wanted["params"], ml_dtypes.bfloat16))
    check(tree["opt_state"], wanted["opt_state"])


def test_params_only_needs_no_more_than_parameters(tmp_path):
    leaves = {name: array for name, array in LEAVES.items() if "opt_states" not in name}
    written = pax.write(tmp_path / "in", leaves)
    tree = restore(convert(written, tmp_path / "out", params_only=True, to="nnx"))
    assert sorted(tree) == ["decoder", "token_embedder"]
    embedding = LEAVES[pax.variable("lm.softmax.logits_ffn.linear.w")].T
    assert same_bits(np.asarray(tree["token_embedder"]["embedding"]["value"]), embedding)


def cast(tree: Any, dtype: Any) -> Any:
    """The tree with its floats in another type."""
    if isinstance(tree, dict):
        return {name: cast(branch, dtype) for name, branch in tree.items()}
    return tree.astype(dtype) if tree.dtype.kind == "f" else tree


# Padding


def resized(leaves: pax.Leaves, size: int) -> pax.Leaves:
    """The leaves with a vocabulary of another size, the new rows all zeros."""
    found = dict(leaves)
    name = "lm.softmax.logits_ffn.linear.w"
    moments = [pax.moment(kind, name, pax.SMALL.L) for kind in "mv"]
    for leaf in (pax.variable(name), *moments):
        array = leaves[leaf][:, :size]
        found[leaf] = np.pad(array, [(0, 0), (0, size - array.shape[1])])
    return found


@pytest.mark.sample(3)
@pytest.mark.parametrize("version", ["0", "1.0"])
@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        # trimmed to what it was before it was padded
        (48, 41),
        # nothing to do
        (48, 48),
        # padded, as MaxText asks for a multiple of 128 or so
        (41, 50),
        # padded further
        (44, 50),
        # shorter than the model's own: it is what was asked for
        (41, 40),
    ],
)
def test_without_metadata_the_vocabulary_is_as_large_as_asked_for(
    stored, wanted, version, tmp_path
):
    written = pax.write(
        tmp_path / "in",
        LEAVES,
        version=version,
        padded={"V": stored},
        chunks=pax.cut(pax.SMALL, V=16),
    )
    item = convert(written, tmp_path / "out", vocab_size=wanted)
    check(restore(item), expected(resized(LEAVES, wanted)))


def test_without_metadata_nothing_is_trimmed_by_guess(tmp_path):
    written = pax.write(tmp_path / "in", LEAVES, version="0", padded={"V": 48, "P": 24})
    params = restore(convert(written, tmp_path / "out"))["params"]["params"]
    assert params["token_embedder"]["embedding"].shape == (48, pax.SMALL.D)
    assert params["decoder"]["position_embedder"]["embedding"].shape == (24, pax.SMALL.D)


# Compare and verify

TWINS = [
    # same layout, layers on the other axis
    ({"to": "linen"}, {"to": "linen", "layer_axis": 0}),
    ({"to": "linen"}, {"to": "nnx-pure", "scan_layers": False}),
    ({"to": "maxtext", "fused_qkv": False}, {"to": "nnx", "fused_qkv": False, "layer_axis": 0}),
    ({"to": "nnx-state"}, {"to": "maxtext", "scan_layers": False}),
]


@pytest.mark.sample(2)
@pytest.mark.parametrize("optimizer", ["adam_pax", "adamw"])
@pytest.mark.parametrize(("first", "second"), TWINS, ids=str)
def test_compare_finds_no_difference_between_layouts(first, second, optimizer, source, tmp_path):
    a = convert(source, tmp_path / "a", optimizer=optimizer, **first)
    b = convert(source, tmp_path / "b", optimizer=optimizer, **second)
    report = nnxconv.compare(
        str(a), str(b), compare_values=True, compare_only="all", atol=0, rtol=0
    )
    assert report.is_match, report.render()


@pytest.mark.sample(2)
@pytest.mark.parametrize("fused_qkv", QKV)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"to": "nnx-pure", "scan_layers": False},
        {"optimizer": "adamw"},
        {"params_only": True, "dtype": "bfloat16"},
        {"layer_axis": 0},
    ],
    ids=str,
)
def test_verify_proves_what_is_right(options, fused_qkv, tmp_path):
    written = pax.write(tmp_path / "in", LEAVES, padded=PADDED, chunks=PADDED_CHUNKS)
    result = nnxconv.gpt3_from_paxml(
        str(written), str(tmp_path / "out"), verify=True, fused_qkv=fused_qkv, **options
    )
    assert result.is_verified


# The command


def test_the_command_does_what_the_function_does(source, tmp_path):
    outcome = run(
        *("gpt3-from-paxml", source, tmp_path / "out", "--to", "nnx-pure", "--split_qkv"),
        *(
            "--no-scan_layers",
            "--optimizer",
            "adamw",
            "--verify",
            "--max_memory",
            "64MiB",
            "--json",
        ),
    )
    assert outcome.exit_code == 0
    told = json.loads(outcome.stdout)
    item = tmp_path / "out" / str(STEP) / "items"
    assert (told["target"]["path"], told["target"]["layout"]) == (str(item), "nnx-pure")
    assert told["verified"] is True
    options = {"to": "nnx-pure", "fused_qkv": False, "scan_layers": False, "optimizer": "adamw"}
    check(restore(item), expected(**options), is_close)


def test_paths_can_be_given_as_maxtext_s_own_script_has_them(source, tmp_path):
    outcome = run("gpt3-from-paxml", "--paxml-ckpt-path", source, "--output_path", tmp_path / "out")
    assert outcome.exit_code == 0
    check(restore(tmp_path / "out" / str(STEP) / "items"), expected())


def test_a_dry_run_writes_nothing(source, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    outcome = run("gpt3-from-paxml", source, tmp_path / "out", "--dry_run")
    assert outcome.exit_code == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_overwrite_replaces_what_is_there(source, tmp_path):
    convert(source, tmp_path / "out")
    item = convert(source, tmp_path / "out", overwrite=True, fused_qkv=False)
    check(restore(item), expected(fused_qkv=False))


@pytest.mark.parametrize("model", ["gpt3-52k", None])
def test_the_model_s_name_only_checks(model, tmp_path):
    leaves = pax.leaves(pax.SIZES_52K)
    item = convert(pax.write(tmp_path / "in", leaves), tmp_path / "out", model=model)
    check(restore(item), expected(leaves))


def test_a_model_that_nobody_knows_is_refused(tmp_path):
    source = pax.write(tmp_path / "in", pax.leaves(pax.SIZES_52K))
    with pytest.raises(BadInput) as refused:
        convert(source, tmp_path / "out", model="gpt4")
    assert refused.value.message == "no model is called `gpt4`"
    assert refused.value.hint == "known are: gpt3-175b, gpt3-52k"


# What other programs wrote


def genuine(conformance: Path, name: str) -> tuple[Path, Any]:
    """A checkpoint of paxml's, and the logits that praxis computed with it."""
    root = conformance / "pax" / name
    return root / "checkpoints", np.load(root / "checkpoints_reference_logits.npz")


def test_the_output_is_that_of_the_eager_importer(conformance, tmp_path):
    golden = conformance / "pax" / "expected" / "genuine-52k-linen-fused" / "checkpoints"
    item = convert(genuine(conformance, "genuine-52k")[0], tmp_path / "out")
    eager = golden / "0" / "items"
    # Its step is uint32, as Pax has it; MaxText's is int32.
    is_step = ("step",).__eq__
    assert {p: e for p, e in shape_tree(item).items() if not is_step(p)} == {
        p: e for p, e in shape_tree(eager).items() if not is_step(p)
    }
    found, wanted = values(item), values(eager)
    assert [p for p in wanted if not is_step(p) and not same_bits(found[p], wanted[p])] == []
    assert found[("step",)] == wanted[("step",)]
    assert found[("step",)].dtype == np.int32
    report = nnxconv.compare(str(tmp_path / "out"), str(golden), compare_values=True)
    assert report.is_match, report.render()


@pytest.mark.sample(3)
@pytest.mark.parametrize("fused_qkv", QKV)
@pytest.mark.parametrize("layers", ARRANGEMENTS)
@pytest.mark.parametrize("name", ["genuine", "genuine-52k"])
def test_the_imported_model_gives_the_logits_of_praxis(
    name, layers, fused_qkv, conformance, tmp_path
):
    source, reference = genuine(conformance, name)
    item = convert(source, tmp_path / "out", fused_qkv=fused_qkv, **layers)
    params = restore(item)["params"]["params"]
    found = gpt3.logits(params, reference["ids"], layer_axis=layers.get("layer_axis", 1))
    np.testing.assert_allclose(found, reference["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["genuine", "genuine-52k"])
def test_the_whole_state_that_paxml_saved_is_imported(name, conformance, tmp_path):
    source, _ = genuine(conformance, name)
    leaves = pax.read(next(source.iterdir()))
    check(restore(convert(source, tmp_path / "out")), expected(leaves))


def test_swapped_projections_would_show_in_the_logits(conformance):
    """The reference sees what shapes cannot."""
    source, reference = genuine(conformance, "genuine")
    weights = pax.weights(pax.read(next(source.iterdir())))
    params = pax.maxtext_params(weights, fused=False)
    attention = params["decoder"]["layers"]["self_attention"]
    attention["query"], attention["key"] = attention["key"], attention["query"]
    wrong = gpt3.logits(params, reference["ids"])
    assert np.abs(wrong - reference["logits"]).max() > 1e-4


# 175 billion parameters

COMMAND = [sys.executable, "-c", "from nnxconv.cli import main; main()", "gpt3-from-paxml"]
TOTAL_175B = 2_097_371_971_592


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> Path:
    """Every `.zarray` of the model of 175 billion parameters, and not one chunk."""
    return pax.write_only_metadata(tmp_path_factory.mktemp("paper"))


def timed(*words: object) -> tuple[str, float]:
    """What a command prints, and the processor time that it takes: cores may be shared."""
    environment = {**os.environ, "XLA_FLAGS": ""}
    with subprocess.Popen(
        [*COMMAND, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, output
    return output, usage.ru_utime + usage.ru_stime


@pytest.mark.full
def test_the_plan_for_175_billion_parameters_takes_seconds(paper, tmp_path):
    output, seconds = timed(paper, tmp_path / "out", "--dry_run", "--max_memory", "8GiB")
    assert "1.9075 TiB" in output
    assert [name for name in pax.leaf_dimensions(96) if is_used(name) and name not in output] == []
    assert seconds < 5
    assert not (tmp_path / "out").exists()


def is_used(leaf: str) -> bool:
    """False for the counters besides Adam's own, which are compared and left."""
    return not leaf.endswith(".count") or leaf == "opt_states_0.no_prefix_2.count"


OPTIONS_175B = [
    ["--fused_qkv"],
    ["--split_qkv"],
    ["--split_qkv", "--layer_axis", "0"],
    ["--no-scan_layers", "--split_qkv"],
    ["--optimizer", "adamw"],
]


@pytest.mark.parametrize("options", OPTIONS_175B, ids=" ".join)
def test_175_billion_parameters_fit_in_8_gib(options, paper, tmp_path):
    words = [paper, tmp_path / "out", "--dry_run", "--max_memory", "8GiB", *options, "--json"]
    outcome = run("gpt3-from-paxml", *words)
    told = json.loads(outcome.stdout)
    count = 4 if "adamw" in options else 0
    assert told["bytes"] == pax.state_bytes(pax.SIZES_175B) + count == TOTAL_175B + count
    assert told["predicted_peak_bytes"] <= 8 * 2**30
    assert told["dry_run"] is True


def test_the_model_of_175_billion_parameters_is_known_by_name(paper, tmp_path):
    result = nnxconv.gpt3_from_paxml(
        str(paper), str(tmp_path / "out"), dry_run=True, max_memory="8GiB", model="gpt3-175b"
    )
    assert result.plan.total_bytes == TOTAL_175B


# Memory

IMPORTS_BYTES = 300 * MIB

MEASURE = """
import json, sys
import nnxconv
source, target, options = json.loads(sys.argv[1])
result = nnxconv.gpt3_from_paxml(source, target, **options)
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        peak = int(line.split()[1]) * 1024
print(json.dumps(dict(
    peak=peak, predicted=result.plan.peak_bytes, total=result.plan.total_bytes
)))
"""


def measure(source: Path, target: Path, **options: Any) -> dict[str, int]:
    """Converts in another process, whose peak memory and plan are returned."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps([str(source), str(target), options])],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc"
)

# 680 MB of 96 layers, in chunks of up to 19 MB that span them all
WIDE = pax.Sizes(D=192, N=4, H=64, F=1024, V=64, P=32, L=96)
WIDE_CHUNKS = pax.cut(WIDE, D=48, N=2, F=512)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    root = tmp_path_factory.mktemp("wide")
    yield pax.write_noise(root, WIDE, chunks=WIDE_CHUNKS)
    shutil.rmtree(root)


@pytest.mark.full
@needs_proc
@pytest.mark.parametrize("options", [{}, {"fused_qkv": False, "layer_axis": 0}], ids=str)
def test_memory_is_bounded_though_every_chunk_spans_all_layers(options, wide, tmp_path):
    found = measure(wide, tmp_path / "out", max_memory="256MiB", **options)
    shutil.rmtree(tmp_path / "out")
    assert found["total"] == pax.state_bytes(WIDE) > 256 * MIB + IMPORTS_BYTES
    assert found["predicted"] <= 256 * MIB
    assert found["peak"] <= 256 * MIB + IMPORTS_BYTES
    assert found["peak"] <= found["predicted"] + IMPORTS_BYTES


# 8 GB in the very chunks of the published checkpoint
SLICE = pax.Sizes(D=576, N=8, H=128, F=4096, V=4192, P=512, L=96)


@pytest.fixture(scope="module")
def piece(tmp_path_factory):
    root = tmp_path_factory.mktemp("piece")
    yield pax.write_noise(root, SLICE, chunks=pax.CHUNKS_175B, compressor="zstd")
    shutil.rmtree(root)


@needs_proc
@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("NNXCONV_LARGE") != "1", reason="takes 17 GB of disk: set NNXCONV_LARGE=1"
)
@pytest.mark.parametrize(
    "options",
    [{}, {"fused_qkv": False}, {"scan_layers": False}, {"optimizer": "adamw"}],
    ids=str,
)
def test_8_gb_of_the_published_chunks_convert_within_1_gib(options, piece, tmp_path):
    found = measure(piece, tmp_path / "out", max_memory="1GiB", **options)
    shutil.rmtree(tmp_path / "out")
    assert found["total"] >= 8e9
    assert found["peak"] <= 1024 * MIB + IMPORTS_BYTES
    assert found["peak"] <= found["predicted"] + IMPORTS_BYTES


# Refusals


def renamed(leaves: pax.Leaves, rename: Callable[[str], str]) -> pax.Leaves:
    return {rename(leaf): array for leaf, array in leaves.items()}


def pipelined(path: Path) -> Path:
    """Layers in stages, which is how a pipeline keeps them."""

    def rename(leaf: str) -> str:
        leaf = leaf.replace("transformer.repeat.sub.", "transformer.pipeline.body.")
        return leaf.replace("p#5#i-1", "p#5#sstage")

    return pax.write(path, renamed(LEAVES, rename))


def not_repeated(path: Path) -> Path:
    """Layers beside each other, as without `USE_REPEATED_LAYER`."""
    leaves: pax.Leaves = {}
    for leaf, array in LEAVES.items():
        if ".x_layers_0." not in leaf:
            if "#i-1" not in leaf:
                leaves[leaf] = array
            continue
        for layer in range(pax.SMALL.L):
            name = leaf.replace(".repeat.sub.x_layers_0.", f".x_layers_{layer}.")
            leaves[name.replace("p#5#i-1", "no_prefix")] = array[layer]
    return pax.write(path, leaves)


def without(path: Path, *names: str, **options: Any) -> Path:
    """Leaves that are not there."""
    step = pax.write(path, LEAVES, **options)
    for name in names:
        shutil.rmtree(step / "state" / name)
    return step


def chunk_of(step: Path, leaf: str, chunk: str) -> Path:
    file = step / "state" / leaf / chunk
    assert file.is_file()
    return file


def half_downloaded(path: Path) -> Path:
    """Some leaves and some chunks have not come yet."""
    step = without(path, *sorted(LEAVES)[-3:-1], chunks=UNEVEN)
    for leaf, chunks in HALF.items():
        for chunk in chunks:
            chunk_of(step, leaf, chunk).unlink()
    return step


POSITIONS = "mdl_vars.params.lm.position_emb.emb_var"
EMBEDDING = "mdl_vars.params.lm.softmax.logits_ffn.linear.w"
QKV_W = f"mdl_vars.params.{pax.LAYERS}self_attention.combined_qkv.w"
HALF = {POSITIONS: ["0.1", "2.2"], QKV_W: ["0.0.1.1.0"]}


def without_chunks(path: Path, version: str = "1.1") -> Path:
    step = pax.write(path, LEAVES, chunks=UNEVEN, version=version)
    for chunk in HALF[POSITIONS]:
        state = step if version == "0" else step / "state"
        (state / POSITIONS / chunk).unlink()
    return step


def without_zarray(path: Path) -> Path:
    step = pax.write(path, LEAVES)
    (step / "state" / POSITIONS / ".zarray").unlink()
    return step


def cut_short(path: Path, compressor: str | None) -> Path:
    """A chunk of which the second half is missing."""
    step = pax.write(path, LEAVES, chunks=UNEVEN, compressor=compressor)
    file = chunk_of(step, POSITIONS, "1.1")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return step


def with_leaf(path: Path, leaf: str, array: np.ndarray) -> Path:
    return pax.write(path, LEAVES | {leaf: array})


def unfinished(path: Path) -> Path:
    step = pax.write(path, LEAVES)
    return step.rename(f"{step}.orbax-checkpoint-tmp-1690000000000000")


def bad_metadata(path: Path, text: str) -> Path:
    step = pax.write(path, LEAVES)
    (step / "metadata" / "metadata").write_text(text)
    return step


def larger_unpadded(path: Path) -> Path:
    """Metadata that promise more than is stored."""
    step = pax.write(path, LEAVES)
    file = step / "metadata" / "metadata"
    file.write_text(file.read_text().replace("[22, 16]", "[23, 16]"))
    return step


def several(path: Path) -> Path:
    pax.write(path, pax.leaves(step=5))
    return pax.write(path, pax.leaves(step=7)).parent


def folder(path: Path, *names: str) -> Path:
    """A directory with files that have nothing to do with Pax."""
    path.mkdir()
    for name in names:
        (path / name).write_bytes(b"\x00")
    return path


BIAS = "mdl_vars.params.lm.softmax.logits_ffn.bias.b"

# what is wrong: how to make it, options, and words that the message must have ($ is the folder)
REFUSALS: dict[str, tuple[Callable[[Path], Path], dict[str, Any], list[str]]] = {
    "pipelined": (pipelined, {}, ["pipeline.body"]),
    "not repeated": (not_repeated, {}, ["x_layers_0", "x_layers_4"]),
    "ocdbt": (pax.write_ocdbt, {}, ["OCDBT"]),
    # Half-downloaded
    "no step": (lambda path: without(path, "step"), {}, ["step"]),
    "no parameter": (lambda path: without(path, POSITIONS), {}, [POSITIONS]),
    "no moment": (
        lambda path: without(path, pax.moment("v", "lm.final_ln.bias", 5)),
        {},
        [pax.moment("v", "lm.final_ln.bias", 5)],
    ),
    "no chunks": (without_chunks, {}, [POSITIONS, "0.1", "2.2"]),
    "no chunks, version 0": (lambda path: without_chunks(path, "0"), {}, [POSITIONS, "0.1", "2.2"]),
    "no .zarray": (without_zarray, {}, [POSITIONS]),
    "half-downloaded": (
        half_downloaded,
        {},
        [*sorted(LEAVES)[-3:-1], POSITIONS, "0.1", "2.2", QKV_W, "0.0.1.1.0"],
    ),
    # Damaged
    "chunk cut short, zstd": (lambda path: cut_short(path, "zstd"), {}, [POSITIONS]),
    "chunk cut short, gzip": (lambda path: cut_short(path, "gzip"), {}, [POSITIONS]),
    "chunk cut short, raw": (lambda path: cut_short(path, None), {}, [POSITIONS]),
    "metadata that are no JSON": (lambda path: bad_metadata(path, "{"), {}, ["metadata"]),
    "metadata without shapes": (
        lambda path: bad_metadata(path, '{"version": 1.1}'),
        {},
        ["train_state_metadata"],
    ),
    "more promised than stored": (larger_unpadded, {}, [POSITIONS, "23"]),
    # Not this model
    "leaves of another model": (
        lambda path: with_leaf(path, BIAS, np.ones(41, np.float32)),
        {},
        [BIAS],
    ),
    "sizes that disagree": (
        lambda path: with_leaf(path, POSITIONS, np.ones((22, 17), np.float32)),
        {},
        [POSITIONS, "17"],
    ),
    "a name for other sizes": (
        lambda path: pax.write(path, LEAVES),
        {"model": "gpt3-175b"},
        ["gpt3-175b", "12,288", "16"],
    ),
    "a name for other sizes again": (
        lambda path: pax.write(path, LEAVES),
        {"model": "gpt3-52k"},
        ["gpt3-52k", "1,024", "41"],
    ),
    # Not Pax
    "Orbax": (
        lambda path: checkpoints.save_step(path, checkpoints.linen()),
        {},
        ["nnxconv convert"],
    ),
    "msgpack of flax": (lambda path: folder(path, "checkpoint_5"), {}, ["is not a Pax checkpoint"]),
    "foreign": (lambda path: folder(path, "notes.txt"), {}, ["is not a Pax checkpoint"]),
    "empty": (folder, {}, ["is empty"]),
    "not there": (lambda path: path, {}, ["does not exist"]),
    # Not one checkpoint
    "unfinished": (unfinished, {}, ["unfinished"]),
    "several steps": (several, {}, ["5, 7", "--step"]),
    "no such step": (several, {"step": 6}, ["no step 6", "5, 7"]),
    # Options
    "a vocabulary against the metadata": (
        lambda path: pax.write(path, LEAVES),
        {"vocab_size": 40},
        ["--vocab_size", "41"],
    ),
    "a vocabulary of nothing": (
        lambda path: pax.write(path, LEAVES, version="0"),
        {"vocab_size": 0},
        ["--vocab_size"],
    ),
    "too little memory": (
        lambda path: pax.write(path, LEAVES),
        {"max_memory": "1KiB"},
        ["--max_memory"],
    ),
}


@pytest.mark.sample(8)
@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_imported_is_refused_and_nothing_is_written(name, tmp_path):
    make, options, words = REFUSALS[name]
    source, target = make(tmp_path / "in"), tmp_path / "out"
    before = snapshot(tmp_path)
    given = [word for option, value in options.items() for word in (f"--{option}", value)]
    outcome = run("gpt3-from-paxml", source, target, *given)
    assert outcome.exit_code == 2
    assert [word for word in words if word not in outcome.stderr] == [], outcome.stderr
    assert snapshot(tmp_path) == before
    check_golden(f"paxml/{name.replace(' ', '_')}.txt", session(outcome, {"DIR": tmp_path}))


def snapshot(path: Path) -> dict[Path, bytes | None]:
    return {file: file.read_bytes() if file.is_file() else None for file in path.rglob("*")}


# where the target lies, from the root of the source, and words that the message must have
PLACES = [
    ("checkpoints/checkpoint_00000005", ["lie in each other"]),
    ("checkpoints/checkpoint_00000005/state/out", ["lie in each other"]),
    ("checkpoints/checkpoint_00000005/out", ["lie in each other"]),
    ("checkpoints", ["lie in each other"]),
    (".", ["lie in each other"]),
]


@pytest.mark.sample(3)
@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwrite"])
@pytest.mark.parametrize(("place", "words"), PLACES, ids=[place for place, _ in PLACES])
def test_source_and_target_do_not_lie_in_each_other(place, words, overwrite, tmp_path):
    source = pax.write(tmp_path / "in", LEAVES)
    before = snapshot(tmp_path)
    target = tmp_path / "in" / place
    with pytest.raises(nnxconv.NnxconvError) as caught:
        nnxconv.gpt3_from_paxml(str(source), str(target), overwrite=overwrite)
    message = caught.value.render()
    assert [word for word in words if word not in message] == [], message
    assert snapshot(tmp_path) == before


def test_an_existing_target_is_left_alone(source, tmp_path):
    convert(source, tmp_path / "out")
    before = snapshot(tmp_path)
    with pytest.raises(nnxconv.NnxconvError) as caught:
        convert(source, tmp_path / "out")
    assert caught.value.render() == (
        f"error: `{tmp_path / 'out'}` exists\n\nhint: add `--overwrite` to replace it"
    )
    assert snapshot(tmp_path) == before


def test_a_missing_chunk_is_never_read_as_zeros(tmp_path):
    """TensorStore, left to itself, does so."""
    step = pax.write(tmp_path, LEAVES, chunks=UNEVEN)
    for leaf in LEAVES:
        chunks = sorted(path.name for path in (step / "state" / leaf).iterdir())
        last = chunk_of(step, leaf, chunks[-1])
        content = last.read_bytes()
        last.unlink()
        with pytest.raises(nnxconv.NnxconvError) as caught:
            nnxconv.gpt3_from_paxml(str(step), str(tmp_path / "out"))
        assert leaf in caught.value.render()
        last.write_bytes(content)
