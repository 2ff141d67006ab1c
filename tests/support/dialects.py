"""How projects call and keep the modules of a model: real ones, and ones that people make up."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from tests.support.model_families import Model, Module

Leaves: TypeAlias = dict[tuple[str, ...], np.ndarray]

FLAX = {"kernel": "kernel", "bias": "bias", "scale": "scale", "embedding": "embedding"}
TORCH = {"kernel": "weight", "bias": "bias", "scale": "weight", "embedding": "weight"}
TORCH |= {"mean": "running_mean", "var": "running_var"}
HAIKU = {"kernel": "w", "bias": "b", "scale": "scale", "embedding": "embeddings"}
PAX = {"kernel": "w", "bias": "b", "scale": "scale", "embedding": "emb_var"}
META = TORCH
ROWS = ("query", "key", "value")
GATES = {
    f"{long}.{gate}": f"{short}{gate}"
    for long, short in (("input", "i"), ("hidden", "h"))
    for gate in "ifgo"
}
"""What Flax calls the gates of an LSTM."""


@dataclass(frozen=True)
class Fused:
    """Modules that are kept as one.

    `how` is `end` (end to end, on the side of the outputs), `axis` (side by side, on a new axis
    after the inputs) or `first` (side by side, on a first axis).
    """

    parts: tuple[str, ...]
    name: str
    how: str = "end"


@dataclass(frozen=True)
class Dialect:
    """Names and layout.

    Attributes:
      layers: what a layer is called, by the first part of a module's id; `{i}` is its number.
      names: what modules are called, by the last part of their ids, below layers and at the root.
      leaves: what arrays are called.
      layout: `heads` (kernels as in the model), `flat` (heads merged), `torch` (flat, outputs
        first), `einsum` (heads before inputs).
      outputs_first: kernels of layers are kept with outputs first, whatever the layout.
      inputs_first: those that a `torch` layout keeps with their inputs first.
    """

    layers: Mapping[str, str]
    names: Mapping[str, str]
    leaves: Mapping[str, str] = field(default_factory=lambda: FLAX)
    layout: str = "heads"
    fused: tuple[Fused, ...] = ()
    inputs_first: tuple[str, ...] = ()
    outputs_first: bool = False
    stats: str = ""
    bare: tuple[str, ...] = ()
    bare_experts: bool = False


def render(model: Model, dialect: Dialect, prefix: str = "") -> tuple[Leaves, set[tuple[str, ...]]]:
    """The model's arrays by their paths in a dialect; and which of them are in `batch_stats`."""
    found: Leaves = {}
    stats: set[tuple[str, ...]] = set()
    for (head, *numbers, name), module in _experts_apart(_fused(model, dialect), dialect).items():
        name, _, expert = str(name).partition(" of expert ")
        around = dialect.layers[head].format(i=numbers[0]) + "." if numbers else ""
        path = tuple((prefix + around + dialect.names[name].format(e=expert)).split("."))
        for leaf, array in module.arrays.items():
            shown = laid_out(array, module.kind, leaf, name, dialect, is_layer=bool(numbers))
            told = dialect.leaves.get(leaf, leaf)
            bare = name in dialect.bare or not told
            if module.kind == "experts" and dialect.bare_experts:
                bare = True
            where = path if bare else (*path, told)
            if leaf in ("mean", "var") and dialect.leaves is not TORCH:
                stats.add(where)
            found[where] = shown
    return found, stats


def _fused(model: Model, dialect: Dialect) -> Model:
    """The model with the modules of `dialect.fused` put together, in the layout of the dialect."""
    found = dict(model)
    for fused in dialect.fused:
        for key in list(found):
            if key[-1] != fused.parts[0]:
                continue
            parts = [found.pop((*key[:-1], part)) for part in fused.parts]
            arrays = {
                leaf: _joined([p.arrays[leaf] for p in parts], parts[0].kind, leaf, fused.how)
                for leaf in parts[0].arrays
            }
            found[(*key[:-1], fused.name)] = Module(
                "dense" if fused.how == "end" else "array", arrays
            )
    return found


