"""What the layouts of Linen programs, linen, linen-variables and maxtext, have in common."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nnxconv.errors import UnknownLayout
from nnxconv.layouts.form import Form
from nnxconv.layouts.parts import (
    CACHE,
    gaps_assumed,
    has_weights,
    is_wrapped,
    step_form,
    step_leaf,
    unwrapped,
    wrapped,
)
from nnxconv.layouts.vocabulary import COLLECTIONS
from nnxconv.state import (
    BATCH_STATS,
    LEVEL,
    TrainState,
    Tree,
    adapters_in,
    below,
    children,
    parameter_trees,
    sequences_from_digits,
    under,
)
from nnxconv.tree import Key, Leaf, Literal, View, in_order

STEP: Key = ("step",)
PARAMS: Key = ("params",)
OPT_STATE: Key = ("opt_state",)
PARAMS_ONLY = "Dict"
"""How MaxText spells the optimizer state of a checkpoint that holds parameters only."""


def variables(tree: Tree) -> dict[Key, Leaf]:
    """What stands under `params`."""
    return below(tree, PARAMS)


def has_level(tree: Tree) -> bool:
    """True when the weights stand under `params/params`, which is no module beside others."""
    is_there = any(len(key) > 2 and key[:2] == (*PARAMS, LEVEL) for key in tree)
    return is_there and not _has_modules_beside(tree)


def _has_modules_beside(tree: Tree) -> bool:
    """True when what stands beside `params/params` are modules of the same model.

    The optimizer's moments tell. Where there is none, collections have the names of modules that
    have parameters too, and modules have parameters of their own.
    """
    beside = {one for one in children(tree, PARAMS) if one not in (LEVEL, *COLLECTIONS)}
    if not beside:
        return False
    followed = (
        part in beside and (*PARAMS, *key[place:]) in tree
        for key in tree
        if key[:1] == OPT_STATE
        for place, part in enumerate(key)
    )
    if any(key[:1] == OPT_STATE and len(key) > 1 for key in tree):
        return any(followed)
    own = set(children(tree, (*PARAMS, LEVEL)))
    return all(
        own.isdisjoint(children(tree, (*PARAMS, one))) and has_weights(below(tree, (*PARAMS, one)))
        for one in beside
    )


def weights(tree: Tree) -> dict[Key, Leaf]:
    """The weights by module path, whichever their level."""
    return _weights(tree, is_leveled=has_level(tree))


def _weights(tree: Tree, *, is_leveled: bool) -> dict[Key, Leaf]:
    return below(tree, (*PARAMS, LEVEL) if is_leveled else PARAMS)


@dataclass(frozen=True)
class Variables:
    """Parameters without boxes, other collections by name, and how the tree spells them."""

    params: dict[Key, Leaf]
    aux: dict[Key, Leaf]
    form: Form


def read_variables(tree: Tree, own_roots: Sequence[str]) -> Variables:
    """The parameters, and the collections beside them and at the root."""
    leveled = has_level(tree)
    stored_params = _weights(tree, is_leveled=leveled)
    boxed = boxed_names(stored_params)
    inner = [str(child) for child in children(tree, PARAMS) if leveled and child != LEVEL]
    outer = [str(root) for root in children(tree) if root not in own_roots]
    collections = {root: below(tree, (*PARAMS, root)) for root in inner}
    collections |= {root: below(tree, (root,)) for root in outer}
    averages = [root for root, found in collections.items() if _is_average(found, stored_params)]
    in_boxes = [
        root
        for root, found in collections.items()
        if boxed and root not in averages and is_wrapped(found)
    ]
    aux: dict[Key, Leaf] = {}
    for root, found in collections.items():
        if root in averages:
            found = unboxed(below(found, (LEVEL,)), boxed)
        aux |= under((root,), unwrapped(found) if root in in_boxes else found)
    form = Form(
        has_level=leveled,
        collections=tuple(outer),
        inner_collections=tuple(inner),
        leveled=tuple(averages),
        boxed=boxed,
        boxed_collections=tuple(in_boxes),
    )
    return Variables(unboxed(stored_params, boxed), aux, form)


def _is_average(collection: Tree, params: Tree) -> bool:
    """True for weights under a `params` level of their own, such as their moving average."""
    return bool(collection) and all(key[:1] == (LEVEL,) and key[1:] in params for key in collection)


def write_variables(state: TrainState, form: Form) -> dict[Key, Leaf]:
    """The inverse: parameters and collections as the form spells them.

    A module called `params` may be taken for the level, where no moments show what it is.
    """
    is_alike = state.opt_state is None and LEVEL in children(state.params)
    is_leveled = form.has_level or (is_alike and has_level(under(PARAMS, state.params)))
    params = boxed(state.params, form.boxed)
    tree = under((*PARAMS, LEVEL) if is_leveled else PARAMS, params)
    for root in map(str, children(state.aux)):
        found = below(state.aux, (root,))
        if root in form.leveled:
            found = under((LEVEL,), boxed(found, form.boxed))
        elif root in form.boxed_collections:
            found = wrapped(found)
        is_inner = is_leveled and root in form.inner_collections
        tree |= under((*PARAMS, root) if is_inner else (root,), found)
    return tree


def foreign_collections(state: TrainState, form: Form) -> list[Key]:
    """Variables of collections that Linen programs do not keep, RNG state among them."""
    known = {BATCH_STATS, CACHE, *form.collections, *form.inner_collections}
    return [("aux", *key) for key in in_order(state.aux) if key[0] not in known]


def digit_chains(opt_state: Tree, params: Collection[Key]) -> list[Key]:
    """The mappings keyed by digits that stand outside parameter-shaped trees."""
    numbered = sequences_from_digits(opt_state, parameter_trees(opt_state, params))
    chains = [
        old[:place]
        for old, new in zip(opt_state, numbered, strict=True)
        for place, (a, b) in enumerate(zip(old, new, strict=True))
        if a != b
    ]
    return list(dict.fromkeys(chains))


def read_step(tree: Tree) -> tuple[View | None, str | None, bool]:
    """The step, its element type, and whether it is a Python number."""
    leaf = tree.get(STEP)
    dtype, is_scalar = step_form(leaf)
    return (None if isinstance(leaf, Literal) else leaf), dtype, is_scalar


def read_opt_state(tree: Tree) -> tuple[dict[Key, Leaf] | None, str]:
    """The optimizer state as stored, and how its form calls it.

    An empty mapping, or none at all, is a checkpoint of parameters only; an empty sequence or a
    `None` is the state of an optimizer that keeps nothing.
    """
    stored = below(tree, OPT_STATE)
    whole = stored.get(())
    if isinstance(whole, Literal):
        return (None, PARAMS_ONLY) if whole.kind == PARAMS_ONLY else ({}, whole.kind)
    return (stored, "tree") if stored else (None, "absent")


def linen_form(state: TrainState) -> Form:
    """`params/params`, an int32 step; the params-only form without an optimizer state.

    Of an adapter alone MaxText keeps an int32 step and no `opt_state` at all.
    """
    if state.opt_state is None:
        if state.step is not None and _is_adapter(state.params):
            return Form(step_dtype="int32", opt_state="absent")
        return Form(step_dtype="int64", step_is_scalar=True, opt_state=PARAMS_ONLY)
    return Form(step_dtype="int32")


def _is_adapter(params: Tree) -> bool:
    """True for the factors of low-rank adapters and nothing else."""
    arrays = {key: leaf for key, leaf in params.items() if not isinstance(leaf, Literal)}
    return bool(arrays) and 2 * len(adapters_in(arrays)[0]) == len(arrays)


def write_step(state: TrainState, form: Form) -> tuple[dict[Key, Leaf], list[str]]:
    """The step as the form spells it; a scalar 0 in a params-only checkpoint that had none."""
    leaf = step_leaf(state.step, form, "int32")
    if leaf is not None:
        return {STEP: leaf}, []
    if form.step_is_scalar and form.step_dtype is not None:
        return {STEP: Literal("scalar", 0)}, ["`step` is 0, as where MaxText saves parameters only"]
    return {}, []


def write_opt_state(
    opt_state: Tree | None, form: Form, gaps: Sequence[Key]
) -> tuple[dict[Key, Leaf], list[str]]:
    """The optimizer state under `opt_state`, and what was assumed."""
    if opt_state is None:
        if form.opt_state == "absent":
            return {}, []
        return {OPT_STATE: Literal(PARAMS_ONLY)}, []
    if not opt_state:
        kind = form.opt_state if form.opt_state in ("List", "Tuple", "None") else "List"
        assumed = [] if kind == form.opt_state else ["`opt_state` is empty: it holds no arrays"]
        return {OPT_STATE: Literal(kind)}, assumed
    return under(OPT_STATE, opt_state), gaps_assumed(gaps)


BOX = "value"
_USUALLY_BOXED = {"kernel", "bias", "scale", "embedding"}


def boxed_names(params: Tree) -> tuple[str, ...]:
    """Names of the parameters that stand in boxes, as `nn.with_partitioning` makes them.

    A box shows as a last key `value` under a parameter's own name, such as `kernel`, or under
    every name there is.

    Raises:
      UnknownLayout: some parameters of one name are boxed, and others of that name are not.
    """
    lasts = {key[-2:] for key in params if len(key) > 1 and key[-1] == BOX}
    names = {str(name) for name, _ in lasts}
    if not names & _USUALLY_BOXED and not is_wrapped(params):
        return ()
    bare = names & {str(key[-1]) for key in params}
    if bare:
        name = min(bare)
        raise UnknownLayout(f"some parameters called `{name}` are `{name}/value`, and some are not")
    return tuple(sorted(names))


def unboxed(tree: Tree, names: Collection[str]) -> dict[Key, Leaf]:
    """The tree without the last key `value` of boxed parameters."""
    if not names:
        return dict(tree)
    return {
        key[:-1] if key[-1:] == (BOX,) and key[-2:-1] and key[-2] in names else key: leaf
        for key, leaf in tree.items()
    }


def boxed(tree: Tree, names: Collection[str]) -> dict[Key, Leaf]:
    """The tree with a last key `value` under the parameters of these names."""
    if not names:
        return dict(tree)
    return {(*key, BOX) if key[-1] in names else key: leaf for key, leaf in tree.items()}
