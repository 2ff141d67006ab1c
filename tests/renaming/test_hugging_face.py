"""Families of Hugging Face: MaxText's arrays are those of formulas, and of its own converter."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import nnxconv
from nnxconv.errors import BadInput
from nnxconv.renaming import templates
from nnxconv.renaming.hugging_face import model_types
from tests.support import checkpoints
from tests.support.command import run
from tests.support.hugging_face import (
    Sizes,
    arrays_of,
    config_of,
    maxtext_of,
    save_folder,
    save_tensors,
    stacked,
)

KINDS = [
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text"),
    *("gpt_oss", "olmo3"),
]
OTHER = Sizes(16, 2, 1, 8, 10, 30, 8, 2)
ROUNDED_BACK = ("llama", "mistral", "mixtral", "gemma2", "gemma3_text")
"""Families that MaxText keeps scaled or shifted."""


def parameters(path) -> dict[str, np.ndarray]:
    """What an Orbax item has below `params`, by path."""
    found: dict[str, np.ndarray] = {}

    def walk(tree, head):
        for name, inner in tree.items():
            if isinstance(inner, dict):
                walk(inner, f"{head}{name}/")
            else:
                found[head + name] = np.asarray(inner)

    walk(checkpoints.restore(Path(path))["params"]["params"], "")
    return found


def tensors(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def check_equal(found, wanted):
    assert found.keys() == wanted.keys()
    unequal = [k for k in found if not np.array_equal(found[k], wanted[k])]
    assert unequal == []


@pytest.mark.sample(6)
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("sizes", [Sizes(), OTHER], ids=["small", "other"])
@pytest.mark.parametrize("kind", KINDS)
def test_maxtext_has_what_the_formulas_say_bit_for_bit(kind, sizes, scan, tmp_path):
    arrays = arrays_of(kind, sizes)
    folder = save_folder(tmp_path / "hf", kind, sizes, arrays)
    result = nnxconv.convert(str(folder), str(tmp_path / "out"), to="maxtext", scan_layers=scan)
    apart = maxtext_of(kind, sizes, arrays)
    check_equal(parameters(tmp_path / "out"), stacked(kind, apart) if scan else apart)
    assert result.account.left_out == {}
    for pair in ((folder, tmp_path / "out"), (tmp_path / "out", folder)):
        report = nnxconv.compare(*map(str, pair), compare_values=True, atol=0, rtol=0)
        assert report.is_match


@pytest.mark.sample(5)
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_back_is_the_folder_byte_for_byte(kind, scan, tmp_path):
    """Of bfloat16, in which models are published; by way of float32, which keeps all of it."""
    arrays = arrays_of(kind, OTHER, dtype="bfloat16")
    folder = save_folder(tmp_path / "hf", kind, OTHER, arrays)
    nnxconv.convert(
        str(folder), str(tmp_path / "mt"), to="maxtext", scan_layers=scan, dtype="float32"
    )
    result = nnxconv.convert(
        str(tmp_path / "mt"), str(tmp_path / "back"), to="hf", config=str(folder)
    )
    found = tensors(tmp_path / "back")
    assert {k: v.dtype for k, v in found.items()} == {k: v.dtype for k, v in arrays.items()}
    shifted = [] if kind not in ("gemma2", "gemma3_text") else [k for k in arrays if "norm" in k]
    unequal = [k for k in arrays if not np.array_equal(found[k], arrays[k])]
    assert set(unequal) <= set(shifted)  # `w + 1` in float32 has not room for all of a small `w`
    for name in unequal:
        np.testing.assert_allclose(
            found[name].astype(np.float32), arrays[name].astype(np.float32), rtol=0, atol=2**-22
        )
    names = {"config.json", "tokenizer.json", "model.safetensors"}
    assert {path.name for path in (tmp_path / "back").iterdir()} == names
    told = "what MaxText keeps scaled or shifted comes back to within a rounding"
    assert (told in result.conversion.source.notes) == (kind in ROUNDED_BACK)


def test_a_folder_that_is_written_has_the_type_that_its_configuration_says(tmp_path):
    arrays = arrays_of("qwen3", OTHER)
    folder = save_folder(tmp_path / "hf", "qwen3", OTHER, arrays)
    nnxconv.convert(str(folder), str(tmp_path / "mt"), to="linen")
    (tmp_path / "config").mkdir()
    told = {**config_of("qwen3", OTHER), "torch_dtype": "bfloat16"}
    (tmp_path / "config/config.json").write_text(json.dumps(told))
    nnxconv.convert(
        str(tmp_path / "mt"),
        str(tmp_path / "back"),
        to="hf",
        config=str(tmp_path / "config/config.json"),
        params_only=True,
    )
    found = tensors(tmp_path / "back")
    assert {str(array.dtype) for array in found.values()} == {"bfloat16"}
    check_equal(found, {k: v.astype(found[k].dtype) for k, v in arrays.items()})


def test_what_maxtext_does_not_have_is_left_out_by_name(tmp_path):
    arrays = arrays_of("gemma2", OTHER)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    folder = save_folder(tmp_path / "hf", "gemma2", OTHER, arrays)
    result = nnxconv.convert(str(folder), str(tmp_path / "out"), to="maxtext")
    why = "is tied: the embedding is used"
    assert result.account.left_out == {("lm_head", "weight"): why}
    shown = run("convert", folder, tmp_path / "other", "--to", "maxtext").stdout
    assert f"left out  1 array of params.lm_head ({why})" in shown


def test_what_maxtext_does_not_have_is_no_difference_where_no_block_is_full(tmp_path):
    few = Sizes(16, 2, 1, 8, 10, 30, 2, 2)
    arrays = arrays_of("gemma3_text", few)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    folder = save_folder(tmp_path / "hf", "gemma3_text", few, arrays)
    nnxconv.convert(str(folder), str(tmp_path / "out"), to="maxtext", scan_layers=True)
    for pair in ((folder, tmp_path / "out"), (tmp_path / "out", folder)):
        assert nnxconv.compare(*map(str, pair), compare_values=True, atol=0, rtol=0).is_match


DEFAULTS = {
    "llama": Sizes(64, 32, 32, 2, 10, 30, 2, 2),
    "mistral": Sizes(64, 32, 8, 2, 10, 30, 2, 2),
    "mixtral": Sizes(64, 32, 8, 2, 10, 30, 1, 8),
    "qwen2": Sizes(64, 32, 32, 2, 10, 30, 2, 2),
    "qwen3": Sizes(16, 32, 32, 128, 10, 30, 1, 2),
    "qwen3_moe": Sizes(64, 32, 4, 2, 3, 30, 1, 128),
    "gemma2": Sizes(16, 8, 4, 256, 10, 30, 2, 2),
    "gemma3_text": Sizes(16, 8, 4, 256, 10, 30, 2, 2),
    "gpt_oss": Sizes(16, 64, 8, 64, 3, 30, 2, 128),
    "olmo3": Sizes(64, 32, 32, 2, 10, 30, 4, 2),
}
"""Sizes of which heads, their size and experts are those that transformers' classes have."""
LEFT_OUT = ("num_attention_heads", "num_key_value_heads", "head_dim", "num_experts")
LEFT_OUT += ("num_local_experts", "tie_word_embeddings")
"""What a writer of `config.json` may leave out where it is as the class has it."""


