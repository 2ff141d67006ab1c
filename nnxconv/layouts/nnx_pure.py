"""What `nnx.to_pure_dict` makes of a model and its optimizer; earlier NNX runs of MaxText.

```
model/<path>
optimizer/step                              uint32
optimizer/opt_state/0/mu/<path>             chains are mappings keyed by digits, no empty states
```

Parameters only: `<path>` at the root, as Linen programs also save it (see `linen_variables`).
"""

from nnxconv.layouts import nnx_parts as parts
from nnxconv.layouts.form import Decoded, Encoded, Family, Form, Reading, Record
from nnxconv.layouts.parts import (
    has_weights,
    is_linens,
    is_wrapped,
    nnx_marks,
    refuse_misfits,
)
from nnxconv.state import Spelling, TrainState, Tree, below
from nnxconv.tree import Key

name = "nnx-pure"
family: Family = "nnx"
spelling: Spelling = "index"


def recognise(tree: Tree) -> Reading:
    """Nothing wrapped in `value`; without `model`, at least one name that flax gives parameters."""
    evidence, objections = [], parts.root_objections(tree)
    where = "under `model`" if parts.has_root(tree) else "at the root"
    if is_wrapped(parts.model_of(tree)):
        objections.append("the weights are wrapped in `value`")
    elif parts.has_root(tree):
        evidence.append(f"bare weights {where}")
    elif has_weights(tree):
        evidence.append(f"bare parameters {where}")
        if is_linens(tree) and not nnx_marks(tree):
            objections.append("modules have the names that Linen gives")
    else:
        objections.append("no `model`, and no kernel, bias, scale or embedding at the root")
    optimizer = below(tree, ("optimizer",))
    if optimizer and is_wrapped(optimizer):
        objections.append("the optimizer is wrapped in `value`")
    if any(isinstance(part, int) for key in optimizer for part in key):
        objections.append("chains are sequences")
    return Reading(tuple(evidence), tuple(objections), is_bare=not parts.has_root(tree))


def decode(tree: Tree, record: Record) -> Decoded:
    """The meaning of a pure NNX tree."""
    return parts.decode_mapped(tree, record, is_wrapped=False)


def default_form(state: TrainState) -> Form:
    """The model under `model`, or at the root when there are only parameters."""
    return parts.nnx_form(state, params_only_root=False)


def misfits(state: TrainState, form: Form) -> list[Key]:
    """Variables without a path in the model, and the step of a params-only state."""
    del form
    return parts.misfits(state)


def encode(state: TrainState, form: Form) -> Encoded:
    """The state as a pure NNX tree."""
    refuse_misfits(name, state, misfits(state, form))
    return parts.encode_mapped(state, form, is_wrapped=False)
