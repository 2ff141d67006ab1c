"""What a subtree is by its names and types: keys, copies, modules, settings."""

from collections.abc import Collection, Sequence

from nnxconv.layouts.outline import Node, is_integer, is_number
from nnxconv.layouts.parts import bare, collection_of, is_rng, is_rng_array
from nnxconv.layouts.vocabulary import (
    PARAMETERS,
    WEAK,
    is_copys,
    is_numbered_weight,
    is_of_an_optimizer,
    is_rngs,
    is_weights,
)
from nnxconv.state import LEVEL, Tree
from nnxconv.tree import Key, Leaf, Literal, prng_impl_of


def holds(node: Node, wanted: Node, *, alike: bool = False) -> bool:
    """True when a subtree has every path of another that could be a parameter's.

    With `alike` also each of its shapes.
    """
    value = wanted.value()
    if value is not None:
        return _same_shape(node.value(), value) if alike else node.value() is not None
    names = {str(name): kid for name, kid in node.kids.items()}
    return all(
        str(name) in names and holds(names[str(name)], kid, alike=alike)
        for name, kid in wanted.kids.items()
        if kid.trainable
    )


def _same_shape(a: Leaf | None, b: Leaf | None) -> bool:
    """True for two arrays of one shape."""
    if isinstance(a, Literal | None) or isinstance(b, Literal | None):
        return False
    return a.shape == b.shape


def is_copy(node: Node, params: Node) -> bool:
    """True for the same tree, or a part of it, with the same shapes."""
    if node.shapes == params.shapes:
        return True
    core = node.core()
    inner = core.kids.get(LEVEL)
    if inner is not None and inner.trainable and inner.shapes == params.shapes:
        return True
    are_modules = bool(core.trees()) or (bool(core.kids) and all("/" in str(n) for n in core.kids))
    return are_modules and core.trainable > 0 and holds(params, core, alike=True)


def is_key(node: Node) -> bool:
    """True for a PRNG key, typed or raw."""
    value = node.value()
    if value is None or isinstance(value, Literal):
        return False
    if prng_impl_of(value) is not None:
        return True
    return is_rng_array(value) and (is_rngs(_bare_name(node)) or value.shape in ((2,), (4,)))


def _bare_name(node: Node) -> str:
    key = bare(node.key)
    return str(key[-1]) if key else ""


def is_stream(key: Key, tree: Tree) -> bool:
    """True for the count and key of an RNG stream, wrapped or not."""
    path = bare(key)
    if path[-1:] not in (("count",), ("key",)):
        return False
    names = [(*path[:-1], name) for name in ("count", "key")]
    stored = {name: (*name, *key[len(path) :]) for name in names}
    return is_rng(path, {name: tree[old] for name, old in stored.items() if old in tree})


def is_rng_tree(node: Node, tree: Tree) -> bool:
    """True for keys and RNG streams, and nothing else."""
    leaves = [leaf for leaf in node.leaves() if not isinstance(leaf.leaf, Literal)]
    return bool(leaves) and all(is_key(leaf) or is_stream(leaf.key, tree) for leaf in leaves)


def the_number(node: Node) -> Node | None:
    """The only integer beside parameters and their optimizer in a tuple, which names nothing."""
    if not all(isinstance(name, int) for name in node.kids):
        return None
    values = [(kid, kid.value()) for kid in node.kids.values()]
    numbers = [
        kid
        for kid, value in values
        if not isinstance(value, Literal | None) and is_integer(value) and value.shape == ()
    ]
    return numbers[0] if len(numbers) == 1 else None


def has_arrays(node: Node) -> bool:
    return any(
        not isinstance(leaf.leaf, Literal) and not is_number(leaf.leaf) for leaf in node.leaves()
    )


def is_in_modules(node: Node, params: Node, tree: Tree) -> bool:
    """True for variables under the names of modules: of each, the first one is the model's.

    Modules that have nothing but RNG state, such as dropout's, have no parameters.
    """
    names = {str(name) for name, kid in params.kids.items() if kid.leaf is None}
    trees = node.trees()
    are_all = bool(trees) and len(trees) == len(node.kids)
    names |= {name.partition(_OF_HAIKU)[0] for name in names if _OF_HAIKU in name}
    return are_all and all(
        _within(t.name, names) or is_rng_tree(t, tree) or _is_haikus_average(t) for t in trees
    )


_OF_HAIKU = "/~/"
"""Between the names of a module of Haiku and of one that it makes: `vqvae/~/encoder`."""


def _is_haikus_average(node: Node) -> bool:
    """True for what `hk.ExponentialMovingAverage` keeps, as batch norms without weights do."""
    return _OF_HAIKU in node.name and set(node.kids) == {"average", "counter", "hidden"}


def _within(name: str, names: Collection[str]) -> bool:
    """True for a module, and for a name with slashes (Haiku's) that starts with one."""
    parts = name.split("/")
    return any("/".join(parts[:size]) in names for size in range(1, len(parts) + 1))


def has_named_weights(node: Node) -> bool:
    """True where something that could be trained is called as parameters are."""
    return any(leaf.trainable and _is_weight(leaf) for leaf in node.leaves())


def _is_weight(leaf: Node) -> bool:
    """True where a leaf is called as parameters are, boxed or not."""
    key = bare(leaf.key)
    is_numbered = len(key) > 1 and is_numbered_weight(key[-2], key[-1])
    return is_numbered or (bool(key) and is_weights(str(key[-1])))


def is_module(node: Node, others: Sequence[Node]) -> bool:
    """True for a module called `model`, which has modules of the same model beside it."""
    if node.name == LEVEL:
        return False
    beside = (kid for kid in others if kid is not node and not is_copys(kid.key[-1:]))
    return any(
        kid.trainable
        and kid.name not in PARAMETERS
        and not is_copy(kid, node.core())
        and has_named_weights(kid)
        for kid in beside
    )


def is_plausible(node: Node) -> bool:
    """True when a subtree holds arrays of floats, and no settings or texts."""
    floats = strangers = 0
    for leaf in node.leaves():
        if isinstance(leaf.leaf, Literal):
            strangers += leaf.leaf.kind in ("string", "scalar")
        elif leaf.trainable:
            floats += 1
        elif is_number(leaf.leaf):
            strangers += 1
    return floats > 0 and not strangers


def is_bare(root: Node, tree: Tree) -> bool:
    """True for parameters alone at the root, by their names and types."""
    if any(isinstance(name, int) for name in root.kids) or not is_plausible(root):
        return False
    named = 0
    for leaf in root.leaves():
        if isinstance(leaf.leaf, Literal):
            continue
        if leaf.trainable:
            name = _bare_name(leaf)
            if is_of_an_optimizer(name):
                return False
            is_matrix = leaf.leaf is not None and len(leaf.leaf.shape) > 1
            named += _is_weight(leaf) and (name not in WEAK or is_matrix)
        elif is_integer(leaf.leaf) and not _is_models(leaf, tree):
            return False
    return named > 0


def _is_models(leaf: Node, tree: Tree) -> bool:
    """True for integers that models have: RNG state, an index of a cache, quantised weights."""
    name = _bare_name(leaf)
    is_weight = is_weights(name) or name.startswith("q")
    is_called = collection_of(name) is not None or is_weight
    return is_stream(leaf.key, tree) or is_key(leaf) or is_called
