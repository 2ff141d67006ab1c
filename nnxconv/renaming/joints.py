"""Steps that make several arrays of one, or one of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnxconv.errors import BadInput
from nnxconv.renaming.axes import axis_of
from nnxconv.tree import View, concat, dtype_of, notation, part, slot, stack, without_axis


@dataclass(frozen=True)
class Split:
    """One array in parts along an axis."""

    axis: int
    sizes: tuple[int, ...] | None = None

    def apply(self, views: Sequence[View], count: int) -> list[View]:
        """The arrays after the step; `count` is how many there shall be in the end."""
        [view] = views
        axis = axis_of(view, self.axis)
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
        axis = axis_of(views[0], self.axis)
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
        axis = axis_of(view, self.axis)
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


def _refuse_unlike(views: Sequence[View], axis: int | None) -> None:
    """Refuses arrays that differ in more than their size on one axis."""

    def told(view: View) -> tuple[Any, ...]:
        if axis is not None and len(view.shape) <= axis:
            return dtype_of(view), view.shape
        return dtype_of(view), view.shape if axis is None else without_axis(view.shape, axis)

    if len({told(view) for view in views}) > 1:
        shapes = ", ".join(notation(view) for view in views)
        raise BadInput(f"they do not fit together: {shapes}")
