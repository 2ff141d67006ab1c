"""Checkpoints that MaxText wrote become, by conversion, the trees that MaxText writes itself."""

from pathlib import Path

import jax
import pytest

import nnxconv
from tests.support.models import restore, save
from tests.support.trees import same_bits, shape_tree, values

NO_AUX = {"without": ["aux"]}
STACK = {"scan_layers": True}
UNSTACK = {"scan_layers": False}

# source, options, the checkpoint whose tree it becomes, whether RNG state comes from that one
PAIRS = [
    ("main_linen_llama2_unscan_adamw", {"to": "linen", **STACK}, "main_linen_llama2_scan_adamw", False),
    ("main_linen_llama2_scan_adamw", {"to": "linen", **UNSTACK}, "main_linen_llama2_unscan_adamw", False),
    ("main_linen_llama2_scan_adamw", {"to": "nnx-pure", **STACK}, "feat_nnx_llama2_scan_adamw", True),
    ("main_linen_llama2_unscan_adamw", {"to": "nnx-pure", **UNSTACK}, "feat_nnx_llama2_unscan_adamw", True),
    ("main_linen_llama2_unscan_adamw", {"to": "nnx-pure", **STACK}, "feat_nnx_llama2_scan_adamw", True),
    ("feat_nnx_llama2_scan_adamw", {"to": "linen", **STACK, **NO_AUX}, "main_linen_llama2_scan_adamw", False),
    ("feat_nnx_llama2_scan_adamw", {"to": "linen", **UNSTACK, **NO_AUX}, "main_linen_llama2_unscan_adamw", False),
    ("feat_nnx_llama2_unscan_adamw", {"to": "linen", **UNSTACK, **NO_AUX}, "main_linen_llama2_unscan_adamw", False),
    ("feat_nnx_llama2_scan_adamw", {"to": "maxtext", **STACK}, "main_nnx_llama2_scan_adamw", False),
    ("feat_nnx_llama2_unscan_adamw", {"to": "maxtext", **UNSTACK}, "main_nnx_llama2_unscan_adamw", False),
    ("main_nnx_llama2_scan_adamw", {"to": "nnx-pure", **STACK}, "feat_nnx_llama2_scan_adamw", False),
    ("main_nnx_llama2_scan_adamw", {"to": "nnx-state", **STACK}, "main_nnx_llama2_scan_adamw_rawstate", False),
    ("main_nnx_llama2_unscan_adamw_rawstate", {"to": "maxtext", **UNSTACK}, "main_nnx_llama2_unscan_adamw", False),
    ("main_linen_deepseek_unscan_adamw", {"to": "linen", **STACK}, "main_linen_deepseek_scan_adamw", False),
    ("main_linen_deepseek_scan_adamw", {"to": "linen", **UNSTACK}, "main_linen_deepseek_unscan_adamw", False),
    ("feat_nnx_deepseek_scan_adamw", {"to": "linen", **STACK, **NO_AUX}, "main_linen_deepseek_scan_adamw", False),
    ("main_linen_gemma3_unscan_adamw", {"to": "linen", "like": "main_linen_gemma3_scan_adamw"}, "main_linen_gemma3_scan_adamw", False),
    ("main_linen_gemma3_scan_adamw", {"to": "linen", **UNSTACK}, "main_linen_gemma3_unscan_adamw", False),
    ("main_linen_llama2_scan_muon", {"to": "maxtext"}, "main_nnx_llama2_scan_muon", True),
    ("main_nnx_llama2_scan_muon", {"to": "linen", **NO_AUX}, "main_linen_llama2_scan_muon", False),
    ("feat_nnx_llama2_scan_sgd", {"to": "linen", **NO_AUX}, "main_linen_llama2_scan_sgd", False),
    ("main_linen_llama2_scan_adamw_axis0", {"to": "linen", **STACK, "layer_axis": 1}, "main_linen_llama2_scan_adamw", False),
    ("main_linen_llama2_scan_adamw_zarr2", {"to": "nnx-pure"}, "feat_nnx_llama2_scan_adamw", True),
]  # fmt: skip


def is_rng(path):
    return "rngs" in path


