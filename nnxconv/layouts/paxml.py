"""The Pax GPT-3 layout: 57 leaves, layers stacked on axis 0, Adam's moments under other prefixes.

```
step                                                              uint32
mdl_vars.params.<leaf>                                            16 of them
opt_states_0.no_prefix_2.{m,v}.params.<leaf>                      leaves outside the layers
opt_states_0.p#L#i-1_2.{m,v}.params.<leaf>                        leaves of the L layers
opt_states_0.{no_prefix,p#L#i-1}_{0,1,2,3}.count                  a counter per element of the chain
```

Dimensions are letters: D embedding, N heads, H head size, F feed-forward, V vocabulary,
P positions, L layers, and 3 for query, key and value. Targets are named as in MaxText's `gpt3`.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal as OneOf

from nnxconv.errors import BadInput, DamagedCheckpoint, NotACheckpoint
from nnxconv.state import TrainState
from nnxconv.tree import Key, Leaf, Shape, Source, View, counted, moved, scaled, slot

_X = "lm.transformer.repeat.sub.x_layers_0."
_LAYERS: Key = ("decoder", "layers")


@dataclass(frozen=True)
class Row:
    """One parameter: its name and dimensions in Pax, and in MaxText (per layer, without `L`).

    A row with `part` takes that index of the dimension `3`.
    """

    leaf: str
    dimensions: str
    path: Key
    target: str
    part: int | None = None

    @property
    def has_layers(self) -> bool:
        """True for a parameter that every layer has."""
        return "L" in self.dimensions


def _key(path: str) -> Key:
    return tuple(path.split("."))


OUTSIDE = (
    Row("lm.softmax.logits_ffn.linear.w", "DV", _key("token_embedder.embedding"), "VD"),
    Row("lm.position_emb.emb_var", "PD", _key("decoder.position_embedder.embedding"), "PD"),
    Row("lm.final_ln.scale", "D", _key("decoder.decoder_norm.scale"), "D"),
    Row("lm.final_ln.bias", "D", _key("decoder.decoder_norm.bias"), "D"),
)
WITHIN = (
    Row(f"{_X}layer_norm.scale", "LD", _key("pre_self_attention_norm.scale"), "D"),
    Row(f"{_X}layer_norm.bias", "LD", _key("pre_self_attention_norm.bias"), "D"),
    Row(f"{_X}ff_layer.layer_norm.scale", "LD", _key("mlp.mlp_layer_norm.scale"), "D"),
    Row(f"{_X}ff_layer.layer_norm.bias", "LD", _key("mlp.mlp_layer_norm.bias"), "D"),
    Row(f"{_X}self_attention.post.w", "LDNH", _key("self_attention.out.kernel"), "NHD"),
    Row(f"{_X}self_attention.post.b", "LD", _key("self_attention.out.bias"), "D"),
    Row(f"{_X}ff_layer.ffn_layer1.linear.w", "LDF", _key("mlp.wi.kernel"), "DF"),
    Row(f"{_X}ff_layer.ffn_layer1.bias.b", "LF", _key("mlp.wi.bias"), "F"),
    Row(f"{_X}ff_layer.ffn_layer2.linear.w", "LFD", _key("mlp.wo.kernel"), "FD"),
    Row(f"{_X}ff_layer.ffn_layer2.bias.b", "LD", _key("mlp.wo.bias"), "D"),
)
_QKV_W, _QKV_B = f"{_X}self_attention.combined_qkv.w", f"{_X}self_attention.combined_qkv.b"
FUSED = (
    Row(_QKV_W, "L3DNH", _key("self_attention.qkv_proj.kernel"), "D3NH"),
    Row(_QKV_B, "L3NH", _key("self_attention.qkv_proj.bias"), "3NH"),
)
SPLIT = tuple(
    row
    for part, name in enumerate(("query", "key", "value"))
    for row in (
        Row(_QKV_W, "L3DNH", _key(f"self_attention.{name}.kernel"), "DNH", part),
        Row(_QKV_B, "L3NH", _key(f"self_attention.{name}.bias"), "NH", part),
    )
)

STEP = "step"
PARAMS = "mdl_vars.params."
VOCABULARY = "lm.softmax.logits_ffn.linear.w"
ADAM = 2
"""Adam's place in Pax's chain, which clips gradients before and decays weights after it."""
CHAIN = range(4)

MODELS: Mapping[str, dict[str, int]] = {
    "gpt3-175b": {"D": 12288, "N": 96, "H": 128, "F": 49152, "V": 50304, "P": 16384, "L": 96},
    "gpt3-52k": {"D": 16, "N": 2, "H": 8, "F": 64, "V": 1024, "P": 2048, "L": 1},
}
MEANING = {
    "D": "embedding",
    "N": "heads",
    "H": "head size",
    "F": "feed-forward",
    "V": "vocabulary",
    "P": "positions",
    "L": "layers",
    "3": "projections",
}
Optimizer = OneOf["adam_pax", "adamw"]


@dataclass(frozen=True)
class Wanted:
    """What the target shall look like.

    Attributes:
      fused_qkv: one array for query, key and value, or three.
      optimizer: `adam_pax` takes Pax's moments as they are, which are corrected for their bias;
        optax's `adamw` wants them multiplied by `1 - b1**t` and `1 - b2**t`.
      b1, b2: Adam's decays.
      count: `t`, the number of updates that Adam has done.
    """

    fused_qkv: bool = True
    optimizer: Optimizer = "adam_pax"
    b1: float = 0.9
    b2: float = 0.95
    count: int = 0


def rows(*, fused_qkv: bool) -> tuple[Row, ...]:
    """The table of parameters."""
    return (*OUTSIDE, *WITHIN, *(FUSED if fused_qkv else SPLIT))


def moment(name: str, row: Row, layers: int) -> str:
    """The leaf of a moment, `m` or `v`, of a parameter."""
    return f"opt_states_0.{_prefix(row.has_layers, layers)}_{ADAM}.{name}.params.{row.leaf}"


def counters(layers: int) -> list[str]:
    """The leaves of all counters, Adam's own first."""
    order = (ADAM, *(place for place in CHAIN if place != ADAM))
    return [
        f"opt_states_0.{_prefix(in_layers, layers)}_{place}.count"
        for in_layers in (False, True)
        for place in order
    ]


