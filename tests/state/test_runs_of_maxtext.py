"""What MaxText has beside plain layers: pipelines, RNGs of some layers, layers never stacked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnxconv
from nnxconv.errors import LayerError
from tests.support import checkpoints
from tests.support.command import run

KEPT = (
    "`decoder.pipeline_module` stays as it is: MaxText has the layers of a pipeline by stages, with"
    " `scan_layers` and without"
)


def kernels(*shape: int, seed: int = 0) -> dict[str, Any]:
    """The parameters of a layer, or of several along further axes."""
    names = {f"wi_{i}": {"kernel": checkpoints.values((*shape, 5), seed + i)} for i in range(2)}
    return {"mlp": names, "norm": {"scale": checkpoints.values((*shape[:-1], 6), seed)}}


# the stages of a pipeline, and what layers outside of it are called
PIPELINES = {
    "one layer each, in repeats": (kernels(2, 2, 4), []),
    "one layer each": (kernels(2, 4), ["layers_outside_pipeline"]),
    "several layers apart": (
        {f"layers_{i}": kernels(2, 4) for i in range(2)},
        ["moe_layers_outside_pipeline", "dense_layers"],
    ),
    "several layers stacked": ({"scanned_layers": kernels(2, 2, 4, 2)}, []),
}


def state(decoder: dict[str, Any], aux: dict[str, Any] | None = None) -> dict[str, Any]:
    params = {"params": {"decoder": decoder}}
    adam = {"count": np.int32(2), "mu": params, "nu": params}
    tree = {"step": np.int32(2), "params": params, "opt_state": [adam]}
    return tree | ({"nnx_aux": {"model": {"decoder": aux}}} if aux else {})


def saved(path: Path, tree: Any) -> str:
    return str(checkpoints.save_item(path, tree))


def keys(path: str) -> set[Any]:
    return set(nnxconv.inspect(path).item.tree)


@pytest.mark.parametrize(("stages", "groups"), PIPELINES.values(), ids=PIPELINES)
def test_a_pipeline_stays_as_it_is_and_layers_outside_of_it_do_not(stages, groups, tmp_path):
    layers = [kernels(4, seed=10 * i) for i in range(3)]
    apart = {f"{name}_{i}": layer for name in groups for i, layer in enumerate(layers)}
    stacked = {name: checkpoints.stacked(layers, 1) for name in groups}
    pipeline = {"pipeline_module": {"layers": stages}}
    paths = [saved(tmp_path / n, state(t | pipeline)) for n, t in (("a", apart), ("b", stacked))]
    for (source, wanted), scan in zip((paths, paths[::-1]), (True, False), strict=True):
        new = str(tmp_path / f"new_{scan}")
        result = nnxconv.convert(source, new, to="linen", scan_layers=scan)
        none = f"no layers are known here, and `--{'' if scan else 'no-'}scan_layers` leaves"
        assert result.conversion.assumed[-1] == KEPT
        assert [t.startswith(none) for t in result.conversion.assumed[:-1]] == [True] * (not groups)
        assert keys(new) == keys(wanted)
        report = nnxconv.compare(
            new, wanted, compare_values=True, compare_only="all", atol=0, rtol=0
        )
        assert report.findings == []


@pytest.mark.parametrize("scan", [True, False])
def test_layers_of_an_encoder_that_are_never_stacked_stay_apart(scan, tmp_path):
    layers = {f"layers_{i}": kernels(4, seed=i) for i in range(3)}
    tree = state(layers)
    encoder = {"Llama4VisionModel_0": {"Llama4VisionEncoder_0": layers}}
    tree["params"]["params"]["vision_encoder"] = encoder
    source, new = saved(tmp_path / "a", tree), str(tmp_path / "b")
    result = nnxconv.convert(source, new, to="linen", scan_layers=scan)
    assert result.conversion.assumed == (
        "`vision_encoder.Llama4VisionModel_0.Llama4VisionEncoder_0` stays as it is: MaxText stacks"
        " these layers neither with `scan_layers` nor without",
    )
    kept = {key for key in keys(source) if "vision_encoder" in key}
    assert kept == {key for key in keys(new) if "vision_encoder" in key}
    assert any("layers" in key for key in keys(new)) == scan


def test_rngs_that_only_the_first_layer_has_are_left_out_where_others_have_rngs_elsewhere(tmp_path):
    def rngs(number: int) -> dict[str, Any]:
        return {"rngs": {"params": {"count": np.uint32(number)}}}

    aux = {f"layers_{i}": {"mlp": {"wi_0": {"op": rngs(i)}}} for i in range(3)}
    aux["layers_0"] |= {"attention": rngs(7)}
    source = saved(tmp_path / "a", state({f"layers_{i}": kernels(4) for i in range(3)}, aux))
    result = nnxconv.convert(source, str(tmp_path / "b"), to="maxtext", scan_layers=True)
    assert result.conversion.left_out == {
        ("aux", "rngs", "decoder", "layers", 0, "attention", "rngs", "params", "count"): (
            "one set for all layers, which stands in the first one alone"
        )
    }
    there = {key for key in keys(str(tmp_path / "b")) if "rngs" in key}
    head = ("nnx_aux", "model", "decoder", "layers")
    assert there == {(*head, "mlp", "wi_0", "op", "rngs", "params", "count")}


def test_rngs_of_a_first_layer_unlike_the_others_are_no_set_for_all(tmp_path):
    aux = {
        "layers_0": {"attention": {"rngs": {"params": {"count": np.uint32(0)}}}},
        "layers_1": {"mlp": {"rngs": {"params": {"count": np.uint32(1)}}}},
    }
    decoder = {"layers_0": kernels(4) | {"bias": {"scale": np.ones(3)}}, "layers_1": kernels(4)}
    source = saved(tmp_path / "a", state(decoder, aux))
    with pytest.raises(LayerError, match="differ in 5 places"):
        nnxconv.convert(source, str(tmp_path / "b"), to="maxtext", scan_layers=True)


def test_layers_that_their_program_never_stacks_are_not_stacked(tmp_path):
    layer = kernels(4) | {"per_layer_input_gate": {"kernel": np.ones((4, 2))}}
    decoder = {f"layers_{i}": layer | {"layer_scalar": np.ones(1)} for i in range(6)}
    source = saved(tmp_path / "a", state(decoder))
    with pytest.raises(LayerError) as refused:
        nnxconv.convert(source, str(tmp_path / "b"), to="linen", scan_layers=True)
    assert refused.value.message == (
        "the layers of `decoder.layers` are those of Gemma 4 E2B and E4B, which are not stacked:"
        " some of them use keys and values of others"
    )
    assert refused.value.hint == "without `--scan_layers` they stay apart"
    nnxconv.convert(source, str(tmp_path / "c"), to="linen", scan_layers=False)


# names of layers that are apart, and which of them have an Engram
ENGRAMS = {
    "all dense ones": ({"dense_layers": 1, "moe_layers": 2}, {"dense_layers_0"}, "dense_layers"),
    "some of one kind": ({"dense_layers": 2, "moe_layers": 3}, {"moe_layers_1"}, "moe_layers"),
    "alike in all": ({"moe_layers": 2}, {"moe_layers_0", "moe_layers_1"}, "moe_layers"),
}


@pytest.mark.parametrize(("counts", "engrams", "told"), ENGRAMS.values(), ids=ENGRAMS)
def test_layers_with_an_engram_are_not_stacked(counts, engrams, told, tmp_path):
    names = [f"{name}_{i}" for name, count in counts.items() for i in range(count)]
    engram = {"engram": {"q_norm": {"scale": np.ones((1, 4))}}}
    decoder = {name: kernels(4) | (engram if name in engrams else {}) for name in names}
    source = saved(tmp_path / "a", state(decoder))
    with pytest.raises(LayerError) as refused:
        nnxconv.convert(source, str(tmp_path / "b"), to="linen", scan_layers=True)
    assert refused.value.message == (
        f"the layers of `decoder.{told}` are those of DeepSeek with Engram, which are not stacked:"
        " MaxText stacks each run of layers between two Engrams by itself, as `moe_layers_2_4`"
    )
    assert refused.value.hint == "without `--scan_layers` they stay apart"
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("is_stacked", [True, False])
def test_layers_in_replicas_are_not_arranged_anew(is_stacked, tmp_path):
    layers = [kernels(2, 4, seed=i) for i in range(3)]
    apart = {f"layers_{i}": layer for i, layer in enumerate(layers)}
    stacked = {"layers": checkpoints.stacked(layers, 2)}
    tree = state(stacked if is_stacked else apart)
    tree["step"] = tree["opt_state"][0]["count"] = np.full(2, 7, np.int32)
    source = saved(tmp_path / "a", tree)
    with pytest.raises(LayerError) as refused:
        nnxconv.convert(source, str(tmp_path / "b"), to="linen", scan_layers=not is_stacked)
    assert refused.value.message == (
        "the layers of `decoder.layers` are in 2 replicas, along the first axis of every array:"
        " they are not arranged anew"
    )
    new = str(tmp_path / "one")
    nnxconv.convert(source, new, to="linen", scan_layers=not is_stacked, replica=0)
    assert any("layers_2" in key for key in keys(new)) == is_stacked


def diloco(path: Path) -> tuple[str, dict[str, Any]]:
    """A run of DiLoCo with two inner replicas; and the first of these alone."""
    layers = checkpoints.stacked([kernels(4, seed=i) for i in range(3)], 1)
    counts = {"rngs": {"params": {"count": np.arange(3, dtype=np.uint32)}}}
    one = state({"layers": layers}, {"layers": counts})
    inner = twice(one)
    outer = {k: v for k, v in state({"layers": layers}).items() if k != "opt_state"}
    outer["outer_opt_state"] = [{"trace": outer["params"]}]
    return saved(path, {**outer, "inner_state": inner}), one


def twice(tree: Any) -> Any:
    """Every array in two replicas, of which the second is one more."""
    if isinstance(tree, dict):
        return {name: twice(inner) for name, inner in tree.items()}
    if isinstance(tree, list):
        return [twice(inner) for inner in tree]
    return np.stack([tree, tree + 1])


def test_a_run_of_diloco_is_told_by_its_parts(tmp_path):
    source, _ = diloco(tmp_path / "a")
    text = run("inspect", source).stdout
    assert (
        "  DiLoCo     the weights and their optimizer at the root are the outer ones\n"
        "             `inner_state` is 2 inner replicas: `--at inner_state --replica 0`\n"
    ) in text
    inner = run("inspect", source, "--at", "inner_state").stdout
    assert "decoder.layers: 3 layers, stacked on axis 1, in each of 2 replicas\n" in inner
    told = json.loads(run("inspect", source, "--json").stdout)["states"]
    assert {one["at"]: one["replicas"] for one in told} == {"": None, "inner_state": 2}


def test_an_inner_replica_of_diloco_is_a_run_of_its_own_and_the_rest_stays(tmp_path):
    source, one = diloco(tmp_path / "a")
    alone = saved(tmp_path / "one", one)
    new, weights, pure, back = (str(tmp_path / name) for name in ("new", "w", "pure", "back"))
    nnxconv.convert(source, new, to="maxtext", at="inner_state", replica=0)
    same = {"compare_values": True, "compare_only": "all", "atol": 0, "rtol": 0}
    assert nnxconv.compare(alone, new, **same).is_match
    done = run("convert", source, weights, "--to", "maxtext", "--params_only").stdout
    assert "  left out  12 leaves of inner_state (--params_only)\n" in done
    assert nnxconv.compare(alone, weights, compare_values=True, atol=0, rtol=0).is_match
    nnxconv.convert(source, pure, to="nnx-pure")
    nnxconv.convert(pure, back, to="linen")
    for other in (pure, back):
        assert nnxconv.compare(source, other, compare_values=True, atol=0, rtol=0).is_match


def test_layers_that_were_taken_apart_become_blocks_of_their_own_family_again(tmp_path):
    """Qwen3.5's are called as Qwen3-Next's are: only where they came from tells them apart."""
    norm = {"input_layernorm": {"scale": np.ones((4, 2), np.float32)}}
    linear = {"attention": {"in_proj_qkvz": {"kernel": checkpoints.values((4, 2, 6), 1)}}} | norm
    full = {"attention": {"attention": {"query": {"kernel": checkpoints.values((5, 2, 3), 2)}}}}
    blocks = {f"layer_{i}": linear for i in range(3)} | {"layer_3": full | norm}
    source = saved(tmp_path / "a", state({"layers": blocks}))
    apart, back = str(tmp_path / "apart"), str(tmp_path / "back")
    nnxconv.convert(source, apart, to="linen", scan_layers=False)
    done = nnxconv.convert(apart, back, to="linen", scan_layers=True)
    assert keys(back) == keys(source)
    assert not any("Qwen3-Next" in text for text in done.conversion.assumed)
    assert nnxconv.compare(source, back, compare_values=True, atol=0, rtol=0).is_match