def _experts_apart(model: Model, dialect: Dialect) -> Model:
    """The model with its experts as modules of their own, where their names have their number."""
    found: Model = {}
    for (*around, name), module in model.items():
        if "{e}" not in dialect.names[str(name)]:
            found[(*around, name)] = module
            continue
        for e, kernel in enumerate(module.arrays["kernel"]):
            found[(*around, f"{name} of expert {e}")] = Module("dense", {"kernel": kernel})
    return found


def _joined(arrays: list[np.ndarray], kind: str, leaf: str, how: str) -> np.ndarray:
    if kind == "heads_in" and how == "end":
        is_bias = leaf == "bias"
        arrays = [a.reshape(*a.shape[: 0 if is_bias else 1], -1) for a in arrays]
    if how == "end":
        return np.concatenate(arrays, axis=-1)
    return np.stack(arrays, axis=0 if how == "first" or leaf == "bias" else 1)


def laid_out(
    array: np.ndarray, kind: str, leaf: str, name: str, dialect: Dialect, *, is_layer: bool
) -> np.ndarray:
    """An array as the dialect keeps it."""
    layout = dialect.layout
    if leaf == "bias" and kind == "heads_in":
        return array if layout in ("heads", "einsum") else array.reshape(-1)
    if leaf != "kernel":
        return array
    turned = layout == "torch" and name not in dialect.inputs_first
    turned = turned or (dialect.outputs_first and is_layer and kind != "conv")
    match kind:
        case "heads_in" if layout == "einsum":
            return array.transpose(1, 0, 2)
        case "heads_in" if layout in ("flat", "torch"):
            array = array.reshape(array.shape[0], -1)
        case "heads_out" if layout in ("flat", "torch"):
            array = array.reshape(-1, array.shape[-1])
        case "conv":
            return array.transpose(3, 2, 0, 1) if layout == "torch" else array
        case "experts":
            return array.transpose(0, 2, 1) if turned else array
    return array.T if turned and array.ndim == 2 else array


# --- real ones --------------------------------------------------------------------------------

_LLAMA_NAMES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "norm.attention": "input_layernorm",
    "norm.mlp": "post_attention_layernorm",
    "token": "model.embed_tokens",
    "norm.final": "model.norm",
    "head": "lm_head",
    "router": "mlp.gate",
}
_META_NAMES = {
    "query": "attention.wq",
    "key": "attention.wk",
    "value": "attention.wv",
    "out": "attention.wo",
    "gate": "feed_forward.w1",
    "down": "feed_forward.w2",
    "up": "feed_forward.w3",
    "norm.attention": "attention_norm",
    "norm.mlp": "ffn_norm",
    "token": "tok_embeddings",
    "norm.final": "norm",
    "head": "output",
}
_MAXTEXT_NAMES = {
    "query": "self_attention.query",
    "key": "self_attention.key",
    "value": "self_attention.value",
    "out": "self_attention.out",
    "gate": "mlp.wi_0",
    "up": "mlp.wi_1",
    "down": "mlp.wo",
    "norm.attention": "pre_self_attention_layer_norm",
    "norm.mlp": "post_self_attention_layer_norm",
    "token": "token_embedder",
    "norm.final": "decoder.decoder_norm",
    "head": "decoder.logits_dense",
    "position": "decoder.position_embedder",
    "router": "MoeBlock_0.gate",
}
_GEMMA_HF = _LLAMA_NAMES | {
    "norm.after_attention": "post_attention_layernorm",
    "norm.mlp": "pre_feedforward_layernorm",
    "norm.after_mlp": "post_feedforward_layernorm",
}
_GPT2_NAMES = {
    "qkv": "attn.c_attn",
    "out": "attn.c_proj",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
    "norm.attention": "ln_1",
    "norm.mlp": "ln_2",
    "token": "transformer.wte",
    "position": "transformer.wpe",
    "norm.final": "transformer.ln_f",
    "head": "lm_head",
}
_BERT_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "norm.attention": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm.mlp": "output.LayerNorm",
    "token": "bert.embeddings.word_embeddings",
    "position": "bert.embeddings.position_embeddings",
    "type": "bert.embeddings.token_type_embeddings",
    "norm.embedding": "bert.embeddings.LayerNorm",
    "pooler": "bert.pooler.dense",
}
_BLOCKS = {"layer": "layers.{i}"}
_QKV = Fused(ROWS, "qkv")

