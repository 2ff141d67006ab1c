"""Further projects' names for the modules of a model, and ways to keep them."""

from collections.abc import Mapping

from tests.support.dialects import FLAX, HAIKU, TORCH, Dialect, Fused

KERAS = {"kernel": "kernel", "bias": "bias", "scale": "gamma", "embedding": "embeddings"}

_HAIKU_NAMES = {
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "out": "attention.linear",
    "up": "mlp.linear",
    "down": "mlp.linear_1",
    "norm.attention": "layer_norm",
    "norm.mlp": "layer_norm_1",
    "token": "embed",
    "position": "position_embedding",
    "norm.final": "final_norm",
    "head": "lm_head",
}
_NANODO_NAMES = {
    "query": "CausalAttn_0.query",
    "key": "CausalAttn_0.key",
    "value": "CausalAttn_0.value",
    "out": "CausalAttn_0.attn_out_proj",
    "up": "Mlp_0.Dense_0",
    "down": "Mlp_0.Dense_1",
    "norm.attention": "LayerNorm_0",
    "norm.mlp": "LayerNorm_1",
    "token": "embed",
    "position": "pos_embed",
    "norm.final": "out_ln",
    "head": "lm_head",
}
_KERAS_NAMES = {
    "query": "self_attention_layer.query_dense",
    "key": "self_attention_layer.key_dense",
    "value": "self_attention_layer.value_dense",
    "out": "self_attention_layer.output_dense",
    "up": "feedforward_intermediate_dense",
    "down": "feedforward_output_dense",
    "norm.attention": "self_attention_layer_norm",
    "norm.mlp": "feedforward_layer_norm",
    "token": "token_embedding",
    "position": "position_embedding",
    "norm.final": "layer_norm",
    "head": "lm_head",
}
_EXAMPLES_NAMES = {
    "query": "attn.q_kernel",
    "key": "attn.k_kernel",
    "value": "attn.v_kernel",
    "out": "attn.o_kernel",
    "gate": "ffw.w_gate",
    "up": "ffw.w_up",
    "down": "ffw.w_down",
    "norm.attention": "attn_pre_gamma",
    "norm.mlp": "attn_post_gamma",
    "token": "embedding",
    "norm.final": "gamma_final",
    "head": "lm_head",
}
_EQUINOX_NAMES = {
    "query": "attn.wq",
    "key": "attn.wk",
    "value": "attn.wv",
    "out": "attn.wo",
    "gate": "mlp.w_gate",
    "up": "mlp.w_up",
    "down": "mlp.w_down",
    "norm.attention": "attn_norm",
    "norm.mlp": "mlp_norm",
    "token": "embedding",
    "norm.final": "final_norm",
    "head": "lm_head",
}
_MIXTRAL_NAMES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "norm.attention": "input_layernorm",
    "norm.mlp": "post_attention_layernorm",
    "token": "model.embed_tokens",
    "norm.final": "model.norm",
    "head": "lm_head",
}
_TORCHVISION_NAMES = {
    "qkv": "self_attention.in_proj",
    "out": "self_attention.out_proj",
    "up": "mlp.0",
    "down": "mlp.3",
    "norm.attention": "ln_1",
    "norm.mlp": "ln_2",
    "patch": "conv_proj",
    "class": "class_token",
    "position": "encoder.pos_embedding",
    "norm.final": "encoder.ln",
    "head": "heads.head",
}
_BARE = ("query", "key", "value", "out", "gate", "up", "down", "norm.attention", "norm.mlp")
_QKV = Fused(("query", "key", "value"), "qkv")

MORE: Mapping[str, Mapping[str, Dialect]] = {
    "llama": {
        "jax-llm-examples": Dialect(
            {"layer": "layers.{i}"},
            _EXAMPLES_NAMES,
            bare=(*_BARE, "token", "norm.final", "head"),
        ),
        "equinox": Dialect({"layer": "layers.{i}"}, _EQUINOX_NAMES, TORCH, "torch"),
    },
    "gpt": {
        "haiku": Dialect({"layer": "transformer.layer_{i}"}, _HAIKU_NAMES, HAIKU, "flat"),
        "nanodo": Dialect({"layer": "blocks_{i}"}, _NANODO_NAMES),
        "keras-hub": Dialect({"layer": "transformer_layer_{i}"}, _KERAS_NAMES, KERAS),
    },
    "vit": {
        "torchvision": Dialect(
            {"layer": "encoder.layers.encoder_layer_{i}"},
            _TORCHVISION_NAMES,
            TORCH,
            "torch",
            fused=(_QKV,),
            bare=("class", "position"),
        ),
    },
    "mixture": {
        "mixtral": Dialect(
            {"layer": "model.layers.{i}"},
            _MIXTRAL_NAMES
            | {
                "router": "block_sparse_moe.gate",
                "gate": "block_sparse_moe.experts.{e}.w1",
                "down": "block_sparse_moe.experts.{e}.w2",
                "up": "block_sparse_moe.experts.{e}.w3",
            },
            TORCH,
            "torch",
        ),
        "qwen 3": Dialect(
            {"layer": "model.layers.{i}"},
            _MIXTRAL_NAMES
            | {
                "router": "mlp.gate",
                "gate": "mlp.experts.{e}.gate_proj",
                "down": "mlp.experts.{e}.down_proj",
                "up": "mlp.experts.{e}.up_proj",
            },
            TORCH,
            "torch",
        ),
    },
    "mixer": {
        "nnx": Dialect(
            {"layer": "mixer_blocks.{i}"},
            {
                "norm.tokens": "norm1",
                "tokens.up": "token_mlp.linear1",
                "tokens.down": "token_mlp.linear2",
                "norm.channels": "norm2",
                "channels.up": "channel_mlp.linear1",
                "channels.down": "channel_mlp.linear2",
                "patch": "patch_embed",
                "norm.final": "norm",
                "head": "head",
            },
            FLAX,
        ),
    },
    "resnet": {
        "transformers": Dialect(
            {"layer": "resnet.encoder.layers.{i}"},
            {
                "conv0": "layer.0.convolution",
                "norm0": "layer.0.normalization",
                "conv1": "layer.1.convolution",
                "norm1": "layer.1.normalization",
                "shortcut": "shortcut.convolution",
                "shortcut_norm": "shortcut.normalization",
                "stem": "resnet.embedder.embedder.convolution",
                "stem_norm": "resnet.embedder.embedder.normalization",
                "head": "classifier.1",
            },
            TORCH,
            "torch",
        ),
    },
}
"""By the family of models, as `REAL`; where a name has `{e}`, each expert is apart."""
