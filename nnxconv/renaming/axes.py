"""Axes as rules give them, counted from the front or from the end."""

from nnxconv.errors import BadInput
from nnxconv.tree import View, notation


def axis_of(view: View, axis: int) -> int:
    """The axis counted from the front."""
    rank = len(view.shape)
    if not -rank <= axis < rank:
        raise BadInput(f"it is {notation(view)}: it has no axis {axis}")
    return axis % rank
