"""What a rule does to arrays besides renaming them, as data: steps, each with its inverse.

```
transpose = [1, 0]                      axis k is the former axis given at k
split = 1                               in equal parts along an axis, one for each name
split = { axis = 1, sizes = [8, 4, 4] } in parts of these sizes
concat = 1                              end to end along an axis; the same two ways to write it
unstack = 0                             one array for each index of an axis
stack = 0                               side by side along a new axis
divide = { axis = 1, into = [4, 8] }    one axis as two, the second within the first
divide = { axis = 1, into = [-1, 8] }   the same, with as many of 8 as there are
merge = { axis = 1, of = [4, 8] }       the axes 1 and 2, of these sizes, as one
merge = 1                               the same, whatever their sizes; this has no inverse
reshape = { of = [1, 1, 8], to = [8] }  another shape of as many elements, in their order
reshape = [8]                           the same, whatever the shape before; this has no inverse
permute = { axis = 0, order = [2, 0, 1] }   equal parts along an axis in another order
halves = { axis = 0, heads = 8 }        rotary heads, from pairs of elements to two halves
pairs = { axis = 0, heads = 8 }         and from two halves to pairs
times = 0.25                            every element times a number
over = 0.25                             every element over a number
plus = 1                                every element plus a number
```

What is computed is rounded: the inverse of `times` or `over` brings the same bits back where the
number is a power of two, and that of `plus` only by chance.

Axes may be counted from the end: -1 is the last one of an array.

>>> from nnxconv.tree import Source
>>> w = Source("w", (16, 64), "float32", (16, 64))
>>> wi_0, wi_1 = Split(1).apply([w], 2)
>>> wi_0.shape, Split(1).inverse().apply([wi_0, wi_1], 1) == [w]
((16, 32), True)
"""

from collections.abc import Sequence
from typing import TypeAlias

from nnxconv.renaming.joints import Concat, Pile, Split, Unstack
from nnxconv.renaming.numbers import Add, DivideBy, Times
from nnxconv.renaming.orders import Halves, Pairs, Permute
from nnxconv.renaming.shapes import Divide, Merge, Reshape, Transpose
from nnxconv.tree import View

__all__ = ["MAKE_ONE", "MAKE_SEVERAL", "Concat", "Divide", "Halves", "Merge", "Pairs", "Permute"]
__all__ += ["Add", "DivideBy", "Pile", "Reshape", "Split", "Step", "Times", "Transpose"]
__all__ += ["Unstack", "apply_steps"]
__all__ += ["why_not_undone"]

Step: TypeAlias = (
    Transpose
    | Split
    | Concat
    | Unstack
    | Pile
    | Divide
    | Merge
    | Reshape
    | Permute
    | Halves
    | Pairs
    | Times
    | DivideBy
    | Add
)
MAKE_SEVERAL = (Split, Unstack)
MAKE_ONE = (Concat, Pile)


def apply_steps(steps: Sequence[Step], views: Sequence[View], count: int) -> list[View]:
    """The arrays after all steps.

    Raises:
      BadInput: a step does not fit the shapes.
    """
    found = list(views)
    for step in steps:
        found = step.apply(found, count)
    return found


def why_not_undone(step: Step) -> tuple[str, str]:
    """Why a step has no inverse, and how it is written when it has one."""
    if isinstance(step, Reshape):
        return (
            "`reshape` does not say of which shape",
            "as in `reshape = { of = [1, 8], to = [8] }`",
        )
    return "`merge` does not say which sizes it merges", "as in `merge = { axis = 1, of = [4, 8] }`"
