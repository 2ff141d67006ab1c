"""nnxconv moves JAX/Flax checkpoints between layouts."""
