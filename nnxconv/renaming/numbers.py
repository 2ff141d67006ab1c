"""Steps that compute with each element: numbers are rounded to the type of the elements."""

from collections.abc import Sequence
from dataclasses import dataclass

from nnxconv.tree import Arithmetic, Over, Plus, View, scaled


@dataclass(frozen=True)
class Times:
    """Every element times a number."""

    by: float

    def apply(self, views: Sequence[View], count: int) -> list[View]:
        """The arrays after the step; `count` is how many there shall be in the end."""
        del count
        return _each(views, self.by)

    def inverse(self) -> "DivideBy":
        """What undoes the step, up to one rounding where the number is no power of two."""
        return DivideBy(self.by)


@dataclass(frozen=True)
class DivideBy:
    """Every element over a number."""

    by: float

    def apply(self, views: Sequence[View], count: int) -> list[View]:
        """The arrays after the step; `count` is how many there shall be in the end."""
        del count
        return _each(views, Over(self.by))

    def inverse(self) -> Times:
        """What undoes the step, up to one rounding where the number is no power of two."""
        return Times(self.by)


@dataclass(frozen=True)
class Add:
    """Every element plus a number."""

    amount: float

    def apply(self, views: Sequence[View], count: int) -> list[View]:
        """The arrays after the step; `count` is how many there shall be in the end."""
        del count
        return _each(views, Plus(self.amount))

    def inverse(self) -> "Add":
        """What undoes the step, up to the roundings of both."""
        return Add(-self.amount)


ARITHMETIC = (Times, DivideBy, Add)
"""All of these steps."""


def _each(views: Sequence[View], what: Arithmetic) -> list[View]:
    return [scaled(view, what) for view in views]
