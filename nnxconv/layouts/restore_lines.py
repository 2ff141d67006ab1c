"""How the program of a layout restores a checkpoint: one line of its own code, or one option."""

import json

from nnxconv.layouts.joining import Part, Whole
from nnxconv.layouts.located import Survey
from nnxconv.tree import Key, spell

_LIKE_STORED = {
    "linen": "train_state",
    "linen-variables": "variables",
    "nnx-optimizer": "nnx.state(optimizer)",
}
"""What Orbax restores a whole tree of a layout into, by the names that programs use."""


def restoring(survey: Survey, path: str) -> str:
    """One line that loads a checkpoint into the program whose layout it has.

    Args:
      survey: its tree with its meaning; of several states the first is loaded.
      path: its item.
    """
    if not survey.states:
        return ""
    first = survey.states[0]
    return _line(
        path,
        first.understood.codec.name,
        has_optimizer=first.understood.state.opt_state is not None,
        roots={key[0] for key in survey.tree} if survey.is_plain else set(),
        at=first.at,
    )


def restoring_converted(whole: Whole, path: str) -> str:
    """One line that loads what a conversion wrote, as `restoring` does."""
    if not whole.states:
        return ""
    first = whole.states[0]
    is_plain = len(whole.parts) == 1 and not whole.kept and first.placement.is_plain
    return _line(
        path,
        first.conversion.layout,
        has_optimizer=first.conversion.arranged.opt_state is not None,
        roots={key[0] for key in whole.tree} if is_plain and _is_told(first) else set(),
        at=() if first.placement.is_plain else first.located.at,
    )


def _is_told(part: Part) -> bool:
    """False where nothing tells how a program has it, so that only `nnxconv` loads it anyway.

    A Linen program has `params/params`, or one level; what may be read as several layouts has
    layers as attributes, `layers_0`, or in a list, `layers/0`.
    """
    source = part.conversion.source
    if part.conversion.layout == "linen":
        return "linen" in (source.codec.name, *source.record.forms)
    return not source.others


def _line(path: str, layout: str, *, has_optimizer: bool, roots: set[str | int], at: Key) -> str:
    """The line; `roots` are those of the tree where the state is all of it."""
    place = json.dumps(path, ensure_ascii=False)
    below = f", at={json.dumps(spell(at), ensure_ascii=False)}" if at else ""
    if layout == "safetensors":
        is_file = path.endswith(".safetensors")
        return f"{'safetensors.numpy.load_file' if is_file else 'nnxconv.open'}({place})"
    if layout == "maxtext":
        return f"MaxText: load_{'full_state' if has_optimizer else 'parameters'}_path={path}"
    if layout == "tunix":
        return f"Tunix: checkpoint_root_directory={path.rpartition('/')[0]}"
    if roots and layout in _LIKE_STORED and (has_optimizer or layout != "linen"):
        return f"ocp.StandardCheckpointer().restore({place}, {_LIKE_STORED[layout]})"
    if roots and layout == "nnx-state":
        return f"ocp.StandardCheckpointer().restore({place}, {_states_of(roots)})"
    if layout == "nnx-pure" and roots and roots <= {"model", "optimizer"}:
        restored = f"ocp.StandardCheckpointer().restore({place})"
        return f'nnx.replace_by_pure_dict(state, {restored}["model"])'
    if layout in ("linen", "linen-variables"):
        like = "train_state" if has_optimizer else "variables"
        return f"nnxconv.load({place}, like={like}{below})"
    optimizer = ", optimizer=optimizer" if has_optimizer else ""
    return f"nnxconv.load_into(model, {place}{optimizer}{below})"


def _states_of(roots: set[str | int]) -> str:
    """`{"model": nnx.state(model), ...}` where these are the roots, or the state of the model."""
    if not roots <= {"model", "optimizer"}:
        return "nnx.state(model)"
    return "{" + ", ".join(f'"{name}": nnx.state({name})' for name in sorted(map(str, roots))) + "}"
