"""Steps that keep an array's shape and put what is along one axis into another order."""

from collections.abc import Sequence
from dataclasses import dataclass

from nnxconv.errors import BadInput
from nnxconv.renaming.axes import axis_of
from nnxconv.tree import View, concat, notation, part, permuted, reshaped


@dataclass(frozen=True)
class Permute:
    """An axis in equal parts, as many as `order` has: part k is the former part `order[k]`."""

    axis: int
    order: tuple[int, ...]

    def apply(self, views: Sequence[View], count: int) -> list[View]:
        """The arrays after the step; `count` is how many there shall be in the end."""
        del count
        return [self._permuted(view) for view in views]

    def _permuted(self, view: View) -> View:
        axis = axis_of(view, self.axis)
        size, rest = divmod(view.shape[axis], len(self.order))
        if rest:
            raise BadInput(f"axis {axis} of {notation(view)} has no {len(self.order)} equal parts")
        return concat([part(view, axis, at * size, (at + 1) * size) for at in self.order], axis)

    def inverse(self) -> "Permute":
        """What undoes the step."""
        return Permute(self.axis, tuple(self.order.index(at) for at in range(len(self.order))))


@dataclass(frozen=True)
class Halves:
    """Rotary heads along an axis, from elements in pairs to those of all pairs in two halves.

    Of a head (a0, b0, a1, b1, ...) becomes (a0, a1, ..., b0, b1, ...): what `permute` in
    transformers' models/llama/convert_llama_weights_to_hf.py does to queries and keys.
    """

    axis: int
    heads: int

    def apply(self, views: Sequence[View], count: int) -> list[View]:
        """The arrays after the step; `count` is how many there shall be in the end."""
        del count
        return [_swapped(view, self.axis, self.heads, first=False) for view in views]

    def inverse(self) -> "Pairs":
        """What undoes the step."""
        return Pairs(self.axis, self.heads)


@dataclass(frozen=True)
class Pairs:
    """Rotary heads along an axis, from two halves to pairs: the inverse of `Halves`."""

    axis: int
    heads: int

    def apply(self, views: Sequence[View], count: int) -> list[View]:
        """The arrays after the step; `count` is how many there shall be in the end."""
        del count
        return [_swapped(view, self.axis, self.heads, first=True) for view in views]

    def inverse(self) -> Halves:
        """What undoes the step."""
        return Halves(self.axis, self.heads)


def _swapped(view: View, axis: int, heads: int, *, first: bool) -> View:
    """Each head's (pairs, 2) as (2, pairs), or with the two halves first back."""
    at = axis_of(view, axis)
    pairs, rest = divmod(view.shape[at], 2 * heads)
    if rest:
        told = f"axis {at} of {notation(view)}"
        raise BadInput(f"{told} is not {heads} heads of an even size")
    inner = (heads, 2, pairs) if first else (heads, pairs, 2)
    before, after = view.shape[:at], view.shape[at + 1 :]
    order = list(range(len(view.shape) + 2))
    order[at + 1 : at + 3] = [at + 2, at + 1]
    return reshaped(permuted(reshaped(view, (*before, *inner, *after)), order), view.shape)
