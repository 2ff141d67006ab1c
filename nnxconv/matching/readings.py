"""Readings of two shapes: the steps that may lead from one to the other, by orientation.

A matrix may be kept with its inputs first (Flax's `kernel`) or last (PyTorch's `weight`), and which
it is cannot be told from a square one. A reading therefore names its *orientation*, and what other
arrays of its kind say decides (see `orientation`).

>>> readings((16, 64), (64, 16), "dense")
{'turned': (Transpose(order=(1, 0)),)}
>>> sorted(readings((16, 16), (16, 16), "dense"))
['same', 'turned']
>>> readings((64, 4, 4), (16, 64), "dense")
{'turned': (Transpose(order=(1, 2, 0)), Merge(axis=0, of=(4, 4)))}
"""

import itertools
import math
import operator
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, TypeAlias

from nnxconv.renaming import Divide, Merge, Reshape, Step, Transpose
from nnxconv.tree import Shape

Kind: TypeAlias = Literal["vector", "dense", "conv", "table", "experts"]
Orientation: TypeAlias = str
Readings: TypeAlias = Mapping[Orientation, tuple[Step, ...]]
SAME, TURNED = "same", "turned"
HEADS_FIRST = {SAME: "heads first", TURNED: "heads first, turned"}
"""The orientation of arrays with an axis of heads before the others, by that of arrays without."""


@lru_cache(maxsize=65536)
def readings(old: Shape, new: Shape, kind: Kind, role: str = "") -> Readings:
    """The ways to make an array of shape `new` of one of shape `old`.

    Args:
      old: the shape in the source.
      new: the shape in the template.
      kind: `vector`: at most one axis is longer than 1; `conv`: two axes are those of a picture;
        `table`: rows of an embedding; `experts`: a matrix for each index of the first axis.
      role: what the array is, where this is known: `query`, `out`, ... have heads.

    Returns:
      The steps, by orientation: `same` keeps the order of axes; `turned` has outputs before inputs,
      or back; `outputs first` and `inputs first` do this to convolutions; `heads first` has the
      axis of heads before the inputs, or back.
    """
    if math.prod(old) != math.prod(new):
        return {}
    found: dict[Orientation, tuple[Step, ...] | None] = {}
    match kind:
        case "vector":
            found = {SAME: resized(old, new)}
        case "experts":
            found = {SAME: () if old == new else None, TURNED: _experts_turned(old, new)}
        case "conv":
            found = {SAME: resized(old, new) if len(old) == len(new) else None}
            found |= _convolutions_turned(old, new)
        case "table" | "dense":
            found = {SAME: resized(old, new), TURNED: _turned(old, new, _inputs(role))}
            if role.endswith(_WITH_HEADS):
                found |= _heads_first(old, new)
    effects: dict[Shape, Orientation] = {}
    for name, steps in found.items():
        if steps is not None:
            effects.setdefault(_effect(old, steps), name)
    return {name: steps for name in effects.values() if (steps := found[name]) is not None}


def _effect(old: Shape, steps: tuple[Step, ...]) -> Shape:
    """The axes that are longer than 1, in the order in which they lie after the steps."""
    order = tuple(range(len(old)))
    if steps and isinstance(steps[0], Transpose):
        order = steps[0].order
    else:
        for step in steps:
            if isinstance(step, Transpose):
                return (*order, *step.order)
    return tuple(axis for axis in order if old[axis] != 1)


_WITH_HEADS = ("query", "key", "value")


def _inputs(role: str) -> int | None:
    """How many axes are inputs where heads are apart; None where it is not known."""
    return 2 if role.endswith("out") else 1 if role.endswith(_WITH_HEADS) else None


