"""Moves a trained Flax Linen model into NNX, without a second checkpoint, and goes on training.

    python examples/load_into_nnx.py

prints the losses of both; the second half of the run is the same in NNX as it is in Linen.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from flax.training.train_state import TrainState
from train_linen_continue_in_nnx import TX, LinenModel, NnxModel, batch, linen_step, nnx_step

import nnxconv


def main(checkpoint: Path) -> None:
    """Five steps in Linen, then five in both."""
    linen = LinenModel()
    params = linen.init(jax.random.key(0), batch(0))
    state = TrainState.create(apply_fn=linen.apply, params=params, tx=TX)
    for step in range(5):
        state, loss = linen_step(state, batch(step))
        print(f"step {step}  linen {loss:.5f}")

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(checkpoint, state)

    model = NnxModel(nnx.Rngs(1))
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    nnxconv.load_into(model, checkpoint, optimizer=optimizer)

    for step in range(5, 10):
        state, loss = linen_step(state, batch(step))
        print(f"step {step}  linen {loss:.5f}  nnx {nnx_step(model, optimizer, batch(step)):.5f}")

    # A single array, without a model: only its own chunks are read
    kernel = nnxconv.open(checkpoint)["params.layers[2].kernel"]
    print(f"{kernel}  norm {np.linalg.norm(kernel):.5f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch) / "linen")
