"""What the NNX layouts have in common; they differ in roots, and in what is wrapped in `value`.

```
            model/<path>[/value]    optimizer/opt_state    optimizer/step
nnx         wrapped                 bare, as Linen's       bare
nnx-state   wrapped                 wrapped, mappings      wrapped
nnx-pure    bare                    bare, mappings         bare
```

`nnx-optimizer` and `tunix` are nnx-state under other roots.

Parameters only: `<path>/value` (nnx), `model/<path>/value` (nnx-state), `<path>` (nnx-pure).
"""

from collections.abc import Mapping, Sequence

from nnxconv.errors import CannotHold
from nnxconv.layouts.form import Decoded, Encoded, Form, Record
from nnxconv.layouts.names import TUNIX_ITEMS
from nnxconv.layouts.parts import (
    WRAPPER,
    gaps_assumed,
    model_misfits,
    split_variables,
    step_form,
    step_leaf,
    unwrapped,
    wrapped,
)
from nnxconv.state import (
    TrainState,
    Tree,
    below,
    children,
    digits_from_sequences,
    parameter_trees,
    sequences_from_digits,
    spelled_as_parameters,
    under,
)
from nnxconv.tree import EMPTY_KINDS, Key, Leaf, Literal

MODEL: Key = ("model",)
OPT_STATE: Key = ("optimizer", "opt_state")
STEP: Key = ("optimizer", "step")
_OTHER_ROOTS = (
    *("params", "opt_state", "step", "nnx_aux", "base", "batch_stats", "cache"),
    *TUNIX_ITEMS,
)


def has_root(tree: Tree, record: Record | None = None) -> bool:
    """True when the weights stand under `model`; a record of how they were written decides."""
    if record is not None and record.layout is not None and not record.has_root:
        return False
    return "model" in children(tree) and MODEL not in tree


def model_of(tree: Tree, record: Record | None = None) -> dict[Key, Leaf]:
    """The model's variables by path, still wrapped if they are."""
    return below(tree, MODEL) if has_root(tree, record) else dict(tree)


def root_objections(tree: Tree) -> list[str]:
    """Names at the root, or under `optimizer`, that no NNX layout has there."""
    roots = children(tree)
    allowed = ("model", "optimizer") if has_root(tree) else None
    found = [
        f"`{root}` at the root"
        for root in roots
        if (root not in allowed if allowed else root in (*_OTHER_ROOTS, "optimizer"))
    ]
    inner = children(tree, ("optimizer",))
    return found + [f"`optimizer/{name}`" for name in inner if name not in ("opt_state", "step")]


def canonical(
    model: Tree, opt_state: Tree | None, step: Leaf | None, form: Form, record: Record
) -> Decoded:
    """The state made of unwrapped parts."""
    params, aux, notes = split_variables(model, opt_state or {}, record)
    view = None if isinstance(step, Literal) else step
    return Decoded(TrainState(params, opt_state, view, aux), form, notes)


def read_form(tree: Tree, step: Leaf | None, record: Record) -> Form:
    """What an NNX tree leaves open: where the model stands, the step's type, an empty optimizer."""
    whole = tree.get(OPT_STATE)
    has_state = bool(below(tree, OPT_STATE))
    spelled = whole.kind if isinstance(whole, Literal) else ("tree" if has_state else "absent")
    dtype, is_scalar = step_form(step)
    is_number = is_scalar and not isinstance(step, Literal)
    return Form(
        has_root=has_root(tree, record),
        step_dtype=dtype,
        step_is_scalar=is_number,
        opt_state=spelled,
    )


def read_opt_state(tree: Tree, record: Record) -> dict[Key, Leaf] | None:
    """The optimizer state as stored; empty when there is an optimizer without any; else None."""
    if "optimizer" not in children(tree) or not has_root(tree, record):
        return None
    return {key: leaf for key, leaf in below(tree, OPT_STATE).items() if key}


