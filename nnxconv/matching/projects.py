"""What projects call the modules of their models.

Each project's names are read off the source that is given with it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Project:
    """The names in one project.

    Attributes:
      source: where they stand.
      block: what modules of a layer are called, by their role; `within.name` where `within` tells
        them apart: `attention`, `mlp`, `moe`, `shared` (experts) or `conv`.
      root: the same outside of layers.
      is_whole: the names say nothing but in company: `LayerNorm_0` in a layer of which every module
        is one of this project's.
    """

    source: str
    block: str
    root: str = ""
    is_whole: bool = False


_LSTM = (
    "input.i=ii input.f=if input.f=if_ input.g=ig input.o=io"
    " hidden.i=hi hidden.f=hf hidden.g=hg hidden.o=ho"
    " input.gates=dense_i hidden.gates=dense_h"
)
_GRU = (
    "input.r=ir input.z=iz input.n=in hidden.r=hr hidden.z=hz hidden.n=hn"
    " input.gates=dense_i hidden.gates=dense_h"
)

PROJECTS = (
    Project(
        "transformers, models/llama/modeling_llama.py",
        "query=attention.q_proj key=attention.k_proj value=attention.v_proj out=attention.o_proj"
        " gate=mlp.gate_proj up=mlp.up_proj down=mlp.down_proj"
        " norm.attention=input_layernorm norm.mlp=post_attention_layernorm",
        "token=embed_tokens norm.final=norm head=lm_head",
    ),
    Project(
        "transformers, models/gemma2/modeling_gemma2.py, and gemma3",
        "query=attention.q_proj key=attention.k_proj value=attention.v_proj out=attention.o_proj"
        " gate=mlp.gate_proj up=mlp.up_proj down=mlp.down_proj norm.query=attention.q_norm"
        " norm.key=attention.k_norm norm.attention=input_layernorm"
        " norm.after_attention=post_attention_layernorm norm.mlp=pre_feedforward_layernorm"
        " norm.after_mlp=post_feedforward_layernorm",
        "token=embed_tokens norm.final=norm head=lm_head",
    ),
    Project(
        "transformers, models/olmo2/modeling_olmo2.py",
        "query=attention.q_proj key=attention.k_proj value=attention.v_proj out=attention.o_proj"
        " gate=mlp.gate_proj up=mlp.up_proj down=mlp.down_proj norm.query=attention.q_norm"
        " norm.key=attention.k_norm norm.attention=post_attention_layernorm"
        " norm.mlp=post_feedforward_layernorm",
        "token=embed_tokens norm.final=norm head=lm_head",
    ),
    Project(
        "transformers, models/phi3/modeling_phi3.py",
        "qkv=attention.qkv_proj out=attention.o_proj gate_up=mlp.gate_up_proj down=mlp.down_proj"
        " norm.attention=input_layernorm norm.mlp=post_attention_layernorm",
        "token=embed_tokens norm.final=norm head=lm_head",
    ),
    Project(
        "meta-llama/llama, llama/model.py",
        "query=attention.wq key=attention.wk value=attention.wv out=attention.wo"
        " gate=mlp.w1 down=mlp.w2 up=mlp.w3 norm.attention=attention_norm norm.mlp=ffn_norm",
        "token=tok_embeddings norm.final=norm head=output",
    ),
    Project(
        "young-geng/EasyLM, EasyLM/models/llama/llama_model.py",
        "query=attention.wq key=attention.wk value=attention.wv out=attention.wo"
        " gate=mlp.w1 down=mlp.w2 up=mlp.w3 norm.attention=attention_norm norm.mlp=ffn_norm",
        "token=wte norm.final=ln_f head=lm_head",
    ),
    Project(
        "transformers, models/mixtral/modeling_mixtral.py",
        "query=attention.q_proj key=attention.k_proj value=attention.v_proj out=attention.o_proj"
        " router=moe.gate gate=moe.w1 down=moe.w2 up=moe.w3"
        " norm.attention=input_layernorm norm.mlp=post_attention_layernorm",
        "token=embed_tokens norm.final=norm head=lm_head",
    ),
    Project(
        "transformers, models/qwen2_moe/modeling_qwen2_moe.py, and deepseek_v3",
        "query=attention.q_proj key=attention.k_proj value=attention.v_proj out=attention.o_proj"
        " gate=mlp.gate_proj up=mlp.up_proj down=mlp.down_proj router=moe.gate gate=moe.gate_proj"
        " up=moe.up_proj down=moe.down_proj gate=shared.gate_proj up=shared.up_proj"
        " down=shared.down_proj norm.attention=input_layernorm norm.mlp=post_attention_layernorm",
        "token=embed_tokens norm.final=norm head=lm_head",
    ),
    Project(
        "AI-Hypercomputer/maxtext, layers/llama2.py, attentions.py, linears.py, moe.py",
        "query=attention.query key=attention.key value=attention.value out=attention.out"
        " qkv=attention.qkv_proj gate=mlp.wi_0 up=mlp.wi_1 down=mlp.wo up=mlp.wi"
        " norm.query=attention.query_norm norm.key=attention.key_norm"
        " router=moe.gate gate=moe.wi_0 up=moe.wi_1 down=moe.wo"
        " gate=shared.wi_0 up=shared.wi_1 down=shared.wo"
        " norm.attention=pre_self_attention_layer_norm norm.mlp=post_self_attention_layer_norm",
        "token=token_embedder norm.final=decoder_norm head=logits_dense position=position_embedder",
    ),
    Project(
        "AI-Hypercomputer/maxtext, layers/gemma2.py",
        "query=attention.query key=attention.key value=attention.value out=attention.out"
        " gate=mlp.wi_0 up=mlp.wi_1 down=mlp.wo norm.attention=pre_self_attention_norm"
        " norm.after_attention=post_self_attention_norm norm.mlp=pre_ffw_norm"
        " norm.after_mlp=post_ffw_norm",
        "token=token_embedder norm.final=decoder_norm",
    ),
    Project(
        "google-deepmind/gemma, gemma/modules.py",
        "query=attention.q_einsum kv=attention.kv_einsum qkv=attention.qkv_einsum"
        " out=attention.attn_vec_einsum gate_up=mlp.gating_einsum down=mlp.linear"
        " norm.query=attention._query_norm norm.key=attention._key_norm"
        " norm.attention=pre_attention_norm norm.after_attention=post_attention_norm"
        " norm.mlp=pre_ffw_norm norm.after_mlp=post_ffw_norm",
        "token=embedder norm.final=final_norm",
    ),
    Project(
        "google-research/t5x, examples/t5/network.py and layers.py",
        "query=attention.query key=attention.key value=attention.value out=attention.out"
        " gate=mlp.wi_0 up=mlp.wi_1 up=mlp.wi down=mlp.wo norm.attention=pre_attention_layer_norm"
        " norm.attention=pre_self_attention_layer_norm norm.cross=pre_cross_attention_layer_norm"
        " norm.mlp=pre_mlp_layer_norm",
        "token=token_embedder norm.final=encoder_norm norm.final=decoder_norm head=logits_dense",
    ),
    Project(
        "transformers, models/t5/modeling_t5.py, a block of the encoder",
        "query=attention.q key=attention.k value=attention.v out=attention.o gate=mlp.wi_0"
        " up=mlp.wi_1 up=mlp.wi down=mlp.wo norm.attention=layer.0.layer_norm"
        " norm.mlp=layer.1.layer_norm",
        "token=shared norm.final=final_layer_norm head=lm_head",
    ),
    Project(
        "transformers, models/t5/modeling_t5.py, a block of the decoder",
        "query=attention.q key=attention.k value=attention.v out=attention.o gate=mlp.wi_0"
        " up=mlp.wi_1 up=mlp.wi down=mlp.wo norm.attention=layer.0.layer_norm"
        " norm.cross=layer.1.layer_norm norm.mlp=layer.2.layer_norm",
        "token=shared norm.final=final_layer_norm head=lm_head",
    ),
    Project(
        "google/praxis, praxis/layers/transformers.py",
        "query=attention.query key=attention.key value=attention.value out=attention.post"
        " norm.attention=layer_norm up=mlp.ffn_layer1 gate=mlp.ffn_layer1_gate down=mlp.ffn_layer2"
        " norm.mlp=mlp.layer_norm",
        "token=embedding_lookup position=position_emb norm.final=final_ln",
    ),
    Project(
        "openai/gpt-2, src/model.py; transformers, models/gpt2/modeling_gpt2.py",
        "qkv=attention.c_attn out=attention.c_proj up=mlp.c_fc down=mlp.c_proj"
        " norm.attention=ln_1 norm.mlp=ln_2",
        "token=wte position=wpe norm.final=ln_f head=lm_head",
    ),
    Project(
        "transformers, models/gpt_neox/modeling_gpt_neox.py",
        "by_head=attention.query_key_value out=attention.dense up=mlp.dense_h_to_4h"
        " down=mlp.dense_4h_to_h norm.attention=input_layernorm norm.mlp=post_attention_layernorm",
        "token=embed_in norm.final=final_layer_norm head=embed_out",
    ),
    Project(
        "transformers, models/gptj/modeling_gptj.py",
        "query=attention.q_proj key=attention.k_proj value=attention.v_proj out=attention.out_proj"
        " up=mlp.fc_in down=mlp.fc_out norm.attention=ln_1",
        "token=wte norm.final=ln_f head=lm_head",
    ),
    Project(
        "transformers, models/opt/modeling_opt.py, bart/modeling_bart.py, clip/modeling_clip.py",
        "query=attention.q_proj key=attention.k_proj value=attention.v_proj out=attention.out_proj"
        " up=fc1 down=fc2 up=mlp.fc1 down=mlp.fc2 norm.attention=self_attn_layer_norm"
        " norm.attention=layer_norm1 norm.mlp=layer_norm2 norm.cross=encoder_attn_layer_norm"
        " norm.mlp=final_layer_norm",
        "token=embed_tokens position=embed_positions norm.final=final_layer_norm head=lm_head"
        " token=token_embedding position=position_embedding norm.embedding=layernorm_embedding",
    ),
    Project(
        "transformers, models/bert/modeling_bert.py",
        "query=attention.query key=attention.key value=attention.value out=attention.output.dense"
        " norm.attention=attention.output.layer_norm up=intermediate.dense down=output.dense"
        " norm.mlp=output.layer_norm",
        "token=word_embeddings position=position_embeddings type=token_type_embeddings"
        " norm.embedding=embeddings.layer_norm pooler=pooler.dense",
    ),
    Project(
        "transformers, models/vit/modeling_vit.py",
        "query=attention.query key=attention.key value=attention.value out=attention.output.dense"
        " up=intermediate.dense down=output.dense norm.attention=layernorm_before"
        " norm.mlp=layernorm_after",
        "class=cls_token position=position_embeddings patch=patch_embeddings.projection"
        " norm.final=layernorm head=classifier",
    ),
    Project(
        "huggingface/pytorch-image-models, timm/models/vision_transformer.py",
        "qkv=attention.qkv out=attention.proj up=mlp.fc1 down=mlp.fc2 norm.attention=norm1"
        " norm.mlp=norm2 norm.query=attention.q_norm norm.key=attention.k_norm"
        " scale.attention=ls1 scale.mlp=ls2",
        "class=cls_token position=pos_embed patch=patch_embed.proj norm.final=norm head=head",
    ),
    Project(
        "google-research/vision_transformer, vit_jax/models_vit.py; google-research/big_vision",
        "query=attention.query key=attention.key value=attention.value out=attention.out"
        " norm.attention=layer_norm_0 norm.mlp=layer_norm_1 norm.mlp=layer_norm_2"
        " up=mlp.dense_0 down=mlp.dense_1",
        "class=cls position=pos_embedding patch=embedding norm.final=encoder_norm head=head",
        is_whole=True,
    ),
    Project(
        "google-research/vision_transformer, vit_jax/models_mixer.py",
        "norm.tokens=layer_norm_0 tokens.up=token_mixing.dense_0 tokens.down=token_mixing.dense_1"
        " norm.channels=layer_norm_1 channels.up=channel_mixing.dense_0"
        " channels.down=channel_mixing.dense_1",
        "patch=stem norm.final=pre_head_layer_norm head=head",
        is_whole=True,
    ),
    Project(
        "huggingface/pytorch-image-models, timm/models/mlp_mixer.py",
        "norm.tokens=norm1 tokens.up=mlp_tokens.fc1 tokens.down=mlp_tokens.fc2"
        " norm.channels=norm2 channels.up=mlp_channels.fc1 channels.down=mlp_channels.fc2",
        "patch=stem.proj norm.final=norm head=head",
        is_whole=True,
    ),
    Project(
        "google/flax, flax/linen/attention.py and flax/nnx/nn/attention.py",
        "query=attention.query key=attention.key value=attention.value out=attention.out"
        " norm.query=attention.query_ln norm.key=attention.key_ln",
    ),
    Project(
        "pytorch, torch/nn/modules/transformer.py",
        "qkv=attention.in_proj out=attention.out_proj up=linear1 down=linear2 norm.attention=norm1",
    ),
    Project(
        "openai/CLIP, clip/model.py",
        "qkv=attention.in_proj out=attention.out_proj up=mlp.c_fc down=mlp.c_proj"
        " norm.attention=ln_1 norm.mlp=ln_2",
        "class=class_embedding position=positional_embedding patch=conv1 norm.final=ln_post"
        " norm.embedding=ln_pre",
    ),
    Project(
        "huggingface/diffusers, models/attention_processor.py and resnet.py",
        "query=attention.to_q key=attention.to_k value=attention.to_v out=attention.to_out.0",
    ),
    Project(
        "rwightman, google/flaxformer and others: names that say what they are",
        "query=attention.query_proj key=attention.key_proj value=attention.value_proj"
        " query=attention.q key=attention.k value=attention.v out=attention.out"
        " out=attention.out_proj out=attention.output_proj gate=mlp.gate up=mlp.up down=mlp.down"
        " norm.attention=pre_attention_norm norm.attention=attention_norm norm.attention=attn_norm"
        " norm.mlp=pre_mlp_norm norm.mlp=mlp_norm norm.mlp=ffn_norm norm.attention=ln1"
        " norm.mlp=ln2 norm.attention=ln_attn norm.mlp=ln_mlp gate=mlp.linear_gate"
        " up=mlp.linear_up down=mlp.linear_down",
        "token=token_embedding token=embed token=tok_embed token=token_embed position=pos_embedding"
        " position=pos_emb position=pos_embed position=position_embedding norm.final=final_norm"
        " norm.final=norm_f norm.final=final_layernorm norm.final=norm head=head head=lm_head"
        " head=output_head head=unembed class=class_token class=cls patch=patch_embedding"
        " patch=patch_embed",
    ),
    Project(
        "openai/whisper, whisper/model.py",
        "query=attention.query key=attention.key value=attention.value out=attention.out"
        " norm.attention=attn_ln norm.cross=cross_attn_ln norm.mlp=mlp_ln up=mlp.0 down=mlp.2",
        "token=token_embedding position=positional_embedding norm.final=ln_post norm.final=ln"
        " norm.final=ln_final",
    ),
    Project(
        "transformers, models/whisper/modeling_whisper.py",
        "query=attention.q_proj key=attention.k_proj value=attention.v_proj out=attention.out_proj"
        " up=fc1 down=fc2 norm.attention=self_attn_layer_norm norm.cross=encoder_attn_layer_norm"
        " norm.mlp=final_layer_norm",
        "token=embed_tokens position=embed_positions norm.final=layer_norm",
    ),
    Project(
        "pytorch/vision, torchvision/models/vision_transformer.py",
        "qkv=attention.in_proj out=attention.out_proj up=mlp.0 down=mlp.3 up=mlp.linear_1"
        " down=mlp.linear_2 norm.attention=ln_1 norm.mlp=ln_2",
        "class=class_token position=pos_embedding patch=conv_proj norm.final=ln head=heads.head",
    ),
    Project(
        "keras-team/keras-hub, layers/modeling/transformer_encoder.py and transformer_decoder.py",
        "query=attention.query key=attention.key value=attention.value"
        " out=attention.attention_output query=attention.query_dense key=attention.key_dense"
        " value=attention.value_dense out=attention.output_dense"
        " norm.attention=self_attention_layer_norm norm.mlp=feedforward_layer_norm"
        " up=feedforward_intermediate_dense down=feedforward_output_dense",
        "token=token_embedding position=position_embedding type=segment_embedding"
        " norm.embedding=embeddings_layer_norm pooler=pooled_dense norm.final=layer_norm",
    ),
    Project(
        "keras-team/keras-hub, models/llama/llama_decoder.py",
        "query=attention.query key=attention.key value=attention.value"
        " out=attention.attention_output norm.attention=self_attention_layernorm"
        " norm.mlp=feedforward_layernorm gate=feedforward_gate_dense"
        " up=feedforward_intermediate_dense down=feedforward_output_dense",
        "token=token_embedding norm.final=sequence_output_layernorm head=token_embedding.reverse",
    ),
    Project(
        "google-deepmind/dm-haiku, haiku/_src/attention.py and examples/transformer/model.py",
        "query=attention.query key=attention.key value=attention.value out=attention.linear"
        " norm.attention=layer_norm_0 norm.mlp=layer_norm_1 up=mlp.linear_0 down=mlp.linear_1"
        " norm.attention=ln_1 norm.mlp=ln_2 up=linear_0 down=linear_1",
        "norm.final=layer_norm norm.final=ln_f",
        is_whole=True,
    ),
    Project(
        "google/flax, names of flax.linen.compact in a block of attention and two dense layers",
        "query=attention.query key=attention.key value=attention.value out=attention.out"
        " norm.attention=layer_norm_0 norm.mlp=layer_norm_1 up=dense_0 down=dense_1"
        " up=mlp.dense_0 down=mlp.dense_1",
        is_whole=True,
    ),
    Project(
        "google/flax, flax/linen/recurrent.py and flax/nnx/nn/recurrent.py, cells of an LSTM",
        _LSTM,
        _LSTM,
    ),
    Project(
        "google/flax, flax/linen/recurrent.py and flax/nnx/nn/recurrent.py, cells of a GRU",
        _GRU,
        _GRU,
    ),
    Project(
        "google-deepmind/nanodo, nanodo/model.py",
        "query=attention.query key=attention.key value=attention.value"
        " out=attention.attn_out_proj norm.attention=layer_norm_0 norm.mlp=layer_norm_1"
        " up=mlp.dense_0 down=mlp.dense_1",
        "token=embed position=pos_embed norm.final=out_ln",
        is_whole=True,
    ),
    Project(
        "jax-ml/jax-llm-examples, llama3/llama3_jax/model.py",
        "query=attention.q key=attention.k value=attention.v out=attention.o"
        " norm.attention=attn_pre_gamma norm.mlp=attn_post_gamma gate=mlp.w_gate up=mlp.w_up"
        " down=mlp.w_down",
        "token=embedding norm.final=gamma_final head=lm_head",
    ),
    Project(
        "AI-Hypercomputer/maxtext, layers/gpt3.py",
        "query=attention.query key=attention.key value=attention.value out=attention.out"
        " qkv=attention.qkv_proj norm.attention=pre_self_attention_norm"
        " norm.mlp=mlp.mlp_layer_norm up=mlp.wi down=mlp.wo",
        "token=token_embedder position=position_embedder norm.final=decoder_norm",
    ),
    Project(
        "google/flaxformer and google-research/bert's descendants in Flax",
        "query=attention.query key=attention.key value=attention.value out=attention.out"
        " norm.attention=self_attention_layer_norm norm.mlp=output_layer_norm"
        " up=mlp.intermediate down=mlp.output",
        "token=embedder.word position=embedder.position type=embedder.type"
        " norm.embedding=embedder.layer_norm pooler=pooler",
    ),
    Project(
        "jax-ml/jax-ai-stack, a small GPT in NNX",
        "query=attention.query key=attention.key value=attention.value out=attention.out"
        " norm.attention=layer_norm1 norm.mlp=layer_norm2 up=linear1 down=linear2",
        "token=token_emb position=pos_emb",
    ),
    Project(
        "mosaicml/llm-foundry, models/mpt/modeling_mpt.py",
        "qkv=attention.wqkv out=attention.out_proj norm.attention=norm_1 norm.mlp=norm_2"
        " up=mlp.up_proj down=mlp.down_proj",
        "token=wte norm.final=norm_f",
    ),
    Project(
        "Equinox's and NNX' examples of an MLP-Mixer",
        "norm.tokens=norm1 norm.channels=norm2 tokens.up=patch_mixer.layers.0"
        " tokens.down=patch_mixer.layers.1 channels.up=hidden_mixer.layers.0"
        " channels.down=hidden_mixer.layers.1 tokens.up=token_mlp.linear1"
        " tokens.down=token_mlp.linear2 channels.up=channel_mlp.linear1"
        " channels.down=channel_mlp.linear2 tokens.up=token_mlp.fc1 tokens.down=token_mlp.fc2"
        " channels.up=channel_mlp.fc1 channels.down=channel_mlp.fc2",
        "patch=conv_in norm.final=norm head=conv_out",
        is_whole=True,
    ),
    Project(
        "google/tunix, models/llama3/model.py and qwen3/model.py",
        "query=attention.q_proj key=attention.k_proj value=attention.v_proj out=attention.o_proj"
        " norm.query=attention.q_norm norm.key=attention.k_norm router=moe.router"
        " gate=moe.gate_proj up=moe.up_proj down=moe.down_proj gate=mlp.gate_proj up=mlp.up_proj"
        " down=mlp.down_proj norm.attention=input_layernorm norm.mlp=post_attention_layernorm",
        "token=embedder norm.final=final_norm head=lm_head",
    ),
    Project(
        "names of Equinox' and NNX' examples",
        "query=attention.query_proj key=attention.key_proj value=attention.value_proj"
        " out=attention.output_proj query=attention.query key=attention.key value=attention.value"
        " out=attention.out query=attention.wq key=attention.wk value=attention.wv"
        " out=attention.wo query=attention.w_q key=attention.w_k value=attention.w_v"
        " out=attention.w_o norm.attention=attn_norm norm.mlp=mlp_norm norm.mlp=ffn_norm"
        " norm.attention=ln1 norm.mlp=ln2 norm.attention=ln_1 norm.mlp=ln_2 norm.attention=norm1"
        " norm.mlp=norm2 gate=mlp.w_gate up=mlp.w_up down=mlp.w_down up=mlp.fc1 down=mlp.fc2"
        " up=mlp.layers.0 down=mlp.layers.1 down=mlp.layers.2 down=mlp.layers.3 up=mlp.in_linear"
        " down=mlp.out_linear",
        "token=embed.tok position=embed.pos token=embedding norm.final=final_norm norm.final=norm"
        " head=lm_head position=position_embeddings patch=patch_embeddings",
    ),
)
