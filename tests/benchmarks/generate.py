"""Checkpoints of any size, of numbers that no compressor makes smaller.

python -m tests.benchmarks.generate KIND PATH [NUMBER ...]
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
import orbax.checkpoint as ocp
import zstandard
from safetensors.numpy import save_file

from nnxconv.storage.ocdbt import Columns, new_database
from tests.support import pax
from tests.support.chunkwise import Builder

Tree = dict[str, Any]


def linen(gigabytes: float, layers: int, *, is_stacked: bool, seed: int = 0) -> Tree:
    """A Linen training state: float32 params, mu and nu of `layers` feed-forward layers."""
    width = _width(gigabytes, layers)
    random = np.random.default_rng(seed)
    parts = [_weights(random, width, layers, is_stacked) for _ in range(3)]
    params, mu, nu = ({"params": {"decoder": part}} for part in parts)
    adam = {"count": np.asarray(3, np.int32), "mu": mu, "nu": nu}
    return {"step": np.asarray(3, np.int32), "params": params, "opt_state": [adam, None, None]}


def _width(gigabytes: float, layers: int) -> int:
    elements = int(gigabytes * 2**30 / 4 / 3 / layers / 3)
    return max(64, int((elements / 4) ** 0.5) // 64 * 64)


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


def chunks(path: Path, count: float, side: float) -> None:
    """Weights of 8 layers, in so many chunks of so many rows and columns of float32.

    All chunks have the same bits: a piece of 512 bytes again and again.
    """
    rows = int(count) // 8
    shape, sides = (rows * int(side), int(side)), (int(side), int(side))
    keys = [f"params.params.layers_{layer}.mlp.kernel" for layer in range(8)]
    piece = np.random.default_rng(0).bytes(512)
    encoded = zstandard.compress(piece * (4 * sides[0] * sides[1] // 512), 1)
    chunk_keys = ((key, [f"{row}.0" for row in range(rows)]) for key in keys)
    _database(path, _metadata(shape, sides), chunk_keys, encoded)


def leaves(path: Path, count: float) -> None:
    """So many weights of 1 KiB: layers of eight, as a model of many layers has them."""
    names = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.wi_0", "mlp.wi_1", "mlp.wo", "norm")
    keys = [
        f"params.params.decoder.layers_{number // 8}.{names[number % 8]}.kernel"
        for number in range(int(count))
    ]
    encoded = zstandard.compress(np.random.default_rng(0).bytes(1024), 1)
    metadata = _metadata((16, 16), (16, 16))
    _database(path, metadata, ((key, ["0.0"]) for key in keys), encoded)


def _metadata(shape: tuple[int, ...], sides: tuple[int, ...]) -> bytes:
    told = {"zarr_format": 2, "shape": shape, "chunks": sides, "dtype": "<f4", "order": "C"}
    told |= {"compressor": {"id": "zstd", "level": 1}, "fill_value": None, "filters": None}
    return json.dumps({**told, "dimension_separator": "."}).encode()


def _database(
    path: Path, metadata: bytes, arrays: Iterable[tuple[str, list[str]]], encoded: bytes
) -> None:
    """An item of arrays of one shape, whose chunks stand one after the other in a data file."""
    columns, names, total = Columns(), [], 0
    for name, places in arrays:
        names.append(name)
        columns.extend([f"{name}/.zarray"], [""], [0], [len(metadata)], [metadata])
        offsets = range(total, total + len(places) * len(encoded), len(encoded))
        sizes, files = [len(encoded)] * len(places), ["d/all"] * len(places)
        columns.extend([f"{name}/{p}" for p in places], files, offsets, sizes, [b""] * len(places))
        total += len(places) * len(encoded)
    (path / "d").mkdir(parents=True)
    (path / "d" / "all").write_bytes(encoded * (total // len(encoded)))
    database = new_database(columns.in_order())
    (path / database.node_file).write_bytes(database.nodes)
    (path / "manifest.ocdbt").write_bytes(database.manifest)
    Builder.describe(path, names)


def weights(path: Path, gigabytes: float, layers: float = 96) -> None:
    save_weights(path, gigabytes, int(layers))


def safetensors(path: Path, gigabytes: float) -> None:
    """Weights of 8 layers apart, in one file."""
    tree = _weights(np.random.default_rng(0), _width(gigabytes * 3, 8), 8, False)
    path.mkdir()
    named = {f"decoder.{key}": values for key, values in _flat(tree)}
    save_file(named, path / "model.safetensors")


def _flat(tree: Tree, above: str = "") -> Iterable[tuple[str, np.ndarray]]:
    for name, branch in tree.items():
        if isinstance(branch, dict):
            yield from _flat(branch, f"{above}{name}.")
        else:
            yield above + name, branch


def stacked(path: Path, gigabytes: float, layers: float = 8, seed: float = 0) -> None:
    save(path, linen(gigabytes, int(layers), is_stacked=True, seed=int(seed)))


def apart(path: Path, gigabytes: float) -> None:
    save(path, linen(gigabytes, 8, is_stacked=False))


def gpt3(path: Path, gigabytes: float) -> None:
    """A Pax checkpoint of 24 layers, its chunks a part of each array."""
    width = max(64, int((gigabytes * 2**30 / 12 / 24 / 12) ** 0.5) // 64 * 64)
    sizes = pax.Sizes(D=width, N=width // 64, H=64, F=4 * width, V=2048, P=256, L=24)
    pax.write_noise(path, sizes, chunks=pax.cut(sizes, D=width // 2))


def lora_base(path: Path, gigabytes: float, seed: float = 0) -> None:
    """Matrices of 8 layers, and rules that multiply each by a number."""
    random, width = np.random.default_rng(int(seed)), _side(gigabytes)
    layers = {
        f"layers_{n}": {"attn": {"kernel": random.standard_normal((width, width), np.float32)}}
        for n in range(8)
    }
    save(path, {"params": {"params": {"decoder": layers}}})
    _rules(path, "decoder.layers[{i}].attn.kernel")


def lora(path: Path, gigabytes: float) -> None:
    """Adapters of rank 8 for those matrices."""
    random, width = np.random.default_rng(2), _side(gigabytes)
    pair = {"lora_a": (width, 8), "lora_b": (8, width)}
    layers = {
        f"layers_{n}": {
            "attn": {
                name: {"kernel": random.standard_normal(shape, np.float32)}
                for name, shape in pair.items()
            }
        }
        for n in range(8)
    }
    save(path, {"params": {"params": {"decoder": layers}}})


def attention(path: Path, gigabytes: float) -> None:
    """Latent attention of 8 layers of 16 heads, and logits of which half are too large."""
    random, heads = np.random.default_rng(0), 16
    rank = max(8, int(gigabytes * 2**30 / 4 / 8 / heads / (192 + 256)))
    layers = {
        f"layers_{n}": {
            "self_attention": {
                "wq_b": {"kernel": random.standard_normal((rank, heads, 192), np.float32)},
                "wkv_b": {"kernel": random.standard_normal((rank, heads, 256), np.float32)},
            }
        }
        for n in range(8)
    }
    save(path, {"params": {"params": {"decoder": layers}}})
    logits = np.where(np.arange(heads) % 2, 150.0, 50.0).astype("float32")
    name = "decoder/layers_{}/self_attention/attention_op/max_logits"
    np.savez(f"{path}.npz", **{name.format(n): logits for n in range(8)})  # type: ignore[arg-type]
    _rules(path, *(f"decoder.layers[{{i}}].self_attention.{m}.kernel" for m in ("wq_b", "wkv_b")))


def _side(gigabytes: float) -> int:
    return max(64, int((gigabytes * 2**30 / 4 / 8) ** 0.5) // 64 * 64)


def _rules(path: Path, *keys: str) -> None:
    lines = [f'"{key}" = {{ to = "{key}", times = 0.5 }}' for key in keys]
    Path(f"{path}.toml").write_text("\n".join(["[rules]", *lines, ""]))


KINDS: dict[str, Callable[..., None]] = {
    "stacked": stacked,
    "apart": apart,
    "weights": weights,
    "pax": gpt3,
    "chunks": chunks,
    "leaves": leaves,
    "safetensors": safetensors,
    "lora_base": lora_base,
    "lora": lora,
    "attention": attention,
}


if __name__ == "__main__":
    KINDS[sys.argv[1]](Path(sys.argv[2]), *map(float, sys.argv[3:]))
