"""QK-Clip: attention weights scaled down, head by head, where attention logits grew too large.

For multi-head latent attention, with the largest logit m that a head had:

```
s = min(1, threshold / (m + 1e-6))
wq_b, or query without q-LoRA   (rank, heads, nope + rope): nope * sqrt(s), rope * s
wkv_b                           (rank, heads, nope + v):    nope * sqrt(s), v as it is
```

Source of the formula: MuonClip, as MaxText 0.2.5 has it (`apply_qk_clip`), in float32. Logits may
be arrays of numpy or of JAX, also traced ones: the library that they are of computes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnxconv.errors import BadInput
from nnxconv.state.train_state import Tree
from nnxconv.tree import (
    Formula,
    Key,
    Literal,
    Multiply,
    View,
    computed_in,
    counted,
    dtype_of,
    in_order,
    notation,
    spell,
)

KEYS_AND_VALUES = "wkv_b"
QUERIES = ("wq_b", "query")
LOGITS = "max_logits"
_EPSILON = 1e-6


def scales(max_logits: np.ndarray, threshold: float) -> np.ndarray:
    """The scale of each head from its largest logit, in float32.

    >>> scales(np.array([50.0, 200.0], "float32"), 100.0).round(3).tolist()
    [1.0, 0.5]
    """
    largest = max_logits.astype(np.float32)
    ratio = np.float32(threshold) / (largest + np.float32(_EPSILON))
    return _library(ratio).minimum(np.float32(1), ratio)


def _library(values: np.ndarray) -> Any:
    """`numpy` or `jax.numpy`, of which an array is."""
    return values.__array_namespace__()


def head_factors(module: str, scale: np.ndarray, nope: int, width: int) -> np.ndarray:
    """What the kernel of a module is multiplied by: shape (heads, width), float32."""
    library = _library(scale)
    root = library.sqrt(scale)[:, None]
    rest = library.ones_like(root) if module == KEYS_AND_VALUES else scale[:, None]
    return library.concatenate([root.repeat(nope, 1), rest.repeat(width - nope, 1)], 1)


def attention_modules(params: Tree) -> list[Key]:
    """The modules of multi-head latent attention, by canonical key.

    Raises:
      BadInput: there is none; what attention there is is named.
    """
    found = {key[:-2] for key in params if key[-2:-1] == (KEYS_AND_VALUES,)}
    if found:
        return in_order(found)
    others = [key for key in params if key[-2:-1] == ("query",)]
    raise BadInput(
        "this model has no multi-head latent attention, whose logits are clipped",
        where=spell(("params", *in_order(others)[0][:-2])) if others else "",
        details=["it has `query`, and no `wkv_b`"] if others else ["no module has `wkv_b`"],
    )


def logits_of(modules: Sequence[Key], recorded: Mapping[Key, np.ndarray]) -> dict[Key, np.ndarray]:
    """The largest logit of each head of each module: shape (heads,); modules without are left out.

    `recorded` has arrays by the path of the attention module: with its layer, whatever the
    spelling, shape (..., heads); or without, for stacked layers, shape (layers, ..., heads).

    Raises:
      BadInput: an array has another number of layers than there are, stands twice, or belongs to
        no module; all of the last kind are named.
    """
    known = _by_module(recorded)
    found: dict[Key, np.ndarray] = {}
    used: set[Key] = set()
    for module in modules:
        path = module if module in known else _stacked(module)
        if path not in known:
            continue
        used.add(path)
        values = known[path][1]
        if path != module:
            layers = in_order(m for m in modules if _stacked(m) == path)
            values = _of_layer(values, layers.index(module), len(layers), path)
        found[module] = _largest(values)
    unused = [spell(path) for key, (path, _) in known.items() if key not in used]
    if unused:
        raise BadInput(
            f"{counted(len(unused), 'recorded maximum', 'recorded maxima')} of logits belong"
            f"{'s' if len(unused) == 1 else ''} to no attention module",
            details=unused,
            hint="the names are those of modules with `wkv_b`, as `nnxconv inspect` shows them",
        )
    return found


def _by_module(recorded: Mapping[Key, np.ndarray]) -> dict[Key, tuple[Key, np.ndarray]]:
    """What is recorded by the key of its module, each with the path that it was given by.

    Raises:
      BadInput: one module has several.
    """
    known: dict[Key, tuple[Key, np.ndarray]] = {}
    for path in in_order(recorded):
        module = _canonical(path)
        if module in known:
            raise BadInput(
                "logits were recorded more than once",
                where=spell(module),
                details=[spell(known[module][0]), spell(path)],
                hint="let the attention run once, or give its largest logits of all runs",
            )
        known[module] = (path, recorded[path])
    return known


def _of_layer(values: np.ndarray, layer: int, layers: int, where: Key) -> np.ndarray:
    """What is recorded of one layer where the first axis is that of the layers.

    Raises:
      BadInput: there are not as many as layers.
    """
    if values.ndim < 2 or values.shape[0] != layers:
        raise BadInput(
            f"the logits have {'x'.join(map(str, values.shape))} numbers, for {layers} layers",
            where=spell(where),
        )
    return values[layer]


def _largest(values: np.ndarray) -> np.ndarray:
    """The largest over all axes but the last, which are the heads."""
    return values.max(axis=tuple(range(values.ndim - 1))) if values.ndim else values[None]


def refuse_infinite(logits: Mapping[Key, np.ndarray]) -> None:
    """Refuses logits that are no finite numbers.

    Raises:
      BadInput: there is one.
    """
    for module, largest in logits.items():
        if not np.isfinite(largest).all():
            raise BadInput("a recorded logit is not a finite number", where=spell(module))


def _canonical(path: Key) -> Key:
    """A recorded path as keys are: its layer apart, and what only intermediates have left out.

    >>> _canonical(("intermediates", "decoder", "layers_3", "self_attention", "max_logits", "0"))
    ('decoder', 'layers', 3, 'self_attention')
    """
    parts = list(path[: path.index(LOGITS)] if LOGITS in path else path)
    if parts[-1:] == ["attention_op"]:
        parts.pop()
    if parts and parts[0] == "intermediates":
        del parts[0]
    found: list[str | int] = []
    for part in parts:
        name, _, number = str(part).rpartition("_")
        if str(part).isdigit():
            found.append(int(part))
        elif name and number.isdigit():
            found += [name, int(number)]
        else:
            found.append(part)
    return tuple(found)


def _stacked(module: Key) -> Key:
    return tuple(part for part in module if not isinstance(part, int))


@dataclass(frozen=True)
class Clipped:
    """A kernel of attention, and what its heads are multiplied by.

    Attributes:
      kernel: shape (..., heads, width).
      scale: of each head, shape (heads,), float32.
      factors: shape (heads, width), float32.
    """

    kernel: View
    scale: np.ndarray
    factors: np.ndarray


def clipped_kernels(
    params: Tree, logits: Mapping[Key, np.ndarray], threshold: float, nope: int
) -> dict[Key, Clipped]:
    """The kernels of attention modules with what each is multiplied by, also where that is 1.

    Args:
      params: layers apart.
      logits: the largest of each head of each attention module, shape (heads,).
      threshold: above which logits are scaled down to it.
      nope: how many of the last axis of `wq_b` and `wkv_b` have no rotary position.

    Raises:
      BadInput: sizes do not fit; all are named.
    """
    found: dict[Key, Clipped] = {}
    problems: list[str] = []
    for module, largest in logits.items():
        scale = scales(largest, threshold)
        for name in _clipped_modules(module, params):
            key = (*module, name, "kernel")
            kernel = params.get(key)
            if kernel is None or isinstance(kernel, Literal):
                problems.append(f"{spell(key)}  is not there")
                continue
            heads, width = kernel.shape[-2:] if len(kernel.shape) > 2 else (0, 0)
            if heads != len(largest) or width <= nope:
                problems.append(
                    f"{spell(key)}  {notation(kernel)}, for {len(largest)} heads of more than"
                    f" {nope}"
                )
            else:
                found[key] = Clipped(kernel, scale, head_factors(name, scale, nope, width))
    if problems:
        raise BadInput("the sizes of attention do not fit the logits", details=problems)
    return found


def clip(
    params: Tree,
    logits: Mapping[Key, np.ndarray],
    threshold: float,
    nope: int,
    precision: str = "float32",
) -> tuple[dict[Key, View | Literal], list[Key]]:
    """The parameters with what exceeds the threshold scaled, and the kernels that are scaled.

    Arguments are those of `clipped_kernels`; `precision` is what is multiplied in.

    Raises:
      BadInput: sizes do not fit; all are named.
    """
    found = clipped_kernels(params, logits, threshold, nope)
    changed = {key: one for key, one in found.items() if (one.scale < 1).any()}
    scaled = {key: _multiplied(one, precision) for key, one in changed.items()}
    return {**params, **scaled}, list(changed)


def _multiplied(one: Clipped, precision: str) -> Formula:
    kernel = one.kernel
    shape = (*(1,) * (len(kernel.shape) - 2), *one.factors.shape)
    operation = Multiply(tuple(one.factors.reshape(-1).tolist()), shape)
    return Formula(operation, (kernel,), dtype_of(kernel), computed_in(precision, (kernel,)))


def _clipped_modules(module: Key, params: Tree) -> tuple[str, str]:
    """The modules whose kernels are scaled: the queries', and the keys'."""
    queries = next((q for q in QUERIES if (*module, q, "kernel") in params), QUERIES[0])
    return queries, KEYS_AND_VALUES
