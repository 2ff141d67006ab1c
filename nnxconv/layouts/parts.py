"""Pieces that several layouts share: steps, wrappers, and which NNX variables are parameters."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from nnxconv.errors import CannotHold
from nnxconv.layouts.form import PARAMETERS, Form, Record
from nnxconv.layouts.vocabulary import is_copys, is_numbered_weight, is_weights
from nnxconv.state import BATCH_STATS, RNGS, TrainState, Tree, parameter_trees, under, with_level
from nnxconv.tree import (
    Key,
    Leaf,
    Literal,
    View,
    cast,
    counted,
    dtype_of,
    first_source,
    in_order,
    is_digits,
    notation,
    spell,
    with_kind,
)

WRAPPER = "value"
ADAPTER = "base"
"""The attribute under which the module that Tunix trains has the model."""
CACHE = "cache"
NAMED_COLLECTIONS = {
    "mean": BATCH_STATS,
    "var": BATCH_STATS,
    "running_mean": BATCH_STATS,
    "running_var": BATCH_STATS,
    "num_batches_tracked": BATCH_STATS,
    "moving_mean": BATCH_STATS,
    "moving_variance": BATCH_STATS,
    "cached_key": CACHE,
    "cached_value": CACHE,
    "cache_index": CACHE,
}
"""Names that flax, PyTorch and Keras give to variables which are no parameters."""


def collection_of(name: str | int) -> str | None:
    """The collection of variables that are called so, which are no parameters; else None.

    >>> collection_of("mean"), collection_of("layer1.0.bn1.running_var"), collection_of("kernel")
    ('batch_stats', 'batch_stats', None)
    """
    text = str(name)
    return NAMED_COLLECTIONS.get(text.rpartition(".")[2] if "." in text else text)


def has_weights(tree: Tree) -> bool:
    """True where an array has a name that libraries give to parameters, such as `kernel`."""
    return any(
        is_weights(str(key[-1])) or (len(key) > 1 and is_numbered_weight(*key[-2:]))
        for key in arrays(tree)
        if key
    )


def is_linens(tree: Tree) -> bool:
    """True where modules have the names that Linen gives within `nn.compact`, such as `Dense_0`."""
    return any(
        isinstance(part, str) and _AUTOMATIC_NAME.fullmatch(part)
        for key in tree
        for part in key[:-1]
    )


_AUTOMATIC_NAME = re.compile(r"[A-Z][A-Za-z0-9]*_[0-9]+")


def nnx_marks(tree: Tree) -> list[str]:
    """What only an NNX model has among its parameters: other variables, and lists of modules."""
    marks = []
    if any(is_rng(key, tree) for key in arrays(tree) if key):
        marks.append("RNG state among the parameters")
    if any(collection_of(key[-1]) for key in tree if key):
        marks.append("other variables among the parameters")
    if any(is_digits(part) for key in tree for part in key[:-1]):
        marks.append("modules keyed by digits")
    return marks


def arrays(tree: Tree) -> list[Key]:
    """The keys that hold arrays."""
    return [key for key, leaf in tree.items() if not isinstance(leaf, Literal)]


def is_wrapped(tree: Tree) -> bool:
    """True when every array stands under a last key `value`, and there is one."""
    keys = arrays(tree)
    return bool(keys) and all(len(key) > 1 and key[-1] == WRAPPER for key in keys)


def bare(key: Key) -> Key:
    """The key without the wrapper that NNX programs put at its end."""
    return key[:-1] if key[-1:] == (WRAPPER,) else key


def unwrapped(tree: Tree) -> dict[Key, Leaf]:
    """The tree without the last key `value`."""
    return {bare(key): leaf for key, leaf in tree.items()}


def wrapped(tree: Tree) -> dict[Key, Leaf]:
    """The tree with a last key `value` under every leaf but empty containers."""
    return {
        key
        if isinstance(leaf, Literal) and leaf.kind in ("Dict", "List")
        else (*key, WRAPPER): leaf
        for key, leaf in tree.items()
    }


def is_rng(path: Key, tree: Tree) -> bool:
    """True for the count and key of an RNG stream: under `rngs`, or side by side."""
    if path[-1] not in ("count", "key"):
        return False
    if "rngs" in path[:-1]:
        return is_rng_array(tree[path]) or _is_uint32(tree[path])
    count, key = (tree.get((*path[:-1], name)) for name in ("count", "key"))
    return is_rng_array(key) and _is_uint32(count)


def _is_uint32(leaf: Leaf | None) -> bool:
    return leaf is not None and not isinstance(leaf, Literal) and dtype_of(leaf) == "uint32"


def is_rng_array(leaf: Leaf | None) -> bool:
    """True for a typed PRNG key, and for raw key data: uint32 with a last axis of 2 or 4."""
    if leaf is None or isinstance(leaf, Literal):
        return False
    if first_source(leaf).prng_impl is not None:
        return True
    return dtype_of(leaf) == "uint32" and leaf.shape[-1:] in ((2,), (4,))


def is_rng_state(aux_key: Key, leaf: Leaf) -> bool:
    """True for a non-parameter that is RNG state, by its collection or by what it is."""
    return RNGS in aux_key or "rng" in str(aux_key[0]) or is_rng_array(leaf)


def split_variables(
    model: Tree, opt_state: Tree, record: Record
) -> tuple[dict[Key, Leaf], dict[Key, Leaf], tuple[str, ...]]:
    """The parameters of an NNX model, its other variables by collection, and how they were told.

    A variable with a moment is a parameter. The others are told by what the record says, then by
    name: `rngs`, `count` beside `key`, `mean`, `var`, the names of attention caches.
    """
    with_moments: set[Key] = set()
    for prefix in parameter_trees(opt_state, model):
        with_moments |= {key[len(prefix) :] for key in opt_state if key[: len(prefix)] == prefix}
    recorded = {path: name for name, paths in record.collections.items() for path in paths}
    params: dict[Key, Leaf] = {}
    aux: dict[Key, Leaf] = {}
    for path, leaf in model.items():
        collection = None if path in with_moments else _collection(path, model, recorded)
        if collection is None:
            params[path] = leaf
        else:
            aux[(collection, *path)] = leaf
    return params, aux, tuple(_decisions(params, aux, with_moments))


def _collection(path: Key, model: Tree, recorded: Mapping[Key, str]) -> str | None:
    if path in recorded:
        return None if recorded[path] == PARAMETERS else recorded[path]
    if is_rng(path, model):
        return RNGS
    return collection_of(path[-1])


def _decisions(params: Tree, aux: Tree, with_moments: Collection[Key]) -> Iterable[str]:
    if with_moments:
        yield f"{len(with_moments):,} variables are parameters, because the optimizer has moments"
    by_name = len(arrays(params)) - len(with_moments & params.keys())
    if by_name > 0:
        yield f"{by_name:,} variables without moments are taken to be parameters, by their names"
    for collection, count in Counter(key[0] for key in aux).items():
        yield f"{count:,} variables are taken to be {collection}, by their names"


def aux_by_name(variables: Tree, record: Record) -> dict[Key, Leaf]:
    """Variables that are known not to be parameters, each under its collection."""
    recorded = {path: name for name, paths in record.collections.items() for path in paths}
    return {
        (_collection(path, variables, recorded) or "variables", *path): leaf
        for path, leaf in variables.items()
    }


def collections_to_record(state: TrainState) -> dict[str, tuple[Key, ...]]:
    """The variables that could not be told by their names alone, by collection."""
    paths: dict[str, list[Key]] = {}
    by_path = {**state.params, **{key[1:]: leaf for key, leaf in state.aux.items()}}
    for path in state.params:
        if _collection(path, by_path, {}) is not None:
            paths.setdefault(PARAMETERS, []).append(path)
    for key in state.aux:
        if len(key) > 1 and _collection(key[1:], by_path, {}) != key[0]:
            paths.setdefault(str(key[0]), []).append(key[1:])
    return {name: tuple(keys) for name, keys in paths.items()}


def step_form(leaf: Leaf | None) -> tuple[str | None, bool]:
    """Element type of a step, and whether it is a Python number; (None, False) for no step."""
    if leaf is None:
        return None, False
    if isinstance(leaf, Literal):
        return "int64", True
    return dtype_of(leaf), first_source(leaf).kind == "scalar"


def step_leaf(step: View | None, form: Form, default_dtype: str) -> Leaf | None:
    """The step as a form spells it: a Python number or an array; the value stays."""
    if step is None:
        return None
    kind = "scalar" if form.step_is_scalar else "array"
    return cast(with_kind(step, kind), form.step_dtype or default_dtype)


def gaps_assumed(gaps: Sequence[Key]) -> list[str]:
    """What is assumed where a chain's empty states are not known."""
    if not gaps:
        return []
    places = ", ".join(spell(("opt_state", *key)) for key in in_order(gaps))
    return [
        f"{places} is an empty state (None); a chain ends with its last state that holds arrays"
    ]


