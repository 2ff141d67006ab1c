"""The Linen layout: a `flax.training.train_state.TrainState`, or a Linen run of MaxText.

```
step                                        int32, or a Python scalar
params/params/<path>                        or params/<path>
opt_state/0/mu/params/<path>                with the same level as the weights
opt_state/1                                 None: an empty state
batch_stats/<path>                          other collections
```

Variables without a step and an optimizer are those of `linen_variables`.

Parameters only: `step` a scalar, `opt_state` an empty mapping.
"""

from dataclasses import replace

from nnxconv.layouts import linen_parts as parts
from nnxconv.layouts.form import Decoded, Encoded, Family, Form, Reading, Record
from nnxconv.layouts.parts import refuse_misfits
from nnxconv.state import (
    LEVEL,
    Spelling,
    TrainState,
    Tree,
    below,
    children,
    parameter_trees,
    split_empties,
    under,
    with_empties,
    without_level,
)
from nnxconv.tree import Key, Leaf, spell

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
    objections += [f"`{root}` at the root" for root in children(tree) if root in _OTHER_ROOTS]
    if not any(root in children(tree) for root in ("step", "opt_state")):
        objections.append("no `step` and no `opt_state` at the root")
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
    found = parts.read_variables(tree, _OWN_ROOTS)
    stored, spelled = parts.read_opt_state(tree)
    opt_state, empties = _canonical(stored, parts.weights(tree), found.form.boxed)
    step, step_dtype, step_is_scalar = parts.read_step(tree)
    form = replace(
        found.form,
        step_dtype=step_dtype,
        step_is_scalar=step_is_scalar,
        opt_state=spelled,
        empties=tuple(empties),
    )
    return Decoded(TrainState(found.params, opt_state, step, found.aux), form)


def _canonical(
    stored: dict[Key, Leaf] | None, params: Tree, boxed: tuple[str, ...]
) -> tuple[dict[Key, Leaf] | None, list[tuple[Key, str]]]:
    if stored is None:
        return None, []
    trees = parameter_trees(stored, params)
    opt_state, empties = split_empties(without_level(stored, trees), trees)
    for prefix in trees if boxed else ():
        moments = below(opt_state, prefix)
        opt_state = {key: leaf for key, leaf in opt_state.items() if key[: len(prefix)] != prefix}
        opt_state |= under(prefix, parts.unboxed(moments, boxed))
    return opt_state, empties


def default_form(state: TrainState) -> Form:
    """`params/params`, an int32 step; the params-only form without an optimizer state."""
    return parts.linen_form(state)


def misfits(state: TrainState, form: Form) -> list[Key]:
    """Variables of collections that Linen programs do not keep, RNG state among them."""
    return parts.foreign_collections(state, form)


def encode(state: TrainState, form: Form) -> Encoded:
    """The state as a Linen tree."""
    refuse_misfits(name, state, misfits(state, form))
    opt_state, gaps = _stored(state, form)
    written, assumed = parts.write_opt_state(opt_state, form, gaps)
    step, no_step = parts.write_step(state, form)
    tree = parts.write_variables(state, form)
    return Encoded({**step, **tree, **written}, form, (*assumed, *no_step))


def _stored(state: TrainState, form: Form) -> tuple[dict[Key, Leaf] | None, list[Key]]:
    """The optimizer state as the form spells it, and the gaps filled in its chains."""
    if state.opt_state is None:
        return None, []
    trees = parameter_trees(state.opt_state, state.params)
    opt_state = dict(state.opt_state)
    for prefix in trees:
        for path, leaf in below(state.opt_state, prefix).items():
            del opt_state[(*prefix, *path)]
            boxed = parts.boxed({path: leaf}, form.boxed)
            opt_state |= under((*prefix, LEVEL) if form.has_level else prefix, boxed)
    return with_empties(opt_state, form.empties)
