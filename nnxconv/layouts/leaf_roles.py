"""The role of every leaf: by the region it stands in, and by what it is itself."""

from collections.abc import Collection, Sequence

from nnxconv.layouts.kinds import is_key, is_stream
from nnxconv.layouts.optimizers import Tops
from nnxconv.layouts.outline import Node, is_floating, is_integer
from nnxconv.layouts.parts import WRAPPER, bare, collection_of
from nnxconv.layouts.places import Place
from nnxconv.layouts.vocabulary import STEPS, is_moments
from nnxconv.state import BATCH_STATS, LEVEL, Role, Tree
from nnxconv.tree import Key, Literal, prng_impl_of


def roles_of(tree: Tree, tops: Tops, places: Sequence[Place]) -> dict[Key, Role]:
    """The role of every leaf of a tree, in which optimizers and states have been found."""
    regions: dict[Key, Role] = dict.fromkeys((top.key for top in tops.nodes), "optimizer")
    for place in places:
        regions[place.params] = "parameters"
        regions |= dict.fromkeys((*place.variables, *place.copies, *place.rest), "variables")
        moments = [key for key in place.copies if is_moments(str(key[-1]))]
        regions |= dict.fromkeys(moments, "optimizer")
        regions |= dict.fromkeys(place.rngs, "rng")
        if place.at != place.params:
            steps = [key for name in STEPS if is_integer(tree.get(key := (*place.at, name)))]
            regions |= dict.fromkeys(steps, "step")
        if place.step is not None:
            regions[place.step] = "step"
    counting = {
        (*top.key, "step")
        for top in tops.nodes
        if "opt_state" in top.kids or len(top.kids) == 1  # an `nnx.Optimizer`
    }
    trained = _trained(tree, places)
    roles: dict[Key, Role] = {}
    for key in tree:
        sizes = (size for size in range(len(key), -1, -1) if key[:size] in regions)
        role = regions.get(key[: next(sizes, len(key))], "other")
        is_trained = role == "parameters" and key in trained
        roles[key] = role if is_trained else _own_role(key, role, tree, counting)
    return roles


def _trained(tree: Tree, places: Sequence[Place]) -> set[Key]:
    """The leaves called `mean` or `var` that have moments: those of a learned prior have."""
    called = [
        key for key, leaf in tree.items() if not isinstance(leaf, Literal) and _is_called(key)
    ]
    parts = [pair for place in places for pair in place.parts.items()] if called else []
    moved = {
        (part, _path(key[len(moments) :]))
        for moments, part in parts
        for key in called
        if key[: len(moments)] == moments
    }
    return {
        key
        for part in {part for part, _ in moved}
        for key in called
        if key[: len(part)] == part and (part, _path(key[len(part) :])) in moved
    }


def _is_called(key: Key) -> bool:
    """True for the names that flax gives to statistics and caches."""
    return collection_of((bare(key) or ("",))[-1]) is not None


def _is_running(path: Key) -> bool:
    """True for statistics whose names say that they are a layer's: `moving_mean`."""
    return collection_of(path[-1]) == BATCH_STATS and path[-1] not in ("mean", "var")


def _path(key: Key) -> Key:
    """A key without the levels and boxes that moments may have, and their parameters not."""
    return tuple(part for part in key if part not in (LEVEL, WRAPPER))


def _own_role(key: Key, role: Role, tree: Tree, counting: Collection[Key]) -> Role:
    """The role of a leaf within a region of some role; `counting` are steps of optimizers."""
    leaf, path = tree[key], bare(key)
    if role == "optimizer":
        return "step" if path in counting else role
    if isinstance(leaf, Literal):
        return role
    if prng_impl_of(leaf) is not None or is_stream(key, tree):
        return "rng"
    if role == "parameters":
        return "variables" if _is_called(key) else role
    if role == "other" and path:
        if is_key(Node(key, {}, leaf)):
            return "rng"
        if (BATCH_STATS in path or _is_running(path)) and is_floating(leaf):
            return "variables"
    return role
