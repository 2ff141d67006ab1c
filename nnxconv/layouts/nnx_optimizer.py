"""What flax 0.10 and before saved of an `nnx.Optimizer`, which held the model.

```
model/<path>/value
opt_state/0/mu/<path>/value                 chains are mappings keyed by digits, no empty states
step/value                                  uint32
```

`nnx.Optimizer.__init__` of flax 0.10 sets `step` (an `OptState` of uint32), `model`, and
`opt_state` with every array in a variable (`flax/nnx/training/optimizer.py`). This is the tree of
`nnx.state(optimizer)`, saved by flax 0.10.4 with orbax-checkpoint 0.11.5, and by 0.10.7 with
0.11.20; `nnx.state(optimizer).to_pure_dict()` gave the same without `value`. Empty states are
absent, and an optimizer that keeps nothing leaves `step` alone beside the model.

Parameters only: `nnx.state(optimizer, nnx.Param)`, which is `model/<path>/value`, as in nnx-state.
"""

from dataclasses import replace

from nnxconv.layouts import nnx_parts as parts
from nnxconv.layouts.form import Decoded, Encoded, Family, Form, Reading, Record
from nnxconv.layouts.parts import WRAPPER, arrays, is_wrapped, refuse_misfits
from nnxconv.state import Spelling, TrainState, Tree, below, children
from nnxconv.tree import Key

name = "nnx-optimizer"
family: Family = "nnx"
spelling: Spelling = "index"

_ROOTS: dict[Key, Key] = {("opt_state",): parts.OPT_STATE, ("step",): parts.STEP}
_BACK = {new: old for old, new in _ROOTS.items()}


def recognise(tree: Tree) -> Reading:
    """`model` beside `opt_state` or `step`, everything wrapped in `value` or nothing."""
    evidence, objections = [], []
    roots = children(tree)
    others = [root for root in ("opt_state", "step") if root in roots]
    if parts.has_root(tree) and others:
        evidence.append(f"`model` beside {' and '.join(f'`{root}`' for root in others)}")
    elif parts.has_root(tree):
        objections.append("no `opt_state` and no `step` beside `model`")
    else:
        objections.append("no `model` at the root")
    if is_wrapped(tree):
        evidence.append("everything wrapped in `value`")
    elif ("step", WRAPPER) in tree or is_wrapped(below(tree, parts.MODEL)):
        objections.append("some leaves are wrapped in `value`, and some are not")
    if any(isinstance(part, int) for key in tree for part in key):
        objections.append("chains are sequences")
    allowed = ("model", "opt_state", "step")
    objections += [f"`{root}` at the root" for root in roots if root not in allowed]
    return Reading(tuple(evidence), tuple(objections))


def decode(tree: Tree, record: Record) -> Decoded:
    """The meaning of the tree of an optimizer that holds the model."""
    moved = parts.moved_roots(tree, _ROOTS)
    has_values = _has_values(tree)
    decoded = parts.decode_mapped(moved, record, is_wrapped=has_values)
    return replace(decoded, form=replace(decoded.form, has_root=True, is_wrapped=has_values))


def _has_values(tree: Tree) -> bool:
    """True when every leaf is wrapped; a tree without arrays is taken to be."""
    return is_wrapped(tree) or not arrays(tree)


def default_form(state: TrainState) -> Form:
    """Everything wrapped in `value`, a uint32 step."""
    return parts.nnx_form(state, params_only_root=True)


def misfits(state: TrainState, form: Form) -> list[Key]:
    """Variables without a path in the model, and the step of a params-only state."""
    del form
    return parts.misfits(state)


def encode(state: TrainState, form: Form) -> Encoded:
    """The state as `nnx.state(optimizer)` had it."""
    refuse_misfits(name, state, misfits(state, form))
    rooted = replace(form, has_root=True)
    encoded = parts.encode_mapped(state, rooted, is_wrapped=form.is_wrapped)
    return replace(encoded, tree=parts.moved_roots(encoded.tree, _BACK))
