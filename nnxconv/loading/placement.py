"""Where the leaves of a live tree lie, and new values put there."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnxconv.errors import BadInput
from nnxconv.tree import Key, Region, Shape, Source, notation, spell


def regions_of(leaf: Any, source: Source) -> tuple[Region, ...]:
    """The different regions of a leaf that lie on this process's devices; the whole elsewhere.

    >>> regions_of(np.zeros((4, 2)), Source("x", (4, 2), "float32", (4, 2)))
    ((slice(0, 4, None), slice(0, 2, None)),)
    """
    sharding = _sharding(leaf)
    if sharding is None:
        return (_region((), source.shape),)
    indices = sharding.addressable_devices_indices_map(leaf.shape).values()
    regions = [_region(index, source.shape) for index in indices]
    return tuple({_bounds(region): region for region in regions}.values())


def refuse_wide(leaves: Mapping[Key, Any], tree: Mapping[Key, Source]) -> None:
    """Refuses types of 64 bits where JAX is set to make 32 of them.

    Raises:
      BadInput: there are some; all are listed.
    """
    import jax

    wide = [
        f"{spell(key)}  {notation(tree[key])}"
        for key, leaf in leaves.items()
        if isinstance(leaf, jax.ShapeDtypeStruct)
        and tree[key].prng_impl is None
        and jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype
    ]
    if wide:
        raise BadInput(
            "JAX is set to make 32 bits of these 64",
            details=wide,
            hint="`jax.config.update('jax_enable_x64', True)`",
        )


def place(
    leaf: Any, source: Source, regions: Sequence[Region], arrays: Sequence[np.ndarray]
) -> Any:
    """New values as what `leaf` is, where it is.

    Args:
      leaf: of `like`: an array, live or abstract, or a number.
      source: what it is.
      regions: of `regions_of`.
      arrays: the values of each region; they are not to be changed any more.
    """
    import jax

    if isinstance(leaf, np.ndarray):
        return arrays[0]
    if isinstance(leaf, np.generic):
        return arrays[0][()]
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return type(leaf)(arrays[0].item())
    sharding = _sharding(leaf)
    if sharding is None:
        placed = jax.device_put(arrays[0])
    else:
        found = dict(zip(map(_bounds, regions), arrays, strict=True))
        placed = jax.make_array_from_callback(
            source.shape, sharding, lambda index: found[_bounds(_region(index, source.shape))]
        )
    if source.prng_impl is None:
        return placed
    return jax.random.wrap_key_data(placed, impl=source.prng_impl)


def is_abstract(leaf: Any) -> bool:
    """True for a leaf that has no value."""
    import jax

    return isinstance(leaf, jax.ShapeDtypeStruct)


def _sharding(leaf: Any) -> Any:
    """Where a leaf has to lie; None for wherever JAX puts what nobody has placed."""
    import jax

    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.sharding
    return leaf.sharding if isinstance(leaf, jax.Array) and leaf.committed else None


def _region(index: Sequence[slice] | None, shape: Shape) -> Region:
    """An index as JAX has it as a region; axes that it does not name are whole.

    >>> _region((slice(None),), (4, 2))
    (slice(0, 4, None), slice(0, 2, None))
    """
    given = tuple(index or ())
    whole = (*given, *[slice(None)] * (len(shape) - len(given)))
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(whole, shape, strict=True))


def _bounds(region: Region) -> tuple[tuple[int, int], ...]:
    """A region as a key of a mapping, which slices are not before Python 3.12."""
    return tuple((part.start, part.stop) for part in region)
