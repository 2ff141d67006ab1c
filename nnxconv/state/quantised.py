"""Quantised weights and the scales beside them."""

from collections.abc import Mapping
from dataclasses import replace

from nnxconv.errors import BadInput
from nnxconv.state.train_state import TrainState
from nnxconv.tree import (
    Dequantize,
    Formula,
    Key,
    Leaf,
    Literal,
    computed_in,
    dtype_of,
    notation,
    spell,
)

SUFFIXES = ("_scale", "_scale_inv")
_TYPES = ("float8", "float4", "int8", "int4", "int2", "uint8", "uint4", "uint2")


def is_quantised(leaf: Leaf) -> bool:
    """True for an array of fewer bits than weights are trained in."""
    return not isinstance(leaf, Literal) and dtype_of(leaf).startswith(_TYPES)


def scales_of(tree: Mapping[Key, Leaf]) -> dict[Key, Key]:
    """The scales of a tree, each with the quantised array beside it that it belongs to.

    `kernel_scale` belongs to `kernel`, as MaxText names them, and `weight_scale_inv` to `weight`,
    as DeepSeek does; only what is beside an array that is quantised is a scale.
    """
    found: dict[Key, Key] = {}
    for key in tree:
        name = str(key[-1]) if key else ""
        for suffix in SUFFIXES:
            beside = (*key[:-1], name.removesuffix(suffix))
            if name.endswith(suffix) and beside in tree and is_quantised(tree[beside]):
                found[key] = beside
    return found


def is_amax_history(key: Key) -> bool:
    """True for the largest values of late steps, from which the next scales are made."""
    return bool(key) and str(key[-1]).endswith("amax_history")


def dequantised(state: TrainState, dtype: str | None) -> tuple[TrainState, dict[Key, str]]:
    """The state with its quantised weights times their scales, and why those are not in it.

    Args:
      state: with its layers apart.
      dtype: of the products; None for that of each one's scales. They are computed in float32.

    Raises:
      BadInput: nothing is quantised; scales do not fit their weights; or they have moments.
    """
    params = dict(state.params)
    scales = scales_of(params)
    if not scales:
        raise BadInput(
            "there is nothing to dequantise",
            details=[
                "no array of int8, float8 or fewer bits has one called `NAME_scale` beside it"
            ],
        )
    trained = [
        key for key in state.opt_state or {} for scale in scales if key[-len(scale) :] == scale
    ]
    if trained:
        raise BadInput(
            f"the optimizer has moments of scales, as `opt_state.{spell(trained[0])}`",
            hint="`--params_only` writes the weights alone",
        )
    gone: dict[Key, str] = {}
    for scale, weights in scales.items():
        factors, whole = params.pop(scale), params[weights]
        assert not isinstance(factors, Literal) and not isinstance(whole, Literal)
        operation = Dequantize.of(whole.shape, factors.shape)
        if operation is None:
            raise BadInput(
                f"`{spell(scale)}` does not fit `{spell(weights)}`",
                details=[f"{notation(factors)} for {notation(whole)}: no blocks of one size"],
            )
        wide = computed_in("float32", (whole, factors))
        params[weights] = Formula(operation, (whole, factors), dtype or dtype_of(factors), wide)
        gone["params", *scale] = "multiplied into the weights beside them, --dequantize"
    return replace(state, params=params), gone
