"""A small model of NNX whose weights stand in every way that qwix adapts; qwix itself, as witness.

`python qwix_models.py TARGET` writes, with numpy, the state of the model that `qwix` has given
adapters, what it says of a batch, and that batch. It needs qwix, and no nnxconv.
"""

import sys

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

WIDTH, HEADS, HEAD, MLP, WORDS = 12, 3, 4, 20, 7
RANK, ALPHA = 2, 3.0


class Attention(nnx.Module):
    """Projections as Tunix and Gemma have them: heads apart, before or after the width."""

    def __init__(self, rngs):
        def einsum(text, *shape):
            return nnx.Einsum(text, shape, rngs=rngs)

        self.q_einsum = einsum("btd,ndh->btnh", HEADS, WIDTH, HEAD)
        self.kv_einsum = einsum("bsd,ckdh->cbskh", 2, HEADS, WIDTH, HEAD)
        self.gate_proj = einsum("btd,dnh->btnh", WIDTH, HEADS, HEAD)
        self.out_proj = einsum("btnh,nhd->btd", HEADS, HEAD, WIDTH)

    def __call__(self, x):
        keys, values = self.kv_einsum(x)
        logits = jnp.einsum("btnh,bsnh->bnts", self.q_einsum(x), keys)
        mixed = jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits), values)
        return self.out_proj(mixed * self.gate_proj(x))


class Model(nnx.Module):
    """One block, and an output of words."""

    def __init__(self, rngs):
        self.attention = Attention(rngs)
        self.up = nnx.Linear(WIDTH, MLP, rngs=rngs)
        self.down = nnx.Linear(MLP, WIDTH, use_bias=False, rngs=rngs)
        self.heads = nnx.LinearGeneral(WIDTH, (HEADS, HEAD), rngs=rngs)
        self.words = nnx.LinearGeneral((HEADS, HEAD), WORDS, axis=(-2, -1), rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(x)
        x = x + self.down(jax.nn.gelu(self.up(x)))
        return self.words(self.heads(x))


def batch() -> jax.Array:
    """Some inputs, float32, shape (2, 5, WIDTH)."""
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, WIDTH)), "float32")


def _adapted():
    """The model with adapters on all its modules, none of them zero."""
    import qwix

    rule = qwix.LoraProvider(module_path=".*", rank=RANK, alpha=ALPHA)
    model = qwix.apply_lora_to_model(Model(nnx.Rngs(1)), rule, batch(), rngs=nnx.Rngs(2))
    made = np.random.default_rng(3)
    state = nnx.state(model, nnx.LoRAParam)
    drawn = jax.tree.map(lambda x: jnp.asarray(0.1 * made.normal(size=x.shape), x.dtype), state)
    nnx.update(model, drawn)
    return model


if __name__ == "__main__":
    live = _adapted()
    weights = nnx.to_pure_dict(nnx.state(live, nnx.Param))
    flat = flax.traverse_util.flatten_dict(weights)
    arrays = {"/".join(map(str, key)): np.asarray(value) for key, value in flat.items()}
    np.savez(sys.argv[1], said=np.asarray(live(batch())), **arrays)