def _prefix(in_layers: bool, layers: int) -> str:
    return f"p#{layers}#i-1" if in_layers else "no_prefix"


def expected_leaves(layers: int, *, params_only: bool = False) -> list[str]:
    """The leaves of a checkpoint: 57, or 17 when only parameters are wanted."""
    table = rows(fused_qkv=True)
    params = [STEP, *(PARAMS + row.leaf for row in table)]
    if params_only:
        return params
    moments = [moment(name, row, layers) for name in "mv" for row in table]
    return [*params, *moments, *counters(layers)]


def refuse_other_models(names: Collection[str], where: str) -> None:
    """Refuses leaves that are laid out in another way.

    Raises:
      NotACheckpoint: pipelined layers, layers beside each other, or no language model at all.
    """
    stages = sorted(name for name in names if "pipeline.body" in name or "#sstage" in name)
    if stages:
        raise NotACheckpoint(
            "the layers of this Pax checkpoint are pipelined, which is not supported",
            where=where,
            details=stages,
            hint="save it with `USE_REPEATED_LAYER` and without pipeline stages",
        )
    beside = {
        match[1] for name in names if (match := re.search(r"transformer\.(x_layers_\d+)\.", name))
    }
    if beside:
        raise NotACheckpoint(
            "the layers of this Pax checkpoint stand beside each other, which is not supported",
            where=where,
            details=sorted(beside, key=lambda name: (len(name), name)),
            hint="save it with `USE_REPEATED_LAYER`, which stacks them",
        )


def refuse_strangers(names: Collection[str], layers: int, where: str) -> None:
    """Refuses leaves that no GPT-3 has.

    Raises:
      NotACheckpoint: there are some; all are listed.
    """
    strangers = sorted(set(names) - set(expected_leaves(layers)))
    if strangers:
        raise NotACheckpoint(
            f"this Pax checkpoint has {counted(len(strangers), 'leaf', 'leaves')}"
            " that no GPT-3 has",
            where=where,
            details=strangers,
        )


def count_layers(shapes: Mapping[str, Shape], where: str) -> int:
    """The number of layers, from any parameter that all layers have.

    Raises:
      NotACheckpoint: there is none.
    """
    for row in WITHIN:
        shape = shapes.get(PARAMS + row.leaf)
        if shape:
            return shape[0]
    raise NotACheckpoint(
        "this Pax checkpoint is not that of a GPT-3: it has none of its layers",
        where=where,
        details=sorted(shapes),
    )


def parameter_of(leaf: str) -> str:
    """The parameter that a leaf is, or is a moment of; another leaf itself."""
    return PARAMS + leaf.split(".params.", 1)[1] if ".params." in leaf else leaf


def vocabulary(leaves: Mapping[str, Source]) -> int:
    """The size of the vocabulary."""
    return leaves[PARAMS + VOCABULARY].shape[1]


def with_vocabulary(leaves: Mapping[str, Source], size: int) -> dict[str, Source]:
    """The leaves with a vocabulary of another size, zeros for what is new; moments as well."""
    return {
        name: resized(leaf, (leaf.shape[0], size)) if name.endswith(VOCABULARY) else leaf
        for name, leaf in leaves.items()
    }


def dimensions_of(leaf: str, layers: int) -> str:
    """The dimensions of a leaf, a letter each: `LDNH`."""
    if leaf == STEP:
        return ""
    if leaf.endswith(".count"):
        return "L" if leaf.startswith(f"opt_states_0.p#{layers}#") else ""
    parameter = leaf.split("params.", 1)[1]
    return next(row.dimensions for row in rows(fused_qkv=True) if row.leaf == parameter)


