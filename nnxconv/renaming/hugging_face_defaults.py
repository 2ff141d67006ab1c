"""What a model of transformers has where its `config.json` leaves an entry out.

Older writers of transformers, and people, leave out what is as the class has it. Sources: the
defaults in transformers models/*/configuration_*.py; Llama, Olmo 3 and Qwen 2 have as many heads of
keys as of queries then, and the head size of Llama, Mistral, Mixtral, Qwen 2 and Olmo 3 follows
from the width.
"""

from collections.abc import Mapping
from typing import Any

_HEADS = "num_attention_heads"
_KV_HEADS = "num_key_value_heads"
_EXPERTS = "num_local_experts"
_DENSE, _ROUTED, _SHARED = "first_k_dense_replace", "n_routed_experts", "n_shared_experts"
_RANK = "q_lora_rank"
_GEMMA4 = {_HEADS: 8, _KV_HEADS: 4, "hidden_size_per_layer_input": 256}
_QWEN3_5 = {_HEADS: 16, _KV_HEADS: 2, "linear_num_key_heads": 16, "linear_num_value_heads": 32}
_QWEN3_5 |= {"linear_key_head_dim": 128, "linear_value_head_dim": 128}
_QWEN3_VL = {_HEADS: 32, _KV_HEADS: 32, "head_dim": 128}
_QWEN3_VL_MOE = {_HEADS: 16, _KV_HEADS: 16, _EXPERTS: 60}
_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "llama": {_HEADS: 32},
    "mistral": {_HEADS: 32, _KV_HEADS: 8},
    "mixtral": {_HEADS: 32, _KV_HEADS: 8, _EXPERTS: 8},
    "qwen2": {_HEADS: 32},
    "qwen3": {_HEADS: 32, "head_dim": 128},
    "qwen3_moe": {_HEADS: 32, _KV_HEADS: 4, _EXPERTS: 128},
    "qwen3_vl": _QWEN3_VL,
    "qwen3_vl_text": _QWEN3_VL,
    "qwen3_vl_moe": _QWEN3_VL_MOE,
    "qwen3_vl_moe_text": _QWEN3_VL_MOE,
    "gemma2": {_HEADS: 8, _KV_HEADS: 4, "head_dim": 256},
    "gpt_oss": {_HEADS: 64, _KV_HEADS: 8, "head_dim": 64, _EXPERTS: 128},
    "olmo3": {_HEADS: 32},
    "deepseek_v2": {_HEADS: 32, _DENSE: 0, _ROUTED: 64, _SHARED: 2, _RANK: 1536},
    "deepseek_v3": {_HEADS: 128, _DENSE: 3, _ROUTED: 256, _SHARED: 1, _RANK: 1536},
    "deepseek_v32": {_HEADS: 128, _DENSE: 3, _ROUTED: 256, _SHARED: 1, _RANK: 1536},
    "gemma4": _GEMMA4,
    "gemma4_text": _GEMMA4,
    "qwen3_5_moe": _QWEN3_5,
    "qwen3_5_moe_text": _QWEN3_5,
    "qwen3_next": {_HEADS: 16, _KV_HEADS: 2, "num_experts": 512},
}


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with what its class has for entries that are not there.

    >>> with_defaults({"model_type": "mistral", "num_attention_heads": 16})["num_key_value_heads"]
    8
    """
    return {**_DEFAULTS.get(str(config.get("model_type")), {}), **config}
