"""The values that options may have, said once for the library and the command."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from nnxconv.errors import BadInput
from nnxconv.layouts import layouts

CHOICES: Mapping[str, tuple[str, ...]] = {
    "direction": ("auto", "linen_to_nnx", "nnx_to_linen"),
    "optimizer": ("adam_pax", "adamw"),
    "missing": ("error", "keep"),
    "precision": ("float32", "float64"),
    "compare_only": ("params", "all"),
    "dtype": ("bfloat16", "float16", "float32", "float64"),
    "transfer": ("copy", "link"),
}
"""What may be chosen, by option."""

AXES = (0, 1)
"""Where stacked arrays may have their layers."""

_SEVERAL = (
    *("without", "drop", "layer_group", "filter", "exclude"),
    *("missing", "unexpected", "mismatched"),
)


def layout_names(function: str, argument: str) -> tuple[str, ...]:
    """The layouts that an argument of a function may name."""
    further = ("hf",) if function == "convert" and argument == "to" else ()
    return (*layouts(), *further)


def layout_called(name: str, known: tuple[str, ...]) -> str | None:
    """The layout of that name, spelled with dashes or underscores; None where there is none."""
    same = [one for one in known if one.replace("-", "_") == name.replace("-", "_")]
    return same[0] if same else None


def checked(function: Callable[..., object]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Checks the arguments of a function: a lone text is a list of one, layouts are as listed.

    What it returns raises BadInput for a value that the option of that name cannot have.
    """
    defaults = {n: p.default for n, p in inspect.signature(function).parameters.items()}

    def check(given: dict[str, Any]) -> dict[str, Any]:
        return {
            name: _checked(function.__name__, name, value, defaults.get(name))
            for name, value in given.items()
        }

    return check


def _checked(function: str, name: str, value: Any, default: Any) -> Any:
    if value is None:
        return value
    if name in ("to", "from_"):
        known = layout_names(function, name)
        found = layout_called(value, known) if isinstance(value, str) else None
        return found or _refuse(name, value, known)
    if name == "layer_axis" and (isinstance(value, bool) or value not in AXES):
        _refuse(name, value, AXES)
    if name in CHOICES and (isinstance(default, str) or name == "dtype"):
        return value if value in CHOICES[name] else _refuse(name, value, CHOICES[name])
    return (value,) if name in _SEVERAL and isinstance(value, str) else value


def _refuse(name: str, value: object, known: tuple[object, ...]) -> None:
    raise BadInput(
        f"`--{name.rstrip('_')} {value}` is none of the values that there are",
        hint=f"it is one of {', '.join(map(str, known))}",
    )
