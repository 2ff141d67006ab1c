"""Folders of Hugging Face have all arrays of their model, or are refused; so are the ways back."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import nnxconv
from nnxconv.errors import BadInput
from tests.renaming.test_hugging_face import check_equal, parameters
from tests.support.command import run
from tests.support.hugging_face import (
    Arrays,
    Sizes,
    arrays_of,
    config_of,
    maxtext_of,
    save_folder,
    save_tensors,
)

SMALL = Sizes(16, 2, 1, 8, 10, 30, 4, 2)
WHOLE = "hint: `config.json` says that there are 4 layers; are all files there?"


def refusal(source: Path, target: Path, to: str = "maxtext", **options) -> str:
    with pytest.raises(BadInput) as refused:
        nnxconv.convert(str(source), str(target), to=to, **options)
    assert not target.exists()
    return refused.value.render()


def of_llama(path: Path, arrays: Arrays, **told: object) -> Path:
    return save_tensors(path, {**config_of("llama", SMALL), **told}, arrays)


@pytest.mark.parametrize("scan", [False, True])
def test_an_array_that_is_not_there_is_named(scan, tmp_path):
    arrays = arrays_of("llama", SMALL)
    del arrays["model.layers.2.mlp.up_proj.weight"]
    folder = of_llama(tmp_path / "hf", arrays)
    assert refusal(folder, tmp_path / "out", scan_layers=scan) == (
        "error: the folder lacks 1 array of `hf-llama`\n"
        f"  model.layers[2].mlp.up_proj.weight\n\n{WHOLE}"
    )


@pytest.mark.parametrize("layer", range(4))
def test_a_layer_that_is_not_there_is_named_wherever_it_stands(layer, tmp_path):
    arrays = arrays_of("llama", SMALL)
    gone = [name for name in arrays if name.startswith(f"model.layers.{layer}.")]
    folder = of_llama(tmp_path / "hf", {k: v for k, v in arrays.items() if k not in gone})
    told = refusal(folder, tmp_path / "out")
    assert told.startswith(f"error: the folder lacks {len(gone)} arrays of `hf-llama`\n")
    assert told.count(f"model.layers[{layer}].") == len(gone) and told.endswith(WHOLE)


def test_where_nothing_says_how_many_layers_there_are_none_is_left_out_between(tmp_path):
    arrays = {k: v for k, v in arrays_of("llama", SMALL).items() if ".layers.1." not in k}
    config = {k: v for k, v in config_of("llama", SMALL).items() if k != "num_hidden_layers"}
    folder = save_tensors(tmp_path / "hf", config, arrays)
    assert refusal(folder, tmp_path / "out").endswith(
        "hint: the layers are those of the last array that is there; are all files there?"
    )


def test_layers_that_a_model_should_not_have_are_named(tmp_path):
    folder = of_llama(tmp_path / "hf", arrays_of("llama", SMALL), num_hidden_layers=3)
    told = refusal(folder, tmp_path / "out")
    assert told.startswith("error: 9 arrays are none of `hf-llama`\n  model.layers[3].")
    drop = "params.model.layers[3]"
    assert told.endswith(f"there are 3 layers; `--drop '{drop}'` leaves the others out")
    nnxconv.convert(str(folder), str(tmp_path / "out"), to="maxtext", drop=[drop])
    assert len(parameters(tmp_path / "out")) == 3 + 9 * 3


def test_a_configuration_of_very_many_layers_is_refused_at_once(tmp_path):
    folder = of_llama(tmp_path / "hf", arrays_of("llama", SMALL), num_hidden_layers=10**12)
    told = refusal(folder, tmp_path / "out")
    assert told.startswith("error: the folder lacks ")
    assert told.endswith("there are 1,000,000,000,000 layers; are all files there?")


def test_biases_are_those_of_all_layers_or_of_none(tmp_path):
    arrays = arrays_of("qwen2", SMALL)
    del arrays["model.layers.1.self_attn.k_proj.bias"]
    folder = save_folder(tmp_path / "hf", "qwen2", SMALL, arrays)
    assert refusal(folder, tmp_path / "out") == (
        "error: the folder lacks 1 array of `hf-qwen2`\n"
        f"  model.layers[1].self_attn.k_proj.bias\n\n{WHOLE}"
    )


def test_an_output_layer_that_is_not_there_may_be_tied(tmp_path):
    arrays = arrays_of("llama", SMALL)
    del arrays["lm_head.weight"]
    told = refusal(of_llama(tmp_path / "hf", arrays), tmp_path / "out")
    assert told == (
        "error: the folder lacks 1 array of `hf-llama`\n  lm_head.weight\n\n"
        "hint: with `tie_word_embeddings` true in `config.json`, the embedding is used instead"
    )
    tied = of_llama(tmp_path / "tied", arrays, tie_word_embeddings=True)
    nnxconv.convert(str(tied), str(tmp_path / "out"), to="maxtext")
    check_equal(parameters(tmp_path / "out"), maxtext_of("llama", SMALL, arrays))


def test_experts_that_are_not_there_are_named(tmp_path):
    folder = save_folder(tmp_path / "hf", "mixtral", SMALL, arrays_of("mixtral", SMALL))
    told = {**config_of("mixtral", SMALL), "num_local_experts": 3}
    (folder / "config.json").write_text(json.dumps(told))
    shown = refusal(folder, tmp_path / "out")
    assert shown.startswith("error: the folder lacks 12 arrays of `hf-mixtral`\n")
    assert 'model.layers[0].block_sparse_moe.experts["2"].w1.weight' in shown


def test_a_checkpoint_of_fewer_or_more_layers_is_not_written_with_a_configuration(tmp_path):
    folder = of_llama(tmp_path / "hf", arrays_of("llama", SMALL))
    nnxconv.convert(str(folder), str(tmp_path / "mt"), to="maxtext", scan_layers=True)
    more = tmp_path / "config.json"
    more.write_text(json.dumps({**config_of("llama", SMALL), "num_hidden_layers": 5}))
    told = refusal(tmp_path / "mt", tmp_path / "back", to="hf", config=str(more))
    assert told.startswith("error: the checkpoint lacks 9 arrays of `hf-llama`\n")
    assert told.endswith("says that there are 5 layers; is it the one of this model?")
    more.write_text(json.dumps({**config_of("llama", SMALL), "num_hidden_layers": 3}))
    told = refusal(tmp_path / "mt", tmp_path / "back", to="hf", config=str(more))
    assert told.startswith("error: 9 parameters are none of `hf-llama`\n")
    assert told.endswith("there are 3 layers; `--drop GLOB` leaves the others out")


def test_of_quantised_weights_scales_are_not_said_to_be_left_out(tmp_path):
    arrays = arrays_of("llama", SMALL)
    name = "model.layers.0.mlp.up_proj.weight"
    arrays[name] = arrays[name].astype(ml_dtypes.float8_e4m3fn)
    arrays[f"{name}_scale_inv"] = np.ones((1, 1), np.float32)
    folder = of_llama(tmp_path / "hf", arrays, quantization_config={"quant_method": "fp8"})
    assert refusal(folder, tmp_path / "out") == (
        "error: the weights are quantised (`fp8`): 1 arrays are none of `hf-llama`\n"
        "  model.layers[0].mlp.up_proj.weight_scale_inv  f32[1,1]\n\n"
        "hint: transformers can load a model dequantised and save it; convert what it saves"
    )


def test_a_configuration_without_a_type_is_told_and_a_family_may_be_named(tmp_path):
    arrays = arrays_of("llama", SMALL)
    config = {k: v for k, v in config_of("llama", SMALL).items() if k != "model_type"}
    folder = save_tensors(tmp_path / "hf", config, arrays)
    told = refusal(folder, tmp_path / "out")
    assert told.startswith(
        "error: `config.json` does not say of which `model_type` the model is\n\n"
        "hint: `--rename` may name its family: hf-"
    )
    nnxconv.convert(str(folder), str(tmp_path / "out"), to="maxtext", rename="hf-llama")
    check_equal(parameters(tmp_path / "out"), maxtext_of("llama", SMALL, arrays))


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])
def test_an_output_layer_of_its_own_is_not_called_tied(kind, tmp_path):
    arrays = arrays_of(kind, SMALL)
    arrays["lm_head.weight"] = np.ones((30, 16), np.float32)
    folder = save_folder(tmp_path / "hf", kind, SMALL, arrays)
    told = {**config_of(kind, SMALL), "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(told))
    assert "arrays are none of `hf-gemma" in refusal(folder, tmp_path / "out")


GEMMAS = {
    "of today": ("model.language_model.", "model.vision_tower"),
    "as published": ("language_model.model.", "vision_tower"),
    "without its head": ("language_model.", "vision_tower"),
    "texts alone": ("", ""),
}
"""What stands before the names of Gemma 3's text model, and what its images go through."""