REAL: Mapping[str, Mapping[str, Dialect]] = {
    "llama": {
        "transformers": Dialect({"layer": "model.layers.{i}"}, _LLAMA_NAMES, TORCH, "torch"),
        "meta": Dialect(_BLOCKS, _META_NAMES, TORCH, "torch"),
        "maxtext": Dialect({"layer": "decoder.layers_{i}"}, _MAXTEXT_NAMES),
        "easylm": Dialect(
            {"layer": "transformer.h.{i}"},
            _META_NAMES
            | {"token": "transformer.wte", "norm.final": "transformer.ln_f", "head": "lm_head"},
            layout="flat",
        ),
        "phi3": Dialect(
            {"layer": "model.layers.{i}"},
            _LLAMA_NAMES | {"qkv": "self_attn.qkv_proj", "gate_up": "mlp.gate_up_proj"},
            TORCH,
            "torch",
            fused=(_QKV, Fused(("gate", "up"), "gate_up")),
        ),
        "pax": Dialect(
            {"layer": "lm.transformer.x_layers_{i}"},
            {
                "query": "self_attention.query",
                "key": "self_attention.key",
                "value": "self_attention.value",
                "out": "self_attention.post",
                "gate": "ff_layer.ffn_layer1_gate.linear",
                "up": "ff_layer.ffn_layer1.linear",
                "down": "ff_layer.ffn_layer2.linear",
                "norm.attention": "layer_norm",
                "norm.mlp": "ff_layer.layer_norm",
                "token": "lm.embedding_lookup",
                "norm.final": "lm.final_ln",
                "head": "lm.softmax.logits_ffn.linear",
            },
            PAX,
        ),
    },
    "gemma": {
        "transformers": Dialect({"layer": "model.layers.{i}"}, _GEMMA_HF, TORCH, "torch"),
        "maxtext": Dialect(
            {"layer": "decoder.layers_{i}"},
            _MAXTEXT_NAMES
            | {
                "norm.attention": "pre_self_attention_norm",
                "norm.after_attention": "post_self_attention_norm",
                "norm.mlp": "pre_ffw_norm",
                "norm.after_mlp": "post_ffw_norm",
            },
        ),
        "deepmind": Dialect(
            {"layer": "transformer.layer_{i}"},
            {
                "query": "attn.q_einsum",
                "kv": "attn.kv_einsum",
                "out": "attn.attn_vec_einsum",
                "gate_up": "mlp.gating_einsum",
                "down": "mlp.linear",
                "norm.attention": "pre_attention_norm",
                "norm.after_attention": "post_attention_norm",
                "norm.mlp": "pre_ffw_norm",
                "norm.after_mlp": "post_ffw_norm",
                "token": "transformer.embedder",
                "norm.final": "transformer.final_norm",
                "head": "transformer.unembed",
            },
            {"kernel": "w", "scale": "scale", "embedding": "input_embedding"},
            "einsum",
            fused=(
                Fused(("key", "value"), "kv", "first"),
                Fused(("gate", "up"), "gate_up", "first"),
            ),
            bare=("gate_up", "down"),
        ),
    },
    "gpt": {
        "gpt2": Dialect(
            {"layer": "transformer.h.{i}"},
            _GPT2_NAMES,
            TORCH,
            "torch",
            fused=(_QKV,),
            inputs_first=("qkv", "out", "up", "down"),
        ),
        "nanogpt": Dialect(
            {"layer": "transformer.h.{i}"}, _GPT2_NAMES, TORCH, "torch", fused=(_QKV,)
        ),
        "transformers-flax": Dialect(
            {"layer": "transformer.h.{i}"},
            _GPT2_NAMES,
            FLAX,
            "flat",
            fused=(_QKV,),
            outputs_first=True,
        ),
        "opt": Dialect(
            {"layer": "model.decoder.layers.{i}"},
            _LLAMA_NAMES
            | {
                "out": "self_attn.out_proj",
                "up": "fc1",
                "down": "fc2",
                "norm.attention": "self_attn_layer_norm",
                "norm.mlp": "final_layer_norm",
                "token": "model.decoder.embed_tokens",
                "position": "model.decoder.embed_positions",
                "norm.final": "model.decoder.final_layer_norm",
            },
            TORCH,
            "torch",
        ),
        "maxtext": Dialect({"layer": "decoder.layers_{i}"}, _MAXTEXT_NAMES | {"up": "mlp.wi"}),
    },
    "bert": {
        "transformers": Dialect({"layer": "bert.encoder.layer.{i}"}, _BERT_NAMES, TORCH, "torch"),
        "transformers-flax": Dialect(
            {"layer": "bert.encoder.layer.{i}"}, _BERT_NAMES, FLAX, "flat"
        ),
    },
    "vit": {
        "timm": Dialect(
            {"layer": "blocks.{i}"},
            {
                "qkv": "attn.qkv",
                "out": "attn.proj",
                "up": "mlp.fc1",
                "down": "mlp.fc2",
                "norm.attention": "norm1",
                "norm.mlp": "norm2",
                "patch": "patch_embed.proj",
                "class": "cls_token",
                "position": "pos_embed",
                "norm.final": "norm",
                "head": "head",
            },
            TORCH,
            "torch",
            fused=(_QKV,),
            bare=("class", "position"),
        ),
        "transformers": Dialect(
            {"layer": "vit.encoder.layer.{i}"},
            {
                "query": "attention.attention.query",
                "key": "attention.attention.key",
                "value": "attention.attention.value",
                "out": "attention.output.dense",
                "up": "intermediate.dense",
                "down": "output.dense",
                "norm.attention": "layernorm_before",
                "norm.mlp": "layernorm_after",
                "patch": "vit.embeddings.patch_embeddings.projection",
                "class": "vit.embeddings.cls_token",
                "position": "vit.embeddings.position_embeddings",
                "norm.final": "vit.layernorm",
                "head": "classifier",
            },
            TORCH,
            "torch",
            bare=("class", "position"),
        ),
        "big_vision": Dialect(
            {"layer": "Transformer.encoderblock_{i}"},
            {
                "query": "MultiHeadDotProductAttention_1.query",
                "key": "MultiHeadDotProductAttention_1.key",
                "value": "MultiHeadDotProductAttention_1.value",
                "out": "MultiHeadDotProductAttention_1.out",
                "up": "MlpBlock_3.Dense_0",
                "down": "MlpBlock_3.Dense_1",
                "norm.attention": "LayerNorm_0",
                "norm.mlp": "LayerNorm_2",
                "patch": "embedding",
                "class": "cls",
                "position": "Transformer.posembed_input.pos_embedding",
                "norm.final": "Transformer.encoder_norm",
                "head": "head",
            },
            bare=("class", "position"),
        ),
    },
    "mixture": {
        "maxtext": Dialect(
            {"layer": "decoder.layers_{i}"},
            _MAXTEXT_NAMES
            | {"gate": "MoeBlock_0.wi_0", "up": "MoeBlock_0.wi_1", "down": "MoeBlock_0.wo"},
            bare=("gate", "up", "down"),
        ),
        "stacked torch": Dialect(
            {"layer": "model.layers.{i}"},
            _LLAMA_NAMES
            | {
                "gate": "mlp.experts.gate_proj",
                "up": "mlp.experts.up_proj",
                "down": "mlp.experts.down_proj",
            },
            TORCH,
            "torch",
        ),
    },
    "mixer": {
        "flax": Dialect(
            {"layer": "MixerBlock_{i}"},
            {
                "norm.tokens": "LayerNorm_0",
                "tokens.up": "token_mixing.Dense_0",
                "tokens.down": "token_mixing.Dense_1",
                "norm.channels": "LayerNorm_1",
                "channels.up": "channel_mixing.Dense_0",
                "channels.down": "channel_mixing.Dense_1",
                "patch": "stem",
                "norm.final": "pre_head_layer_norm",
                "head": "head",
            },
        ),
        "timm": Dialect(
            {"layer": "blocks.{i}"},
            {
                "norm.tokens": "norm1",
                "tokens.up": "mlp_tokens.fc1",
                "tokens.down": "mlp_tokens.fc2",
                "norm.channels": "norm2",
                "channels.up": "mlp_channels.fc1",
                "channels.down": "mlp_channels.fc2",
                "patch": "stem.proj",
                "norm.final": "norm",
                "head": "head",
            },
            TORCH,
            "torch",
        ),
    },
    "lstm": {
        "flax": Dialect(
            {"layer": "OptimizedLSTMCell_{i}"},
            GATES | {"token": "Embed_0", "head": "Dense_0"},
        ),
        "nnx": Dialect(
            {"layer": "cells.{i}"},
            GATES | {"token": "embed", "head": "out"},
        ),
    },
    "resnet": {
        "flax": Dialect(
            {"layer": "ResNetBlock_{i}"},
            {
                "conv0": "Conv_0",
                "norm0": "BatchNorm_0",
                "conv1": "Conv_1",
                "norm1": "BatchNorm_1",
                "shortcut": "conv_proj",
                "shortcut_norm": "norm_proj",
                "stem": "conv_init",
                "stem_norm": "bn_init",
                "head": "Dense_0",
            },
        ),
        "nnx": Dialect(
            {"layer": "blocks.{i}"},
            {
                "conv0": "conv1",
                "norm0": "bn1",
                "conv1": "conv2",
                "norm1": "bn2",
                "shortcut": "proj",
                "shortcut_norm": "proj_bn",
                "stem": "conv1",
                "stem_norm": "bn1",
                "head": "fc",
            },
        ),
        "torchvision": Dialect(
            {"layer": "layer{i}.0"},
            {
                "conv0": "conv1",
                "norm0": "bn1",
                "conv1": "conv2",
                "norm1": "bn2",
                "shortcut": "downsample.0",
                "shortcut_norm": "downsample.1",
                "stem": "conv1",
                "stem_norm": "bn1",
                "head": "fc",
            },
            TORCH,
            "torch",
        ),
    },
    "unet": {
        "diffusers": Dialect(
            {"down": "down_blocks.{i}.resnets.0", "up": "up_blocks.{i}.resnets.0"},
            {
                "norm0": "norm1",
                "conv0": "conv1",
                "time": "time_emb_proj",
                "norm1": "norm2",
                "conv1": "conv2",
                "first": "conv_in",
                "time.up": "time_embedding.linear_1",
                "time.down": "time_embedding.linear_2",
                "norm.final": "conv_norm_out",
                "last": "conv_out",
            },
            TORCH,
            "torch",
        ),
        "flax": Dialect(
            {"down": "down_{i}", "up": "up_{i}"},
            {
                "norm0": "GroupNorm_0",
                "conv0": "Conv_0",
                "time": "Dense_0",
                "norm1": "GroupNorm_1",
                "conv1": "Conv_1",
                "first": "Conv_0",
                "time.up": "Dense_0",
                "time.down": "Dense_1",
                "norm.final": "GroupNorm_0",
                "last": "Conv_1",
            },
        ),
    },
    "perceptron": {
        "flax": Dialect({}, {f"dense{i}": f"Dense_{i}" for i in range(6)}),
        "torch": Dialect({}, {f"dense{i}": f"net.{2 * i}" for i in range(6)}, TORCH, "torch"),
        "haiku": Dialect({}, {f"dense{i}": f"mlp/~/linear_{i}" for i in range(6)}, HAIKU, "flat"),
    },
}

