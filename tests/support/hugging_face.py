"""Small random folders of Hugging Face, and what MaxText has of each, by formulas of numpy.

The formulas are written from the models' code, array by array, and share nothing with the rules.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sizes:
    """Of a model."""

    width: int = 12
    heads: int = 4
    kv_heads: int = 2
    head: int = 6
    mlp: int = 20
    vocabulary: int = 24
    layers: int = 4
    experts: int = 3


def config_of(kind: str, s: Sizes) -> dict[str, object]:
    """What `config.json` says."""
    told = {
        "model_type": kind,
        "hidden_size": s.width,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_dim": s.head,
        "num_hidden_layers": s.layers,
        "tie_word_embeddings": kind.startswith("gemma"),
    }
    if kind == "mixtral" or kind == "gpt_oss":
        told["num_local_experts"] = s.experts
    if kind == "qwen3_moe":
        told["num_experts"] = s.experts
    return told


def shapes_of(kind: str, s: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the arrays, as transformers saves them."""
    q, kv, d = s.heads * s.head, s.kv_heads * s.head, s.width
    yield "model.embed_tokens.weight", (s.vocabulary, d)
    yield "model.norm.weight", (d,)
    if not kind.startswith("gemma"):
        yield "lm_head.weight", (s.vocabulary, d)
    for i in range(s.layers):
        layer = f"model.layers.{i}"
        norms = ["input_layernorm", "post_attention_layernorm"]
        if kind == "olmo3":
            norms = ["post_attention_layernorm", "post_feedforward_layernorm"]
            yield f"{layer}.self_attn.q_norm.weight", (q,)
            yield f"{layer}.self_attn.k_norm.weight", (kv,)
        if kind.startswith("gemma"):
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        for norm in norms:
            yield f"{layer}.{norm}.weight", (d,)
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            yield f"{layer}.self_attn.{name}_proj.weight", (rows, d)
            if kind in ("qwen2", "gpt_oss"):
                yield f"{layer}.self_attn.{name}_proj.bias", (rows,)
        yield f"{layer}.self_attn.o_proj.weight", (d, q)
        if kind in ("qwen3", "qwen3_moe", "gemma3_text"):
            yield f"{layer}.self_attn.q_norm.weight", (s.head,)
            yield f"{layer}.self_attn.k_norm.weight", (s.head,)
        yield from _mlp_shapes(kind, f"{layer}", s)


