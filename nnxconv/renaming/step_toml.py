"""Steps as rules spell them in TOML."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

from nnxconv.errors import BadInput
from nnxconv.renaming.steps import (
    Add,
    Concat,
    Divide,
    DivideBy,
    Halves,
    Merge,
    Pairs,
    Permute,
    Pile,
    Reshape,
    Split,
    Step,
    Times,
    Transpose,
    Unstack,
)


def read_step(name: str, value: Any) -> Step:
    """A step as it is written.

    Raises:
      BadInput: there is no such step, or it is written otherwise.
    """
    try:
        match name, value:
            case "transpose", list() if sorted(value) == list(range(len(value))):
                return Transpose(tuple(value))
            case (("split" | "concat"), (int() | dict())):
                axis, sizes = _axis_and(value, "sizes")
                return (Split if name == "split" else Concat)(axis, sizes)
            case (("stack" | "unstack"), int()):
                return (Pile if name == "stack" else Unstack)(value)
            case "divide", dict():
                axis, into = _axis_and(value, "into")
                if into is not None and len(into) == 2 and into != (-1, -1):
                    return Divide(axis, (into[0], into[1]))
            case "reshape", list():
                return Reshape(_sizes(value))
            case "reshape", {"of": list(of), "to": list(to)} if len(value) == 2:
                return Reshape(_sizes(to), _sizes(of))
            case "permute", {"axis": int(axis), "order": list(order)} if len(value) == 2:
                if sorted(order) == list(range(len(order))):
                    return Permute(axis, tuple(order))
            case (("halves" | "pairs"), {"axis": int(axis), "heads": int(heads)}) if heads > 0:
                return (Halves if name == "halves" else Pairs)(axis, heads)
            case (("times" | "over"), (int() | float())) if value and isfinite(value):
                return (Times if name == "times" else DivideBy)(float(value))
            case "plus", (int() | float()) if isfinite(value):
                return Add(float(value))
            case "merge", (int() | dict()):
                axis, of = _axis_and(value, "of")
                if of is None or (len(of) == 2 and of != (-1, -1)):
                    return Merge(axis, None if of is None else (of[0], of[1]))
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"`{name} = {toml_value(value)}` cannot be read") from error
    raise BadInput(f"`{name} = {toml_value(value)}` is nothing that a rule can do")


def _axis_and(value: Any, field: str) -> tuple[int, tuple[int, ...] | None]:
    """The axis, and the sizes where they are given."""
    if isinstance(value, int):
        return value, None
    if value.keys() - {"axis", field}:
        raise KeyError(field)
    sizes = value.get(field)
    least = 1 if field == "sizes" else -1
    if sizes is not None and not (
        sizes and all(isinstance(s, int) and s >= least and s != 0 for s in sizes)
    ):
        raise ValueError(field)
    return int(value["axis"]), None if sizes is None else tuple(sizes)


def _sizes(value: list[Any]) -> tuple[int, ...]:
    if not all(isinstance(size, int) and size > 0 for size in value):
        raise ValueError("sizes")
    return tuple(value)


# --- as text ----------------------------------------------------------------------------------


def written_step(step: Step) -> tuple[str, str]:
    """A step's name and value as rules have them."""
    match step:
        case Transpose(order):
            return "transpose", toml_value(list(order))
        case Split(axis, sizes):
            return "split", _with_sizes(axis, "sizes", sizes)
        case Concat(axis, sizes):
            return "concat", _with_sizes(axis, "sizes", sizes)
        case Unstack(axis):
            return "unstack", str(axis)
        case Pile(axis):
            return "stack", str(axis)
        case Divide(axis, into):
            return "divide", _with_sizes(axis, "into", into)
        case Merge(axis, of):
            return "merge", _with_sizes(axis, "of", of)
        case Reshape(to, of):
            whole = list(to) if of is None else {"of": list(of), "to": list(to)}
            return "reshape", toml_value(whole)
        case Permute(axis, order):
            return "permute", toml_value({"axis": axis, "order": list(order)})
        case Halves(axis, heads):
            return "halves", toml_value({"axis": axis, "heads": heads})
        case Times(by):
            return "times", repr(by)
        case DivideBy(by):
            return "over", repr(by)
        case Add(amount):
            return "plus", repr(amount)
        case Pairs(axis, heads):
            return "pairs", toml_value({"axis": axis, "heads": heads})


def step_line(step: Step) -> str:
    """A step as a rule has it: `transpose = [1, 0]`."""
    return " = ".join(written_step(step))


def _with_sizes(axis: int, field: str, sizes: Sequence[int] | None) -> str:
    if sizes is None:
        return str(axis)
    return f"{{ axis = {axis}, {field} = {toml_value(list(sizes))} }}"


def toml_value(value: Any) -> str:
    """A value as TOML; texts with quotes in them between single ones."""
    if isinstance(value, str):
        if "'" not in value and ('"' in value or "\\" in value):
            return f"'{value}'"
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{k} = {toml_value(v)}' for k, v in value.items())} }}"
    return str(value).lower() if isinstance(value, bool) else str(value)