def model_misfits(state: TrainState) -> list[Key]:
    """The non-parameters that have no path of their own in a model."""
    paths = [key[1:] for key in state.aux]
    seen = Counter(paths)
    return [
        ("aux", *key)
        for key in in_order(state.aux)
        if len(key) < 2 or key[1:] in state.params or seen[key[1:]] > 1
    ]


OPTIMIZER_HINT = "`--params_only` leaves the optimizer out"


def refuse_misfits(layout: str, state: TrainState, misfits: list[Key], hint: str = "") -> None:
    """Raises CannotHold with every misfit and its shape."""
    if not misfits:
        return
    leaves = state.leaves()
    width = max(len(spell(key)) for key in misfits)
    raise CannotHold(
        f"the {layout} layout has no place for {counted(len(misfits), 'array')}",
        details=[f"{spell(key):<{width}}  {notation(leaves[key])}" for key in misfits],
        hint=hint or _way_out(layout, state, misfits),
    )


def _way_out(layout: str, state: TrainState, misfits: Collection[Key]) -> str:
    """What goes on: without these collections alone, and of two in one place without the copy."""
    if any(key[0] == "opt_state" for key in misfits):
        return OPTIMIZER_HINT
    found = {str(key[1]) for key in misfits if len(key) > 1}
    found = {name for name in found if is_copys((name,))} or found
    is_all = not found or found == {str(key[0]) for key in state.aux}
    names = ["aux"] if is_all else [f"aux.{name}" for name in sorted(found)]
    options = " ".join(f"--without {name}" for name in names)
    paths = [key[2:] for key in misfits]
    is_twice = len(set(paths)) < len(paths) or not state.params.keys().isdisjoint(paths)
    is_kept = layout != "maxtext" and not is_twice  # no layout has two in one place
    way = "`--to maxtext` keeps variables of the model; " if is_kept else ""
    return f"{way}`{options}` leaves them out"


def training_misfits(state: TrainState) -> list[Key]:
    """The optimizer's arrays and the step, which layouts of a model alone have no place for."""
    opt_state: list[Key] = [("opt_state", *key) for key in in_order(state.opt_state or {})]
    return opt_state if state.step is None else [*opt_state, ("step",)]


def within(state: TrainState, name: str) -> TrainState:
    """The state of a module that has the model as its attribute `name`."""
    opt_state = state.opt_state
    if opt_state is not None:
        opt_state = with_level(opt_state, parameter_trees(opt_state, state.params), name)
    aux = {(key[0], name, *key[1:]): leaf for key, leaf in state.aux.items()}
    return replace(state, params=under((name,), state.params), opt_state=opt_state, aux=aux)
