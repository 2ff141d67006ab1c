"""Adapters of PEFT to MaxText and Tunix and back, by the rules of their model's family."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import nnxconv
from nnxconv.errors import BadInput
from tests.renaming.test_hugging_face import check_equal
from tests.support import checkpoints
from tests.support.hugging_face import Arrays, Sizes, arrays_of, config_of, save_folder
from tests.support.peft import RANK, ROOT, factors_of, save_adapter

SIZES = Sizes(12, 4, 2, 16, 20, 24, 4, 3)
"""Queries are scaled by a quarter, so that nothing is rounded."""
LAYER = "model.layers.0.self_attn"


def factors(kind: str, **how: str) -> Arrays:
    return factors_of(kind, SIZES, **how)


def saved(tmp_path: Path, kind: str, arrays: Arrays) -> tuple[str, str]:
    """A folder of PEFT, and that of its model."""
    model = save_folder(tmp_path / "hf", kind, SIZES, arrays_of(kind, SIZES))
    return str(save_adapter(tmp_path / "peft", arrays)), str(model)


CASES = [
    *(("llama", to, scan) for to in ("maxtext", "nnx", "linen") for scan in (False, True)),
    *((kind, "maxtext", True) for kind in ("mixtral", "qwen3_moe", "gemma2", "gemma3_text")),
    *((kind, "nnx", True) for kind in ("gpt_oss", "olmo3")),
    *((kind, "tunix", None) for kind in ("llama", "qwen2", "qwen3")),
]


@pytest.mark.sample(3)
@pytest.mark.parametrize(("kind", "to", "scan"), CASES)
def test_an_adapter_comes_back_byte_for_byte_with_its_configuration(kind, to, scan, tmp_path):
    peft, model = saved(tmp_path, kind, factors(kind))
    there, back = str(tmp_path / "there"), tmp_path / "back"
    result = nnxconv.convert(peft, there, to=to, config=model, scan_layers=scan, verify=True)
    assert result.extra_files == ("adapter_config.json",)
    nnxconv.convert(there, str(back), to="hf", config=model)
    files = ["adapter_config.json", "adapter_model.safetensors"]
    assert sorted(file.name for file in back.iterdir()) == files
    for name in files:
        assert (back / name).read_bytes() == (Path(peft) / name).read_bytes()


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("kind", "to", "scan"), [case for case in CASES if case[1] != "nnx" and case[0] != "qwen2"]
)
def test_merged_before_or_after_the_weights_are_the_same(kind, to, scan, tmp_path):
    peft, model = saved(tmp_path, kind, factors(kind))
    paths = {name: str(tmp_path / name) for name in ("base", "lora", "hf_merged", "one", "other")}
    how = {"to": to, "scan_layers": scan}
    nnxconv.convert(model, paths["base"], **how)
    nnxconv.convert(peft, paths["lora"], config=model, **how)
    nnxconv.merge_lora(paths["base"], paths["lora"], paths["one"])
    nnxconv.merge_lora(model, peft, paths["hf_merged"])
    nnxconv.convert(paths["hf_merged"], paths["other"], **how)
    report = nnxconv.compare(
        paths["one"], paths["other"], compare_values=True, rtol=1e-5, atol=2e-5
    )
    assert report.is_match


def leaves(path: Path) -> Arrays:
    """The arrays of an Orbax item, by path."""
    found: Arrays = {}

    def walk(tree, head):
        for name, inner in tree.items():
            if isinstance(inner, dict):
                walk(inner, f"{head}{name}/")
            else:
                found[head + name] = np.asarray(inner)

    walk(checkpoints.restore(path), "")
    return found


def test_maxtext_has_factors_of_two_axes_and_queries_scaled_and_in_pairs(tmp_path):
    adapter = factors("llama", only="q_proj.weight")
    peft, model = saved(tmp_path, "llama", adapter)
    nnxconv.convert(peft, str(tmp_path / "out"), to="nnx", config=model, scan_layers=True)
    order = [j // 2 + SIZES.head // 2 * (j % 2) for j in range(SIZES.head)]
    a, b = [], []
    for layer in range(SIZES.layers):
        module = f"{ROOT}model.layers.{layer}.self_attn.q_proj"
        a.append(adapter[f"{module}.lora_A.weight"].T)
        heads = adapter[f"{module}.lora_B.weight"].reshape(SIZES.heads, SIZES.head, RANK)
        b.append(heads[:, order].reshape(-1, RANK).T * np.float32(0.25))
    root = "decoder/layers/self_attention/query/kernel_lora"
    wanted = {f"{root}_a/value": np.stack(a, 1), f"{root}_b/value": np.stack(b, 1)}
    check_equal(leaves(tmp_path / "out"), wanted)


def test_tunix_has_heads_apart(tmp_path):
    adapter = factors("qwen3", only="o_proj.weight")
    peft, model = saved(tmp_path, "qwen3", adapter)
    nnxconv.convert(peft, str(tmp_path / "run/0"), to="tunix", config=model)
    found = leaves(tmp_path / "run/0/model_params")
    a = adapter[f"{ROOT}model.layers.2.self_attn.o_proj.lora_A.weight"]
    wanted = a.T.reshape(SIZES.heads, SIZES.head, RANK)
    np.testing.assert_array_equal(found["layers/2/attn/o_proj/w_lora_a/value"], wanted)
    assert len(found) == 2 * SIZES.layers


def test_an_adapter_that_maxtext_of_linen_saved_goes_to_peft(tmp_path):
    """It has None where the model has a parameter without an adapter, and no second `params`."""
    made = np.random.default_rng(3)
    a = made.standard_normal((SIZES.width, SIZES.layers, RANK)).astype("f4")
    b = made.standard_normal((RANK, SIZES.layers, SIZES.heads, SIZES.head)).astype("f4")
    attention = {"query": {"lora_a.kernel": a, "lora_b.kernel": b}, "key": {"kernel": None}}
    tree = {"decoder": {"layers": {"self_attention": attention}, "norm": {"scale": None}}}
    checkpoints.save_root(tmp_path / "lora", {0: {"step": 0, "params": tree, "opt_state": {}}})
    (tmp_path / "lora/adapter_config.json").write_text('{"r": 2}')
    model = save_folder(tmp_path / "hf", "qwen3", SIZES, arrays_of("qwen3", SIZES))
    nnxconv.convert(str(tmp_path / "lora"), str(tmp_path / "back"), to="hf", config=str(model))
    found = load_file(tmp_path / "back/adapter_model.safetensors")
    assert (tmp_path / "back/adapter_config.json").read_text() == '{"r": 2}'
    assert len(found) == 2 * SIZES.layers
    for layer in range(SIZES.layers):
        module = f"{ROOT}model.layers.{layer}.self_attn.q_proj"
        np.testing.assert_array_equal(found[f"{module}.lora_A.weight"], a[:, layer].T)
        merged = b[:, layer].reshape(RANK, -1).T
        np.testing.assert_array_equal(found[f"{module}.lora_B.weight"], merged)


def test_what_no_rule_covers_is_an_error_that_names_it(tmp_path):
    adapter = factors("llama", only="q_proj.weight")
    adapter[f"{ROOT}{LAYER}.q_proj.lora_magnitude_vector"] = np.ones(64, np.float32)
    peft, model = saved(tmp_path, "llama", adapter)
    with pytest.raises(BadInput) as refused:
        nnxconv.convert(peft, str(tmp_path / "out"), to="maxtext", config=model)
    assert refused.value.render() == (
        "error: 1 arrays are none of `hf-llama`\n"
        "  base_model.model.model.layers[0].self_attn.q_proj.lora_magnitude_vector  f32[64]\n\n"
        "hint: `--drop 'base_model.model.model.layers*.self_attn.q_proj.lora_magnitude_vector'`"
        " leaves it out of all layers"
    )


def test_queries_and_keys_that_tunix_has_in_one_array_have_no_adapter_there(tmp_path):
    """Its one pair of factors is not two: nothing of the same rank is the same."""
    peft, model = saved(tmp_path, "gemma2", factors("gemma2"))
    with pytest.raises(BadInput, match="16 arrays are none of `hf-gemma2-tunix`"):
        nnxconv.convert(peft, str(tmp_path / "out"), to="tunix", config=model)


def test_the_model_has_to_be_named_or_described_beside_the_adapter(tmp_path):
    peft, model = saved(tmp_path, "llama", factors("llama"))
    with pytest.raises(BadInput) as refused:
        nnxconv.convert(peft, str(tmp_path / "out"), to="maxtext")
    assert refused.value.render() == (
        f"error: adapters of PEFT do not say which model they belong to\n  at {peft}\n\n"
        "hint: `--config HF_DIR` names the model's folder, or its `config.json`"
    )
    (Path(peft) / "config.json").write_text(json.dumps(config_of("llama", SIZES)))
    nnxconv.convert(peft, str(tmp_path / "out"), to="maxtext")
    with pytest.raises(BadInput, match="`--config` is for `--to hf`, and for adapters of PEFT"):
        nnxconv.convert(model, str(tmp_path / "other"), to="maxtext", config=model)


def test_without_its_configuration_an_adapter_is_not_written_for_peft(tmp_path):
    peft, model = saved(tmp_path, "llama", factors("llama"))
    nnxconv.convert(peft, str(tmp_path / "out"), to="nnx", config=model)
    (tmp_path / "out/adapter_config.json").unlink()
    with pytest.raises(BadInput, match=r"there is no `adapter_config\.json`"):
        nnxconv.convert(str(tmp_path / "out"), str(tmp_path / "back"), to="hf", config=model)
    assert not (tmp_path / "back").exists()
