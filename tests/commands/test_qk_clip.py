"""`qk-clip`: queries and keys of latent attention, scaled down head by head."""

import json

import numpy as np
import pytest

import nnxconv
from nnxconv.errors import BadInput
from tests.support import checkpoints
from tests.support.command import run

HEADS, NOPE, ROPE, VALUE = 4, 8, 4, 6
LAYERS = 3


def attention(seed, queries):
    """The kernels of one layer: (rank, heads, width)."""
    made = np.random.default_rng(seed)
    return {
        queries: {"kernel": made.normal(size=(5, HEADS, NOPE + ROPE)).astype("float32")},
        "wkv_b": {"kernel": made.normal(size=(7, HEADS, NOPE + VALUE)).astype("float32")},
        "out": {"kernel": made.normal(size=(HEADS, VALUE, 5)).astype("float32")},
    }


def saved(path, queries="wq_b", axis=None):
    """A Linen run of a model with latent attention; its layers apart, or stacked on an axis."""
    layers = [{"self_attention": attention(n, queries)} for n in range(LAYERS)]
    decoder = {f"layers_{n}": layer for n, layer in enumerate(layers)}
    if axis is not None:
        decoder = {"layers": checkpoints.stacked(layers, axis)}
    params = {"params": {"decoder": decoder}}
    adam = {"count": np.int32(3), "mu": params, "nu": params}
    tree = {"step": np.int32(3), "params": params, "opt_state": [adam, None]}
    return str(checkpoints.save_item(path, tree))


LOGITS = np.random.default_rng(9).uniform(20, 300, (LAYERS, 2, HEADS)).astype("float32")


def recorded(path, form):
    """The largest logits as programs record them; shape (batch, heads) for each layer."""
    name = "decoder/layers_{}/self_attention/attention_op/max_logits"
    if form == "npz of each layer":
        np.savez(path / "l.npz", **{name.format(n): LOGITS[n] for n in range(LAYERS)})
        return str(path / "l.npz")
    if form == "npz of stacked layers":
        np.savez(path / "l.npz", **{"decoder.layers.self_attention.max_logits": LOGITS})
        return str(path / "l.npz")
    if form == "json":
        layers = {
            f"layers_{n}": {"self_attention": {"max_logits": LOGITS[n].tolist()}}
            for n in range(LAYERS)
        }
        (path / "l.json").write_text(json.dumps({"intermediates": {"decoder": layers}}))
        return str(path / "l.json")
    layers = {
        str(n): {"self_attention": {"attention_op": {"max_logits": LOGITS[n]}}}
        for n in range(LAYERS)
    }
    return str(checkpoints.save_item(path / "l", {"decoder": {"layers": layers}}))


def by_hand(kernel, layer, name, threshold):
    """The formula, by numpy in float32."""
    largest = LOGITS[layer].max(0)
    scale = np.minimum(np.float32(1), np.float32(threshold) / (largest + np.float32(1e-6)))
    rest = np.ones(HEADS, "float32") if name == "wkv_b" else scale
    nope, other = kernel[..., :NOPE], kernel[..., NOPE:]
    return np.concatenate([nope * np.sqrt(scale)[:, None], other * rest[:, None]], -1)


FORMS = ["npz of each layer", "npz of stacked layers", "json", "Orbax"]


@pytest.mark.sample(3)
@pytest.mark.parametrize("queries", ["wq_b", "query"])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_each_head_is_scaled_as_the_formula_says_and_all_else_is_as_it_was(
    tmp_path, queries, axis, form
):
    source = saved(tmp_path / "a", queries, axis)
    nnxconv.qk_clip_checkpoint(
        source,
        str(tmp_path / "b"),
        max_logits=recorded(tmp_path, form),
        threshold=100,
        qk_nope_head_dim=NOPE,
        verify=True,
    )
    before, after = nnxconv.open(source), nnxconv.open(str(tmp_path / "b"))
    assert list(before) == list(after)
    for key in before:
        expected = before[key][...]
        for layer in range(LAYERS):
            for name in (queries, "wkv_b"):
                if key == f"params.decoder.layers[{layer}].self_attention.{name}.kernel":
                    expected = by_hand(expected, layer, name, 100)
        np.testing.assert_array_equal(after[key][...], expected, err_msg=key)


def test_where_nothing_exceeds_the_threshold_nothing_is_rewritten(tmp_path):
    source = saved(tmp_path / "a")
    done = nnxconv.qk_clip_checkpoint(
        source,
        str(tmp_path / "b"),
        max_logits=recorded(tmp_path, "json"),
        threshold=1000,
        qk_nope_head_dim=NOPE,
    )
    assert done.plan.rewritten == []
    report = nnxconv.compare(source, str(tmp_path / "b"), compare_values=True, compare_only="all")
    assert report.is_match


def clip(source, target, logits, *options):
    words = ("--max_logits", logits, "--threshold", "100", "--qk_nope_head_dim")
    return run("qk-clip", source, target, *words, *(options or (NOPE,)))


def test_a_layer_without_logits_is_an_error_unless_it_may_stay_as_it_is(tmp_path):
    source = saved(tmp_path / "a")
    name = "decoder/layers_1/self_attention/max_logits"
    np.savez(tmp_path / "l.npz", **{name: LOGITS[1]})
    outcome = clip(source, tmp_path / "b", tmp_path / "l.npz")
    assert (outcome.exit_code, outcome.stderr) == (
        2,
        "error: 2 layers of 3 have no recorded logits\n"
        f"  at {tmp_path / 'l.npz'}\n"
        "  decoder.layers[0].self_attention\n"
        "  decoder.layers[2].self_attention\n"
        "\n"
        "hint: `--missing keep` leaves them as they are\n",
    )
    kept = clip(source, tmp_path / "b", tmp_path / "l.npz", NOPE, "--missing", "keep")
    assert kept.exit_code == 0
    told = "no recorded logits, as they are: decoder.layers[0].self_attention"
    assert told in kept.stdout
    assert kept.stdout.splitlines()[0] == "clipped 2 kernels: linen"


