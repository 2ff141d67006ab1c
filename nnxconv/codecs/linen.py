"""The Linen layout: a `flax.training.train_state.TrainState`, or a Linen run of MaxText.

```
step                                        int32, or a Python scalar
params/params/<path>                        or params/<path>
opt_state/0/mu/params/<path>                with the same level as the weights
opt_state/1                                 None: an empty state
batch_stats/<path>                          other collections
```

Parameters only: `step` a scalar, `opt_state` an empty mapping.
"""

from nnxconv.codecs import linen_parts as parts
from nnxconv.codecs.form import Decoded, Encoded, Family, Form, Reading, Record
from nnxconv.codecs.parts import CACHE, is_wrapped, refuse_misfits
from nnxconv.keys import Key, in_order, spell
from nnxconv.layers import Spelling
from nnxconv.optimizer import (
    LEVEL,
    parameter_trees,
    split_empties,
    with_empties,
    with_level,
    without_level,
)
from nnxconv.state import BATCH_STATS, TrainState, Tree, below, children, under
from nnxconv.views import Leaf

name = "linen"
family: Family = "linen"
spelling: Spelling = "suffix"

_OWN_ROOTS = ("step", "params", "opt_state")
_OTHER_ROOTS = ("model", "optimizer", "nnx_aux", "base")


def recognise(tree: Tree) -> Reading:
    """Weights under `params`, and chains that are sequences."""
    evidence, objections = [], []
    if not parts.variables(tree) or ("params",) in tree:
        objections.append("no weights under `params`")
    else:
        evidence.append(f"weights under `params{'/params' if parts.has_level(tree) else ''}`")
        if is_wrapped(parts.variables(tree)):
            objections.append("the weights are wrapped in `value`")
    objections += [f"`{root}` at the root" for root in children(tree) if root in _OTHER_ROOTS]
    opt_state, spelled = parts.read_opt_state(tree)
    chains = parts.digit_chains(opt_state or {}, parts.weights(tree))
    objections += [f"`{spell(('opt_state', *key))}` is a mapping keyed by digits" for key in chains]
    if spelled == parts.PARAMS_ONLY:
        evidence.append("`opt_state` is empty: parameters only")
    elif spelled != "absent":
        evidence.append("`opt_state` at the root, its chains are sequences")
    return Reading(tuple(evidence), tuple(objections))


def decode(tree: Tree, record: Record) -> Decoded:
    """The meaning of a Linen tree."""
    del record
    leveled = parts.has_level(tree)
    params = parts.weights(tree)
    stored, spelled = parts.read_opt_state(tree)
    opt_state, empties = _canonical(stored, params)
    step, step_dtype, step_is_scalar = parts.read_step(tree)
    inner = [str(child) for child in children(tree, ("params",)) if leveled and child != LEVEL]
    outer = [str(root) for root in children(tree) if root not in _OWN_ROOTS]
    aux: dict[Key, Leaf] = {}
    for collection in inner:
        aux |= under((collection,), below(tree, ("params", collection)))
    for collection in outer:
        aux |= under((collection,), below(tree, (collection,)))
    form = Form(
        has_level=leveled,
        step_dtype=step_dtype,
        step_is_scalar=step_is_scalar,
        opt_state=spelled,
        empties=tuple(empties),
        collections=tuple(outer),
        inner_collections=tuple(inner),
    )
    return Decoded(TrainState(params, opt_state, step, aux), form)


def _canonical(
    stored: dict[Key, Leaf] | None, params: Tree
) -> tuple[dict[Key, Leaf] | None, list[Key]]:
    if stored is None:
        return None, []
    trees = parameter_trees(stored, params)
    return split_empties(without_level(stored, trees), trees)


def default_form(state: TrainState) -> Form:
    """`params/params`, an int32 step; the params-only form without an optimizer state."""
    return parts.linen_form(state)


def misfits(state: TrainState, form: Form) -> list[Key]:
    """Variables of collections that Linen programs do not keep, RNG state among them."""
    known = {BATCH_STATS, CACHE, *form.collections, *form.inner_collections}
    return [("aux", *key) for key in in_order(state.aux) if key[0] not in known]


def encode(state: TrainState, form: Form) -> Encoded:
    """The state as a Linen tree."""
    refuse_misfits(name, state, misfits(state, form))
    weights = under((LEVEL,), state.params) if form.has_level else state.params
    tree = under(("params",), weights)
    opt_state, gaps = state.opt_state, []
    if opt_state is not None:
        if form.has_level:
            opt_state = with_level(opt_state, parameter_trees(opt_state, state.params))
        opt_state, gaps = with_empties(opt_state, form.empties)
    written, assumed = parts.write_opt_state(opt_state, form, gaps)
    step, no_step = parts.write_step(state, form)
    for key, leaf in state.aux.items():
        is_inner = form.has_level and key[0] in form.inner_collections
        tree[("params", *key) if is_inner else key] = leaf
    return Encoded({**step, **tree, **written}, form, (*assumed, *no_step))