@pytest.mark.sample(6)
@pytest.mark.parametrize("kind", DEFAULTS)
def test_what_a_configuration_leaves_out_is_as_the_class_has_it(kind, tmp_path):
    sizes = DEFAULTS[kind]
    arrays = arrays_of(kind, sizes)
    folder = save_folder(tmp_path / "hf", kind, sizes, arrays)
    told = {k: v for k, v in config_of(kind, sizes).items() if k not in LEFT_OUT}
    (folder / "config.json").write_text(json.dumps(told))
    nnxconv.convert(str(folder), str(tmp_path / "out"), to="maxtext")
    check_equal(parameters(tmp_path / "out"), maxtext_of(kind, sizes, arrays))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_model_without_the_output_layer_around_it_is_converted_and_comes_back(kind, tmp_path):
    """As `LlamaModel` saves itself, beside `LlamaForCausalLM`."""
    arrays = arrays_of(kind, OTHER)
    wanted = maxtext_of(kind, OTHER, arrays)
    wanted.pop("decoder/logits_dense/kernel", None)
    bare = {k.removeprefix("model."): v for k, v in arrays.items() if k != "lm_head.weight"}
    folder = save_folder(tmp_path / "hf", kind, OTHER, bare)
    nnxconv.convert(str(folder), str(tmp_path / "out"), to="maxtext")
    check_equal(parameters(tmp_path / "out"), wanted)
    nnxconv.convert(str(tmp_path / "out"), str(tmp_path / "back"), to="hf", config=str(folder))
    assert tensors(tmp_path / "back").keys() == bare.keys()


