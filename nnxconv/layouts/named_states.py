"""Training states that no optimizer follows: their parameters are told by what they are called."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from nnxconv.layouts.kinds import (
    has_named_weights,
    is_bare,
    is_in_modules,
    is_module,
    is_plausible,
    is_rng_tree,
)
from nnxconv.layouts.names import TUNIX_ITEMS
from nnxconv.layouts.outline import Node, is_integer
from nnxconv.layouts.places import Place
from nnxconv.layouts.vocabulary import (
    COLLECTIONS,
    MOMENTS,
    PARAMETERS,
    STEPS,
    copied,
    is_copys,
    is_gradients,
    tokens,
)
from nnxconv.state import LEVEL, Tree
from nnxconv.tree import Key

_ROOTS = ("params", "model", TUNIX_ITEMS[0])
"""What layouts call parameters beside which the rest of a state stands."""


@dataclass(frozen=True)
class NamedStates:
    """What to look for in a tree, whose optimizers have been found.

    Attributes:
      tree: all of it.
      in_tops: every key within an optimizer's state.
      items: where the names at the root are items of a step, those.
    """

    tree: Tree
    in_tops: Collection[Key]
    items: Collection[str]

    def places(self, node: Node, claimed: set[Key], known: Sequence[Place]) -> Iterator[Place]:
        """Parameters that no optimizer follows, by what they are called."""
        if node.key in claimed and node.key in self.in_tops:
            return
        if self.items and not node.key:
            for kid in node.kids.values():
                yield from self._by_item(kid, claimed, known)
            return
        free = [k for k in node.kids.values() if k.key not in claimed and k.leaf is None]
        called = [k for k in free if k.name in PARAMETERS and k.trainable and not node.is_sequence]
        called = [k for k in called if is_plausible(k) and not is_module(k, free)]
        called = [k for k in called if all(p.params[: len(k.key)] != k.key for p in known)]
        if called and not any(place.at == node.key for place in known):
            kid = min(called, key=lambda k: PARAMETERS.index(k.name))
            below = kid.kids.get(LEVEL)
            if below is not None and below.trainable and kid.name != LEVEL:
                yield Place(kid.key, below.core().key)
            else:
                at = node.key if kid.name in _ROOTS or _has_step(node) else kid.key
                yield Place(at, core_of(kid).key)
            others = [k for k in free if k is not kid]
        else:
            rest = rest_of(node, self.tree)
            if rest is not None:
                yield _in_turn(node, *rest)
                return
            others = free
        below = [
            place
            for kid in others
            if kid.key not in claimed
            for place in self.places(kid, claimed, known)
        ]
        if called or below or known or node.key:
            yield from below
        elif _are_several(free):
            yield from self._models_in([kid for kid in free if not _are_settings(kid)])
        elif is_bare(node, self.tree):
            yield Place(node.key, node.key)
        else:
            yield from self._models_in(free)

    def _models_in(self, free: Sequence[Node]) -> Iterator[Place]:
        """Models side by side, each by its own name, and numbers beside them."""
        named = [kid for kid in free if kid.trees() and is_bare(kid, self.tree)]
        models = [kid for kid in named if kid.name not in MOMENTS]
        alike = {kid.shapes for kid in models}
        models += [kid for kid in named if kid.name in MOMENTS and kid.shapes not in alike]
        models = [kid for kid in models if not is_gradients(kid.name)]
        return (Place(kid.key, kid.key) for kid in models if not is_copys(kid.key))

    def _by_item(self, item: Node, claimed: set[Key], known: Sequence[Place]) -> Iterator[Place]:
        """The parameters in one item of a step, which may be all of it."""
        if item.key in claimed:
            return
        found = list(self.places(item, claimed, known))
        if not found and is_plausible(item) and is_bare(item, self.tree):
            found = [Place(item.key, item.key)]
        yield from found


def _are_several(kids: Sequence[Node]) -> bool:
    """True for models that are called parameters each, or stand beside settings, or copies."""
    trees = [kid for kid in kids if kid.trainable and kid.value() is None]
    are_called_so = all(tokens(kid.name) & {"params", "parameters"} for kid in trees)
    has_others = any(_are_settings(kid) or _is_twin(kid, trees) for kid in trees)
    return bool(trees) and (are_called_so or has_others)


def _is_twin(node: Node, kids: Sequence[Node]) -> bool:
    """True for a gradient or second copy of one of the models beside it, by shapes and names.

    A module may be called `target_embedder` as well, beside no `embedder`.
    """
    alike = [kid for kid in kids if kid is not node and kid.shapes == node.shapes]
    if is_gradients(node.name):
        return bool(alike)
    original = copied(node.name)
    is_named = any(tokens(kid.name) == original for kid in alike)
    return is_copys((node.name,)) and (is_named or (not original and bool(alike) and len(kids) < 3))


def _are_settings(node: Node) -> bool:
    """True for what has floats that are no parameters: the betas of a diffusion's schedule."""
    return bool(tokens(node.name) & _SETTINGS) and not has_named_weights(node)


_SETTINGS = {"scheduler", "schedule", "config", "settings", "hparams", "metrics", "tokenizer"}
"""What subtrees are called that hold the settings of models beside them."""


def _has_step(node: Node) -> bool:
    """True where a number of steps stands, which the parameters beside it have done."""
    steps = (node.kids[name].value() for name in STEPS if name in node.kids)
    return any(is_integer(step) for step in steps)


def core_of(node: Node) -> Node:
    """Where the weights stand below something that is called `params`: below `params/params`."""
    below = node.kids.get(LEVEL)
    if below is None or not below.trainable or below.value() or _has_modules_beside(node, below):
        return node
    return below.core()


def _has_modules_beside(node: Node, level: Node) -> bool:
    """True when what stands beside a level `params` are modules, which have names of their own."""
    others = [kid for name, kid in node.kids.items() if kid is not level and kid.trainable]
    own = level.kids.keys()
    return bool(others) and all(
        kid.name not in COLLECTIONS and own.isdisjoint(kid.kids) and has_named_weights(kid)
        for kid in others
    )


def _in_turn(node: Node, first: Node, *others: Node) -> Place:
    """The parameters of a sequence, and the other variables of the model that follow them."""
    keys = tuple(kid.key for kid in others)
    is_haikus = any("/" in str(name) for kid in (first, *others) for name in kid.kids)
    if is_haikus:
        return Place(node.key, first.key, variables=keys)
    return Place(node.key, first.key, rest=keys)


def rest_of(node: Node, tree: Tree) -> list[Node] | None:
    """The elements of a sequence that are one model: `nnx.split` takes it apart by type so."""
    if not node.kids or not all(isinstance(name, int) for name in node.kids):
        return None
    first, *others = node.kids.values()
    if not others or not first.trees() or not is_plausible(first):
        return None
    if any(kid.leaf is not None or not kid.kids or has_named_weights(kid) for kid in others):
        return None
    are_one = all(is_rng_tree(kid, tree) or is_in_modules(kid, first, tree) for kid in others)
    return [first, *others] if are_one else None