def _mlp_shapes(kind: str, layer: str, s: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    d, f, e = s.width, s.mlp, s.experts
    if kind == "gpt_oss":
        yield f"{layer}.self_attn.sinks", (s.heads,)
        yield f"{layer}.self_attn.o_proj.bias", (d,)
        yield f"{layer}.mlp.router.weight", (e, d)
        yield f"{layer}.mlp.router.bias", (e,)
        yield f"{layer}.mlp.experts.gate_up_proj", (e, d, 2 * f)
        yield f"{layer}.mlp.experts.gate_up_proj_bias", (e, 2 * f)
        yield f"{layer}.mlp.experts.down_proj", (e, f, d)
        yield f"{layer}.mlp.experts.down_proj_bias", (e, d)
    elif kind in ("mixtral", "qwen3_moe"):
        block = "block_sparse_moe" if kind == "mixtral" else "mlp"
        yield f"{layer}.{block}.gate.weight", (e, d)
        names = ("w1", "w3", "w2") if kind == "mixtral" else _PROJECTIONS
        for n in range(e):
            for name, shape in zip(names, ((f, d), (f, d), (d, f)), strict=True):
                yield f"{layer}.{block}.experts.{n}.{name}.weight", shape
    else:
        for name, shape in zip(_PROJECTIONS, ((f, d), (f, d), (d, f)), strict=True):
            yield f"{layer}.mlp.{name}.weight", shape


_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def arrays_of(kind: str, s: Sizes, seed: int = 0, dtype: str = "float32") -> Arrays:
    """Random values for all of them."""
    made = np.random.default_rng(seed)
    return {
        name: made.standard_normal(shape).astype(np.float32).astype(np.dtype(dtype))
        for name, shape in shapes_of(kind, s)
    }


def save_folder(path: Path, kind: str, s: Sizes, arrays: Mapping[str, np.ndarray]) -> Path:
    """A folder of a model: two shards, which have an index."""
    return save_tensors(path, config_of(kind, s), arrays)


def save_tensors(
    path: Path, config: Mapping[str, object], arrays: Mapping[str, np.ndarray]
) -> Path:
    """A folder of two shards, which has an index."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    names = sorted(arrays)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    weight_map = {}
    for number, half in enumerate(halves, 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: arrays[name] for name in half}, path / file, {"format": "pt"})
        weight_map |= dict.fromkeys(half, file)
    total = sum(array.nbytes for array in arrays.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def maxtext_of(kind: str, s: Sizes, a: Mapping[str, np.ndarray]) -> Arrays:
    """What MaxText has of a model, its layers apart, by path below `params`."""
    found: Arrays = {}
    plus = np.float32(kind.startswith("gemma"))

    def norm(w: np.ndarray) -> np.ndarray:
        return w + plus

    embedding = a["model.embed_tokens.weight"]
    if kind.startswith("gemma"):
        root = np.sqrt(s.width)
        if kind == "gemma3_text":
            root = np.float32(root).astype(np.dtype("bfloat16"))
        embedding = embedding * np.float32(root)
    found["token_embedder/embedding"] = embedding
    found["decoder/decoder_norm/scale"] = norm(a["model.norm.weight"])
    if "lm_head.weight" in a:
        found["decoder/logits_dense/kernel"] = a["lm_head.weight"].T
    for i in range(s.layers):
        layer = {
            name.removeprefix(f"model.layers.{i}."): array
            for name, array in a.items()
            if name.startswith(f"model.layers.{i}.")
        }
        place, suffix = f"decoder/layers_{i}", ""
        if kind == "gemma2":
            place, suffix = f"decoder/layers_{i // 2}", "_global" if i % 2 else "_local"
        for path, array in _layer(kind, s, layer, norm):
            head, slash, rest = path.partition("/")
            found[f"{place}/{head}{suffix}{slash}{rest}"] = array
    return found


_ATTENTION = {"gpt_oss": "GptOssAttention", "olmo3": "attention"}
"""What attention is called, where not `self_attention`."""


def _layer(
    kind: str, s: Sizes, a: Mapping[str, np.ndarray], norm: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    attention = _ATTENTION.get(kind, "self_attention")
    if kind.startswith("gemma"):
        names = {
            "input_layernorm": "pre_self_attention_norm",
            "post_attention_layernorm": "post_self_attention_norm",
            "pre_feedforward_layernorm": "pre_ffw_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        }
    elif kind == "olmo3":
        names = {
            "post_attention_layernorm": "post_self_attention_layer_norm",
            "post_feedforward_layernorm": "post_mlp_layer_norm",
        }
    else:
        names = {
            "input_layernorm": "pre_self_attention_layer_norm",
            "post_attention_layernorm": "post_self_attention_layer_norm",
        }
    for theirs, ours in names.items():
        yield f"{ours}/scale", norm(a[f"{theirs}.weight"])
    for one, ours, heads in (
        ("q", "query", s.heads),
        ("k", "key", s.kv_heads),
        ("v", "value", s.kv_heads),
    ):
        weight = a[f"self_attn.{one}_proj.weight"]
        apart = weight.reshape(heads, s.head, s.width)
        if kind in ("llama", "mistral") and one in "qk":
            # element 2j of a head is its j-th, element 2j+1 the j-th of its second half
            half = s.head // 2
            order = [j // 2 + half * (j % 2) for j in range(s.head)]
            apart = apart[:, order]
        kernel = np.einsum("hkd->dhk", apart)
        if one == "q" and kind in ("llama", "mistral", "mixtral", "gemma2"):
            kernel = kernel * np.float32(1 / np.sqrt(s.head))
        yield f"{attention}/{ours}/kernel", kernel
        if f"self_attn.{one}_proj.bias" in a:
            bias = a[f"self_attn.{one}_proj.bias"]
            yield f"{attention}/{ours}/bias", bias.reshape(heads, s.head)
        if f"self_attn.{one}_norm.weight" in a:
            yield f"{attention}/{ours}_norm/scale", norm(a[f"self_attn.{one}_norm.weight"])
    out = a["self_attn.o_proj.weight"].reshape(s.width, s.heads, s.head)
    yield f"{attention}/out/kernel", np.einsum("dhk->hkd", out)
    yield from _mlp(kind, s, a)


def _mlp(kind: str, s: Sizes, a: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    if kind == "gpt_oss":
        yield "GptOssAttention/sinks", a["self_attn.sinks"]
        yield "GptOssAttention/out/bias", a["self_attn.o_proj.bias"]
        yield "GptOssMlp/gate/kernel", a["mlp.router.weight"].T
        yield "GptOssMlp/gate/bias", a["mlp.router.bias"]
        for nth in (0, 1):
            yield f"GptOssMlp/wi_{nth}", a["mlp.experts.gate_up_proj"][..., nth::2]
            yield f"GptOssMlp/wi_{nth}_bias", a["mlp.experts.gate_up_proj_bias"][..., nth::2]
        yield "GptOssMlp/wo", a["mlp.experts.down_proj"]
        yield "GptOssMlp/wo_bias", a["mlp.experts.down_proj_bias"]
    elif kind in ("mixtral", "qwen3_moe"):
        theirs = "block_sparse_moe" if kind == "mixtral" else "mlp"
        ours = "MoeBlock_0" if kind == "mixtral" else "moe_block"
        names = ("w1", "w3", "w2") if kind == "mixtral" else _PROJECTIONS
        yield f"{ours}/gate/kernel", a[f"{theirs}.gate.weight"].T
        for name, there in zip(names, ("wi_0", "wi_1", "wo"), strict=True):
            every = [a[f"{theirs}.experts.{n}.{name}.weight"].T for n in range(s.experts)]
            yield f"{ours}/{there}", np.stack(every)
    else:
        for name, there in zip(_PROJECTIONS, ("wi_0", "wi_1", "wo"), strict=True):
            yield f"mlp/{there}/kernel", a[f"mlp.{name}.weight"].T


PERIODS = {"gemma3_text": 6, "gpt_oss": 2, "olmo3": 4}


def stacked(kind: str, apart: Mapping[str, np.ndarray]) -> Arrays:
    """MaxText's arrays with the layers stacked on axis 1, in blocks where the family has them."""
    found: Arrays = {}
    layers: dict[int, Arrays] = {}
    for path, array in apart.items():
        head, _, rest = path.removeprefix("decoder/layers_").partition("/")
        if path.startswith("decoder/layers_"):
            layers.setdefault(int(head), {})[rest] = array
        else:
            found[path] = array
    period = PERIODS.get(kind, 1)
    blocks = len(layers) // period
    for place in range(period) if blocks else ():
        inner = f"layers_{place}/" if period > 1 else ""
        for path in layers[place]:
            every = [layers[b * period + place][path] for b in range(blocks)]
            axis = min(1, every[0].ndim)
            found[f"decoder/layers/{inner}{path}"] = np.stack(every, axis)
    for i in range(blocks * period, len(layers)):
        for path, array in layers[i].items():
            found[f"decoder/layers_remainder/layers_{i - blocks * period}/{path}"] = array
    return found


class _Module(nnx.Module):
    """What stands below one name of a tree."""


def nnx_model(kind: str, s: Sizes) -> Any:
    """An NNX model with MaxText's names, all zeros, its layers in a list."""
    model = _Module()
    for path, array in maxtext_of(kind, s, arrays_of(kind, s)).items():
        here = model
        *names, last = path.split("/")
        for name in names:
            head, _, number = name.partition("_")
            if head == "layers":
                layers = getattr(here, head, None) or nnx.List([_Module() for _ in range(s.layers)])
                here.layers = layers
                here = layers[int(number)]
            else:
                if not hasattr(here, name):
                    setattr(here, name, _Module())
                here = getattr(here, name)
        setattr(here, last, nnx.Param(np.zeros_like(array)))
    return model
