"""One small decoder as several programs would keep it: renamed, turned, fused, stacked, rounded."""

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

LAYERS, WIDTH, HEADS, VOCABULARY = 3, 16, 4, 40
SIZE = WIDTH // HEADS
Tree = dict[str, Any]


def flax(seed: int = 0) -> Tree:
    """The decoder as flax would have it; norms and biases are those of a trained model."""
    return _decoder(np.random.default_rng(seed), is_new=False)


def new() -> Tree:
    """The decoder before its first step: all scales are 1, all biases 0."""
    return _decoder(np.random.default_rng(0), is_new=True)


def grouped() -> Tree:
    """The decoder with half as many heads of keys and values as of queries."""
    return _decoder(np.random.default_rng(0), is_new=False, keys=WIDTH // 2)


def _decoder(made: np.random.Generator, *, is_new: bool, keys: int = WIDTH) -> Tree:
    def drawn(*shape: int) -> np.ndarray:
        return made.normal(size=shape).astype(np.float32)

    def vector(value: float, size: int = WIDTH) -> np.ndarray:
        return np.full(size, value, np.float32) if is_new else value + drawn(size)

    def layer() -> Tree:
        sizes = {"q": WIDTH, "k": keys, "v": keys}
        dense = {n: {"kernel": drawn(WIDTH, s), "bias": vector(0, s)} for n, s in sizes.items()}
        return {
            **dense,
            "o": {"kernel": drawn(WIDTH, WIDTH)},
            "ln_1": {"scale": vector(1)},
            "ln_2": {"scale": vector(1)},
            "up": {"kernel": drawn(WIDTH, 2 * WIDTH)},
            "down": {"kernel": drawn(2 * WIDTH, WIDTH)},
        }

    tree = {f"h_{n}": layer() for n in range(LAYERS)}
    return {**tree, "wte": {"embedding": drawn(VOCABULARY, WIDTH)}, "ln_f": {"scale": vector(1)}}


def _layers(tree: Tree) -> list[Tree]:
    return [tree[f"h_{n}"] for n in range(LAYERS)]


def torch(tree: Tree) -> Tree:
    """Whole paths as keys, outputs first, and queries, keys and values in one."""
    found: Tree = {"model.embed.weight": tree["wte"]["embedding"]}
    found["model.norm.weight"] = tree["ln_f"]["scale"]
    for n, layer in enumerate(_layers(tree)):
        head = f"model.layers.{n}"
        found |= {
            f"{head}.attn.qkv.weight": np.concatenate([layer[p]["kernel"].T for p in "qkv"]),
            f"{head}.attn.qkv.bias": np.concatenate([layer[p]["bias"] for p in "qkv"]),
            f"{head}.attn.out.weight": layer["o"]["kernel"].T,
            f"{head}.input_layernorm.weight": layer["ln_1"]["scale"],
            f"{head}.post_attention_layernorm.weight": layer["ln_2"]["scale"],
            f"{head}.mlp.up.weight": layer["up"]["kernel"].T,
            f"{head}.mlp.down.weight": layer["down"]["kernel"].T,
        }
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def interleaved(tree: Tree, groups: int) -> Tree:
    """As `torch`, but each group of heads has its queries, keys and values together (GPT-NeoX)."""
    found = torch(tree)
    for n, layer in enumerate(_layers(tree)):
        for old, new in (("kernel", "weight"), ("bias", "bias")):
            parts = [layer[p][old].T.reshape(groups, -1, *layer[p][old].shape[:-1]) for p in "qkv"]
            name = f"model.layers.{n}.attn.qkv.{new}"
            found[name] = np.concatenate(parts, 1).reshape(found[name].shape)
    return found


def haiku(tree: Tree) -> Tree:
    """Names of Haiku; each head has its queries, keys and values side by side."""
    found: Tree = {"net/~/embed": {"embeddings": tree["wte"]["embedding"]}}
    found["net/~/last"] = {"scale": tree["ln_f"]["scale"]}
    for n, layer in enumerate(_layers(tree)):
        heads = [layer[p]["kernel"].reshape(WIDTH, HEADS, SIZE) for p in "qkv"]
        biases = [layer[p]["bias"].reshape(HEADS, SIZE) for p in "qkv"]
        qkv = {"w": np.concatenate(heads, 2), "b": np.concatenate(biases, 1)}
        found |= {
            f"net/~/block_{n}/~/linear_0": qkv,
            f"net/~/block_{n}/~/linear_1": {"w": layer["o"]["kernel"]},
            f"net/~/block_{n}/~/linear_2": {"w": layer["up"]["kernel"]},
            f"net/~/block_{n}/~/linear_3": {"w": layer["down"]["kernel"]},
            f"net/~/block_{n}/~/one": {"scale": layer["ln_1"]["scale"]},
            f"net/~/block_{n}/~/two": {"scale": layer["ln_2"]["scale"]},
        }
    return found


def stacked(tree: Tree) -> Tree:
    """The layers of each array in one, of queries on axis 1, under a name that is no layer's."""
    layers = _layers(tree)

    def together(part: str, name: str, *shape: int, axis: int = 0) -> np.ndarray:
        return np.stack([layer[part][name].reshape(shape) for layer in layers], axis)

    heads = {p: {"w": together(p, "kernel", WIDTH, HEADS, SIZE, axis=1)} for p in "qkv"}
    for part in "qkv":
        heads[part]["b"] = together(part, "bias", HEADS, SIZE)
    blocks = {
        **heads,
        "out": {"w": together("o", "kernel", HEADS, SIZE, WIDTH)},
        "wi": {"w": together("up", "kernel", WIDTH, 2 * WIDTH)},
        "wo": {"w": together("down", "kernel", 2 * WIDTH, WIDTH)},
        "first": {"g": together("ln_1", "scale", WIDTH)},
        "second": {"g": together("ln_2", "scale", WIDTH)},
    }
    last = {"g": tree["ln_f"]["scale"]}
    return {"blocks": blocks, "tokens": {"e": tree["wte"]["embedding"]}, "last": last}


def rotary(tree: Tree) -> Tree:
    """Queries and keys with rotary pairs in halves, outputs first."""
    found = torch(tree)
    for n, layer in enumerate(_layers(tree)):
        for part in "qk":
            pairs = layer[part]["kernel"].T.reshape(HEADS, SIZE // 2, 2, WIDTH)
            halves = pairs.transpose(0, 2, 1, 3).reshape(WIDTH, WIDTH)
            found[f"model.layers.{n}.attn.{part}.weight"] = np.ascontiguousarray(halves)
            found[f"model.layers.{n}.attn.{part}.bias"] = layer[part]["bias"]
        found[f"model.layers.{n}.attn.v.weight"] = np.ascontiguousarray(layer["v"]["kernel"].T)
        found[f"model.layers.{n}.attn.v.bias"] = layer["v"]["bias"]
        del found[f"model.layers.{n}.attn.qkv.weight"], found[f"model.layers.{n}.attn.qkv.bias"]
    return found


def rounded(tree: Tree) -> Tree:
    """Every array in bfloat16."""
    return {
        name: rounded(value) if isinstance(value, dict) else value.astype(ml_dtypes.bfloat16)
        for name, value in tree.items()
    }


def shuffled(tree: Tree) -> Tree:
    """The layers in another order, under their own numbers."""
    order = np.random.default_rng(1).permutation(LAYERS)
    return {**tree, **{f"h_{n}": tree[f"h_{m}"] for n, m in enumerate(order)}}


PAIRS: Mapping[str, tuple[Callable[[], Tree], Callable[[], Tree]]] = {
    "turned and fused": (flax, lambda: torch(flax())),
    "turned and cut": (lambda: torch(flax()), flax),
    "new, turned and fused": (new, lambda: torch(new())),
    "new, turned and cut": (lambda: torch(new()), new),
    "fused within heads": (flax, lambda: haiku(flax())),
    "cut out of heads": (lambda: haiku(flax()), flax),
    "fused within heads, merged": (flax, lambda: interleaved(flax(), HEADS)),
    "cut out of merged heads": (lambda: interleaved(flax(), HEADS), flax),
    "new, fused within heads, merged": (new, lambda: interleaved(new(), HEADS)),
    "fused within groups of heads": (grouped, lambda: interleaved(grouped(), HEADS // 2)),
    "cut out of groups of heads": (lambda: interleaved(grouped(), HEADS // 2), grouped),
    "stacked": (flax, lambda: stacked(flax())),
    "taken apart": (lambda: stacked(flax()), flax),
    "shuffled": (flax, lambda: shuffled(flax())),
    "rotary pairs to halves": (flax, lambda: rotary(flax())),
    "rotary halves to pairs": (lambda: rotary(flax()), flax),
    "rounded": (flax, lambda: rounded(torch(flax()))),
}
"""The same decoder twice."""