def test_other_attention_is_refused_by_name(tmp_path):
    params = {"params": {"decoder": {"self_attention": {"query": {"kernel": np.ones((4, 4))}}}}}
    source = checkpoints.save_item(tmp_path / "a", {"params": params, "step": 1, "opt_state": {}})
    outcome = clip(source, tmp_path / "b", recorded(tmp_path, "json"))
    assert (outcome.exit_code, outcome.stderr) == (
        2,
        "error: this model has no multi-head latent attention, whose logits are clipped\n"
        "  at params.decoder.self_attention\n"
        "  it has `query`, and no `wkv_b`\n",
    )


def test_sizes_that_do_not_fit_are_all_named(tmp_path):
    outcome = clip(saved(tmp_path / "a"), tmp_path / "b", recorded(tmp_path, "json"), 20)
    lines = outcome.stderr.splitlines()
    assert (outcome.exit_code, lines[0]) == (
        2,
        "error: the sizes of attention do not fit the logits",
    )
    assert len(lines) == 1 + 2 * LAYERS
    key = "decoder.layers[0].self_attention.wq_b.kernel"
    assert lines[1] == f"  {key}  f32[5,4,12], for 4 heads of more than 20"
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0, float("nan"), 1.0, 1.0]], "a recorded logit is not a finite number"),
        ([[1.0, 2.0]], "the sizes of attention do not fit the logits"),
    ],
)
def test_logits_that_are_none_are_refused(tmp_path, values, message):
    layers = {f"layers_{n}": {"self_attention": {"max_logits": values}} for n in range(LAYERS)}
    (tmp_path / "l.json").write_text(json.dumps({"decoder": layers}))
    with pytest.raises(BadInput, match=message):
        nnxconv.qk_clip_checkpoint(
            saved(tmp_path / "a"),
            str(tmp_path / "b"),
            max_logits=str(tmp_path / "l.json"),
            threshold=100,
            qk_nope_head_dim=NOPE,
        )


def test_a_maximum_that_belongs_to_no_attention_is_an_error_that_names_it(tmp_path):
    name = "decoder/layers_{}/self_attention/max_logits"
    given = {name.format(n): LOGITS[0] for n in range(LAYERS + 1)}
    np.savez(tmp_path / "l.npz", **given, **{"decoder/layers_0/cross/max_logits": LOGITS[0]})
    outcome = clip(saved(tmp_path / "a"), tmp_path / "b", tmp_path / "l.npz")
    assert (outcome.exit_code, outcome.stderr) == (
        2,
        "error: 2 recorded maxima of logits belong to no attention module\n"
        "  decoder.layers_0.cross.max_logits\n"
        "  decoder.layers_3.self_attention.max_logits\n"
        "\n"
        "hint: the names are those of modules with `wkv_b`, as `nnxconv inspect` shows them\n",
    )
    assert not (tmp_path / "b").exists()


def test_two_maxima_of_one_module_are_an_error_that_names_both(tmp_path):
    given = {"decoder/layers_0/attention/max_logits": LOGITS[0]}
    given["decoder/layers/0/attention/attention_op/max_logits"] = LOGITS[1]
    np.savez(tmp_path / "l.npz", **given)
    outcome = clip(saved(tmp_path / "a"), tmp_path / "b", tmp_path / "l.npz")
    assert (outcome.exit_code, outcome.stderr) == (
        2,
        "error: logits were recorded more than once\n"
        "  at decoder.layers[0].attention\n"
        '  decoder.layers["0"].attention.attention_op.max_logits\n'
        "  decoder.layers_0.attention.max_logits\n"
        "\n"
        "hint: let the attention run once, or give its largest logits of all runs\n",
    )


def test_a_file_that_is_no_npz_is_called_so(tmp_path):
    source, file = saved(tmp_path / "a"), tmp_path / "l.npz"
    for text, told in ((None, "does not exist"), ("pickled?", "is no npz file")):
        if text is not None:
            file.write_text(text)
        outcome = clip(source, tmp_path / "b", file)
        assert (outcome.exit_code, outcome.stderr) == (2, f"error: `{file}` {told}\n")


def test_a_subtree_is_clipped_as_the_checkpoint_that_it_is(tmp_path):
    alone = saved(tmp_path / "alone")
    tree = {"actor": checkpoints.restore(tmp_path / "alone"), "critic": checkpoints.linen()}
    path = str(checkpoints.save_item(tmp_path / "both", tree))
    logits = recorded(tmp_path, "npz of each layer")
    how = ["--max_logits", logits, "--threshold", 100, "--qk_nope_head_dim", NOPE]
    outcome = run("qk-clip", path, tmp_path / "out", "--at", "actor", *how)
    assert outcome.exit_code == 0, outcome.stderr
    assert run("qk-clip", alone, tmp_path / "wanted", *how).exit_code == 0
    compared = nnxconv.compare(
        *map(str, (tmp_path / "out", tmp_path / "wanted")), compare_values=True, compare_only="all"
    )
    assert compared.is_match
