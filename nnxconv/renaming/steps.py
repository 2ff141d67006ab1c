"""What a rule does to arrays besides renaming them, as data: steps, each with its inverse.

```
transpose = [1, 0]                      axis k is the former axis given at k
split = 1                               in equal parts along an axis, one for each name
split = { axis = 1, sizes = [8, 4, 4] } in parts of these sizes
concat = 1                              end to end along an axis; the same two ways to write it
unstack = 0                             one array for each index of an axis
stack = 0                               side by side along a new axis
divide = { axis = 1, into = [4, 8] }    one axis as two, the second within the first
merge = { axis = 1, of = [4, 8] }       the axes 1 and 2, of these sizes, as one
merge = 1                               the same, whatever their sizes; this has no inverse
```

Axes may be counted from the end: -1 is the last one of an array.

>>> from nnxconv.tree import Source
>>> w = Source("w", (16, 64), "float32", (16, 64))
>>> wi_0, wi_1 = Split(1).apply([w], 2)
>>> wi_0.shape, Split(1).inverse().apply([wi_0, wi_1], 1) == [w]
((16, 32), True)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from nnxconv.errors import BadInput
from nnxconv.tree import (
    View,
    concat,
    divided,
    dtype_of,
    merged,
    notation,
    part,
    permuted,
    slot,
    stack,
    without_axis,
)


@dataclass(frozen=True)
class Transpose:
    """The axes in another order."""

    order: tuple[int, ...]

    def apply(self, views: Sequence[View], count: int) -> list[View]:
        """The arrays after the step; `count` is how many there shall be in the end."""
        del count
        for view in views:
            if len(view.shape) != len(self.order):
                raise BadInput(f"it has {len(view.shape)} axes, not {len(self.order)}")
        return [permuted(view, self.order) for view in views]

    def inverse(self) -> "Transpose":
        """What undoes the step."""
        return Transpose(tuple(self.order.index(axis) for axis in range(len(self.order))))


@dataclass(frozen=True)
class Split:
    """One array in parts along an axis."""

    axis: int
    sizes: tuple[int, ...] | None = None

    def apply(self, views: Sequence[View], count: int) -> list[View]:
        """The arrays after the step; `count` is how many there shall be in the end."""
        [view] = views
        axis = _axis(view, self.axis)
        size = view.shape[axis]
        if self.sizes is None and size % count:
            raise BadInput(f"axis {axis} of {size} has no {count} equal parts: give `sizes`")
        sizes = self.sizes or (size // count,) * count
        if sum(sizes) != size or len(sizes) != count:
            told = " + ".join(map(str, sizes))
            raise BadInput(f"axis {axis} has {size}, which is not {told} for {count} names")
        starts = [sum(sizes[:k]) for k in range(count)]
        both = zip(starts, sizes, strict=True)
        return [part(view, axis, start, start + size) for start, size in both]

    def inverse(self) -> "Concat":
        """What undoes the step."""
        return Concat(self.axis, self.sizes)


@dataclass(frozen=True)
class Concat:
    """Arrays end to end along an axis."""

    axis: int
    sizes: tuple[int, ...] | None = None

    def apply(self, views: Sequence[View], count: int) -> list[View]:
        """The arrays after the step; `count` is how many there shall be in the end."""
        del count
        axis = _axis(views[0], self.axis)
        _refuse_unlike(views, axis)
        sizes = tuple(view.shape[axis] for view in views)
        if self.sizes is None and len(set(sizes)) > 1:
            told = ", ".join(map(str, sizes))
            raise BadInput(f"the sizes on axis {axis} differ: say so with `sizes = [{told}]`")
        if self.sizes not in (None, sizes):
            raise BadInput(f"on axis {axis} they have {list(sizes)}, not {list(self.sizes or ())}")
        return [concat(views, axis)]

    def inverse(self) -> Split:
        """What undoes the step."""
        return Split(self.axis, self.sizes)


@dataclass(frozen=True)
class Unstack:
    """One array for each index of an axis, which goes away."""

    axis: int

    def apply(self, views: Sequence[View], count: int) -> list[View]:
        """The arrays after the step; `count` is how many there shall be in the end."""
        [view] = views
        axis = _axis(view, self.axis)
        if view.shape[axis] != count:
            raise BadInput(f"axis {axis} has {view.shape[axis]}, but there are {count} names")
        return [slot(view, axis, i) for i in range(count)]

    def inverse(self) -> "Pile":
        """What undoes the step."""
        return Pile(self.axis)


@dataclass(frozen=True)
class Pile:
    """Arrays side by side along a new axis."""

    axis: int

    def apply(self, views: Sequence[View], count: int) -> list[View]:
        """The arrays after the step; `count` is how many there shall be in the end."""
        del count
        rank = len(views[0].shape) + 1
        axis = self.axis + rank if self.axis < 0 else self.axis
        if not 0 <= axis < rank:
            raise BadInput(f"there is no place {self.axis} for a new axis")
        _refuse_unlike(views, None)
        return [stack(views, axis)]

    def inverse(self) -> Unstack:
        """What undoes the step."""
        return Unstack(self.axis)


@dataclass(frozen=True)
class Divide:
    """One axis as two."""

    axis: int
    into: tuple[int, int]

    def apply(self, views: Sequence[View], count: int) -> list[View]:
        """The arrays after the step; `count` is how many there shall be in the end."""
        del count
        return [self._divided(view) for view in views]

    def _divided(self, view: View) -> View:
        axis = _axis(view, self.axis)
        if view.shape[axis] != self.into[0] * self.into[1]:
            told = " × ".join(map(str, self.into))
            raise BadInput(f"axis {axis} has {view.shape[axis]}, which is not {told}")
        return divided(view, axis, self.into)

    def inverse(self) -> "Merge":
        """What undoes the step."""
        return Merge(self.axis - 1 if self.axis < 0 else self.axis, self.into)


@dataclass(frozen=True)
class Merge:
    """An axis and the one after it as one."""

    axis: int
    of: tuple[int, int] | None = None

    def apply(self, views: Sequence[View], count: int) -> list[View]:
        """The arrays after the step; `count` is how many there shall be in the end."""
        del count
        return [self._merged(view) for view in views]

    def _merged(self, view: View) -> View:
        axis = _axis(view, self.axis)
        if axis + 1 == len(view.shape):
            raise BadInput(f"there is no axis after axis {axis} to merge it with")
        found = view.shape[axis : axis + 2]
        if self.of not in (None, found):
            raise BadInput(f"axes {axis} and {axis + 1} have {list(found)}, not {list(self.of)}")
        return merged(view, axis)

    def inverse(self) -> Divide | None:
        """What undoes the step; None when the sizes are not known."""
        if self.of is None:
            return None
        return Divide(self.axis + 1 if self.axis < -1 else self.axis, self.of)


Step: TypeAlias = Transpose | Split | Concat | Unstack | Pile | Divide | Merge
MAKE_SEVERAL = (Split, Unstack)
MAKE_ONE = (Concat, Pile)


def run(steps: Sequence[Step], views: Sequence[View], count: int) -> list[View]:
    """The arrays after all steps.

    Raises:
      BadInput: a step does not fit the shapes.
    """
    found = list(views)
    for step in steps:
        found = step.apply(found, count)
    return found


def _axis(view: View, axis: int) -> int:
    """The axis counted from the front."""
    rank = len(view.shape)
    if not -rank <= axis < rank:
        raise BadInput(f"it is {notation(view)}: it has no axis {axis}")
    return axis % rank


def _refuse_unlike(views: Sequence[View], axis: int | None) -> None:
    """Refuses arrays that differ in more than their size on one axis."""

    def told(view: View) -> tuple[Any, ...]:
        if axis is not None and len(view.shape) <= axis:
            return dtype_of(view), view.shape
        return dtype_of(view), view.shape if axis is None else without_axis(view.shape, axis)

    if len({told(view) for view in views}) > 1:
        shapes = ", ".join(notation(view) for view in views)
        raise BadInput(f"they do not fit together: {shapes}")
