"""Families of Hugging Face in Tunix' NNX models: as formulas say, and as Tunix' own loaders do.

`NNXCONV_TUNIX` names the Python of an environment with google-tunix, which needs no nnxconv.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nnxconv
from nnxconv.errors import BadInput
from nnxconv.renaming import templates
from nnxconv.renaming.hugging_face import model_types, target_of
from tests.support import checkpoints
from tests.support.hugging_face import Sizes, arrays_of, config_of, save_folder
from tests.support.hugging_face_tunix import tunix_of

KINDS = ["llama", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text"]
SIZES = [Sizes(), Sizes(16, 2, 2, 8, 10, 30, 2, 2)]
"""Fewer heads of keys than of queries, and as many."""
PYTHON = os.environ.get("NNXCONV_TUNIX", "")


def parameters(path: Path) -> dict[str, np.ndarray]:
    """What the item `model_params` of a step has, by path in the model."""
    found: dict[str, np.ndarray] = {}

    def walk(tree, head):
        for name, inner in tree.items():
            if isinstance(inner, dict) and inner.keys() != {"value"}:
                walk(inner, f"{head}{name}/")
            else:
                found[head + name] = np.asarray(inner["value"])

    walk(checkpoints.restore(path / "model_params"), "")
    return found


def tensors(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: array for file in files for name, array in load_file(file).items()}


def check_equal(found, wanted):
    assert found.keys() == wanted.keys()
    assert [k for k in found if found[k].tobytes() != wanted[k].tobytes()] == []


@pytest.mark.sample(3)
@pytest.mark.parametrize("sizes", SIZES, ids=["fewer", "as many"])
@pytest.mark.parametrize("kind", KINDS)
def test_tunix_has_what_the_formulas_say_and_it_comes_back_byte_for_byte(kind, sizes, tmp_path):
    arrays = arrays_of(kind, sizes, dtype="bfloat16")
    folder = save_folder(tmp_path / "hf", kind, sizes, arrays)
    result = nnxconv.convert(str(folder), str(tmp_path / "out"), to="tunix")
    assert result.account.left_out == {}
    check_equal(parameters(tmp_path / "out"), tunix_of(kind, sizes, arrays))
    exact = {"compare_values": True, "atol": 0, "rtol": 0}
    for pair in ((folder, tmp_path / "out"), (tmp_path / "out", folder)):
        assert nnxconv.compare(*map(str, pair), **exact).is_match
    nnxconv.convert(str(tmp_path / "out"), str(tmp_path / "back"), to="hf", config=str(folder))
    check_equal(tensors(tmp_path / "back"), arrays)


def test_a_model_of_maxtext_becomes_one_of_tunix_by_way_of_the_names_between(tmp_path):
    arrays = arrays_of("qwen3", SIZES[0])
    folder = save_folder(tmp_path / "hf", "qwen3", SIZES[0], arrays)
    nnxconv.convert(str(folder), str(tmp_path / "mt"), to="maxtext", scan_layers=True)
    nnxconv.convert(str(tmp_path / "mt"), str(tmp_path / "back"), to="hf", config=str(folder))
    nnxconv.convert(str(tmp_path / "back"), str(tmp_path / "tunix"), to="tunix")
    check_equal(parameters(tmp_path / "tunix"), tunix_of("qwen3", SIZES[0], arrays))


def test_an_output_layer_that_is_tied_is_left_out_by_name(tmp_path):
    arrays = arrays_of("llama", SIZES[0])
    folder = save_folder(tmp_path / "hf", "llama", SIZES[0], arrays)
    told = {**config_of("llama", SIZES[0]), "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(told))
    result = nnxconv.convert(str(folder), str(tmp_path / "out"), to="tunix")
    why = "is tied: the embedding is used"
    assert result.account.left_out == {("lm_head", "weight"): why}
    assert "lm_head/w" not in parameters(tmp_path / "out")


def test_a_type_that_tunix_has_no_model_of_is_refused(tmp_path):
    arrays = arrays_of("mixtral", SIZES[1])
    folder = save_folder(tmp_path / "hf", "mixtral", SIZES[1], arrays)
    with pytest.raises(BadInput) as refused:
        nnxconv.convert(str(folder), str(tmp_path / "out"), to="tunix")
    assert refused.value.render() == (
        "error: no family of nnxconv has models of the type `mixtral` and names of tunix\n"
        "  known are gemma2, gemma3, gemma3_text, llama, qwen2, qwen3, qwen3_moe\n\n"
        "hint: `nnxconv match SRC TEMPLATE` proposes rules; `--to nnx-pure` keeps the names"
    )


def test_back_to_hugging_face_no_rules_but_a_familys_are_followed(tmp_path):
    folder = save_folder(tmp_path / "hf", "qwen3", SIZES[1], arrays_of("qwen3", SIZES[1]))
    with pytest.raises(BadInput, match="`--to hf` follows the rules of a family"):
        nnxconv.convert(
            str(folder), str(tmp_path / "x"), to="hf", config=str(folder), rename="gemma4-nnx"
        )


def test_every_family_of_tunix_is_tried():
    of_tunix = [text for text in templates().values() if target_of(text) == "tunix"]
    assert {kind for text in of_tunix for kind in model_types(text)} - {"gemma3"} == set(KINDS)


WITNESS = """
import dataclasses, importlib, json, sys
import flax, numpy as np
from flax import nnx

