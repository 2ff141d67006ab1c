"""Optimizer states: where they hold parameter-shaped trees, and how chains are spelled.

Adam's mu and nu, the trace of SGD, Lion's and Muon's momentum and the like are trees with the
paths of the parameters. They are found by that structure, at any depth, and not by their names.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from nnxconv.state.train_state import Tree
from nnxconv.tree import EMPTY_KINDS, NOTHING, Key, Leaf, Literal, is_digits

LEVEL = "params"
LABELLED = "inner_states"
"""Where `optax.multi_transform` has a state for each label; labels may be numbers."""


def parameter_trees(opt_state: Tree, params: Collection[Key]) -> dict[Key, bool]:
    """The prefixes in `opt_state` under which every key is a parameter's path.

    The value is True where the tree keeps the parameters under a level named `params`, as
    Linen variables do. Where an optimizer has a sequence for each parameter (SM3 one vector for
    each axis), the path of a parameter comes first in it.

    >>> state = {(0, "count"): None, (0, "mu", "params", "w"): None, (0, "nu", "params", "w"): None}
    >>> parameter_trees(state, {("w",)})
    {(0, 'mu'): True, (0, 'nu'): True}
    """
    paths = set(params)
    candidates: dict[Key, bool] = {}
    for key in opt_state:
        split = _longest_parameter_path(key, paths)
        if split is None and type(key[-1]) is int:
            split = _longest_parameter_path(_without_numbers(key), paths)
        if split is not None:
            candidates.setdefault(*split)
            if split[1]:
                candidates.setdefault((*split[0], LEVEL), False)
    strangers = _keys_by_prefix(opt_state, candidates)
    found = {
        prefix: has_level
        for prefix, has_level in candidates.items()
        if all(_follows(suffix, has_level, paths) for suffix in strangers[prefix])
    }
    leveled = {(*prefix, LEVEL) for prefix, has_level in found.items() if has_level}
    return {prefix: has_level for prefix, has_level in found.items() if prefix not in leveled}


def _longest_parameter_path(key: Key, paths: Collection[Key]) -> tuple[Key, bool] | None:
    for start in range(len(key)):
        if key[start:] in paths:
            return key[:start], False
        if key[start] == LEVEL and key[start + 1 :] in paths:
            return key[:start], True
    return None


def _follows(suffix: Key, has_level: bool, paths: Collection[Key]) -> bool:
    """True for the path of a parameter, and for an element of what is kept for one."""
    if has_level:
        if suffix[:1] != (LEVEL,):
            return False
        suffix = suffix[1:]
    return suffix in paths or (
        bool(suffix) and type(suffix[-1]) is int and _without_numbers(suffix) in paths
    )


def _without_numbers(key: Key) -> Key:
    """A key without the indices at its end."""
    size = len(key)
    while size and isinstance(key[size - 1], int):
        size -= 1
    return key[:size]


def elements_kept(key: Key, paths: Collection[Key]) -> int:
    """How many indices at the end of a key say which element of what is kept for a parameter.

    >>> elements_kept((0, "mu", "w", 1), {("w",)}), elements_kept((0, "mu", "w"), {("w",)})
    (1, 0)
    """
    if not key or type(key[-1]) is not int or _longest_parameter_path(key, paths) is not None:
        return 0
    short = _without_numbers(key)
    return 0 if _longest_parameter_path(short, paths) is None else len(key) - len(short)


def _keys_by_prefix(tree: Iterable[Key], prefixes: Collection[Key]) -> dict[Key, list[Key]]:
    """For each prefix, the rest of every key that starts with it."""
    found: dict[Key, list[Key]] = defaultdict(list)
    for key in tree:
        for size in range(len(key)):
            if key[:size] in prefixes:
                found[key[:size]].append(key[size:])
    return found


def without_level(opt_state: Tree, trees: dict[Key, bool]) -> dict[Key, Leaf]:
    """The optimizer state with the `params` level taken out of its parameter-shaped trees."""
    leveled = {prefix for prefix, has_level in trees.items() if has_level}
    return {drop_level(key, leveled): leaf for key, leaf in opt_state.items()}


def drop_level(key: Key, leveled: Collection[Key]) -> Key:
    """The key without the name that follows one of the prefixes."""
    for size in range(len(key)):
        if key[:size] in leveled:
            return (*key[:size], *key[size + 1 :])
    return key


def with_level(opt_state: Tree, prefixes: Collection[Key], level: str = LEVEL) -> dict[Key, Leaf]:
    """The optimizer state with a level, `params`, put into the trees at `prefixes`."""
    return {_add_level(key, prefixes, level): leaf for key, leaf in opt_state.items()}


def _add_level(key: Key, prefixes: Collection[Key], level: str) -> Key:
    for size in range(len(key)):
        if key[:size] in prefixes:
            return (*key[:size], level, *key[size:])
    return key


def sequences_from_digits(opt_state: Tree, trees: Collection[Key] = ()) -> dict[Key, Leaf]:
    """Chains spelled as mappings (`"0"`, `"2"`) with ints in place of the digits.

    A mapping is a chain when all its keys are digits; keys inside parameter-shaped trees are
    module names and stay as they are, and so do the labels of `multi_transform`, in `inner_states`.

    >>> sequences_from_digits({("0", "count"): None, ("2", "count"): None})
    {(0, 'count'): None, (2, 'count'): None}
    """
    siblings: dict[Key, set[str | int]] = defaultdict(set)
    for key in opt_state:
        for size in range(_chain_part(key, trees)):
            siblings[key[:size]].add(key[size])
    chains = {
        prefix
        for prefix, names in siblings.items()
        if all(map(is_digits, names)) and prefix[-1:] != (LABELLED,)
    }
    return {
        tuple(
            int(part) if key[:place] in chains and place < _chain_part(key, trees) else part
            for place, part in enumerate(key)
        ): leaf
        for key, leaf in opt_state.items()
    }


def digits_from_sequences(
    opt_state: Tree, trees: Collection[Key] = (), *, keep_top: bool = False
) -> dict[Key, Leaf]:
    """The inverse: chains spelled as mappings keyed by digits; `keep_top` leaves the outermost."""
    return {
        tuple(
            str(part)
            if isinstance(part, int) and int(keep_top) <= place < _chain_part(key, trees)
            else part
            for place, part in enumerate(key)
        ): leaf
        for key, leaf in opt_state.items()
    }


def _chain_part(key: Key, trees: Collection[Key]) -> int:
    """How many leading parts of `key` stand outside parameter-shaped trees."""
    return next((size for size in range(len(key)) if key[:size] in trees), len(key))


def spelled_as_parameters(opt_state: Tree, params: Collection[Key]) -> dict[Key, Leaf]:
    """The optimizer state, its parameter-shaped trees with ints where the parameters have them.

    An `nnx.Optimizer` has digits for a list of models, which stands as a sequence beside it.

    >>> spelled_as_parameters({("0", "mu", "1", "w"): NOTHING}, {(1, "w")})
    {('0', 'mu', 1, 'w'): Literal(kind='None', value=None)}
    """
    numbered = {
        tuple(map(str, path)): path
        for path in params
        if any(isinstance(part, int) for part in path)
    }
    return {_spelled(key, numbered): leaf for key, leaf in opt_state.items()}


def _spelled(key: Key, numbered: Mapping[tuple[str, ...], Key]) -> Key:
    parts = tuple(map(str, key)) if numbered else ()
    for start in range(len(parts)):
        if parts[start:] in numbered:
            return (*key[:start], *numbered[parts[start:]])
    return key


def split_empties(
    opt_state: Tree, trees: Collection[Key]
) -> tuple[dict[Key, Leaf], list[tuple[Key, str]]]:
    """The state without its empty states, and where those stood: keys and kinds.

    An empty state is a `None` or an empty container outside parameter-shaped trees; inside one, a
    `None` is a masked parameter and stays.
    """
    kept: dict[Key, Leaf] = {}
    empties: list[tuple[Key, str]] = []
    for key, leaf in opt_state.items():
        is_outside = _chain_part(key, trees) == len(key)
        if is_outside and isinstance(leaf, Literal) and leaf.kind in EMPTY_KINDS:
            empties.append((key, leaf.kind))
        else:
            kept[key] = leaf
    return kept, empties


def with_empties(
    opt_state: Tree, empties: Iterable[tuple[Key, str]]
) -> tuple[dict[Key, Leaf], list[Key]]:
    """The state with its empty states, and a `None` in every gap of a chain; and the gaps filled.

    >>> with_empties({(0, "count"): NOTHING, (2, "count"): NOTHING}, [])[1]
    [(1,)]
    """
    filled: dict[Key, Leaf] = {**opt_state, **{key: Literal(kind) for key, kind in empties}}
    lengths: dict[Key, set[int]] = defaultdict(set)
    for key in filled:
        for size, part in enumerate(key):
            if isinstance(part, int):
                lengths[key[:size]].add(part)
    gaps = [
        (*prefix, index)
        for prefix, present in lengths.items()
        for index in range(max(present))
        if index not in present
    ]
    return {**filled, **dict.fromkeys(gaps, NOTHING)}, gaps