# --- made up ----------------------------------------------------------------------------------

_WORDS = [
    "alpha",
    "brook",
    "cedar",
    "delta",
    "ember",
    "flint",
    "grove",
    "haven",
    "iris",
    "jade",
    "kite",
    "lark",
    "maple",
    "nova",
    "onyx",
]
_LAYERS = ("layers.{i}", "blocks_{i}", "h.{i}", "block{i}", "decoder.layers_{i}", "Block_{i}")
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "query": (
        "attn.q",
        "attention.query",
        "attn.q_proj",
        "self_attn.query_proj",
        "q_proj",
        "mha.wq",
    ),
    "key": ("attn.k", "attention.key", "attn.k_proj", "self_attn.key_proj", "k_proj", "mha.wk"),
    "value": (
        "attn.v",
        "attention.value",
        "attn.v_proj",
        "self_attn.value_proj",
        "v_proj",
        "mha.wv",
    ),
    "out": (
        "attn.o",
        "attention.out",
        "attn.out_proj",
        "self_attn.output_proj",
        "o_proj",
        "mha.wo",
    ),
    "gate": ("mlp.gate", "ffn.gate_proj", "mlp.wi_0", "mlp.linear_gate", "gate_proj", "ff.w_gate"),
    "up": ("mlp.up", "ffn.up_proj", "mlp.wi_1", "mlp.linear_up", "up_proj", "ff.w_in"),
    "down": ("mlp.down", "ffn.down_proj", "mlp.wo", "mlp.linear_down", "down_proj", "ff.w_out"),
    "norm.attention": ("norm1", "ln_1", "attn_norm", "pre_attention_norm", "ln1", "norm_a"),
    "norm.mlp": ("norm2", "ln_2", "mlp_norm", "pre_mlp_norm", "ln2", "norm_b"),
    "norm.after_attention": ("norm3", "post_attention_norm", "attn_post", "ln_3"),
    "norm.after_mlp": ("norm4", "post_ffw_norm", "mlp_post", "ln_4"),
    "token": ("embed", "tok_embed", "token_embedding", "wte", "embeddings.tokens"),
    "position": ("pos_embed", "wpe", "position_embedding", "positions", "embeddings.positions"),
    "type": ("type_embed", "segments"),
    "norm.final": ("norm", "final_norm", "ln_f", "out_norm", "last_norm"),
    "norm.embedding": ("embed_norm", "ln_embed", "norm0"),
    "head": ("head", "lm_head", "out", "classifier", "unembed"),
    "pooler": ("pooler", "pool.dense"),
    "patch": ("patch_embed", "patches", "patch_embedding.conv"),
    "class": ("cls", "cls_token", "class_token"),
    "router": ("moe.gate", "moe.router", "router"),
    "norm.tokens": ("norm1", "LayerNorm_0", "token_norm"),
    "norm.channels": ("norm2", "LayerNorm_1", "channel_norm"),
    "tokens.up": ("mlp_tokens.fc1", "token_mixing.Dense_0", "token_mixing.fc1"),
    "tokens.down": ("mlp_tokens.fc2", "token_mixing.Dense_1", "token_mixing.fc2"),
    "channels.up": ("mlp_channels.fc1", "channel_mixing.Dense_0", "channel_mixing.fc1"),
    "channels.down": ("mlp_channels.fc2", "channel_mixing.Dense_1", "channel_mixing.fc2"),
} | {
    f"{long}.{gate}": (f"{short}{gate}", f"lstm.{short}{gate}")
    for long, short in (("input", "i"), ("hidden", "h"))
    for gate in "ifgo"
}


