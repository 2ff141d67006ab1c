"""What Tunix' NNX models have of a folder of Hugging Face, by formulas of numpy.

Written from the models' code (google-tunix 0.1.7); nothing is shared with the rules.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from tests.support.hugging_face import Arrays, Sizes

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def tunix_of(kind: str, s: Sizes, a: Mapping[str, np.ndarray]) -> Arrays:
    """What Tunix has of a model, by path in the model."""
    is_gemma = kind.startswith("gemma")
    norm = "scale" if is_gemma else "w"
    found: Arrays = {"embedder/input_embedding": a["model.embed_tokens.weight"]}
    found[f"final_norm/{norm}"] = a["model.norm.weight"]
    if "lm_head.weight" in a:
        found["lm_head/w"] = a["lm_head.weight"].T
    for i in range(s.layers):
        head = f"model.layers.{i}."
        layer = {k.removeprefix(head): v for k, v in a.items() if k.startswith(head)}
        parts = _gemma(kind, s, layer) if is_gemma else _other(s, layer)
        found |= {f"layers/{i}/{path}": array for path, array in parts}
        found |= {f"layers/{i}/{path}": array for path, array in _mlp(kind, s, layer)}
    return found


def _heads(weight: np.ndarray, count: int, s: Sizes) -> np.ndarray:
    """(heads, head, width) of a projection of transformers."""
    return weight.reshape(count, s.head, s.width)


def _out(s: Sizes, a: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.einsum("dhk->hkd", a["self_attn.o_proj.weight"].reshape(s.width, s.heads, s.head))


def _other(s: Sizes, a: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield f"{norm}/w", a[f"{norm}.weight"]
    for one, count in (("q", s.heads), ("k", s.kv_heads), ("v", s.kv_heads)):
        weight = _heads(a[f"self_attn.{one}_proj.weight"], count, s)
        yield f"attn/{one}_proj/w", np.einsum("hkd->dhk", weight)
        if f"self_attn.{one}_proj.bias" in a:
            yield f"attn/{one}_bias", a[f"self_attn.{one}_proj.bias"]
        if f"self_attn.{one}_norm.weight" in a:
            yield f"attn/{one}_norm/w", a[f"self_attn.{one}_norm.weight"]
    yield "attn/o_proj/w", _out(s, a)


def _gemma(kind: str, s: Sizes, a: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    yield "pre_attention_norm/scale", a["input_layernorm.weight"]
    after = "post_attn_norm" if kind == "gemma2" else "post_attention_norm"
    yield f"{after}/scale", a["post_attention_layernorm.weight"]
    yield "pre_ffw_norm/scale", a["pre_feedforward_layernorm.weight"]
    yield "post_ffw_norm/scale", a["post_feedforward_layernorm.weight"]
    counts = {"q": s.heads, "k": s.kv_heads, "v": s.kv_heads}
    q, k, v = (
        np.einsum("hkd->hdk", _heads(a[f"self_attn.{one}_proj.weight"], count, s))
        for one, count in counts.items()
    )
    if s.heads == s.kv_heads:
        yield "attn/qkv_einsum/w", np.stack([q, k, v])
    else:
        yield "attn/q_einsum/w", q
        yield "attn/kv_einsum/w", np.stack([k, v])
    if kind == "gemma3_text":
        yield "attn/_query_norm/scale", a["self_attn.q_norm.weight"]
        yield "attn/_key_norm/scale", a["self_attn.k_norm.weight"]
    yield "attn/attn_vec_einsum/w", _out(s, a)


def _mlp(kind: str, s: Sizes, a: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    if kind == "qwen3_moe":
        yield "mlp/router/kernel", a["mlp.gate.weight"].T
        for one in _PROJECTIONS:
            every = [a[f"mlp.experts.{e}.{one}.weight"].T for e in range(s.experts)]
            yield f"mlp/{one}", np.stack(every)
    else:
        for one in _PROJECTIONS:
            yield f"mlp/{one}/kernel", a[f"mlp.{one}.weight"].T