def resized(old: Shape, new: Shape) -> tuple[Step, ...] | None:
    """The steps that divide and merge axes, and no more; None when these do not do."""
    if old == new:
        return ()
    longer, shorter = (new, old) if len(new) > len(old) else (old, new)
    if 1 not in longer and 1 not in shorter and len(longer) == len(shorter) + 1:
        for axis, size in enumerate(shorter):
            both = longer[axis : axis + 2]
            if len(both) == 2 and (*shorter[:axis], *both, *shorter[axis + 1 :]) == longer:
                into = (both[0], both[1])
                return (Divide(axis, into) if longer is new else Merge(axis, into),)
            if longer[axis] != size:
                return None
    bare_old, bare_new = (tuple(size for size in shape if size != 1) for shape in (old, new))
    if bare_old == bare_new or min(len(bare_old), len(bare_new)) == 1 >= abs(
        len(bare_old) - len(bare_new)
    ):
        return (Reshape(new, old),)
    return None


def _turned(old: Shape, new: Shape, in_axes: int | None) -> tuple[Step, ...] | None:
    """Outputs before inputs: the one way to cut the axes in two that fits, or None."""
    if len(old) < 2 or len(new) < 2:
        return None
    if len(old) < len(new):
        return undone(_turned(new, old, in_axes))
    found: dict[tuple[int, ...], tuple[Step, ...]] = {}
    for cut in range(1, len(old)):
        if len(old) == 2 or in_axes is None or cut in (in_axes, len(old) - in_axes):
            order = (*range(cut, len(old)), *range(cut))
            outputs = math.prod(old[cut:])
            then = resized(tuple(old[axis] for axis in order), new)
            effect = tuple(axis for axis in order if old[axis] != 1)
            is_turned = effect != tuple(sorted(effect))
            if (
                is_turned
                and then is not None
                and outputs in itertools.accumulate(new, operator.mul)
            ):
                found.setdefault(effect, (Transpose(order), *then))
    return next(iter(found.values())) if len(found) == 1 else None


def _heads_first(old: Shape, new: Shape) -> dict[Orientation, tuple[Step, ...] | None]:
    """(heads, inputs, size) of (inputs, heads, size), or of these two merged, and back."""
    found: dict[Orientation, tuple[Step, ...] | None] = {}
    for name, order in ((HEADS_FIRST[SAME], (1, 0, 2)), (HEADS_FIRST[TURNED], (0, 2, 1))):
        there = _moved_and_resized(old, new, order)
        back = _moved_and_resized(new, old, order)
        found[name] = there if there is not None else undone(back)
    return found


def _moved_and_resized(old: Shape, new: Shape, order: Shape) -> tuple[Step, ...] | None:
    if len(old) != 3 or len(new) not in (2, 3):
        return None
    moved = tuple(old[axis] for axis in order)
    inputs = order.index(1)
    if new[inputs and -1] != moved[inputs]:
        return None
    then = resized(moved, new)
    return None if then is None else (Transpose(order), *then)


def _ends(shape: Shape) -> set[int]:
    """How many elements the first axes have together, for each number of axes."""
    return set(itertools.accumulate(shape, operator.mul))


def undone(steps: tuple[Step, ...] | None) -> tuple[Step, ...] | None:
    """The steps that lead back; None for none."""
    if steps is None:
        return None
    back = [step.inverse() for step in reversed(steps)]
    return tuple(step for step in back if step is not None)


def _experts_turned(old: Shape, new: Shape) -> tuple[Step, ...] | None:
    is_turned = len(old) == 3 and (old[0], old[2], old[1]) == new
    return (Transpose((0, 2, 1)),) if is_turned else None


def _convolutions_turned(old: Shape, new: Shape) -> dict[Orientation, tuple[Step, ...] | None]:
    """(outputs, inputs, height, width) of (height, width, inputs, outputs), and back."""
    if len(old) != len(new) or len(old) < 3:
        return {}
    spatial = len(old) - 2
    orders: dict[Orientation, Shape] = {
        "outputs first": (spatial + 1, spatial, *range(spatial)),
        "inputs first": (*range(2, 2 + spatial), 1, 0),
    }
    return {
        name: (Transpose(order),)
        for name, order in orders.items()
        if tuple(old[axis] for axis in order) == new
    }
