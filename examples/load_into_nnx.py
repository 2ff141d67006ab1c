"""Moves a trained Flax Linen model into an NNX model of other names, and goes on training.

    python examples/load_into_nnx.py

The Linen model leaves naming to flax (`Dense_0`), the NNX model is named by hand. `match` finds the
rules that lead from one to the other, `load_into` follows them; no second checkpoint is written.
Prints the rules and the losses of both; the second half of the run is the same in NNX as in Linen.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from train_linen_continue_in_nnx import LAYERS, TX, VOCABULARY, WIDTH, batch, linen_step, nnx_step

import nnxconv


class LinenModel(nn.Module):
    """Predicts the next token from the present one."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, WIDTH)(tokens)
        for _ in range(LAYERS):
            x += nn.gelu(nn.Dense(WIDTH)(nn.LayerNorm()(x)))
        return nn.Dense(VOCABULARY)(x)


class Block(nnx.Module):
    """What goes round in the loop of the Linen model."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        return x + nnx.gelu(self.linear(self.norm(x)))


class NnxModel(nnx.Module):
    """The same model, written by somebody else."""

    def __init__(self, rngs: nnx.Rngs):
        self.tokens = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, tokens):
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def main(checkpoint: Path) -> None:
    """Five steps in Linen, then five in both."""
    linen = LinenModel()
    params = jax.jit(linen.init)(jax.random.key(0), batch(0))
    state = TrainState.create(apply_fn=linen.apply, params=params, tx=TX)
    for step in range(5):
        state, loss = linen_step(state, batch(step))
        print(f"step {step}  linen {loss:.5f}")

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(checkpoint, state)

    model = NnxModel(nnx.Rngs(1))
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    proposal = nnxconv.match(str(checkpoint), model)
    print(proposal.to_toml())
    assert proposal.is_complete  # else a person reads what is not certain, and edits the rules
    nnxconv.load_into(model, checkpoint, optimizer=optimizer, rename=proposal.rules)

    for step in range(5, 10):
        state, loss = linen_step(state, batch(step))
        print(f"step {step}  linen {loss:.5f}  nnx {nnx_step(model, optimizer, batch(step)):.5f}")

    # A single array, without a model: only its own chunks are read
    kernel = nnxconv.open(checkpoint, rename=proposal.rules)["params.head.kernel"]
    print(f"{kernel}  norm {np.linalg.norm(kernel):.5f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch) / "linen")