def without_rng_key_sizes(tree):
    """The two runs of MaxText used PRNGs whose keys have 2 and 4 words."""
    return {
        path: (*entry[:2], entry[2][:-1], entry[3]) if is_rng(path) and "key" in path else entry
        for path, entry in tree.items()
    }


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("source", "options", "model", "needs_rngs"),
    PAIRS,
    ids=[f"{source}-{'-'.join(map(str, options.values()))}" for source, options, *_ in PAIRS],
)
def test_the_converted_tree_is_the_one_that_maxtext_writes(
    source, options, model, needs_rngs, conformance, tmp_path
):
    root = conformance / "maxtext"
    options = dict(options)
    if "like" in options:
        options["like"] = str(root / options["like"])
    elif needs_rngs:
        options["like"] = str(root / model)
        options.pop("scan_layers", None)
    result = nnxconv.convert(str(root / source), str(tmp_path / "out"), **options)
    expected = shape_tree(root / model / "1" / "items")
    converted = shape_tree(Path(result.target_path))
    assert without_rng_key_sizes(converted) == without_rng_key_sizes(expected)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("source", "options", "model", "needs_rngs"),
    [pair for pair in PAIRS if pair[3]],
    ids=[pair[0] + pair[2] for pair in PAIRS if pair[3]],
)
def test_without_like_only_rng_state_is_missing(
    source, options, model, needs_rngs, conformance, tmp_path
):
    root = conformance / "maxtext"
    result = nnxconv.convert(str(root / source), str(tmp_path / "out"), **options)
    expected = shape_tree(root / model / "1" / "items")
    missing = expected.keys() - shape_tree(Path(result.target_path)).keys()
    assert missing == {path for path in expected if is_rng(path)}


TRAINED = {"linen": "main_linen_llama2_scan_adamw", "nnx": "main_nnx_llama2_scan_adamw"}


@pytest.mark.sample(4)
@pytest.mark.parametrize("is_unrolled", [True, False], ids=["unrolled", "stacked"])
@pytest.mark.parametrize("layout", TRAINED)
@pytest.mark.parametrize("trained", TRAINED)
def test_an_export_is_what_maxtext_serves(trained, layout, is_unrolled, conformance, tmp_path):
    """Key for key; and value for value where it was made from this very run."""
    root = conformance / "maxtext"
    model = f"{TRAINED[layout]}_paramonly_unroll_{str(is_unrolled).lower()}"
    result = nnxconv.convert(
        str(root / TRAINED[trained]),
        str(tmp_path / "out"),
        to=layout,
        params_only=True,
        dtype="bfloat16",
        scan_layers=not is_unrolled,
        verify=True,
    )
    expected, exported = root / model / "0" / "items", Path(result.target_path)
    assert shape_tree(exported) == shape_tree(expected)
    if trained == layout:
        theirs, ours = values(expected), values(exported)
        assert all(same_bits(ours[path], theirs[path]) for path in theirs)


CHECKPOINTS = sorted({pair[0] for pair in PAIRS} | {pair[2] for pair in PAIRS})


@pytest.mark.sample(2)
@pytest.mark.parametrize("layout", ["linen", "nnx", "nnx-state", "nnx-pure", "maxtext"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_round_trip_gives_every_shared_checkpoint_back(name, layout, conformance, tmp_path):
    source = conformance / "maxtext" / name
    there = nnxconv.convert(str(source), str(tmp_path / "there"), to=layout)
    back = nnxconv.convert(
        str(tmp_path / "there"), str(tmp_path / "back"), to=there.conversion.source.codec.name
    )
    left_out = {is_rng(key) for key in there.conversion.left_out}
    original, returned = source / "1" / "items", Path(back.target_path)
    kept = {p: e for p, e in shape_tree(original).items() if not (left_out and is_rng(p))}
    assert shape_tree(returned) == kept
    before, after = values(original), values(returned)
    assert all(same_bits(before[path], after[path]) for path in after)


LOADS = sorted({(source, model) for source, _, model, _ in PAIRS})


@pytest.mark.sample(1)
@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")
@pytest.mark.parametrize(("source", "model"), LOADS, ids="-".join)
def test_a_checkpoint_is_loaded_into_what_maxtext_has(source, model, conformance, tmp_path):
    root = conformance / "maxtext"
    like = restore(root / model / "1" / "items")
    loaded = nnxconv.load(root / source, like=like, without=["aux.rngs"], note=lambda _: None)
    assert jax.tree.structure(loaded) == jax.tree.structure(like)
    item = save(tmp_path / "loaded", loaded)
    report = nnxconv.compare(
        str(root / source), str(item), compare_values=True, compare_only="all", atol=0, rtol=0
    )
    assert report.is_match, report.render()