module, loader, source, target, told = sys.argv[1:]
lib = importlib.import_module(f"tunix.models.{module}.model")
told = json.loads(told)
if hasattr(lib, "AttentionType"):
    told["attention_types"] = [lib.AttentionType.GLOBAL] * told["num_layers"]
known = {f.name for f in dataclasses.fields(lib.ModelConfig)}
config = lib.ModelConfig(**{k: v for k, v in told.items() if k in known})
load = importlib.import_module(f"tunix.models.{module}.{loader}").create_model_from_safe_tensors
model = load(source, config, mode="original")
state = flax.traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
np.savez(target, **{"/".join(map(str, k)): np.asarray(v) for k, v in state.items()})
"""

MODULES = {
    "llama": ("llama3", "params"),
    "qwen2": ("qwen2", "params"),
    "qwen3": ("qwen3", "params"),
    "qwen3_moe": ("qwen3", "params"),
    "gemma2": ("gemma", "params_safetensors"),
    "gemma3_text": ("gemma3", "params_safetensors"),
}
"""The modules of Tunix that have a model, and that load it."""


def told_to_tunix(kind: str, s: Sizes) -> dict[str, object]:
    """Fields of Tunix' `ModelConfig`; those that a model does not have are passed over."""
    return {
        "num_layers": s.layers,
        "vocab_size": s.vocabulary,
        "num_embed": s.vocabulary,
        "embed_dim": s.width,
        "hidden_dim": s.mlp,
        "num_heads": s.heads,
        "head_dim": s.head,
        "num_kv_heads": s.kv_heads,
        "rope_theta": 10_000,
        "norm_eps": 1e-6,
        "final_logit_softcap": None,
        "use_post_attn_norm": True,
        "use_post_ffw_norm": True,
        "attention_types": None,
        "sliding_window_size": 8,
        "num_experts": s.experts if kind == "qwen3_moe" else None,
        "num_experts_per_tok": 2 if kind == "qwen3_moe" else None,
    }


@pytest.mark.skipif(not PYTHON, reason="`NNXCONV_TUNIX` names no Python of one with Tunix")
@pytest.mark.parametrize("sizes", SIZES, ids=["fewer", "as many"])
@pytest.mark.parametrize("kind", KINDS)
def test_tunix_own_loader_makes_the_same_bit_for_bit(kind, sizes, tmp_path):
    folder = tmp_path / "hf"
    save_folder(folder, kind, sizes, arrays_of(kind, sizes))
    whole = tmp_path / "whole"  # its loader joins within a file, and projections are in several
    whole.mkdir()
    save_file(arrays_of(kind, sizes), whole / "model.safetensors", {"format": "pt"})
    told = json.dumps(told_to_tunix(kind, sizes))
    subprocess.run(
        [PYTHON, "-c", WITNESS, *MODULES[kind], whole, tmp_path / "theirs.npz", told],
        check=True,
        timeout=300,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ""},
    )
    nnxconv.convert(str(folder), str(tmp_path / "out"), to="tunix")
    check_equal(parameters(tmp_path / "out"), dict(np.load(tmp_path / "theirs.npz")))