@pytest.mark.parametrize("way", GEMMAS)
def test_gemma_3_is_found_wherever_its_text_model_stands(way, tmp_path):
    texts = arrays_of("gemma3_text", SMALL)
    root, images = GEMMAS[way]
    arrays = {name.replace("model.", root, 1): array for name, array in texts.items()}
    config = config_of("gemma3_text", SMALL)
    if images:
        arrays[f"{images}.embeddings.weight"] = np.ones((4, 4), np.float32)
        config = {"model_type": "gemma3", "text_config": config}
    folder = save_tensors(tmp_path / "hf", config, arrays)
    result = nnxconv.convert(str(folder), str(tmp_path / "out"), to="maxtext")
    check_equal(parameters(tmp_path / "out"), maxtext_of("gemma3_text", SMALL, texts))
    assert set(result.account.left_out.values()) == (
        {"is not of the text model"} if images else set()
    )


def test_what_the_way_back_does_not_write_is_told(tmp_path):
    arrays = arrays_of("gemma2", SMALL)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    folder = save_folder(tmp_path / "hf", "gemma2", SMALL, arrays)
    nnxconv.convert(str(folder), str(tmp_path / "mt"), to="maxtext")
    shown = run("convert", tmp_path / "mt", tmp_path / "back", "--to", "hf", "--config", folder)
    why = "is tied: the embedding is used"
    assert f"not written, though the folder has it: `lm_head.weight` ({why})" in shown.stdout