def made_up(model: Model, rng: random.Random, oddness: float, side: str) -> Dialect:
    """Names that somebody makes up: in one style or mixed, some of them saying nothing.

    Such words are never those of another side.
    """
    style = rng.randrange(6)
    words = iter(rng.sample([f"{a}_{b}{side}" for a in _WORDS for b in _WORDS], 60))
    names: dict[str, str] = {}
    for name in dict.fromkeys(str(key[-1]) for key in model):
        choices = _CHOICES.get(name, (name.replace(".", "_"),))
        if rng.random() < oddness:
            names[name] = next(words)
        elif name in _CHOICES and rng.random() < 0.85:
            names[name] = choices[min(style, len(choices) - 1)]
        else:
            names[name] = rng.choice(choices)
    if any(str(key[-1]) == "gate" and module.kind == "experts" for key, module in model.items()):
        for name in ("gate", "up", "down"):
            names[name] = "moe." + names[name].rpartition(".")[2]
    if len(set(names.values())) < len(names):
        return made_up(model, rng, oddness, side)
    layers = rng.choice(_LAYERS)
    heads = {str(key[0]) for key in model} - {"root"}
    found = Dialect(
        {head: layers if head == "layer" else f"{head}.{layers}" for head in heads},
        names,
        *rng.choice([(FLAX, "heads"), (FLAX, "flat"), (TORCH, "torch"), (HAIKU, "flat")]),
        bare=("class", "position") if ("root", "class") in model else (),
    )
    can_fuse = "query" in names and rng.random() < 0.2 and found.layout != "heads"
    if not can_fuse:
        return found
    qkv = rng.choice(("attn.qkv", "c_attn", "attention.qkv_proj", "fused"))
    return replace(found, names=names | {"qkv": qkv}, fused=(_QKV,))


