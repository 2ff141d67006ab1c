"""The NNX layout of Linen-to-NNX converters: weights wrapped in `value`, the optimizer bare.

```
model/<path>/value
optimizer/step                              uint32
optimizer/opt_state/0/mu/<path>             chains are sequences with None for empty states
```

Parameters only: `<path>/value` at the root, which is also what `nnx.state(model)` saves.
"""

from dataclasses import replace

from nnxconv.layouts import nnx_parts as parts
from nnxconv.layouts.form import Decoded, Encoded, Family, Form, Reading, Record
from nnxconv.layouts.parts import arrays, is_wrapped, refuse_misfits, unwrapped, wrapped
from nnxconv.state import (
    Spelling,
    TrainState,
    Tree,
    below,
    parameter_trees,
    sequences_from_digits,
    split_empties,
    with_empties,
)
from nnxconv.tree import Key

name = "nnx"
family: Family = "nnx"
spelling: Spelling = "index"


def recognise(tree: Tree) -> Reading:
    """Every weight wrapped in `value`, and an optimizer that is not, or none and no `model`."""
    evidence, objections = [], parts.root_objections(tree)
    where = "under `model`" if parts.has_root(tree) else "at the root"
    optimizer = below(tree, ("optimizer",))
    if is_wrapped(parts.model_of(tree)):
        evidence.append(f"weights wrapped in `value` {where}")
    else:
        objections.append(f"weights {where} are not wrapped in `value`")
    if not parts.has_root(tree):
        return Reading(tuple(evidence), tuple(objections), is_bare=True)
    if not optimizer:
        objections.append("`model` without `optimizer`")
    elif is_wrapped(optimizer):
        objections.append("the optimizer is wrapped in `value`")
    else:
        evidence.append("the optimizer is bare")
    stored = below(tree, parts.OPT_STATE)
    trees = parameter_trees(stored, unwrapped(parts.model_of(tree)))
    if list(sequences_from_digits(stored, trees)) != list(stored):
        objections.append("chains are mappings keyed by digits")
    if not arrays(tree):
        objections.append("no arrays")
    return Reading(tuple(evidence), tuple(objections))


def decode(tree: Tree, record: Record) -> Decoded:
    """The meaning of an NNX tree."""
    model = unwrapped(parts.model_of(tree, record))
    step = tree.get(parts.STEP) if parts.has_root(tree, record) else None
    form = parts.read_form(tree, step, record)
    opt_state = parts.read_opt_state(tree, record)
    if opt_state is not None:
        opt_state, empties = split_empties(opt_state, parameter_trees(opt_state, model))
        form = replace(form, empties=tuple(empties))
    return parts.canonical(model, opt_state, step, form, record)


def default_form(state: TrainState) -> Form:
    """The model under `model`, or at the root when there are only parameters."""
    return parts.nnx_form(state, params_only_root=False)


def misfits(state: TrainState, form: Form) -> list[Key]:
    """Variables without a path in the model, and the step of a params-only state."""
    del form
    return parts.misfits(state)


def encode(state: TrainState, form: Form) -> Encoded:
    """The state as an NNX tree."""
    refuse_misfits(name, state, misfits(state, form))
    opt_state, gaps = state.opt_state, []
    if opt_state is not None:
        opt_state, gaps = with_empties(opt_state, form.empties)
    optimizer = {**parts.opt_state_tree(opt_state, form), **parts.step_tree(state, form)}
    return parts.assemble(wrapped(parts.model_tree(state)), optimizer, form, gaps)
