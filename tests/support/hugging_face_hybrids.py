"""Small random folders of models whose layers are not all alike, and what MaxText has of each.

The formulas are written from the models' code, array by array, and share nothing with the rules.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.support.hugging_face import Arrays

D, F, M, V, E = 12, 10, 6, 20, 3
"""Width, feed-forward, feed-forward of an expert, vocabulary, experts."""


@dataclass
class Model:
    """A folder's configuration and arrays, and MaxText's arrays of layers apart, as they grow."""

    config: dict[str, Any]
    dtype: str = "float32"
    arrays: Arrays = field(default_factory=dict)
    maxtext: Arrays = field(default_factory=dict)
    _made: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))

    def array(self, name: str, *shape: int) -> np.ndarray:
        """An array of the folder, under its name there."""
        self.arrays[name] = (
            self._made.standard_normal(shape).astype(np.float32).astype(np.dtype(self.dtype))
        )
        return self.arrays[name]

    def same(self, name: str, path: str, *shape: int) -> None:
        """One that MaxText has as it is."""
        self.maxtext[path] = self.array(name, *shape)

    def turned(self, name: str, path: str, out: int, width: int, heads: int = 0) -> None:
        """Weights (out, in), which MaxText has as (in, out), or as (in, heads, out / heads)."""
        kernel = self.array(name, out, width).T
        self.maxtext[path] = kernel.reshape(width, heads, out // heads) if heads else kernel

    def out(self, name: str, path: str, width: int, heads: int) -> None:
        """Weights (out, heads * size), which MaxText has as (heads, size, out)."""
        self.maxtext[path] = self.array(name, D, width).T.reshape(heads, width // heads, D)

    def mlp(self, theirs: str, ours: str, width: int, leaf: str = "/kernel") -> None:
        """The three projections of a feed-forward."""
        for name, there in (("gate_proj", "wi_0"), ("up_proj", "wi_1")):
            self.turned(f"{theirs}.{name}.weight", f"{ours}/{there}{leaf}", width, D)
        self.turned(f"{theirs}.down_proj.weight", f"{ours}/wo{leaf}", D, width)

    def experts(self, theirs: str, ours: str) -> None:
        """Experts, which are one array each in MaxText."""
        for e in range(E):
            self.mlp(f"{theirs}.{e}", f"{ours}/{e}", M, "")
        for leaf in ("wi_0", "wi_1", "wo"):
            every = [self.maxtext.pop(f"{ours}/{e}/{leaf}") for e in range(E)]
            self.maxtext[f"{ours}/{leaf}"] = np.stack(every)

    def fused_experts(self, theirs: str, ours: str) -> None:
        """Experts that are one array in transformers, too, gate and up in the same one."""
        both = self.array(f"{theirs}.gate_up_proj", E, 2 * M, D)
        for nth, name in enumerate(("wi_0", "wi_1")):
            self.maxtext[f"{ours}/{name}"] = np.einsum("efd->edf", both[:, nth * M : nth * M + M])
        down = self.array(f"{theirs}.down_proj", E, D, M)
        self.maxtext[f"{ours}/wo"] = np.einsum("edf->efd", down)

    def ends(self, root: str = "model") -> None:
        """The embedding and the last norm."""
        self.same(f"{root}.embed_tokens.weight", "token_embedder/embedding", V, D)
        self.same(f"{root}.norm.weight", "decoder/decoder_norm/scale", D)


def deepseek(kind: str, layers: int = 4, dense: int = 1, dtype: str = "float32") -> Model:
    """DeepSeek V2 without a rank of queries, or V3, which has one, and a bias of its router."""
    heads, rank, nope, rope, value = 2, 5, 4, 2, 3
    is_v3 = kind != "deepseek_v2"
    told = {"first_k_dense_replace": dense, "n_routed_experts": E, "n_shared_experts": 2}
    told |= {"q_lora_rank": 7 if is_v3 else None, "num_attention_heads": heads}
    model = Model({"model_type": kind, "num_hidden_layers": layers, **told}, dtype)
    model.ends()
    model.turned("lm_head.weight", "decoder/logits_dense/kernel", V, D)
    for i in range(layers):
        here = f"model.layers.{i}"
        ours = f"decoder/dense_layers_{i}" if i < dense else f"decoder/moe_layers_{i - dense}"
        theirs, there = f"{here}.self_attn", f"{ours}/self_attention"
        model.same(
            f"{here}.input_layernorm.weight", f"{ours}/pre_self_attention_layer_norm/scale", D
        )
        after = f"{ours}/post_self_attention_layer_norm/scale"
        model.same(f"{here}.post_attention_layernorm.weight", after, D)
        width = heads * (nope + rope)
        if is_v3:
            model.turned(f"{theirs}.q_a_proj.weight", f"{there}/wq_a/kernel", 7, D)
            model.same(f"{theirs}.q_a_layernorm.weight", f"{there}/q_norm/scale", 7)
            model.turned(f"{theirs}.q_b_proj.weight", f"{there}/wq_b/kernel", width, 7, heads)
        else:
            model.turned(f"{theirs}.q_proj.weight", f"{there}/query/kernel", width, D, heads)
        latent = f"{theirs}.kv_a_proj_with_mqa.weight"
        model.turned(latent, f"{there}/wkv_a/kernel", rank + rope, D)
        model.same(f"{theirs}.kv_a_layernorm.weight", f"{there}/kv_norm/scale", rank)
        both = heads * (nope + value)
        model.turned(f"{theirs}.kv_b_proj.weight", f"{there}/wkv_b/kernel", both, rank, heads)
        model.out(f"{theirs}.o_proj.weight", f"{there}/out/kernel", heads * value, heads)
        if i < dense:
            model.mlp(f"{here}.mlp", f"{ours}/mlp", F)
            continue
        block = f"{ours}/DeepSeekMoeBlock_0"
        model.turned(f"{here}.mlp.gate.weight", f"{block}/MoeBlock_0/gate/kernel", E, D)
        if is_v3:
            bias = f"{here}.mlp.gate.e_score_correction_bias"
            model.same(bias, f"{block}/MoeBlock_0/gate/bias", E)
        model.experts(f"{here}.mlp.experts", f"{block}/MoeBlock_0")
        model.mlp(f"{here}.mlp.shared_experts", f"{block}/shared_experts", 2 * M)
    return model


def qwen3_next(
    layers: int = 8, period: int = 4, *, is_3_5: bool = False, dtype: str = "float32"
) -> Model:
    """Qwen3-Next, whose last layer of four has full attention; or Qwen3.5 with images."""
    heads, kv_heads, head, keys, values = 4, 2, 6, 2, 4
    told = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head}
    types = [
        "full_attention" if i % period == period - 1 else "linear_attention" for i in range(layers)
    ]
    told |= {"num_experts": E, "num_hidden_layers": layers, "layer_types": types}
    sizes = {"num_key_heads": keys, "key_head_dim": 3, "num_value_heads": values}
    told |= {f"linear_{name}": size for name, size in {**sizes, "value_head_dim": 5}.items()}
    config = {"model_type": "qwen3_5_moe", "text_config": told} if is_3_5 else told
    model = Model({"model_type": "qwen3_next", **config}, dtype)
    root = "model.language_model" if is_3_5 else "model"
    model.ends(root)
    model.turned("lm_head.weight", "decoder/logits_dense/kernel", V, D)
    for i in range(layers):
        here, ours = f"{root}.layers.{i}", f"decoder/layers_{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            model.same(f"{here}.{norm}.weight", f"{ours}/{norm}/scale", D)
        if i % period == period - 1:
            theirs, there = f"{here}.self_attn", f"{ours}/attention/attention"
            gated = 2 * heads * head
            model.turned(f"{theirs}.q_proj.weight", f"{there}/query/kernel", gated, D, heads)
            for one, name in (("k", "key"), ("v", "value")):
                rows = kv_heads * head
                model.turned(
                    f"{theirs}.{one}_proj.weight", f"{there}/{name}/kernel", rows, D, kv_heads
                )
            model.turned(f"{theirs}.o_proj.weight", f"{there}/out/kernel", D, heads * head)
            model.same(f"{theirs}.q_norm.weight", f"{there}/query_norm/scale", head)
            model.same(f"{theirs}.k_norm.weight", f"{there}/key_norm/scale", head)
        else:
            theirs, there = f"{here}.linear_attn", f"{ours}/attention"
            _linear_projections(model, theirs, there, keys, values, is_apart=is_3_5)
            model.turned(f"{theirs}.out_proj.weight", f"{there}/out_proj/kernel", D, values * 5)
            conv = model.array(f"{theirs}.conv1d.weight", 2 * keys * 3 + values * 5, 1, 4)
            model.maxtext[f"{there}/conv1d/kernel"] = np.einsum("cik->kic", conv)
            model.same(f"{theirs}.A_log", f"{there}/A_log", values)
            model.same(f"{theirs}.dt_bias", f"{there}/dt_bias", values)
            model.same(f"{theirs}.norm.weight", f"{there}/norm/rms_norm/scale", 5)
        model.turned(f"{here}.mlp.gate.weight", f"{ours}/mlp/routed_experts/gate/kernel", E, D)
        if is_3_5:
            model.fused_experts(f"{here}.mlp.experts", f"{ours}/mlp/routed_experts")
        else:
            model.experts(f"{here}.mlp.experts", f"{ours}/mlp/routed_experts")
        model.mlp(f"{here}.mlp.shared_expert", f"{ours}/mlp/shared_expert", M)
        gate = f"{ours}/mlp/shared_expert_gate/kernel"
        model.turned(f"{here}.mlp.shared_expert_gate.weight", gate, 1, D)
    return model


def _linear_projections(
    model: Model, theirs: str, there: str, keys: int, values: int, *, is_apart: bool
) -> None:
    """Of linear attention: one array for queries, keys, values and gates, or two; as of b and a.

    MaxText has what belongs to one head of keys side by side, whichever it is in transformers.
    """
    each = values // keys
    if not is_apart:
        wide = 2 * keys * 3 + 2 * values * 5
        model.turned(f"{theirs}.in_proj_qkvz.weight", f"{there}/in_proj_qkvz/kernel", wide, D)
        model.turned(f"{theirs}.in_proj_ba.weight", f"{there}/in_proj_ba/kernel", 2 * values, D)
        return
    first = model.array(f"{theirs}.in_proj_qkv.weight", 2 * keys * 3 + values * 5, D)
    gates = model.array(f"{theirs}.in_proj_z.weight", values * 5, D)
    rows: list[np.ndarray] = []
    for head in range(keys):
        rows += [first[head * 3 : head * 3 + 3], first[(keys + head) * 3 : (keys + head) * 3 + 3]]
        start = head * each * 5
        rows.append(first[2 * keys * 3 + start : 2 * keys * 3 + start + each * 5])
        rows.append(gates[start : start + each * 5])
    model.maxtext[f"{there}/in_proj_qkvz/kernel"] = np.concatenate(rows).T
    b = model.array(f"{theirs}.in_proj_b.weight", values, D).reshape(keys, each, D)
    a = model.array(f"{theirs}.in_proj_a.weight", values, D).reshape(keys, each, D)
    both = np.stack([b, a], 1).reshape(2 * values, D)
    model.maxtext[f"{there}/in_proj_ba/kernel"] = both.T


NORMS = {
    "input_layernorm": "pre_self_attention_norm",
    "post_attention_layernorm": "post_self_attention_norm",
    "pre_feedforward_layernorm": "pre_ffw_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gemma4(
    layers: int = 6, *, moe: bool = False, small: bool = False, dtype: str = "float32"
) -> Model:
    """Gemma 4 within a model of texts and images; `small` ones have embeddings of each layer."""
    heads, kv_heads, full_kv, head, full_head, each, shared = 4, 2, 1, 4, 6, 2, 2 if small else 0
    types = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)]
    told: dict[str, Any] = {"hidden_size": D, "num_hidden_layers": layers, "layer_types": types}
    told |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    told |= {"hidden_size_per_layer_input": each if small else 0, "num_kv_shared_layers": shared}
    told |= {
        "attention_k_eq_v": not small,
        "num_global_key_value_heads": None if small else full_kv,
    }
    told |= {
        "enable_moe_block": moe,
        "num_experts": E if moe else None,
        "model_type": "gemma4_text",
    }
    model = Model({"model_type": "gemma4", "text_config": told}, dtype)
    root = "model.language_model"
    model.ends(root)
    embedding = model.maxtext["token_embedder/embedding"]
    model.maxtext["token_embedder/embedding"] = embedding * np.float32(np.sqrt(D))
    if small:
        there = "decoder/per_layer_embedder"
        table = f"{root}.embed_tokens_per_layer.weight"
        model.same(table, f"{there}/embed_tokens_per_layer", V, layers * each)
        projection = f"{there}/per_layer_model_projection/kernel"
        model.turned(f"{root}.per_layer_model_projection.weight", projection, layers * each, D)
        norm = f"{there}/per_layer_projection_norm/scale"
        model.same(f"{root}.per_layer_projection_norm.weight", norm, each)
    for i in range(layers):
        here, ours = f"{root}.layers.{i}", f"decoder/layers_{i}"
        for norm, name in NORMS.items():
            model.same(f"{here}.{norm}.weight", f"{ours}/{name}/scale", D)
        model.same(f"{here}.layer_scalar", f"{ours}/layer_scalar", 1)
        is_full = i % 6 == 5
        size, kvs = (full_head, kv_heads if small else full_kv) if is_full else (head, kv_heads)
        theirs, there = f"{here}.self_attn", f"{ours}/self_attention"
        model.turned(f"{theirs}.q_proj.weight", f"{there}/query/kernel", heads * size, D, heads)
        model.out(f"{theirs}.o_proj.weight", f"{there}/out/kernel", heads * size, heads)
        model.same(f"{theirs}.q_norm.weight", f"{there}/query_norm/scale", size)
        if i < layers - shared:
            model.same(f"{theirs}.k_norm.weight", f"{there}/key_norm/scale", size)
            model.turned(f"{theirs}.k_proj.weight", f"{there}/key/kernel", kvs * size, D, kvs)
            if small or not is_full:
                model.turned(f"{theirs}.v_proj.weight", f"{there}/value/kernel", kvs * size, D, kvs)
        _gemma4_feed_forward(model, here, ours, moe=moe, each=each if small else 0)
    return model


def _gemma4_feed_forward(model: Model, here: str, ours: str, *, moe: bool, each: int) -> None:
    model.mlp(f"{here}.mlp", f"{ours}/mlp{'/moe_block/shared_experts' if moe else ''}", F)
    if each:
        gate = f"{ours}/per_layer_input_gate/kernel"
        model.turned(f"{here}.per_layer_input_gate.weight", gate, each, D)
        model.turned(
            f"{here}.per_layer_projection.weight", f"{ours}/per_layer_projection/kernel", D, each
        )
        norm = f"{ours}/post_per_layer_input_norm/scale"
        model.same(f"{here}.post_per_layer_input_norm.weight", norm, D)
    if moe:
        block = f"{ours}/mlp/moe_block/MoeBlock_0"
        layernorm = "feedforward_layernorm"
        for norm in (f"pre_{layernorm}_2", f"post_{layernorm}_1", f"post_{layernorm}_2"):
            model.same(f"{here}.{norm}.weight", f"{ours}/mlp/{norm}/scale", D)
        model.same(f"{here}.router.scale", f"{ours}/mlp/pre_forward_scale_2", D)
        model.same(f"{here}.router.per_expert_scale", f"{block}/per_expert_scale", E)
        model.turned(f"{here}.router.proj.weight", f"{block}/gate/kernel", E, D)
        model.fused_experts(f"{here}.experts", block)


Layers = dict[int, Arrays]


def _layers(apart: Mapping[str, np.ndarray], group: str) -> Layers:
    found: Layers = {}
    for path, array in apart.items():
        if path.startswith(f"decoder/{group}_"):
            number, _, rest = path.removeprefix(f"decoder/{group}_").partition("/")
            found.setdefault(int(number), {})[rest] = array
    return found


def _stack(layers: list[Arrays]) -> Arrays:
    """Layers side by side, on axis 1 where there is one."""
    return {
        path: np.stack([layer[path] for layer in layers], min(1, array.ndim))
        for path, array in layers[0].items()
    }


def stacked_groups(apart: Mapping[str, np.ndarray]) -> Arrays:
    """DeepSeek's arrays with its dense layers stacked, and those with experts."""
    found = {k: v for k, v in apart.items() if "_layers_" not in k}
    for group in ("dense_layers", "moe_layers"):
        layers = _layers(apart, group)
        whole = _stack([layers[i] for i in sorted(layers)]) if layers else {}
        found |= {f"decoder/{group}/{path}": array for path, array in whole.items()}
    return found


def stacked_blocks(apart: Mapping[str, np.ndarray], period: int, stack: str) -> Arrays:
    """Blocks of layers, all but the last of which are a stack within the stack."""
    found = {k: v for k, v in apart.items() if not k.startswith("decoder/layers_")}
    layers = _layers(apart, "layers")
    starts = range(0, len(layers), period)
    local = [_stack([layers[i + place] for place in range(period - 1)]) for i in starts]
    members: list[tuple[str, Callable[[], Arrays]]] = [
        ("local_layers", lambda: _stack(local)),
        ("global_layer", lambda: _stack([layers[i + period - 1] for i in starts])),
    ]
    for name, made in members:
        found |= {f"decoder/{stack}/{name}/{path}": array for path, array in made().items()}
    return found


def stacked_members(apart: Mapping[str, np.ndarray], period: int) -> Arrays:
    """Blocks of layers, each of whose layers is a stack of its own."""
    found = {k: v for k, v in apart.items() if not k.startswith("decoder/layers_")}
    layers = _layers(apart, "layers")
    for place in range(period):
        whole = _stack([layers[i] for i in range(place, len(layers), period)])
        found |= {f"decoder/layers/layer_{place}/{path}": array for path, array in whole.items()}
    return found
