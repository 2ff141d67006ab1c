"""Low-rank adapters: which two matrices belong to which weights, and how their product is shaped.

| names | written by |
|---|---|
| `MODULE.lora_a.kernel`, `MODULE.lora_b.kernel` | MaxText |
| `MODULE.WEIGHT_lora_a`, `MODULE.WEIGHT_lora_b` | qwix and Tunix; openpi's feed-forward |
| `MODULE.lora_a`, `MODULE.lora_b`, beside `kernel` or `w` | openpi's attention |
| `MODULE.lora.lora_a`, `MODULE.lora.lora_b` | `flax.nnx.LoRALinear` |
| `base_model.model.MODULE.lora_A.weight`, `lora_B.weight` | PEFT: A is (rank, in), B (out, rank) |
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nnxconv.errors import BadInput
from nnxconv.tree import (
    Formula,
    Key,
    Leaf,
    Literal,
    LowRank,
    Shape,
    View,
    dtype_of,
    in_order,
    notation,
    reshaped,
    spell,
)

_FACTOR = re.compile(r"(?:(?P<weight>.+)_)?lora_(?P<which>[abAB])(?:\.(?P<leaf>\w+))?")
_WEIGHTS = ("kernel", "w", "weight", "embedding")
"""What weights are called that an adapter does not name."""
_PEFT = ("base_model", "model")


@dataclass(frozen=True)
class Adapter:
    """Two matrices and the weights that they belong to.

    Attributes:
      weights: candidates for the key of the weights, the likeliest first.
      a, b: keys of the matrices, whose product has the shape of the weights.
      is_torch: `a` and `b` are those of PyTorch, which come to (out, in).
    """

    weights: tuple[Key, ...]
    a: Key
    b: Key
    is_torch: bool = False


def adapters_in(keys: Mapping[Key, Leaf]) -> tuple[list[Adapter], list[Key]]:
    """The adapters of a tree, and factors that are alone."""
    halves: dict[tuple[tuple[Key, ...], bool], dict[str, Key]] = {}
    for key in in_order(keys):
        found = _factor(key)
        if found is not None:
            which, weights, is_torch = found
            halves.setdefault((weights, is_torch), {})[which] = key
    found, alone = [], []
    for (weights, is_torch), both in halves.items():
        if both.keys() == {"a", "b"}:
            first, second = (both["b"], both["a"]) if is_torch else (both["a"], both["b"])
            found.append(Adapter(weights, first, second, is_torch))
        else:
            alone += both.values()
    return found, alone


def _factor(key: Key) -> tuple[str, tuple[Key, ...], bool] | None:
    """Which factor a key is, and the keys that its weights may have."""
    for place in range(len(key) - 1, max(len(key) - 3, -1), -1):
        match = _FACTOR.fullmatch(str(key[place]))
        if match is None:
            continue
        head, rest = key[:place], key[place + 1 :]
        is_torch = match["which"].isupper()
        if is_torch and head[: len(_PEFT)] == _PEFT:
            head = head[len(_PEFT) :]
        if head and head[-1] == "lora":
            head = head[:-1]
        leaf = match["leaf"] or (str(rest[0]) if rest else None)
        if match["weight"] is not None:
            names = (match["weight"],)
        else:
            names = (leaf, *_WEIGHTS) if leaf is not None else _WEIGHTS
        weights = tuple(dict.fromkeys((*head, name) for name in names))
        return match["which"].lower(), weights, is_torch
    return None


def merged(weights: View, a: View, b: View, factor: float, precision: str, where: Key) -> View:
    """The weights plus `factor` times the product of two matrices.

    Raises:
      BadInput: the product does not have the weights' shape, or has it in several ways.
    """
    ways = list(_ways(weights.shape, a.shape, b.shape))
    shapes = f"{notation(a)} times {notation(b)}, for {notation(weights)}"
    if not ways:
        raise BadInput(f"the adapter does not fit `{spell(where)}`", details=[shapes])
    if len(ways) > 1 and len(weights.shape) > 2:  # matrices are (in, out) everywhere
        axes = " or ".join(str(way.start) for way in ways)
        raise BadInput(
            f"the adapter fits `{spell(where)}` in {len(ways)} ways",
            details=[f"{shapes}: the first factor may be of axis {axes}"],
        )
    way = ways[0]
    a_whole = a if a.shape == way.a else reshaped(a, way.a)
    b_whole = b if b.shape == way.b else reshaped(b, way.b)
    operation = LowRank(factor, way.in_axes, batch=way.batch, first=way.start - way.batch)
    return Formula(operation, (weights, a_whole, b_whole), dtype_of(weights), precision)


def rank_of(a: View) -> int:
    """The rank of the product: the last axis of its first matrix."""
    return a.shape[-1] if a.shape else 0


@dataclass(frozen=True)
class _Way:
    """How a product may have the shape of weights.

    Attributes:
      batch: how many leading axes all three share.
      start: which axis of the weights is the first of the axes of `a`.
      in_axes: how many axes these are.
      a, b: the shapes of both, heads apart where the weights have them so.
    """

    batch: int
    start: int
    in_axes: int
    a: Shape
    b: Shape


def _ways(w: Shape, a: Shape, b: Shape) -> Iterator[_Way]:
    """The ways in which a product has the shape of weights.

    Einsums of heads and width, as Gemma has them, have the axes of `a` after or between those of
    `b`. Matrices whose heads are together are taken apart where nothing fits as it stands.
    """
    rank, batch = (a[-1] if a else 0), len(a) + len(b) - 2 - len(w)
    in_axes = len(a) - 1 - batch
    found = False
    if batch >= 0 < in_axes < len(w) - batch:
        for start in range(batch, len(w) - in_axes + 1):
            rows = w[start : start + in_axes]
            columns = (*w[batch:start], *w[start + in_axes :])
            if a == (*w[:batch], *rows, rank) and b == (*w[:batch], rank, *columns):
                found = True
                yield _Way(batch, start, in_axes, a, b)
    if not found and len(a) == len(b) == 2 and b[0] == rank:
        for in_axes in range(1, len(w)):
            rows, columns = w[:in_axes], w[in_axes:]
            if (math.prod(rows), math.prod(columns)) == (a[0], b[1]):
                yield _Way(0, 0, in_axes, (*rows, rank), (rank, *columns))
                return


def arrays_of(tree: Mapping[Key, Leaf]) -> dict[Key, View]:
    """The leaves of a tree that are arrays."""
    return {key: leaf for key, leaf in tree.items() if not isinstance(leaf, Literal)}
