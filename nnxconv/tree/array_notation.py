"""The one notation of arrays.

>>> from nnxconv.tree import Source, slot
>>> notation(slot(Source("w", (16, 3, 32), "float32", (16, 3, 32)), 1, 2))
'f32[16,32]'
"""

from functools import cache

import ml_dtypes  # noqa: F401  registers bfloat16, float8_* and int4 with numpy

from nnxconv.tree.elements import dtype_of
from nnxconv.tree.views import Leaf, Literal

_SHORT = {"bfloat16": "bf16", "complex64": "c64", "complex128": "c128", "bool": "bool"}
_PREFIXES = (("float", "f"), ("uint", "u"), ("int", "i"))


@cache
def short_dtype(dtype: str) -> str:
    """`float32` as `f32`, `float8_e4m3fn` as `f8_e4m3fn`."""
    for long, short in _PREFIXES:
        if dtype.startswith(long) and dtype not in _SHORT:
            return short + dtype.removeprefix(long)
    return _SHORT.get(dtype, dtype)


def notation(leaf: Leaf) -> str:
    """Element type and shape as `bf16[2048,8192]`; literals by their value."""
    if isinstance(leaf, Literal):
        empties = {"None": "None", "Dict": "{}", "List": "[]", "Tuple": "()"}
        return empties.get(leaf.kind, repr(leaf.value))
    return f"{short_dtype(dtype_of(leaf))}[{','.join(map(str, leaf.shape))}]"
