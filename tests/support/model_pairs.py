"""Models written twice, in Linen and in NNX, as people do: with other names on each side.

The Linen ones leave naming to flax (`Dense_0`, `LayerNorm_1`), but for the last, which has the
names of Hugging Face's GPT-2; the NNX ones are named by hand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from tests.support.models import Batch, pictures, tokens

WIDTH, HEADS, LAYERS, VOCABULARY, LENGTH = 16, 2, 3, 13, 8


class LinenMlp(nn.Module):
    """Two hidden layers are of the same shape."""

    @nn.compact
    def __call__(self, pictures: jax.Array) -> jax.Array:
        x = pictures.reshape(len(pictures), -1)
        for _ in range(3):
            x = nn.relu(nn.Dense(WIDTH)(x))
        return nn.Dense(10)(x)


class NnxMlp(nnx.Module):
    """The hidden layers are a list, the last one has a name of its own."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        sizes = [36, WIDTH, WIDTH]
        self.hidden = nnx.List([nnx.Linear(size, WIDTH, rngs=rngs) for size in sizes])
        self.classifier = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, pictures: jax.Array) -> jax.Array:
        x = pictures.reshape(len(pictures), -1)
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.classifier(x)


class LinenCnn(nn.Module):
    """Two convolutions with batch statistics."""

    @nn.compact
    def __call__(self, pictures: jax.Array, is_training: bool = True) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not is_training)(nn.Conv(4, (3, 3))(pictures))
        x = nn.Conv(4, (3, 3))(nn.relu(x))
        x = nn.BatchNorm(use_running_average=not is_training)(x)
        return nn.Dense(10)(nn.relu(x).mean(axis=(1, 2)))


class NnxCnn(nnx.Module):
    """Counted from 1."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.bn1 = nnx.BatchNorm(4, rngs=rngs)
        self.conv2 = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.bn2 = nnx.BatchNorm(4, rngs=rngs)
        self.linear = nnx.Linear(4, 10, rngs=rngs)

    def __call__(self, pictures: jax.Array) -> jax.Array:
        x = nnx.relu(self.bn1(self.conv1(pictures)))
        x = nnx.relu(self.bn2(self.conv2(x)))
        return self.linear(x.mean(axis=(1, 2)))


class LinenAttention(nn.Module):
    """Attention once, between two norms."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, WIDTH)(tokens)
        mask = nn.make_causal_mask(tokens)
        x += nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x), mask=mask)
        return nn.Dense(VOCABULARY)(nn.LayerNorm()(x))


class NnxAttention(nnx.Module):
    """The norms are told by their place."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        x += self.attn(self.norm1(x), mask=nnx.make_causal_mask(tokens))
        return self.head(self.norm2(x))


class EncoderBlock(nn.Module):
    """A block of a Linen ViT."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x += nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x))
        y = nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x)))
        return x + nn.Dense(WIDTH)(y)


class LinenVit(nn.Module):
    """Patches of 3 by 3, a class token and learned positions."""

    @nn.compact
    def __call__(self, pictures: jax.Array) -> jax.Array:
        x = nn.Conv(WIDTH, (3, 3), strides=3, padding="VALID")(pictures)
        x = x.reshape(len(x), -1, WIDTH)
        cls = self.param("cls", nn.initializers.normal(0.02), (1, 1, WIDTH))
        x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
        shape = (1, x.shape[1], WIDTH)
        x += self.param("pos_embedding", nn.initializers.normal(0.02), shape)
        for _ in range(LAYERS):
            x = EncoderBlock()(x)
        return nn.Dense(10)(nn.LayerNorm()(x)[:, 0])


class NnxBlock(nnx.Module):
    """A block of an NNX transformer, with or without a causal mask."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.fc1 = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.fc2 = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x += self.attn(self.norm1(x))
        return x + self.fc2(nnx.gelu(self.fc1(self.norm2(x))))


class NnxVit(nnx.Module):
    """The same in NNX."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.patch_embed = nnx.Conv(1, WIDTH, (3, 3), strides=3, padding="VALID", rngs=rngs)
        self.cls_token = nnx.Param(jnp.zeros((1, 1, WIDTH)))
        self.position_embed = nnx.Param(jnp.zeros((1, 5, WIDTH)))
        self.blocks = nnx.List([NnxBlock(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, pictures: jax.Array) -> jax.Array:
        x = self.patch_embed(pictures)
        x = x.reshape(len(x), -1, WIDTH)
        x = jnp.concatenate([jnp.tile(self.cls_token[...], (len(x), 1, 1)), x], axis=1)
        x += self.position_embed[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def attend(qkv: jax.Array) -> jax.Array:
    """Causal attention over fused queries, keys and values."""
    query, key, value = (
        part.reshape(*part.shape[:-1], HEADS, -1) for part in jnp.split(qkv, 3, axis=-1)
    )
    mask = nn.make_causal_mask(qkv[..., 0])
    found = nn.dot_product_attention(query, key, value, mask=mask)
    return found.reshape(*found.shape[:-2], -1)


class HfAttention(nn.Module):
    """`attn` of GPT-2."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(WIDTH, name="c_proj")(attend(nn.Dense(3 * WIDTH, name="c_attn")(x)))


class HfMlp(nn.Module):
    """`mlp` of GPT-2."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(WIDTH, name="c_proj")(nn.gelu(nn.Dense(4 * WIDTH, name="c_fc")(x)))


class HfBlock(nn.Module):
    """`h.0` of GPT-2."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x += HfAttention(name="attn")(nn.LayerNorm(name="ln_1")(x))
        return x + HfMlp(name="mlp")(nn.LayerNorm(name="ln_2")(x))


class HfBlocks(nn.Module):
    """`h` of GPT-2: modules whose names are numbers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(LAYERS):
            x = HfBlock(name=str(i))(x)
        return x


class HfTransformer(nn.Module):
    """`transformer` of GPT-2."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, WIDTH, name="wte")(tokens)
        x += nn.Embed(LENGTH, WIDTH, name="wpe")(jnp.arange(tokens.shape[1]))
        return nn.LayerNorm(name="ln_f")(HfBlocks(name="h")(x))


class LinenGpt(nn.Module):
    """GPT-2, with Hugging Face's names."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = HfTransformer(name="transformer")(tokens)
        return nn.Dense(VOCABULARY, use_bias=False, name="lm_head")(x)


class NnxGptBlock(nnx.Module):
    """A layer of GPT-2 in NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.qkv = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x += self.out(attend(self.qkv(self.norm1(x))))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class NnxGpt(nnx.Module):
    """GPT-2 in NNX."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.layers = nnx.List([NnxGptBlock(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


@dataclass(frozen=True)
class PairOfModels:
    """The same model twice, and what it is trained on."""

    linen: Callable[[], nn.Module]
    nnx: Callable[..., Any]
    batch: Batch


PAIRS = {
    "mlp": PairOfModels(LinenMlp, NnxMlp, pictures),
    "cnn": PairOfModels(LinenCnn, NnxCnn, pictures),
    "attention": PairOfModels(LinenAttention, NnxAttention, tokens),
    "vit": PairOfModels(LinenVit, NnxVit, pictures),
    "gpt": PairOfModels(LinenGpt, NnxGpt, tokens),
}


def abstract_mlp() -> Any:
    """The state of the NNX MLP, without arrays: a template for `match`."""
    return nnx.state(nnx.eval_shape(lambda: NnxMlp(rngs=nnx.Rngs(0))))
