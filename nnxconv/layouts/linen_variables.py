"""Linen's variables as `module.init` gives them, without a `TrainState`.

```
params/<path>                               or params/params/<path>
batch_stats/<path>                          other collections, such as cache
```

Programs also save what stands under `params` alone, at the root: `Dense_0/kernel`. `nnx-pure` has
parameters there too. What tells them apart are names that Linen gives (`Dense_0`, within
`nn.compact`), and what only NNX models have: RNG state and batch statistics among the parameters,
modules keyed by digits. Where neither is there, both readings fit, and mean the same parameters.
"""

from dataclasses import replace

from nnxconv.layouts import linen_parts as parts
from nnxconv.layouts.form import Decoded, Encoded, Family, Form, Reading, Record
from nnxconv.layouts.parts import (
    has_weights,
    is_wrapped,
    nnx_marks,
    refuse_misfits,
    training_misfits,
)
from nnxconv.state import Spelling, TrainState, Tree, below, children, under
from nnxconv.tree import Key

name = "linen-variables"
family: Family = "linen"
spelling: Spelling = "suffix"

_OTHER_ROOTS = ("step", "opt_state", "model", "optimizer", "nnx_aux", "base")
_COLLECTIONS = ("batch_stats", "cache")


def recognise(tree: Tree) -> Reading:
    """Weights under `params` without training state; or bare parameters, if not marked as NNX's."""
    objections = [f"`{root}` at the root" for root in children(tree) if root in _OTHER_ROOTS]
    if _has_params(tree):
        level = "/params" if parts.has_level(tree) else ""
        evidence = [f"weights under `params{level}`, no step and no optimizer state"]
        return Reading(tuple(evidence), tuple(objections))
    if not has_weights(tree):
        objections.append("no weights under `params`")
    if is_wrapped(tree):
        objections.append("the weights are wrapped in `value`")
    objections += [f"`{root}` without `params`" for root in children(tree) if root in _COLLECTIONS]
    return Reading(("bare parameters at the root",), (*objections, *nnx_marks(tree)), is_bare=True)


def _has_params(tree: Tree) -> bool:
    return ("params",) not in tree and any(key[:1] == parts.PARAMS for key in tree)


def decode(tree: Tree, record: Record) -> Decoded:
    """The meaning of Linen variables."""
    del record
    has_root = _has_params(tree)
    found = parts.read_variables(tree if has_root else under(parts.PARAMS, tree), ("params",))
    form = replace(found.form, has_root=has_root, opt_state="absent")
    return Decoded(TrainState(found.params, aux=found.aux), form)


def default_form(state: TrainState) -> Form:
    """The weights directly under `params`."""
    del state
    return Form(has_level=False, opt_state="absent")


def misfits(state: TrainState, form: Form) -> list[Key]:
    """The optimizer, the step, and variables of collections that Linen programs do not keep."""
    if not form.has_root:
        return [*training_misfits(state), *(("aux", *key) for key in state.aux)]
    return [*training_misfits(state), *parts.foreign_collections(state, form)]


def encode(state: TrainState, form: Form) -> Encoded:
    """The state as Linen variables."""
    refuse_misfits(name, state, misfits(state, form))
    tree = parts.write_variables(state, form)
    return Encoded(tree if form.has_root else below(tree, parts.PARAMS), form)
