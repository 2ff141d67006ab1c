"""What `nnx.state(...)` of a model and its optimizer saves (flax 0.11 and later).

```
model/<path>/value
optimizer/step/value                        uint32
optimizer/opt_state/0/mu/<path>/value       chains are mappings keyed by digits, no empty states
```

Parameters only: `model/<path>/value` without an optimizer.
"""

from nnxconv.layouts import nnx_parts as parts
from nnxconv.layouts.form import Decoded, Encoded, Family, Form, Reading, Record
from nnxconv.layouts.parts import is_wrapped, refuse_misfits
from nnxconv.state import Spelling, TrainState, Tree, below
from nnxconv.tree import Key

name = "nnx-state"
family: Family = "nnx"
spelling: Spelling = "index"


def recognise(tree: Tree) -> Reading:
    """Everything wrapped in `value`, under `model`."""
    evidence, objections = [], parts.root_objections(tree)
    if not parts.has_root(tree):
        objections.append("no `model` at the root")
    elif is_wrapped(parts.model_of(tree)):
        evidence.append("weights wrapped in `value` under `model`")
    else:
        objections.append("the weights are not wrapped in `value`")
    optimizer = below(tree, ("optimizer",))
    if optimizer and is_wrapped(optimizer):
        evidence.append("the optimizer is wrapped in `value`")
    elif optimizer:
        objections.append("the optimizer is not wrapped in `value`")
    return Reading(tuple(evidence), tuple(objections))


def decode(tree: Tree, record: Record) -> Decoded:
    """The meaning of an `nnx.state` tree."""
    return parts.decode_mapped(tree, record, is_wrapped=True)


def default_form(state: TrainState) -> Form:
    """The model under `model`."""
    return parts.nnx_form(state, params_only_root=True)


def misfits(state: TrainState, form: Form) -> list[Key]:
    """Variables without a path in the model, and the step of a params-only state."""
    del form
    return parts.misfits(state)


def encode(state: TrainState, form: Form) -> Encoded:
    """The state as an `nnx.state` tree."""
    refuse_misfits(name, state, misfits(state, form))
    return parts.encode_mapped(state, form, is_wrapped=True)
