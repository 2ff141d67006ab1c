"""Makes `examples/linen_checkpoint`: two steps of a tiny Linen transformer, saved with Orbax.

    python examples/make_linen_checkpoint.py [DIRECTORY]

Three layers that are apart (`layers_0` to `layers_2`), adamw with clipping, a root of steps as
`CheckpointManager` writes it. The same weights come out every time.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import linen as nn
from flax.training.train_state import TrainState

VOCABULARY, WIDTH, HEADS, LAYERS = 32, 16, 2, 3
STEPS = 2


class Layer(nn.Module):
    """Attention and a feed-forward network."""

    @nn.compact
    def __call__(self, x, mask):
        y = nn.RMSNorm(name="attention_norm")(x)
        attention = nn.MultiHeadDotProductAttention(HEADS, use_bias=False, name="attention")
        x += attention(y, mask=mask)
        y = nn.Dense(2 * WIDTH, use_bias=False, name="up")(nn.RMSNorm(name="mlp_norm")(x))
        return x + nn.Dense(WIDTH, use_bias=False, name="down")(nn.gelu(y))


class Transformer(nn.Module):
    """Predicts the next token."""

    @nn.compact
    def __call__(self, tokens):
        mask = nn.make_causal_mask(tokens)
        x = nn.Embed(VOCABULARY, WIDTH, name="embed")(tokens)
        for i in range(LAYERS):
            x = Layer(name=f"layers_{i}")(x, mask)
        x = nn.RMSNorm(name="norm")(x)
        return nn.Dense(VOCABULARY, use_bias=False, name="head")(x)


@jax.jit
def train_step(state, tokens):
    """The state after one step on a batch."""

    def loss_of(params):
        logits = state.apply_fn(params, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    return state.apply_gradients(grads=jax.grad(loss_of)(state.params))


def main(directory: Path) -> None:
    """Trains and saves."""
    batches = np.random.default_rng(0).integers(VOCABULARY, size=(STEPS, 4, 17)).astype(np.int32)
    model = Transformer()
    state = TrainState.create(
        apply_fn=model.apply,
        params=model.init(jax.random.key(0), jnp.asarray(batches[0])),
        tx=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
    )
    for batch in batches:
        state = train_step(state, jnp.asarray(batch))
    with ocp.CheckpointManager(directory) as manager:
        manager.save(
            STEPS, args=ocp.args.StandardSave(state), custom_metadata={"scan_layers": False}
        )


if __name__ == "__main__":
    default = Path(__file__).parent / "linen_checkpoint"
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else default.resolve())
