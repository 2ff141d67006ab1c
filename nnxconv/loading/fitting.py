"""Fit a checkpoint to a tree that is there already: which view becomes which of its leaves.

Both are brought to canonical states and compared as `compare` does; then the checkpoint's state
is arranged and encoded as the other tree is. Reads no array.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nnxconv.comparing import agree_on_layers
from nnxconv.errors import LayerError, Mismatch
from nnxconv.layouts import (
    ADAPTER,
    Understood,
    is_rng_state,
    leave_out,
    refuse_missing_parts,
    within,
)
from nnxconv.loading.leniency import Lenient, Loaded, leave_aside
from nnxconv.loading.mismatch import refuse_differences
from nnxconv.state import TrainState, Tree, arrange, choose
from nnxconv.tree import (
    EMPTY_KINDS,
    Key,
    Leaf,
    Literal,
    View,
    cast,
    counted,
    dtype_of,
    in_order,
    pieces,
    spell,
)

_STRICT = Lenient()


@dataclass(frozen=True)
class Fit:
    """What becomes of the leaves of `like`.

    Attributes:
      views: for each of its keys that is loaded, the view that becomes the leaf.
      notes: what is kept from `like`, and what of the checkpoint is left out.
      loaded: the differences that were accepted.
    """

    views: Mapping[Key, View]
    notes: tuple[str, ...]
    loaded: Loaded = field(default_factory=Loaded)


def fit(
    found: Understood,
    like: Understood,
    *,
    without: Sequence[str] = (),
    casts: bool = False,
    abstract: Collection[str] = (),
    lenient: Lenient = _STRICT,
) -> Fit:
    """The views of a checkpoint that become the leaves of `like`.

    Args:
      found: the checkpoint.
      like: the tree that is to be filled, its arrays in a store of their own.
      without: parts that are not loaded: `like` keeps its own.
      casts: floats are wanted in the float types of `like`, and integers in its integer types.
      abstract: names of the arrays of `like` that have no values that could be kept.
      lenient: which differences are accepted.

    Raises:
      Mismatch: leaves are missing, unexpected, or of another shape or type; all are listed.
      LayerError: the layers cannot be arranged as those of `like`.
    """
    found, like = _agreed_on_layers(found, like)
    if _has_adapter(like.state) and not _has_adapter(found.state):
        found = _within_adapter(found)
    refuse_missing_parts(without, [found.state, like.state])
    state, _ = leave_out(rehomed(found.state, like.state), without)
    wanted, _ = leave_out(like.state, without)
    state, wanted, notes = _agreed(state, wanted, abstract)
    state, wanted, loaded = leave_aside(state, wanted, lenient)
    refuse_differences(state, wanted, casts)
    expected = _laid_out(replace(like, state=wanted), like)
    filled = _laid_out(replace(found, state=state), like)
    views = {key: cast(filled[key], dtype_of(view)) for key, view in expected.items()}
    _nothing_forgotten(views, like, wanted)
    return Fit(views, (*notes, *loaded.render().splitlines()), loaded)


def _agreed_on_layers(found: Understood, like: Understood) -> tuple[Understood, Understood]:
    try:
        return agree_on_layers(found, like)
    except LayerError as error:
        hint = "`layer_axis=0` or `layer_axis=1` says which it is"
        raise LayerError(error.message, hint=hint) from error


def _has_adapter(state: TrainState) -> bool:
    return bool(state.params) and all(key[0] == ADAPTER for key in state.params)


def _within_adapter(found: Understood) -> Understood:
    """The checkpoint of a model as that of the module that Tunix trains, which has it inside."""
    groups = tuple(replace(group, key=(ADAPTER, *group.key)) for group in found.groups)
    return replace(found, state=within(found.state, ADAPTER), groups=groups)


def rehomed(state: TrainState, like: TrainState) -> TrainState:
    """The state with its variables in the collections in which `like` has them.

    NNX programs tell collections by type and Linen programs by name; what both have in common is
    the path of a variable in the model.
    """
    names = set(_variables(like))
    paths = Counter(path for _, path in names)
    homes = {path: collection for collection, path in names if paths[path] == 1}
    params: dict[Key, Leaf] = {}
    aux: dict[Key, Leaf] = {}
    for (collection, path), leaf in _variables(state).items():
        is_known = (collection, path) in names
        home = collection if is_known else homes.get(path, collection)
        if home is None:
            params[path] = leaf
        else:
            aux[(home, *path)] = leaf
    return replace(state, params=params, aux=aux)


def _variables(state: TrainState) -> dict[tuple[str | int | None, Key], Leaf]:
    """Parameters and other variables by collection (None for parameters) and path."""
    params = {(None, path): leaf for path, leaf in state.params.items()}
    return {**params, **{(key[0], key[1:]): leaf for key, leaf in state.aux.items()}}


def _agreed(
    state: TrainState, like: TrainState, abstract: Collection[str]
) -> tuple[TrainState, TrainState, list[str]]:
    """Both states without what only one of them can have, and notes that say so.

    An optimizer state or a step is left out where `like` has none. RNG state is left out, or kept
    from `like`, where one side has it and the other has not. Empty states are no leaves.
    """
    a, b = state.leaves(), like.leaves()
    lacking = {name for name in ("opt_state", "step") if getattr(like, name) is None}
    out = [key for key in a.keys() - b.keys() if key[0] in lacking or _is_rng(key, a[key])]
    kept = [
        key
        for key in b.keys() - a.keys()
        if _is_rng(key, b[key]) and not _names(b[key]) & set(abstract)
    ]
    empty = [
        key
        for key in a.keys() ^ b.keys()
        if isinstance(leaf := a.get(key) or b.get(key), Literal) and leaf.kind in EMPTY_KINDS
    ]
    notes = [*_notes("left out, `like` has none", out, a), *_notes("kept from `like`", kept, b)]
    gone = {*out, *kept, *empty}
    return _without(state, gone), _without(like, gone), notes


def _is_rng(key: Key, leaf: Leaf) -> bool:
    return key[0] == "aux" and is_rng_state(key[1:], leaf)


def _notes(told: str, keys: Collection[Key], leaves: Mapping[Key, Leaf]) -> Iterator[str]:
    """One line per part: what happened to how many of its arrays, and which is the first."""
    parts: dict[str, list[Key]] = {}
    for key in in_order(keys):
        if not isinstance(leaves[key], Literal):
            parts.setdefault(spell(key[:2] if key[0] == "aux" else key[:1]), []).append(key)
    for part, inside in parts.items():
        first = f", first `{spell(inside[0])}`" if len(inside) > 1 else ""
        yield f"{told}: {counted(len(inside), 'array')} of `{part}`{first}"


def _without(state: TrainState, keys: Collection[Key]) -> TrainState:
    """The state without some of its leaves, which have canonical keys."""

    def rest(part: str, tree: Tree) -> dict[Key, Leaf]:
        return {key: leaf for key, leaf in tree.items() if (part, *key) not in keys}

    return TrainState(
        rest("params", state.params),
        None if state.opt_state is None else rest("opt_state", state.opt_state),
        None if ("step",) in keys else state.step,
        rest("aux", state.aux),
    )


def _laid_out(found: Understood, like: Understood) -> dict[Key, View]:
    """The arrays of a state under the keys that `like` has them under."""
    codec, form = like.codec, like.form
    arrangements = choose(
        found.groups,
        scan_layers=None,
        layer_axis=None,
        spelling=codec.spelling,
        kept_spelling=found.codec.spelling == codec.spelling,
        spellings=form.spellings,
        like={group.key: group.arrangement for group in like.groups},
    )
    arranged = arrange(found.state, found.groups, arrangements)
    has_optimizer = replace(arranged, opt_state=arranged.opt_state or {})
    tree = codec.encode(has_optimizer, form).tree
    return {key: leaf for key, leaf in tree.items() if not isinstance(leaf, Literal)}


def _nothing_forgotten(views: Collection[Key], like: Understood, wanted: TrainState) -> None:
    """Checks that every array of `like` that is wanted is loaded.

    Raises:
      Mismatch: one is not, which is a defect of nnxconv.
    """
    names = {name for leaf in wanted.leaves().values() for name in _names(leaf)}
    forgotten = [
        spell(key) for key, leaf in like.tree.items() if key not in views and _names(leaf) & names
    ]
    if forgotten:
        raise Mismatch("these arrays of `like` would not be loaded", details=forgotten)


def _names(leaf: Leaf) -> set[str]:
    """Names of the stored arrays that a leaf is made of."""
    return set() if isinstance(leaf, Literal) else {p.source.name for p in pieces(leaf)}
