"""Live arrays multiplied part by part, where layers may be stacked in one array."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from nnxconv.errors import BadInput
from nnxconv.tree import Slot, Source, View, notation


def is_known(values: Any) -> bool:
    """True for arrays whose values this process can look at: not while a function is traced."""
    import jax
    from jax.core import Tracer

    if not isinstance(values, jax.Array):
        return True
    if isinstance(values, Tracer):
        return False
    return values.is_fully_addressable or values.is_fully_replicated


def multiply_parts(leaf: Any, parts: Sequence[tuple[View, Any]]) -> Any:
    """An array whose parts are multiplied, each by its own factors; other parts are as they were.

    Computed in float32 or what is wider, and rounded once to the type of the array. Where all
    factors are known to be 1, it is the very array that was given.

    Args:
      leaf: of numpy or JAX.
      parts: views of it, as layers of a stack are, with factors for their last two axes.
    """
    import jax.numpy as jnp

    if all(is_known(factors) and (np.asarray(factors) == 1).all() for _, factors in parts):
        return leaf
    regions = [_region(view) for view, _ in parts]
    every = jnp.ones(_broadcast(leaf.shape, regions[0]), jnp.float32)
    for region, (_, factors) in zip(regions, parts, strict=True):
        every = every.at[tuple(region)].set(factors)
    multiplier = np.asarray(every) if isinstance(leaf, np.ndarray) and is_known(every) else every
    wide = np.promote_types(leaf.dtype, np.float32)
    return (leaf.astype(wide) * multiplier).astype(leaf.dtype)


def _region(view: View) -> list[int | slice]:
    """What of the stored array a layer is: an index for each axis of layers, all of the others."""
    if not isinstance(view, Slot):
        return [slice(None)] * len(view.shape)
    region = _region(view.of)
    left = [n for n, at in enumerate(region) if isinstance(at, slice)]
    region[left[view.axis]] = view.index
    return region


def _broadcast(shape: Sequence[int], region: Sequence[int | slice]) -> tuple[int, ...]:
    """The shape of factors: that of the array, and 1 where one factor is for the whole axis."""
    whole = [n for n, at in enumerate(region) if isinstance(at, slice)][:-2]
    return tuple(1 if n in whole else size for n, size in enumerate(shape))


def by_array(parts: Iterable[tuple[View, Any]]) -> dict[str, list[tuple[View, Any]]]:
    """Parts by the name of the array that they are of.

    Raises:
      BadInput: an array is neither a whole leaf nor a layer of one.
    """
    found: dict[str, list[tuple[View, Any]]] = {}
    for view, factors in parts:
        of = view
        while isinstance(of, Slot):
            of = of.of
        if not isinstance(of, Source):
            raise BadInput(f"an array is made of several leaves: {notation(view)}")
        found.setdefault(of.name, []).append((view, factors))
    return found