def test_what_a_family_does_not_know_is_an_error_that_names_it(tmp_path):
    arrays = arrays_of("llama", OTHER)
    arrays["model.layers.0.self_attn.q_norm.weight"] = np.ones(8, np.float32)
    folder = save_folder(tmp_path / "hf", "llama", OTHER, arrays)
    with pytest.raises(BadInput) as refused:
        nnxconv.convert(str(folder), str(tmp_path / "out"), to="maxtext")
    assert refused.value.render() == (
        "error: 1 arrays are none of `hf-llama`\n"
        "  model.layers[0].self_attn.q_norm.weight  f32[8]\n\n"
        "hint: `--drop 'model.layers*.self_attn.q_norm.weight'` leaves it out of all layers"
    )
    drop = ["model.layers*.self_attn.q_norm.weight"]
    nnxconv.convert(str(folder), str(tmp_path / "out"), to="maxtext", drop=drop)
    assert len(parameters(tmp_path / "out")) == 3 + 9 * OTHER.layers


def test_a_model_of_no_family_is_named_and_can_keep_its_names(tmp_path):
    folder = save_folder(tmp_path / "hf", "llama", OTHER, arrays_of("llama", OTHER))
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(BadInput) as refused:
        nnxconv.convert(str(folder), str(tmp_path / "out"), to="maxtext")
    assert refused.value.message == "no family of nnxconv has models of the type `mamba`"
    nnxconv.convert(str(folder), str(tmp_path / "out"), to="nnx-pure")
    assert nnxconv.compare(str(folder), str(tmp_path / "out"), compare_values=True).is_match


@pytest.mark.parametrize("to", ["maxtext", "tunix"])
def test_a_folder_that_does_not_say_of_which_model_it_is_gets_no_names(to, tmp_path):
    folder = save_folder(tmp_path / "hf", "llama", OTHER, arrays_of("llama", OTHER))
    (folder / "config.json").unlink()
    with pytest.raises(BadInput) as refused:
        nnxconv.convert(str(folder), str(tmp_path / "out"), to=to)
    assert refused.value.render() == (
        f"error: `--to {to}` needs to know which model these are the weights of\n"
        f"  at {folder}\n"
        "  `lm_head.weight` is no name of it, and there is no `config.json`\n\n"
        "hint: put the model's `config.json` beside them, or give `--rename FILE`"
        "; `--to nnx-pure` keeps the names"
    )


def test_hf_needs_a_configuration_and_nothing_else_takes_one(tmp_path):
    folder = save_folder(tmp_path / "hf", "llama", OTHER, arrays_of("llama", OTHER))
    for options in ({"to": "hf"}, {"to": "maxtext", "config": str(folder)}):
        with pytest.raises(BadInput, match="--config"):
            nnxconv.convert(str(folder), str(tmp_path / "out"), **options)


def test_a_configuration_that_lacks_what_a_family_needs_is_told(tmp_path):
    folder = save_folder(tmp_path / "hf", "llama", OTHER, arrays_of("llama", OTHER))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadInput, match="does not tell what `hf-llama` needs"):
        nnxconv.convert(str(folder), str(tmp_path / "out"), to="maxtext")


