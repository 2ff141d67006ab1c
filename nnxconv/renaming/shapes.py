"""Steps that give an array other axes: in another order, one as two, two as one, any shape."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nnxconv.errors import BadInput
from nnxconv.renaming.axes import axis_of
from nnxconv.tree import Shape, View, divided, merged, notation, permuted, reshaped

LARGEST_RESHAPE = 16_384
"""How many runs of elements a reshape may make, each of which is read on its own."""


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
class Divide:
    """One axis as two; of `into` one size may be -1, which is whatever is left."""

    axis: int
    into: tuple[int, int]

    def apply(self, views: Sequence[View], count: int) -> list[View]:
        """The arrays after the step; `count` is how many there shall be in the end."""
        del count
        return [self._divided(view) for view in views]

    def _divided(self, view: View) -> View:
        axis = axis_of(view, self.axis)
        size = view.shape[axis]
        known = -math.prod(self.into) if -1 in self.into else 0
        into = tuple(size // known if part == -1 and known else part for part in self.into)
        if size != math.prod(into):
            told = " × ".join(map(str, self.into))
            raise BadInput(f"axis {axis} has {size}, which is not {told}")
        return divided(view, axis, (into[0], into[1]))

    def inverse(self) -> "Merge":
        """What undoes the step."""
        return Merge(self.axis - 1 if self.axis < 0 else self.axis, self.into)


@dataclass(frozen=True)
class Merge:
    """An axis and the one after it as one; of `of` one size may be -1, which is any."""

    axis: int
    of: tuple[int, int] | None = None

    def apply(self, views: Sequence[View], count: int) -> list[View]:
        """The arrays after the step; `count` is how many there shall be in the end."""
        del count
        return [self._merged(view) for view in views]

    def _merged(self, view: View) -> View:
        axis = axis_of(view, self.axis)
        if axis + 1 == len(view.shape):
            raise BadInput(f"there is no axis after axis {axis} to merge it with")
        found = view.shape[axis : axis + 2]
        wanted = self.of or found
        if any(size not in (-1, has) for size, has in zip(wanted, found, strict=True)):
            raise BadInput(f"axes {axis} and {axis + 1} have {list(found)}, not {list(wanted)}")
        return merged(view, axis)

    def inverse(self) -> Divide | None:
        """What undoes the step; None when the sizes are not known."""
        if self.of is None:
            return None
        return Divide(self.axis + 1 if self.axis < -1 else self.axis, self.of)


@dataclass(frozen=True)
class Reshape:
    """Another shape with as many elements, which keep their order."""

    to: Shape
    of: Shape | None = None

    def apply(self, views: Sequence[View], count: int) -> list[View]:
        """The arrays after the step; `count` is how many there shall be in the end."""
        del count
        return [self._reshaped(view) for view in views]

    def _reshaped(self, view: View) -> View:
        if self.of not in (None, view.shape):
            raise BadInput(f"it is {notation(view)}, not of shape {list(self.of or ())}")
        size = math.prod(view.shape)
        if size != math.prod(self.to) or not size:
            raise BadInput(f"it is {notation(view)}, which cannot have the shape {list(self.to)}")
        runs = min(_runs(view.shape, self.to), _runs(self.to, view.shape))
        if runs > LARGEST_RESHAPE:
            raise BadInput(
                f"{list(self.to)} cuts {notation(view)} into {runs:,} runs of elements,"
                f" which is more than {LARGEST_RESHAPE:,}"
            )
        return reshaped(view, self.to)

    def inverse(self) -> "Reshape | None":
        """What undoes the step; None when the shape before it is not known."""
        return None if self.of is None else Reshape(self.of, self.to)


def _runs(old: Shape, new: Shape) -> int:
    """Into how many runs of elements the axes of `new` cut an array that has those of `old`."""
    ends = {math.prod(old[axis:]) for axis in range(len(old) + 1)}
    shared = [axis for axis in range(len(new) + 1) if math.prod(new[axis:]) in ends]
    cut = [axis for axis in range(len(new)) if axis + 1 not in shared or axis not in shared]
    return math.prod(new[axis] for axis in cut)
