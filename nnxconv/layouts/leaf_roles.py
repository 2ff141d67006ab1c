"""The role of every leaf: by the region it stands in, and by what it is itself."""

from collections.abc import Collection, Sequence

from nnxconv.layouts.kinds import is_key, is_stream
from nnxconv.layouts.optimizers import Tops
from nnxconv.layouts.outline import Node, is_floating, is_integer
from nnxconv.layouts.parts import NAMED_COLLECTIONS, bare
from nnxconv.layouts.places import Place
from nnxconv.layouts.vocabulary import STEPS
from nnxconv.state import BATCH_STATS, Role, Tree
from nnxconv.tree import Key, Literal, prng_impl_of


def roles_of(tree: Tree, tops: Tops, places: Sequence[Place]) -> dict[Key, Role]:
    """The role of every leaf of a tree, in which optimizers and states have been found."""
    regions: dict[Key, Role] = dict.fromkeys((top.key for top in tops.nodes), "optimizer")
    for place in places:
        regions[place.params] = "parameters"
        regions |= dict.fromkeys((*place.variables, *place.copies, *place.rest), "variables")
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
    roles: dict[Key, Role] = {}
    for key in tree:
        sizes = (size for size in range(len(key), -1, -1) if key[:size] in regions)
        role = regions.get(key[: next(sizes, len(key))], "other")
        roles[key] = _own_role(key, role, tree, counting)
    return roles


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
        return "variables" if path and str(path[-1]) in NAMED_COLLECTIONS else role
    if role == "other" and path:
        if is_key(Node(key, {}, leaf)):
            return "rng"
        if BATCH_STATS in path and is_floating(leaf):
            return "variables"
    return role
