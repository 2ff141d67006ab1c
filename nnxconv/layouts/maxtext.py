"""The layout of MaxText's `pure_nnx` runs (since May 2026): Linen's, plus `nnx_aux`.

```
step                                        int32
params/params/<path>
opt_state/0/mu/params/<path>                a chain at the top: as in Linen
opt_state/inner_states/adam/inner_state/    nested chains: mappings keyed by digits, without
        "0"/mu/<path>                       empty states, and moments without the params level
nnx_aux/model/<path>                        RNG state and other variables
```
"""

from nnxconv.layouts import linen_parts as parts
from nnxconv.layouts.form import Decoded, Encoded, Family, Form, Reading, Record
from nnxconv.layouts.parts import aux_by_name, model_misfits, refuse_misfits
from nnxconv.state import (
    LEVEL,
    Spelling,
    TrainState,
    Tree,
    below,
    children,
    digits_from_sequences,
    parameter_trees,
    sequences_from_digits,
    split_empties,
    under,
    with_empties,
    with_level,
    without_level,
)
from nnxconv.tree import NOTHING, Key, Leaf

name = "maxtext"
family: Family = "nnx"
spelling: Spelling = "suffix"

AUX: Key = ("nnx_aux", "model")
_ROOTS = ("step", "params", "opt_state", "nnx_aux")


def recognise(tree: Tree) -> Reading:
    """`params/params`, with `nnx_aux` or nested chains that are mappings."""
    evidence, objections = [], []
    opt_state, _ = parts.read_opt_state(tree)
    chains = parts.digit_chains(opt_state or {}, parts.weights(tree))
    if below(tree, AUX):
        evidence.append("variables under `nnx_aux/model`")
    if chains:
        evidence.append("nested chains are mappings keyed by digits")
    if not evidence:
        objections.append("no `nnx_aux` at the root")
    if not parts.variables(tree) or not parts.has_level(tree):
        objections.append("no weights under `params/params`")
    if () in chains:
        objections.append("`opt_state` is a mapping keyed by digits")
    objections += [f"`{root}` at the root" for root in children(tree) if root not in _ROOTS]
    objections += [
        f"`nnx_aux/{child}`" for child in children(tree, ("nnx_aux",)) if child != "model"
    ]
    return Reading(tuple(evidence), tuple(objections))


def decode(tree: Tree, record: Record) -> Decoded:
    """The meaning of a MaxText tree."""
    params = parts.weights(tree)
    stored, spelled = parts.read_opt_state(tree)
    opt_state, empties = _canonical(stored, params)
    step, step_dtype, step_is_scalar = parts.read_step(tree)
    form = Form(
        step_dtype=step_dtype,
        step_is_scalar=step_is_scalar,
        opt_state=spelled,
        empties=tuple(empties),
    )
    aux = aux_by_name(below(tree, AUX), record)
    return Decoded(TrainState(params, opt_state, step, aux), form)


def _canonical(
    stored: dict[Key, Leaf] | None, params: Tree
) -> tuple[dict[Key, Leaf] | None, list[tuple[Key, str]]]:
    if stored is None:
        return None, []
    trees = parameter_trees(stored, params)
    numbered = sequences_from_digits(without_level(stored, trees), trees)
    return split_empties(numbered, parameter_trees(numbered, params))


def default_form(state: TrainState) -> Form:
    """`params/params`, an int32 step; the params-only form without an optimizer state."""
    return parts.linen_form(state)


def misfits(state: TrainState, form: Form) -> list[Key]:
    """Variables that have no path of their own in the model."""
    del form
    return model_misfits(state)


def encode(state: TrainState, form: Form) -> Encoded:
    """The state as a MaxText tree."""
    refuse_misfits(name, state, misfits(state, form))
    opt_state, gaps = _stored(state, form)
    written, assumed = parts.write_opt_state(opt_state, form, gaps)
    step, no_step = parts.write_step(state, form)
    tree = under(("params", LEVEL), state.params)
    aux = under(AUX, {key[1:]: leaf for key, leaf in state.aux.items()})
    return Encoded({**step, **tree, **written, **aux}, form, (*assumed, *no_step))


def _stored(state: TrainState, form: Form) -> tuple[dict[Key, Leaf] | None, list[Key]]:
    """The optimizer state as MaxText spells it, and the gaps filled in its top chain."""
    if state.opt_state is None:
        return None, []
    trees = parameter_trees(state.opt_state, state.params)
    at_top = [prefix for prefix in trees if _is_top(prefix[:-1])]
    stored = digits_from_sequences(with_level(state.opt_state, at_top), trees, keep_top=True)
    chain: dict[Key, Leaf] = {key[:1]: NOTHING for key in stored if isinstance(key[0], int)}
    at_the_top = [(key, kind) for key, kind in form.empties if len(key) == 1 and _is_top(key)]
    filled, gaps = with_empties(chain, at_the_top)
    return stored | {key: filled[key] for key in filled.keys() - chain.keys()}, gaps


def _is_top(key: Key) -> bool:
    """True for a chain at the top of `opt_state`, and for its elements."""
    return not key or (len(key) == 1 and isinstance(key[0], int))
