"""How views, moments and arrangements of layers are told in words."""

from nnxconv.layouts import Conversion
from nnxconv.state import Apart, Arrangement, Blocks, parameter_trees
from nnxconv.tree import (
    Cast,
    Concat,
    Formula,
    Part,
    Scaled,
    Slot,
    Source,
    Stack,
    View,
    spell,
    told_arithmetic,
)
from nnxconv.tree import Moved as MovedView


def describe(view: View) -> str:
    """How a view is made, in words.

    >>> describe(Slot(Source("w", (16, 3), "float32", (16, 3)), 1, 2))
    'w, slot 2 of axis 1'
    """
    match view:
        case Source(name=name):
            return name
        case Slot(of, axis, index):
            return f"{describe(of)}, slot {index} of axis {axis}"
        case Part(of, axis, start, stop):
            return f"{describe(of)}, {start} to {stop} of axis {axis}"
        case MovedView(of, source, target):
            return f"{describe(of)}, axis {source} moved to {target}"
        case Scaled(of, _):
            return f"{describe(of)}, {told_arithmetic(view).rpartition(', ')[2]}"
        case Cast(of, dtype):
            return f"{describe(of)}, as {dtype}"
        case Stack(items, axis):
            first, last = describe(items[0]), describe(items[-1])
            return f"{first} to {last}, stacked on axis {axis}"
        case Formula(operation, operands):
            return f"{describe(operands[0])}, {operation}"
        case Concat(items, axis):
            if len(items) > 4:
                ends = describe(items[0]), describe(items[-1])
                return f"{ends[0]} to {ends[1]}, end to end on axis {axis}"
            return f"{' and '.join(map(describe, items))}, end to end on axis {axis}"


_SPELLED = {"suffix": "name_0", "index": "name/0", "sequence": "a list"}


def arranged(arrangement: Arrangement | None) -> str:
    """How a layer group is arranged, in words."""
    if arrangement is None:
        return "stacked"
    if isinstance(arrangement, Apart):
        return f"apart as {_SPELLED[arrangement.spelling]}"
    blocks = f" in blocks of {arrangement.period}" if isinstance(arrangement, Blocks) else ""
    return f"stacked on axis {arrangement.axis}{blocks}"


def moments_of(conversion: Conversion) -> list[str]:
    state = conversion.state
    trees = parameter_trees(state.opt_state or {}, state.params)
    return [spell(("opt_state", *prefix)) for prefix in trees]