def automatic(model: Model, gate_first: bool) -> Dialect:
    """The names that flax gives to what `nn.compact` makes, in the order in which it is made."""
    names: dict[str, str] = {}
    counts: dict[tuple[str, str], int] = {}
    order = ["norm.attention", "query", "key", "value", "out", "norm.after_attention", "norm.mlp"]
    order += ["gate", "up"] if gate_first else ["up", "gate"]
    order += ["down", "norm.after_mlp", "token", "patch"]
    kinds = {str(key[-1]): (str(key[0]), module.kind) for key, module in model.items()}
    named = sorted(kinds, key=lambda n: (order.index(n) if n in order else len(order), 0))
    for name in named:
        head, kind = kinds[name]
        cls = {"norm": "LayerNorm", "table": "Embed", "conv": "Conv", "batch_norm": "BatchNorm"}
        cls |= {"array": "param", "experts": "Experts"}
        called = cls.get(kind, "Dense")
        number = counts.get((head, called), 0)
        counts[head, called] = number + 1
        names[name] = f"{called}_{number}"
    heads = {str(key[0]) for key in model} - {"root"}
    return Dialect(
        {head: f"{head.title()}Block_{{i}}" for head in heads},
        names,
        layout="flat",
        bare=("class", "position") if ("root", "class") in model else (),
    )


Spell: TypeAlias = Callable[[tuple[str, ...]], tuple[str | int, ...]]


def joined_by(separator: str) -> Spell:
    """Module names as one name, as in Haiku; the leaf's own stays apart."""
    return lambda path: (separator.join(path[:-1]), path[-1]) if len(path) > 1 else path


SPELLINGS: Mapping[str, Spell] = {
    "nested": lambda path: path,
    "layers": lambda path: tuple(int(p) if p.isdigit() else p for p in path),
    "dotted": lambda path: (".".join(path),),
    "slashed": joined_by("/"),
    "tilde": joined_by("/~/"),
}
