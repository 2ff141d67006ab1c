"""Checkpoints of any size, of numbers that no compressor makes smaller."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from tests.support.chunkwise import Builder

Tree = dict[str, Any]


def linen(gigabytes: float, layers: int, *, is_stacked: bool, seed: int = 0) -> Tree:
    """A Linen training state: float32 params, mu and nu of `layers` feed-forward layers."""
    elements = int(gigabytes * 2**30 / 4 / 3 / layers / 3)
    width = max(64, int((elements / 4) ** 0.5) // 64 * 64)
    random = np.random.default_rng(seed)
    parts = [_weights(random, width, layers, is_stacked) for _ in range(3)]
    params, mu, nu = ({"params": {"decoder": part}} for part in parts)
    adam = {"count": np.asarray(3, np.int32), "mu": mu, "nu": nu}
    return {"step": np.asarray(3, np.int32), "params": params, "opt_state": [adam, None, None]}


def _weights(random: np.random.Generator, width: int, layers: int, is_stacked: bool) -> Tree:
    shapes = {
        "wi_0": (width, 4 * width),
        "wi_1": (width, 4 * width),
        "wo": (4 * width, width),
    }

    def layer(stack: tuple[int, ...]) -> Tree:
        kernels = {
            name: {"kernel": random.standard_normal((rows, *stack, columns), np.float32)}
            for name, (rows, columns) in shapes.items()
        }
        return {**kernels, "norm": {"scale": random.standard_normal((width, *stack), np.float32)}}

    if is_stacked:
        return {"layers": layer((layers,))}
    return {f"layers_{index}": layer(()) for index in range(layers)}


def many_leaves(count: int) -> Tree:
    """A Linen checkpoint of `count` parameters of 1 KiB each."""
    random = np.random.default_rng(0)
    modules = {
        f"module_{i}": {"kernel": random.standard_normal((16, 16), np.float32)}
        for i in range(count)
    }
    return {"params": {"params": modules}, "step": np.asarray(0, np.int32)}


def save_weights(path: Path, gigabytes: float, layers: int = 96) -> Path:
    """Saves the parameters of a Linen model, stacked on axis 1, without holding them in memory."""
    block = np.random.default_rng(0).standard_normal((256, layers, 512), np.float32)
    blocks = max(1, round(gigabytes * 2**30 / 3 / block.nbytes))
    builder = Builder(path)
    for name in ("wi_0", "wi_1", "wo"):
        key = f"params.params.decoder.layers.{name}.kernel"
        builder.add(key, (256, layers, 512 * blocks), block.shape, block)
    builder.add(
        "params.params.decoder.layers.norm.scale", (64, layers), (64, layers), block[:64, :, 0]
    )
    return builder.finish()


def save(path: Path, tree: Tree) -> Path:
    """Saves an item directory as Orbax does by default."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path
