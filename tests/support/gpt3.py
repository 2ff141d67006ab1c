"""A small GPT-3 in plain numpy, on parameters under MaxText's names.

Layer norms come before attention and MLP and add 1 to their scale; positions are learned; the
embedding is also the output's; gelu is the tanh one. Queries are divided by the square root of the
head dim, here as in praxis and MaxText: that is part of the model, and none of the weights'.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

EPSILON = 1e-5
Params = Mapping[str, Any]


def logits(params: Params, ids: np.ndarray, *, layer_axis: int = 1) -> np.ndarray:
    """f64[batch, length, vocabulary] for int[batch, length].

    Args:
      params: what lies under `params/params`: layers stacked or apart, QKV fused or split.
      ids: tokens.
      layer_axis: where stacked layers lie.
    """
    decoder = params["decoder"]
    embedding = _float(params["token_embedder"]["embedding"])
    positions = _float(decoder["position_embedder"]["embedding"])
    x = embedding[ids] + positions[: ids.shape[1]]
    for layer in _layers(decoder, layer_axis):
        x = x + _attention(layer["self_attention"], _norm(layer["pre_self_attention_norm"], x))
        x = x + _mlp(layer["mlp"], _norm(layer["mlp"]["mlp_layer_norm"], x))
    return _norm(decoder["decoder_norm"], x) @ embedding.T


def _layers(decoder: Params, axis: int) -> Iterator[Params]:
    if "layers" not in decoder:
        for index in range(sum(name.startswith("layers_") for name in decoder)):
            yield _map(_float, decoder[f"layers_{index}"])
        return
    count = decoder["layers"]["mlp"]["mlp_layer_norm"]["scale"].shape[axis]
    for index in range(count):
        yield _map(lambda array, i=index: _float(np.take(array, i, axis)), decoder["layers"])


def _norm(norm: Params, x: np.ndarray) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    variance = np.square(x - mean).mean(-1, keepdims=True)
    normal = (x - mean) / np.sqrt(variance + EPSILON)
    return normal * (1 + _float(norm["scale"])) + _float(norm["bias"])


def _attention(attention: Params, x: np.ndarray) -> np.ndarray:
    """Of the tokens before and up to each one; b batch, t and s places, n heads, h, d embedding."""
    query, key, value = _projections(attention, x)
    scores = np.einsum("btnh,bsnh->bnts", query / np.sqrt(query.shape[-1]), key)
    is_before = np.tri(x.shape[1], dtype=bool)
    shares = np.exp(scores - scores.max(-1, keepdims=True)) * is_before
    shares /= shares.sum(-1, keepdims=True)
    mixed = np.einsum("bnts,bsnh->btnh", shares, value)
    out = attention["out"]
    return np.einsum("btnh,nhd->btd", mixed, out["kernel"]) + out["bias"]


def _projections(attention: Params, x: np.ndarray) -> Iterator[np.ndarray]:
    """Queries, keys and values."""
    if "qkv_proj" in attention:
        fused = attention["qkv_proj"]
        both = [(fused["kernel"][:, i], fused["bias"][i]) for i in range(3)]
    else:
        split = [attention[name] for name in ("query", "key", "value")]
        both = [(part["kernel"], part["bias"]) for part in split]
    for kernel, bias in both:
        yield np.einsum("btd,dnh->btnh", x, kernel) + bias


def _mlp(mlp: Params, x: np.ndarray) -> np.ndarray:
    inner = x @ mlp["wi"]["kernel"] + mlp["wi"]["bias"]
    return _gelu(inner) @ mlp["wo"]["kernel"] + mlp["wo"]["bias"]


def _gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _float(array: Any) -> np.ndarray:
    return np.asarray(array, np.float64)


def _map(function: Any, tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {name: _map(function, branch) for name, branch in tree.items()}
    return function(tree)