def nnx_form(state: TrainState, *, params_only_root: bool) -> Form:
    """The model under `model`, a uint32 step."""
    if state.opt_state is None:
        return Form(has_root=params_only_root, opt_state="absent")
    return Form(step_dtype="uint32")


def misfits(state: TrainState) -> list[Key]:
    """Variables without a path in the model, and a step without an optimizer to count it."""
    step: list[Key] = [("step",)] if state.step is not None and state.opt_state is None else []
    return [*model_misfits(state), *step]


def model_tree(state: TrainState) -> dict[Key, Leaf]:
    """Parameters and other variables side by side, by path."""
    return {**state.params, **{key[1:]: leaf for key, leaf in state.aux.items()}}


def step_tree(state: TrainState, form: Form) -> dict[Key, Leaf]:
    """The step under `optimizer`."""
    leaf = step_leaf(state.step, form, "uint32")
    return {} if leaf is None else {STEP: leaf}


def opt_state_tree(opt_state: Tree | None, form: Form) -> dict[Key, Leaf]:
    """The optimizer state under `optimizer`; nothing at all for an optimizer that keeps nothing."""
    if opt_state is None:
        return {}
    if not opt_state:
        empty: dict[Key, Leaf] = {OPT_STATE: Literal(form.opt_state)}
        return empty if form.opt_state in EMPTY_KINDS else {}
    return under(OPT_STATE, opt_state)


def assemble(model: Tree, optimizer: Tree, form: Form, gaps: Sequence[Key] = ()) -> Encoded:
    """The whole tree: the model under its root, the optimizer beside it."""
    if optimizer and not form.has_root:
        raise CannotHold("a tree without `model` has no place for an optimizer")
    rooted = under(MODEL, model) if form.has_root else dict(model)
    return Encoded({**rooted, **optimizer}, form, tuple(gaps_assumed(gaps)))


def numbered_chains(opt_state: Tree | None, model: Tree) -> dict[Key, Leaf] | None:
    """The optimizer state with ints for the digits that key its chains."""
    if opt_state is None:
        return None
    opt_state = spelled_as_parameters(opt_state, model)
    return sequences_from_digits(opt_state, parameter_trees(opt_state, model))


def mapped_chains(state: TrainState) -> dict[Key, Leaf] | None:
    """The inverse: the optimizer state with mappings keyed by digits; it has no sequences."""
    if state.opt_state is None:
        return None
    return digits_from_sequences(state.opt_state)


def decode_mapped(tree: Tree, record: Record, *, is_wrapped: bool) -> Decoded:
    """The meaning of a tree whose chains are mappings, every leaf of it wrapped or none."""
    bare = unwrapped if is_wrapped else dict
    model = bare(model_of(tree, record))
    step = None
    if has_root(tree, record):
        step = tree.get((*STEP, WRAPPER) if is_wrapped else STEP)
    opt_state = read_opt_state(tree, record)
    if opt_state is not None:
        opt_state = numbered_chains(bare(opt_state), model)
    return canonical(model, opt_state, step, read_form(tree, step, record), record)


def encode_mapped(state: TrainState, form: Form, *, is_wrapped: bool) -> Encoded:
    """The inverse: the state under `model` and `optimizer`."""
    dress = wrapped if is_wrapped else dict
    optimizer = {**opt_state_tree(mapped_chains(state), form), **step_tree(state, form)}
    return assemble(dress(model_tree(state)), dress(optimizer), form)


def moved_roots(tree: Tree, roots: Mapping[Key, Key]) -> dict[Key, Leaf]:
    """The tree with the parts under some prefixes moved under others.

    >>> moved_roots({("step",): 1, ("w",): 2}, {("step",): ("optimizer", "step")})
    {('optimizer', 'step'): 1, ('w',): 2}
    """
    return {_moved(key, roots): leaf for key, leaf in tree.items()}


def _moved(key: Key, roots: Mapping[Key, Key]) -> Key:
    for old, new in roots.items():
        if key[: len(old)] == old:
            return (*new, *key[len(old) :])
    return key
