"""Rotary orders, scales and offsets, which no name tells: a family's rules do, or nothing."""

import json

import pytest

import nnxconv
from nnxconv.matching.proposing import pair
from tests.support.hugging_face import Sizes, arrays_of, save_folder
from tests.support.layouts import source_tree

SIZES = Sizes(16, 2, 1, 8, 10, 30, 8, 2)
KINDS = ["llama", "gemma2", "qwen3_moe", "gpt_oss", "mixtral", "gemma3_text", "olmo3"]


def both(kind, root, to="maxtext", **how):
    """A folder of a model, and what nnxconv makes of it."""
    folder = save_folder(root / "hf", kind, SIZES, arrays_of(kind, SIZES))
    nnxconv.convert(str(folder), str(root / "other"), to=to, params_only=True, **how)
    return str(folder), str(root / "other")


@pytest.mark.sample(2)
@pytest.mark.parametrize("by_values", [False, True], ids=["by names", "by values"])
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_rules_of_a_family_lead_to_maxtext_with_all_of_their_steps(
    kind, scan, by_values, tmp_path
):
    folder, target = both(kind, tmp_path, scan_layers=scan)
    found = nnxconv.match(folder, target, by_values=by_values)
    assert found.is_complete, found.summary()
    assert {one.evidence[:6] for one in found.pairs.certain} == {"by `hf"}
    (tmp_path / "rules.toml").write_text(found.to_toml())
    how = {"to": "maxtext", "rename": str(tmp_path / "rules.toml"), "scan_layers": scan}
    nnxconv.convert(folder, str(tmp_path / "out"), **how)
    report = nnxconv.compare(
        str(tmp_path / "out"), target, compare_values=True, atol=0, rtol=0, compare_only="params"
    )
    assert report.is_match, report.render()


@pytest.mark.sample(2)
@pytest.mark.parametrize(("kind", "to"), [("gemma2", "maxtext"), ("llama", "tunix")])
def test_the_rules_of_a_family_lead_back(kind, to, tmp_path):
    folder, source = both(kind, tmp_path, to)
    found = nnxconv.match(source, folder)
    assert found.is_complete, found.summary()
    out = str(tmp_path / "out.safetensors")
    nnxconv.convert(source, out, to="safetensors", rename=found.rules, params_only=True)
    report = nnxconv.compare(out, folder, compare_values=True, atol=1e-6, rtol=1e-6)
    assert report.is_match, report.render()


def test_without_a_family_what_maxtext_keeps_otherwise_is_only_proposed(tmp_path):
    folder, target = both("gemma2", tmp_path, scan_layers=False)
    config = tmp_path / "hf/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "unheard_of"}))
    found = nnxconv.match(folder, target)
    certain = [str(m) for p in found.pairs.certain for m in p.sources]
    told = [m for m in certain if "norm" in m or m.endswith(("q_proj", "k_proj", "embed_tokens"))]
    assert told == []


BLOCK = """
params/{head}{token}/weight f32[7,8]
params/{head}layers/0/{attention}.{q}/weight f32[8,8]
params/{head}layers/0/{attention}.{k}/weight f32[4,8]
params/{head}layers/0/{attention}.{v}/weight f32[4,8]
params/{head}layers/0/{norm}/weight f32[8]
params/{head}layers/0/{other_norm}/weight f32[8]
"""


def test_meta_keeps_rotary_heads_otherwise_than_transformers():
    meta = BLOCK.format(
        head="",
        token="tok_embeddings",
        attention="attention",
        **{name: f"w{name}" for name in "qkv"},
        norm="attention_norm",
        other_norm="ffn_norm",
    )
    transformers = BLOCK.format(
        head="model/",
        token="embed_tokens",
        attention="self_attn",
        **{name: f"{name}_proj" for name in "qkv"},
        norm="input_layernorm",
        other_norm="post_attention_layernorm",
    )
    found = pair(source_tree(meta), source_tree(transformers))
    assert {str(one.sources[0]): one.evidence for one in found.proposed} == {
        "layers.#.attention.wq": "both are the query; rotary heads may be halves or pairs",
        "layers.#.attention.wk": "both are the key; rotary heads may be halves or pairs",
    }
    assert len(found.certain) == 4
    same = pair(source_tree(meta), source_tree(meta))
    assert len(same.certain) == 6
