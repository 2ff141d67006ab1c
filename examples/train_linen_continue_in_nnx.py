"""Trains a model in Linen, converts its checkpoint, and goes on training it in NNX.

    python examples/train_linen_continue_in_nnx.py

prints the losses of both; the second half of the run is the same in NNX as it is in Linen.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

import nnxconv

VOCABULARY, WIDTH, LAYERS = 16, 32, 3
TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))


class LinenModel(nn.Module):
    """Predicts the next token from the present one."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, WIDTH, name="embed")(tokens)
        for i in range(LAYERS):
            x += nn.gelu(nn.Dense(WIDTH, name=f"layers_{i}")(x))
        return nn.Dense(VOCABULARY, name="head")(x)


class NnxModel(nnx.Module):
    """The same model, with the same names; `layers_0` is `layers[0]` here."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(LAYERS)])
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x += nnx.gelu(layer(x))
        return self.head(x)


def batch(step):
    """Texts in which every token is followed by three times itself plus one."""
    texts = [np.random.default_rng(step).integers(VOCABULARY, size=8)]
    for _ in range(8):
        texts.append((3 * texts[-1] + 1) % VOCABULARY)
    return jnp.asarray(np.stack(texts, axis=1))


def loss_of(logits, tokens):
    """Cross entropy of the next tokens."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


@jax.jit
def linen_step(state, tokens):
    """The next state, and the loss."""

    def loss(params):
        return loss_of(state.apply_fn(params, tokens[:, :-1]), tokens)

    value, grads = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grads), value


@nnx.jit
def nnx_step(model, optimizer, tokens):
    """The loss; model and optimizer change."""
    value, grads = nnx.value_and_grad(lambda m: loss_of(m(tokens[:, :-1]), tokens))(model)
    optimizer.update(model, grads)
    return value


def main(directory: Path) -> None:
    """Five steps in Linen, then five in both."""
    linen = LinenModel()
    params = linen.init(jax.random.key(0), batch(0))
    state = TrainState.create(apply_fn=linen.apply, params=params, tx=TX)
    for step in range(5):
        state, loss = linen_step(state, batch(step))
        print(f"step {step}  linen {loss:.5f}")

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "linen", state)

    # `nnx-pure` is what `nnx.replace_by_pure_dict` takes; the layers stay apart, as in both models
    nnxconv.convert(
        str(directory / "linen"), str(directory / "nnx"), to="nnx-pure", scan_layers=False
    )

    with ocp.PyTreeCheckpointer() as checkpointer:
        restored = checkpointer.restore(directory / "nnx")
    model = NnxModel(nnx.Rngs(1))
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    for live, name in ((model, "model"), (optimizer, "optimizer")):
        variables = nnx.state(live)
        nnx.replace_by_pure_dict(variables, restored[name])
        nnx.update(live, variables)

    for step in range(5, 10):
        state, loss = linen_step(state, batch(step))
        print(f"step {step}  linen {loss:.5f}  nnx {nnx_step(model, optimizer, batch(step)):.5f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
