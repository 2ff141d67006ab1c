"""Models of Hugging Face whose layers are not all alike: DeepSeek, Qwen3-Next and Gemma 4."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import nnxconv
from nnxconv.errors import BadInput, LayerError
from nnxconv.renaming import templates
from nnxconv.renaming.hugging_face import model_types, target_of
from tests.renaming.test_hugging_face import KINDS, check_equal, parameters, tensors
from tests.support import checkpoints
from tests.support.hugging_face import (
    Arrays,
    Sizes,
    arrays_of,
    config_of,
    maxtext_of,
    save_tensors,
)
from tests.support.hugging_face_hybrids import (
    Model,
    deepseek,
    gemma4,
    qwen3_next,
    stacked_blocks,
    stacked_groups,
    stacked_members,
)

Case = tuple[Callable[..., Model], Callable[[Arrays], Arrays] | None]


def of_three(apart: Arrays) -> Arrays:
    return stacked_blocks(apart, 3, "layers")


def of_four(apart: Arrays) -> Arrays:
    return stacked_blocks(apart, 4, "layers")


def of_six(apart: Arrays) -> Arrays:
    return stacked_blocks(apart, 6, "scanned_blocks")


CASES: dict[str, Case] = {
    "deepseek v2": (lambda **to: deepseek("deepseek_v2", **to), stacked_groups),
    "deepseek v3": (lambda **to: deepseek("deepseek_v3", 5, 2, **to), stacked_groups),
    "deepseek v3, all with experts": (
        lambda **to: deepseek("deepseek_v3", 2, 0, **to),
        stacked_groups,
    ),
    "qwen3-next": (qwen3_next, of_four),
    "qwen3-next, every third": (lambda **to: qwen3_next(6, 3, **to), of_three),
    "qwen3.5": (
        lambda **to: qwen3_next(is_3_5=True, **to),
        lambda apart: stacked_members(apart, 4),
    ),
    "gemma 4": (lambda **to: gemma4(12, **to), of_six),
    "gemma 4, with experts": (lambda **to: gemma4(moe=True, **to), of_six),
    "gemma 4, small": (lambda **to: gemma4(7, small=True, **to), None),
}
"""How a model is made, and how its layers are stacked; None where MaxText never does."""


def folder_of(model: Model, path: Path) -> Path:
    return save_tensors(path, model.config, model.arrays)


@pytest.mark.sample(4)
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_maxtext_has_what_the_formulas_say_bit_for_bit_and_it_comes_back(case, scan, tmp_path):
    make, stack = CASES[case]
    model = make()
    folder, there, back = folder_of(model, tmp_path / "hf"), tmp_path / "mt", tmp_path / "back"
    if scan and stack is None:
        with pytest.raises(LayerError, match="which are not stacked"):
            nnxconv.convert(str(folder), str(there), to="maxtext", scan_layers=True)
        return
    result = nnxconv.convert(str(folder), str(there), to="maxtext", scan_layers=scan)
    check_equal(parameters(there), stack(model.maxtext) if scan and stack else model.maxtext)
    assert result.account.left_out == {}
    for pair in ((folder, there), (there, folder)):
        assert nnxconv.compare(*map(str, pair), compare_values=True, atol=0, rtol=0).is_match
    nnxconv.convert(str(there), str(back), to="hf", config=str(folder / "config.json"))
    scaled = {"model.language_model.embed_tokens.weight"}  # to within a rounding
    exact = tensors(back).keys() - scaled
    check_equal({k: tensors(back)[k] for k in exact}, {k: model.arrays[k] for k in exact})
    assert tensors(back).keys() == model.arrays.keys()


@pytest.mark.sample(2)
@pytest.mark.parametrize("case", CASES)
def test_weights_of_bfloat16_come_back_byte_for_byte(case, tmp_path):
    make, stack = CASES[case]
    model = make(dtype="bfloat16")
    folder = folder_of(model, tmp_path / "hf")
    scan = stack is not None
    nnxconv.convert(
        str(folder), str(tmp_path / "mt"), to="maxtext", scan_layers=scan, dtype="float32"
    )
    nnxconv.convert(str(tmp_path / "mt"), str(tmp_path / "back"), to="hf", config=str(folder))
    found = tensors(tmp_path / "back")
    assert {k: v.dtype for k, v in found.items()} == {k: v.dtype for k, v in model.arrays.items()}
    check_equal(found, model.arrays)


def test_what_only_transformers_uses_is_left_out_by_name(tmp_path):
    model = gemma4(7, small=True)
    model.array("model.language_model.layers.6.self_attn.k_proj.weight", 8, 12)
    model.array("model.language_model.layers.0.self_attn.v_norm.weight", 4)
    model.array("model.vision_tower.std_scale", 4)
    folder = folder_of(model, tmp_path / "hf")
    result = nnxconv.convert(str(folder), str(tmp_path / "mt"), to="maxtext")
    assert set(result.account.left_out.values()) == {
        "is not of the text model",
        "is not used: those of an earlier layer are",
        "is not used: values are normed without a scale",
    }
    model = deepseek("deepseek_v2")
    model.array("model.layers.2.mlp.gate.e_score_correction_bias", 3)
    folder = folder_of(model, tmp_path / "deepseek2")
    result = nnxconv.convert(str(folder), str(tmp_path / "v2"), to="maxtext")
    check_equal(parameters(tmp_path / "v2"), model.maxtext)
    left = list(result.account.left_out.values())
    assert left == ["is not used: DeepSeek V2 routes without a bias"]
    model = deepseek("deepseek_v3")
    model.config["num_nextn_predict_layers"] = 1
    model.array("model.layers.4.eh_proj.weight", 12, 24)
    folder = folder_of(model, tmp_path / "deepseek")
    result = nnxconv.convert(str(folder), str(tmp_path / "out"), to="maxtext")
    check_equal(parameters(tmp_path / "out"), model.maxtext)
    assert list(result.account.left_out.values()) == [
        "predicts tokens further on, which MaxText's converter leaves out"
    ]


def test_layers_that_attend_otherwise_are_refused_unless_the_family_is_named(tmp_path):
    model = gemma4(7)
    model.config["text_config"]["layer_types"][6] = "full_attention"
    folder = folder_of(model, tmp_path / "hf")
    with pytest.raises(BadInput) as refused:
        nnxconv.convert(str(folder), str(tmp_path / "mt"), to="maxtext")
    assert refused.value.render() == (
        "error: models of `hf-gemma4` have full attention in the last of every 6 layers alone,"
        " and this one has not\n  layer 6 is `full_attention`\n\n"
        "hint: `--rename hf-gemma4` converts it all the same"
    )


@pytest.mark.parametrize(
    ("kind", "told", "why"),
    [
        ("gemma3_text", {"sliding_window_pattern": 4}, "`sliding_window_pattern` is 4"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer 1 is"),
        ("gpt_oss", {"layer_types": ["full_attention", "full_attention"]}, "layer 0 is"),
        ("olmo3", {"layer_types": ["sliding_attention"] * 4}, "layer 3 is `sliding_attention`"),
    ],
)
def test_windows_that_the_target_does_not_have_are_told(kind, told, why, tmp_path):
    sizes = Sizes(layers=4)
    arrays = arrays_of(kind, sizes)
    folder = save_tensors(tmp_path / "hf", {**config_of(kind, sizes), **told}, arrays)
    with pytest.raises(BadInput) as refused:
        nnxconv.convert(str(folder), str(tmp_path / "mt"), to="maxtext")
    assert any(why in detail for detail in refused.value.details)
    name = refused.value.hint.split("`")[1].removeprefix("--rename ")
    nnxconv.convert(str(folder), str(tmp_path / "mt"), to="maxtext", rename=name)
    check_equal(parameters(tmp_path / "mt"), maxtext_of(kind, sizes, arrays))


def test_heads_may_be_told_layer_by_layer(tmp_path):
    """As transformers 5 writes what global layers of Gemma 4 have of their own."""
    model = gemma4()
    del model.config["text_config"]["num_global_key_value_heads"]
    model.config["text_config"]["per_layer_config"] = {"05": {"num_key_value_heads": 1}}
    folder = folder_of(model, tmp_path / "hf")
    nnxconv.convert(str(folder), str(tmp_path / "mt"), to="maxtext")
    check_equal(parameters(tmp_path / "mt"), model.maxtext)


@pytest.mark.parametrize("heads", [10**9, 0])
def test_heads_that_no_model_has_are_refused_at_once(heads, tmp_path):
    model = qwen3_next(is_3_5=True)
    model.config["text_config"]["linear_num_key_heads"] = heads
    folder = folder_of(model, tmp_path / "hf")
    with pytest.raises(BadInput, match="does not tell what"):
        nnxconv.convert(str(folder), str(tmp_path / "mt"), to="maxtext")


def test_what_a_configuration_leaves_out_is_as_the_class_has_it(tmp_path):
    model = deepseek("deepseek_v3", 4, 3)
    for name in ("first_k_dense_replace", "q_lora_rank"):
        del model.config[name]
    folder = folder_of(model, tmp_path / "hf")
    assert "q_lora_rank" not in json.loads((folder / "config.json").read_text())
    nnxconv.convert(str(folder), str(tmp_path / "mt"), to="maxtext")
    check_equal(parameters(tmp_path / "mt"), model.maxtext)


def test_routers_without_a_bias_are_those_of_deepseek_v2(tmp_path):
    model = deepseek("deepseek_v3")
    names = [name for name in model.arrays if name.endswith("e_score_correction_bias")]
    arrays = {name: array for name, array in model.arrays.items() if name not in names}
    folder = save_tensors(tmp_path / "hf", model.config, arrays)
    with pytest.raises(BadInput) as refused:
        nnxconv.convert(str(folder), str(tmp_path / "mt"), to="maxtext")
    assert len(refused.value.details) == len(names) == 3


def test_every_family_is_tried():
    of_maxtext = [text for text in templates().values() if target_of(text) == "maxtext"]
    kinds = {kind for text in of_maxtext for kind in model_types(text)}
    here = {make().config["model_type"] for make, _ in CASES.values()}
    alike = {"gemma3", "gemma4_text", "deepseek_v32"}  # as gemma3_text, gemma4 and deepseek_v3
    alike.add("qwen3_5_moe_text")
    alike |= {f"qwen3_vl{moe}{text}" for moe in ("", "_moe") for text in ("", "_text")}
    assert kinds == {*KINDS, *here, *alike}


def test_a_bias_that_maxtext_keeps_among_the_variables_comes_back(tmp_path):
    """As runs of MaxText 0.2.5 have that of DeepSeek V3's router, stacked on axis 0."""
    model = deepseek("deepseek_v3", 5, 2)
    folder = folder_of(model, tmp_path / "hf")
    apart = {k: v for k, v in model.maxtext.items() if not k.endswith("gate/bias")}
    every = [v for k, v in model.maxtext.items() if k.endswith("gate/bias")]
    bias = {"decoder/moe_layers/DeepSeekMoeBlock_0/MoeBlock_0/gate/bias": np.stack(every)}
    bias["decoder/rngs/params/count"] = np.zeros((), np.uint32)
    bias["decoder/rngs/params/key"] = np.zeros(4, np.uint32)
    params, variables = nested(stacked_groups(apart)), nested(bias)
    moments = {"count": np.int32(3), "mu": {"params": params}, "nu": {"params": params}}
    run = {"params": {"params": params}, "opt_state": [moments], "step": np.int32(3)}
    tree = {**run, "nnx_aux": {"model": variables}}
    checkpoints.save_item(tmp_path / "run", tree)
    assert nnxconv.compare(str(folder), str(tmp_path / "run"), compare_values=True).is_match
    assert nnxconv.compare(str(tmp_path / "run"), str(folder), compare_values=True).is_match
    nnxconv.convert(
        str(tmp_path / "run"),
        str(tmp_path / "back"),
        to="hf",
        config=str(folder),
        params_only=True,
    )
    check_equal(tensors(tmp_path / "back"), model.arrays)


def nested(arrays: Arrays) -> dict[str, object]:
    """A tree of arrays by path."""
    found: dict[str, object] = {}
    for path, array in arrays.items():
        here = found
        *names, last = path.split("/")
        for name in names:
            here = here.setdefault(name, {})
            assert isinstance(here, dict)
        here[last] = array
    return found