def test_a_family_is_followed_by_name_when_a_folder_is_opened(tmp_path):
    arrays = arrays_of("qwen3", OTHER)
    folder = save_folder(tmp_path / "hf", "qwen3", OTHER, arrays)
    opened = nnxconv.open(str(folder), rename="hf-qwen3")
    wanted = maxtext_of("qwen3", OTHER, arrays)
    found = opened["params.decoder.layers[3].self_attention.out.kernel"]
    np.testing.assert_array_equal(found, wanted["decoder/layers_3/self_attention/out/kernel"])
    assert len(opened) == len(wanted)


def test_a_model_of_a_sibling_type_is_converted_when_its_family_is_named(tmp_path):
    """OLMo 2 has the arrays of OLMo 3; what runs them differs, so it has to be asked for."""
    arrays = arrays_of("olmo3", OTHER)
    folder = save_folder(tmp_path / "hf", "olmo3", OTHER, arrays)
    told = {**config_of("olmo3", OTHER), "model_type": "olmo2"}
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(BadInput, match="no family of nnxconv has models of the type `olmo2`"):
        nnxconv.convert(str(folder), str(tmp_path / "out"), to="maxtext")
    nnxconv.convert(str(folder), str(tmp_path / "out"), to="maxtext", rename="hf-olmo")
    check_equal(parameters(tmp_path / "out"), maxtext_of("olmo3", OTHER, arrays))


SHARED = ["llama3.1-8b", "qwen3-4b", "gemma2-2b", "mixtral-8x7b"]
SHARED += ["deepseek2-16b", "qwen3-next-80b-a3b", "gemma4-26b"]


@pytest.mark.sample(3)
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("model", SHARED)
def test_maxtexts_own_converter_makes_the_same_bit_for_bit(model, scan, conformance, tmp_path):
    file = conformance / "hf" / model / f"maxtext_{'stacked' if scan else 'apart'}.npz"
    if not file.exists():
        pytest.skip(f"there is no {file.name} of {model}")
    result = nnxconv.convert(
        str(conformance / "hf" / model / "hf"),
        str(tmp_path / "out"),
        to="maxtext",
        scan_layers=scan,
    )
    wanted = {k.removeprefix("params/"): v for k, v in np.load(file).items()}
    check_equal(parameters(tmp_path / "out"), wanted)
    nnxconv.convert(
        str(tmp_path / "out"),
        str(tmp_path / "back"),
        to="hf",
        config=str(conformance / "hf" / model / "hf"),
    )
    there, back = tensors(conformance / "hf" / model / "hf"), tensors(tmp_path / "back")
    assert there.keys() - back.keys() == {".".join(map(str, k)) for k in result.account.left_out}
    for name, array in back.items():
        np.testing.assert_allclose(array, there[name], rtol=0, atol=2.5e-7)


@pytest.mark.parametrize("lines", ['["one", "two"]', '[\n    "one",\n    "two",  # a comment\n]'])
def test_the_types_of_a_family_may_stand_on_several_lines(lines: str):
    assert model_types(f"[family]\nmodel_types = {lines}\nperiod = 2\n") == ["one", "two"]


def test_every_family_names_its_types():
    assert all(model_types(text) for text in templates().values())


