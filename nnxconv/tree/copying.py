"""Values copied into another order of axes, by what a cache holds.

NumPy copies an array that is turned column by column, and loads each line of its memory once for
every element in it. In strips, a line is used up while it is there.
"""

import numpy as np

_STRIP = 16
"""Elements: a line of memory holds as many float32."""
_WORTH_IT = 2**14


def fill(target: np.ndarray, values: np.ndarray) -> None:
    """Copies values into an array of their shape, whatever the order of the axes of either.

    >>> there = np.zeros((3, 2), np.int32)
    >>> fill(there, np.arange(6, dtype=np.int32).reshape(2, 3).T)
    >>> there.tolist()
    [[0, 3], [1, 4], [2, 5]]
    """
    axis = _fastest(target)
    if values.size < _WORTH_IT or axis is None or axis == _fastest(values):
        target[...] = values
        return
    there, here = np.moveaxis(target, axis, 0), np.moveaxis(values, axis, 0)
    for start in range(0, len(there), _STRIP):
        there[start : start + _STRIP] = here[start : start + _STRIP]


def contiguous(values: np.ndarray) -> np.ndarray:
    """The values in C order: themselves, or a copy."""
    if values.flags.c_contiguous:
        return values
    found = np.empty(values.shape, values.dtype)
    fill(found, values)
    return found


def _fastest(values: np.ndarray) -> int | None:
    """The axis along which elements are nearest in memory; None where there is one element."""
    long = [axis for axis, size in enumerate(values.shape) if size > 1]
    return min(long, key=lambda axis: abs(values.strides[axis]), default=None)
