"""The state without what is not wanted, its parameters in the wanted type."""

from dataclasses import replace

from nnxconv.layouts.leaving_out import leave_out
from nnxconv.layouts.options import Options
from nnxconv.layouts.parts import is_rng_state
from nnxconv.state import TrainState, dequantised, is_amax_history, scales_of
from nnxconv.tree import Key, Literal, cast, dtype_of, in_order

FLOATS = ("bfloat16", "float16", "float32", "float64")
"""Types that `--dtype` casts between; float8 and int4 hold quantised weights."""


def reduced(state: TrainState, options: Options) -> tuple[TrainState, dict[Key, str]]:
    """The state without what is not wanted, its parameters in the wanted type."""
    left_out: dict[Key, str] = {}
    if options.params_only:
        state, left_out = leave_out(state, ("opt_state", "step"), "--params_only")
        rngs = {key for key, leaf in state.aux.items() if is_rng_state(key, leaf)}
        state = state.with_aux({key: leaf for key, leaf in state.aux.items() if key not in rngs})
        left_out |= {("aux", *key): "--params_only" for key in in_order(rngs)}
    state, also = leave_out(state, options.without)
    if options.dequantize:
        state, multiplied = dequantised(state, options.dtype)
        also |= multiplied
    if options.dtype is not None:
        kept = uncast(state, options.dtype)
        params = {
            key: leaf if key in kept or isinstance(leaf, Literal) else cast(leaf, options.dtype)
            for key, leaf in state.params.items()
        }
        state = replace(state, params=params)
    return state, {**left_out, **also}


def uncast(state: TrainState, dtype: str | None) -> set[Key]:
    """The parameters that `--dtype` leaves as they are: quantised weights and their scales."""
    if dtype is None:
        return set()
    scales = scales_of(state.params)
    return {
        key
        for key, leaf in state.params.items()
        if not isinstance(leaf, Literal)
        and (key in scales or is_amax_history(key) or dtype_of(leaf) not in FLOATS)
    }
