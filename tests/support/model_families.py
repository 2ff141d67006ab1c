"""Models as arrays without names: what each module is, and how its axes are meant.

A model is a mapping of modules; names and layouts are given by a dialect (see `dialects`). Module
ids are `("layer", 3, "query")`, or `("root", "token")`; kernels have their inputs first and heads
apart.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

ModuleId: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class Module:
    """A module's arrays by what they are, such as `kernel` and `bias`.

    `kind` is `dense`, `heads_in` (inputs, heads, size), `heads_out` (heads, size, outputs), `norm`,
    `table`, `conv` (height, width, inputs, outputs), `batch_norm` or `array`.
    """

    kind: str
    arrays: Mapping[str, np.ndarray]


Model: TypeAlias = dict[ModuleId, Module]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a transformer."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    mlp: int
    vocabulary: int
    positions: int


class Maker:
    """Makes modules with values that no other has."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._next = 1.0

    def array(self, *shape: int) -> np.ndarray:
        """The next numbers."""
        size = int(np.prod(shape))
        found = np.arange(self._next, self._next + size, dtype=np.float64).reshape(shape)
        self._next += size
        return found

    def module(self, kind: str, *shape: int, bias: tuple[int, ...] | None = None) -> Module:
        """A module with a main array of this shape."""
        main = {"norm": "scale", "table": "embedding", "array": ""}.get(kind, "kernel")
        arrays = {main: self.array(*shape)}
        return Module(kind, arrays if bias is None else arrays | {"bias": self.array(*bias)})

    def dense(self, inputs: int, outputs: int, has_bias: bool = True) -> Module:
        """A dense layer."""
        return self.module("dense", inputs, outputs, bias=(outputs,) if has_bias else None)

    def norm(self, width: int, has_bias: bool) -> Module:
        """A layer norm, or an RMS norm."""
        return self.module("norm", width, bias=(width,) if has_bias else None)

    def sizes(self) -> Sizes:
        """Sizes of which some are equal as they are in practice."""
        rng = self.rng
        head, heads = rng.choice([2, 3, 4]), rng.choice([2, 4])
        width = rng.choice([head * heads, head * heads, head * heads, head * heads + 2])
        kv_heads = rng.choice([heads, heads, heads // 2, 1])
        mlp = rng.choice([4 * width, 4 * width, 2 * width + 2, width])
        return Sizes(rng.choice([2, 3]), width, heads, kv_heads, head, mlp, 19, 11)


def attention(make: Maker, s: Sizes, bias: bool, kv_heads: int | None = None) -> dict[str, Module]:
    """Query, key, value and out."""
    kv = s.kv_heads if kv_heads is None else kv_heads

    def inner(heads: int) -> Module:
        shape = (s.width, heads, s.head)
        return make.module("heads_in", *shape, bias=shape[1:] if bias else None)

    out = make.module("heads_out", s.heads, s.head, s.width, bias=(s.width,) if bias else None)
    return {"query": inner(s.heads), "key": inner(kv), "value": inner(kv), "out": out}


def mlp(make: Maker, s: Sizes, gated: bool, bias: bool) -> dict[str, Module]:
    """Up and down, and a gate."""
    found = {"gate": make.dense(s.width, s.mlp, bias)} if gated else {}
    return found | {
        "up": make.dense(s.width, s.mlp, bias),
        "down": make.dense(s.mlp, s.width, bias),
    }


def block(make: Maker, s: Sizes, *, gated: bool, bias: bool, norms: str) -> dict[str, Module]:
    """A layer of a transformer; `norms` is `two`, or `four` as in Gemma 2."""
    found = attention(make, s, bias) | mlp(make, s, gated, bias)
    names = ["norm.attention", "norm.mlp"]
    names += ["norm.after_attention", "norm.after_mlp"] if norms == "four" else []
    return found | {name: make.norm(s.width, bias) for name in names}


def decoder(make: Maker, **options) -> Model:
    """A language model: layers, tokens, a last norm; with a head or not, and positions or not."""
    s = make.sizes()
    model: Model = {}
    for i in range(s.layers):
        for name, module in block(make, s, **options).items():
            model["layer", i, name] = module
    model["root", "token"] = make.module("table", s.vocabulary, s.width)
    if options["bias"]:
        model["root", "position"] = make.module("table", s.positions, s.width)
    model["root", "norm.final"] = make.norm(s.width, options["bias"])
    if make.rng.random() < 0.7:
        model["root", "head"] = make.dense(s.width, s.vocabulary, False)
    return model


def llama(make: Maker) -> Model:
    """Gated, without biases."""
    return decoder(make, gated=True, bias=False, norms="two")


def gemma(make: Maker) -> Model:
    """Gated, with four norms."""
    return decoder(make, gated=True, bias=False, norms="four")


def gpt(make: Maker) -> Model:
    """With biases, heads of one kind and learned positions."""
    model = decoder(make, gated=False, bias=True, norms="two")
    if any(
        model["layer", 0, name].arrays["kernel"].shape[1]
        != model["layer", 0, "query"].arrays["kernel"].shape[1]
        for name in ("key", "value")
    ):
        return gpt(make)
    return model


def bert(make: Maker) -> Model:
    """An encoder with a norm after its embeddings, and a pooler."""
    model = gpt(make)
    width = model["root", "norm.final"].arrays["scale"].shape[0]
    model.pop(("root", "head"), None)
    model["root", "norm.embedding"] = model.pop(("root", "norm.final"))
    model["root", "type"] = make.module("table", 2, width)
    model["root", "pooler"] = make.dense(width, width)
    return model


def vit(make: Maker) -> Model:
    """Patches, a class token, positions, a head with a bias."""
    model = gpt(make)
    width = model["root", "norm.final"].arrays["scale"].shape[0]
    for name in ("token", "head"):
        model.pop(("root", name), None)
    model["root", "patch"] = make.module("conv", 3, 3, 1, width, bias=(width,))
    model["root", "class"] = make.module("array", 1, 1, width)
    model["root", "position"] = make.module("array", 1, 10, width)
    model["root", "head"] = make.dense(width, 7)
    return model


def mixture(make: Maker) -> Model:
    """Experts in the place of an MLP, kept together."""
    s = make.sizes()
    model = {k: m for k, m in llama(make).items() if k[-1] not in ("gate", "up", "down")}
    width = model["root", "norm.final"].arrays["scale"].shape[0]
    for i in range(1 + max(int(k[1]) for k in model if k[0] == "layer")):
        model["layer", i, "router"] = make.dense(width, 4, False)
        for name, shape in (
            ("gate", (width, s.mlp)),
            ("up", (width, s.mlp)),
            ("down", (s.mlp, width)),
        ):
            model["layer", i, name] = make.module("experts", 4, *shape)
    return model


def mixer(make: Maker) -> Model:
    """Blocks of two MLPs, one over patches."""
    width, patches, layers = make.rng.choice([8, 10]), make.rng.choice([6, 9]), 3
    model: Model = {}
    for i in range(layers):
        for name, size, hidden in (("tokens", patches, 14), ("channels", width, 20)):
            model["layer", i, f"norm.{name}"] = make.norm(width, True)
            model["layer", i, f"{name}.up"] = make.dense(size, hidden)
            model["layer", i, f"{name}.down"] = make.dense(hidden, size)
    model["root", "patch"] = make.module("conv", 3, 3, 1, width, bias=(width,))
    model["root", "norm.final"] = make.norm(width, True)
    model["root", "head"] = make.dense(width, 7)
    return model


def lstm(make: Maker) -> Model:
    """An embedding, two LSTM layers whose gates are apart, and a head."""
    width = make.rng.choice([6, 8])
    model: Model = {("root", "token"): make.module("table", 19, width)}
    for i in range(2):
        for gate in "ifgo":
            model["layer", i, f"input.{gate}"] = make.dense(width, width, False)
            model["layer", i, f"hidden.{gate}"] = make.dense(width, width)
    model["root", "head"] = make.dense(width, 19)
    return model


def resnet(make: Maker) -> Model:
    """Blocks of two convolutions with batch norms, wider and wider; a downsampling in some."""
    model: Model = {}
    width = 4
    model["root", "stem"] = make.module("conv", 3, 3, 3, width)
    model["root", "stem_norm"] = _batch_norm(make, width)
    for i in range(4):
        outputs = 4 * 2 ** (i // 2)
        for n, inputs in enumerate((width, outputs)):
            model["layer", i, f"conv{n}"] = make.module("conv", 3, 3, inputs, outputs)
            model["layer", i, f"norm{n}"] = _batch_norm(make, outputs)
        if inputs != width:
            model["layer", i, "shortcut"] = make.module("conv", 1, 1, width, outputs)
            model["layer", i, "shortcut_norm"] = _batch_norm(make, outputs)
        width = outputs
    model["root", "head"] = make.dense(width, 10)
    return model


def _batch_norm(make: Maker, width: int) -> Module:
    names = ("scale", "bias", "mean", "var")
    return Module("batch_norm", {name: make.array(width) for name in names})


def unet(make: Maker) -> Model:
    """Convolutions down and up again, with group norms; a time embedding."""
    widths = (4, 6, 8)
    model: Model = {("root", "first"): make.module("conv", 3, 3, 1, 4, bias=(4,))}
    model["root", "time.up"] = make.dense(5, 12)
    model["root", "time.down"] = make.dense(12, 12)
    for i, (inputs, outputs) in enumerate(zip((4, *widths), widths, strict=False)):
        model |= {("down", i, k): m for k, m in _residual(make, inputs, outputs).items()}
    for i, (inputs, outputs) in enumerate(((14, 6), (10, 4), (8, 4))):
        model |= {("up", i, k): m for k, m in _residual(make, inputs, outputs).items()}
    model["root", "norm.final"] = make.norm(4, True)
    model["root", "last"] = make.module("conv", 3, 3, 4, 1, bias=(1,))
    return model


def _residual(make: Maker, inputs: int, outputs: int) -> dict[str, Module]:
    return {
        "norm0": make.norm(inputs, True),
        "conv0": make.module("conv", 3, 3, inputs, outputs, bias=(outputs,)),
        "time": make.dense(12, outputs),
        "norm1": make.norm(outputs, True),
        "conv1": make.module("conv", 3, 3, outputs, outputs, bias=(outputs,)),
    }


def perceptron(make: Maker) -> Model:
    """Dense layers one after the other, of one width."""
    width, count = make.rng.choice([6, 9]), make.rng.choice([3, 4])
    model: Model = {("root", "dense0"): make.dense(5, width)}
    model |= {("root", f"dense{i}"): make.dense(width, width) for i in range(1, count)}
    model["root", f"dense{count}"] = make.dense(width, 10)
    return model


FAMILIES: Mapping[str, Callable[[Maker], Model]] = {
    "llama": llama,
    "gemma": gemma,
    "gpt": gpt,
    "bert": bert,
    "vit": vit,
    "mixture": mixture,
    "mixer": mixer,
    "lstm": lstm,
    "resnet": resnet,
    "unet": unet,
    "perceptron": perceptron,
}