def read_sizes(shapes: Mapping[str, Shape], layers: int, where: str) -> dict[str, int]:
    """The size of each dimension, by its letter.

    Raises:
      DamagedCheckpoint: leaves disagree; all that differ from the most are listed.
    """
    seen: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    problems: list[str] = []
    for leaf, shape in shapes.items():
        letters = dimensions_of(leaf, layers)
        if len(letters) != len(shape):
            problems.append(f"{leaf}: {list(shape)} has not the dimensions {', '.join(letters)}")
            continue
        for letter, size in zip(letters, shape, strict=True):
            seen[letter][size].append(leaf)
    sizes = {
        letter: max(found, key=lambda size: len(found[size])) for letter, found in seen.items()
    }
    sizes["3"] = 3
    for letter, found in seen.items():
        for size, leaves in found.items():
            if size != sizes[letter]:
                told = f"{MEANING[letter]} is {size:,}, elsewhere {sizes[letter]:,}"
                problems += [f"{leaf}: {told}" for leaf in leaves]
    if problems:
        raise DamagedCheckpoint(
            "the leaves do not fit together", where=where, details=sorted(problems)
        )
    return sizes


def check_model(model: str, sizes: Mapping[str, int], where: str) -> None:
    """Refuses a checkpoint that has not the sizes of the model that it is said to be.

    Raises:
      BadInput: the name is not known, or some sizes differ.
    """
    if model not in MODELS:
        raise BadInput(f"no model is called `{model}`", hint=f"known are: {', '.join(MODELS)}")
    differing = [
        f"{MEANING[letter]}: {size:,} in {model}, {sizes[letter]:,} here"
        for letter, size in MODELS[model].items()
        if size != sizes[letter]
    ]
    if differing:
        raise BadInput(
            f"this is not {model}",
            where=where,
            details=differing,
            hint="leave `--model` out: sizes are read from the arrays",
        )


def decode(leaves: Mapping[str, Source], layers: int, wanted: Wanted) -> TrainState:
    """The canonical state of a Pax checkpoint, without moments where it has none.

    Args:
      leaves: the stored arrays by name, as they are without padding.
      layers: their number.
      wanted: what of several things that Pax leaves open the target shall have.
    """
    table = rows(fused_qkv=wanted.fused_qkv)
    params = _tree(leaves, {row: PARAMS + row.leaf for row in table}, layers)
    step = leaves[STEP]
    if counters(layers)[0] not in leaves:
        return TrainState(params, None, step)
    count = leaves[counters(layers)[0]]
    in_adam: dict[Key, Leaf] = {("count",): count}
    factors = {"m": 1.0, "v": 1.0}
    if wanted.optimizer == "adamw":
        factors = {"m": 1 - wanted.b1**wanted.count, "v": 1 - wanted.b2**wanted.count}
    for target, name in (("mu", "m"), ("nu", "v")):
        tree = _tree(leaves, {row: moment(name, row, layers) for row in table}, layers)
        in_adam |= {(target, *key): scaled(view, factors[name]) for key, view in tree.items()}
    if wanted.optimizer == "adam_pax":
        return TrainState(params, in_adam, step)
    chain = {(0, *key): leaf for key, leaf in in_adam.items()}
    return TrainState(params, {**chain, (2, "count"): count}, step)


def _tree(leaves: Mapping[str, Source], names: Mapping[Row, str], layers: int) -> dict[Key, View]:
    """A parameter-shaped tree with its layers apart, made of the leaves that `names` gives."""
    tree: dict[Key, View] = {}
    for row, name in names.items():
        whole = _turned(leaves[name], row)
        if not row.has_layers:
            tree[row.path] = whole
            continue
        for layer in range(layers):
            tree[(*_LAYERS, layer, *row.path)] = slot(whole, 0, layer)
    return tree


def _turned(source: Source, row: Row) -> View:
    """The array with its axes in MaxText's order, the layers first where it has some."""
    view: View = source
    letters = row.dimensions
    if row.part is not None:
        view = slot(view, letters.index("3"), row.part)
        letters = letters.replace("3", "")
    return _in_order(view, letters, ("L" if row.has_layers else "") + row.target)


def _in_order(view: View, letters: str, wanted: str) -> View:
    """The view with its axes in another order of letters, one move away."""
    if letters == wanted:
        return view
    moves = itertools.permutations(range(len(letters)), 2)
    return next(moved(view, *move) for move in moves if _moved(letters, *move) == wanted)


def _moved(letters: str, source: int, target: int) -> str:
    rest = letters[:source] + letters[source + 1 :]
    return rest[:target] + letters[source] + rest[target:]


def resized(source: Source, shape: Iterable[int]) -> Source:
    """The array without its padding, or with zeros at its end; its chunks cannot be taken over."""
    shape = tuple(shape)
    return source if shape == source.shape else replace(source, shape=shape, encoding="")
