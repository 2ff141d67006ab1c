"""A step of Tunix: two items, here one tree whose roots are their names.

```
model_params/<path>/value                   nnx.state(model)
optimizer_state/opt_state/0/mu/<path>/value nnx.state(optimizer, nnx.optimizer.OptState)
optimizer_state/step/value                  uint32
```

`tunix/sft/checkpoint_manager.py` (google-tunix 0.1.7) saves these two items of a step, the second
where it is given an optimizer; saved by it with flax 0.12.8, they are nnx-state under other roots.
Chains are mappings keyed by digits, without empty states. A MaxText model stands in an adapter, as
in `nnx_rl`: every path then starts with `base`, those of the moments too.

Parameters only: the item `model_params` alone.
"""

from dataclasses import replace

from nnxconv.layouts import nnx_parts as parts
from nnxconv.layouts.form import Decoded, Encoded, Family, Form, Reading, Record
from nnxconv.layouts.names import TUNIX_ITEMS
from nnxconv.layouts.parts import ADAPTER, is_wrapped, refuse_misfits, unwrapped, within
from nnxconv.state import Spelling, TrainState, Tree, below, children, drop_level, parameter_trees
from nnxconv.tree import Key, Leaf

name = "tunix"
family: Family = "nnx"
spelling: Spelling = "index"

_MODEL, _OPTIMIZER = ((item,) for item in TUNIX_ITEMS)
_ROOTS: dict[Key, Key] = {_MODEL: parts.MODEL, _OPTIMIZER: ("optimizer",)}
_BACK = {new: old for old, new in _ROOTS.items()}


def recognise(tree: Tree) -> Reading:
    """The two items, everything in them wrapped in `value`."""
    evidence, objections = [], []
    if not below(tree, _MODEL):
        objections.append("no item `model_params`")
    elif is_wrapped(tree):
        evidence.append("items of Tunix, everything wrapped in `value`")
    else:
        objections.append("not everything is wrapped in `value`")
    if _is_within(below(tree, _MODEL)):
        evidence.append("the model stands under `base`")
    inner = children(tree, _OPTIMIZER)
    objections += [f"`{root}` at the root" for root in children(tree) if root not in TUNIX_ITEMS]
    objections += [
        f"`optimizer_state/{child}`" for child in inner if child not in ("opt_state", "step")
    ]
    return Reading(tuple(evidence), tuple(objections))


def decode(tree: Tree, record: Record) -> Decoded:
    """The meaning of the two items."""
    moved = parts.moved_roots(tree, _ROOTS)
    wrapper = ADAPTER if _is_within(below(tree, _MODEL)) else ""
    if wrapper:
        moved = _without_wrapper(moved)
    decoded = parts.decode_mapped(moved, record, is_wrapped=True)
    return replace(decoded, form=replace(decoded.form, has_root=True, wrapper=wrapper))


def _is_within(model: Tree) -> bool:
    """True for a model that is the attribute `base` of another module."""
    return children(model) == [ADAPTER] and all(len(key) > 2 for key in model)


def _without_wrapper(tree: Tree) -> dict[Key, Leaf]:
    """The tree with the model and its moments taken out of the module that wraps them."""
    prefixes = {parts.MODEL}
    opt_state, model = below(tree, parts.OPT_STATE), below(tree, parts.MODEL)
    trees = parameter_trees(unwrapped(opt_state), unwrapped(model))
    prefixes |= {(*parts.OPT_STATE, *prefix) for prefix in trees}
    return {drop_level(key, prefixes): leaf for key, leaf in tree.items()}


def default_form(state: TrainState) -> Form:
    """Without a module around the model."""
    return parts.nnx_form(state, params_only_root=True)


def misfits(state: TrainState, form: Form) -> list[Key]:
    """Variables without a path in the model, and the step of a params-only state."""
    del form
    return parts.misfits(state)


def encode(state: TrainState, form: Form) -> Encoded:
    """The state as the two items."""
    refuse_misfits(name, state, misfits(state, form))
    placed = within(state, form.wrapper) if form.wrapper else state
    encoded = parts.encode_mapped(placed, replace(form, has_root=True), is_wrapped=True)
    return Encoded(parts.moved_roots(encoded.tree, _BACK), form, encoded.assumed)