def qwen3_vl(path: Path, kind: str, sizes: Sizes, arrays, *, is_tied: bool) -> Path:
    """A folder of Qwen3-VL with the text model of a Qwen 3, and an encoder of images."""
    texts = {n.replace("model.", "model.language_model."): a for n, a in arrays.items()}
    if kind == "qwen3_moe":
        texts = {n: a for n, a in texts.items() if ".experts." not in n}
        for i in range(sizes.layers):
            head = f"model.layers.{i}.mlp.experts"
            gate, up, down = (
                np.stack([arrays[f"{head}.{e}.{n}_proj.weight"].T for e in range(sizes.experts)])
                for n in ("gate", "up", "down")
            )
            there = f"model.language_model.layers.{i}.mlp.experts"
            texts[f"{there}.gate_up_proj"] = np.ascontiguousarray(np.concatenate([gate, up], -1))
            texts[f"{there}.down_proj"] = np.ascontiguousarray(down)
    texts["model.visual.pos_embed.weight"] = np.ones((3, 4), np.float32)
    model_type = kind.replace("qwen3", "qwen3_vl")
    told = {**config_of(kind, sizes), "model_type": f"{model_type}_text"}
    whole = {"model_type": model_type, "tie_word_embeddings": is_tied, "text_config": told}
    return save_tensors(path, whole, texts)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_qwen3_vl_has_the_text_model_of_qwen3(kind, scan, tmp_path):
    sizes = Sizes()
    arrays = arrays_of(kind, sizes)
    folder = qwen3_vl(tmp_path / "hf", kind, sizes, arrays, is_tied=False)
    there, back = tmp_path / "mt", tmp_path / "back"
    result = nnxconv.convert(str(folder), str(there), to="maxtext", scan_layers=scan)
    apart = maxtext_of(kind, sizes, arrays)
    check_equal(parameters(there), stacked(kind, apart) if scan else apart)
    assert list(result.account.left_out.values()) == ["is not of the text model"]
    nnxconv.convert(str(there), str(back), to="hf", config=str(folder))
    mine = {n: a for n, a in tensors(folder).items() if "visual" not in n}
    check_equal(tensors(back), mine)


def test_whether_the_output_layer_is_tied_is_the_whole_models_as_in_transformers_5(tmp_path):
    sizes = Sizes(layers=1)
    arrays = arrays_of("qwen3", sizes)
    folder = qwen3_vl(tmp_path / "hf", "qwen3", sizes, arrays, is_tied=True)
    result = nnxconv.convert(str(folder), str(tmp_path / "mt"), to="maxtext")
    assert "is tied: the embedding is used" in result.account.left_out.values()
    assert "decoder/logits_dense/kernel" not in parameters(tmp_path / "mt")


def test_a_type_may_be_told_of_the_text_model_alone(tmp_path):
    sizes = Sizes(layers=1)
    arrays = arrays_of("qwen3", sizes)
    folder = qwen3_vl(tmp_path / "hf", "qwen3", sizes, arrays, is_tied=False)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "model_type": ""}))
    nnxconv.convert(str(folder), str(tmp_path / "mt"), to="maxtext")
    check_equal(parameters(tmp_path / "mt"), maxtext_of("qwen3", sizes, arrays))


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])
def test_norms_of_bfloat16_that_are_shifted_are_float32_as_maxtexts_own_and_come_back(
    kind, tmp_path
):
    sizes = Sizes(layers=2)
    arrays = arrays_of(kind, sizes, dtype="bfloat16")
    folder = save_folder(tmp_path / "hf", kind, sizes, arrays)
    there, back = tmp_path / "mt", tmp_path / "back"
    done = run("convert", folder, there, "--to", "maxtext", "--no-scan_layers")
    assert (
        "what is scaled is rounded to bfloat16, and what is shifted becomes float32, as MaxText's"
        " converter has it; `--dtype float32` is exact for all\n"
    ) in done.stdout
    found = parameters(there)
    exact = maxtext_of(kind, sizes, {k: v.astype(np.float32) for k, v in arrays.items()})
    norms = [k for k in found if k.endswith("/scale")]
    check_equal({k: found[k] for k in norms}, {k: exact[k] for k in norms})
    kinds = {str(v.dtype) for k, v in found.items() if k not in norms}
    assert (kinds, {str(found[k].dtype) for k in norms}) == ({"bfloat16"}, {"float32"})
    assert nnxconv.compare(str(folder), str(there), compare_values=True, atol=0, rtol=0).is_match
    nnxconv.convert(str(there), str(back), to="hf", config=str(folder))
    again = {k: v for k, v in tensors(back).items() if "norm" in k}
    check_equal(again, {k: arrays[k] for k in again})
