"""Parameters that stand beside their optimizer, module by module, with no level of their own.

```
encoder/...       decoder/...        opt_state/0/mu/{encoder,decoder}/...
actor_params/...  critic_params/...  opt_state/0/mu/{actor,critic}/...      or {0,1}
```

They are read as if they stood under `params`, and stay where they are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nnxconv.layouts.finding import Found
from nnxconv.layouts.kinds import holds
from nnxconv.layouts.located import Located, Survey
from nnxconv.layouts.optimizers import walk
from nnxconv.layouts.outline import Node
from nnxconv.layouts.placement import Placement
from nnxconv.layouts.vocabulary import UNMISTAKABLE, is_copys, tokens
from nnxconv.state import LEVEL, Tree
from nnxconv.tree import Key, is_digits

_Names = Mapping[str | int, str | int]
"""What stands in one place, and what the optimizer there calls it."""


@dataclass(frozen=True)
class Spread:
    """A tree whose parameters have been put under `params`, in thought.

    Attributes:
      homes: where modules stand, and what the optimizer there calls them.
      tree: with them under `params`.
      real: for each of its keys, the key in the tree as it is.
    """

    homes: Mapping[Key, _Names]
    tree: Tree
    real: Mapping[Key, Key]

    def undone(self, survey: Survey, tree: Tree) -> Survey:
        """A survey of this tree as one of the tree as it is."""
        return survey.undone(tree, self.real, self._placement)

    def _placement(self, one: Located) -> Placement:
        placement, moves = one.placement, dict(one.placement.moves)
        for home, names in self.homes.items():
            level = (*home, LEVEL)
            target = placement.inward(level)
            if target is None:
                continue
            moves.pop(level, None)
            moves |= {(*home, real): (*target, name) for real, name in names.items()}
        return Placement(tuple(moves.items()), placement.apart)


def spread_parameters(tree: Tree, found: Found) -> Spread | None:
    """The tree with parameters under `params` that stand beside their optimizers; None for none."""
    sure = (place for place in found.places if not is_copys(place.params))
    used = {key for place in sure for key in place.optimizers}
    homes: dict[Key, _Names] = {}
    for top in found.tops:
        if top.key not in used and (home := _home(top, found.root)) is not None:
            homes[home[0].key] = {**homes.get(home[0].key, {}), **home[1]}
    if not homes:
        return None
    real = {_under_level(key, homes): key for key in tree}
    if len(real) != len(tree):
        return None
    return Spread(homes, {new: tree[old] for new, old in real.items()}, real)


def _home(top: Node, root: Node) -> tuple[Node, _Names] | None:
    """What stands around an optimizer and has all modules of its moments, and their names."""
    for moments in _moments(top):
        core = moments.core()
        wanted = {str(name) for name, kid in core.kids.items() if kid.trainable}
        for size in range(len(top.key) - 1, -1, -1):
            node = root.at(top.key[:size])
            names = tuple(name for name in node.kids if str(name) in wanted)
            are_trees = all(node.kids[name].value() is None for name in names)
            if names and are_trees and LEVEL not in node.kids and holds(node, core, alike=True):
                return node, {name: name for name in names}
            others = _by_other_names(node, core, top)
            if others:
                return node, others
    return None


def _by_other_names(node: Node, core: Node, top: Node) -> _Names:
    """What stands around an optimizer that calls it otherwise: `actor_params`, of which it is
    `actor`, or the first one of several; nothing where not each has one of its own.
    """
    wanted = [kid for kid in core.kids.values() if kid.trainable]
    free = [
        kid
        for kid in node.trees()
        if kid.trainable and top.key[: len(kid.key)] != kid.key and not is_copys((kid.name,))
    ]
    if len(wanted) < 2 or any(kid.value() is not None for kid in wanted):
        return {}
    found: dict[str | int, str | int] = {}
    for kid in wanted:
        alike = [one for one in free if one.core().shapes == kid.core().shapes]
        called = [one for one in alike if tokens(kid.name) < tokens(one.name)]
        mine = called if called or not is_digits(kid.name) else alike
        mine = [one for one in mine if one.key[-1] not in found]
        if len(mine) != 1:
            return {}
        found[mine[0].key[-1]] = kid.key[-1]
    return found


def _moments(top: Node) -> Iterator[Node]:
    """The trees of an optimizer's state that nothing but moments is called like."""
    return (node for node in walk(top) if node.name in UNMISTAKABLE and node.trainable)


def _under_level(key: Key, homes: Mapping[Key, _Names]) -> Key:
    for home, names in homes.items():
        size = len(home)
        if key[:size] == home and key[size : size + 1] and key[size] in names:
            return (*home, LEVEL, names[key[size]], *key[size + 1 :])
    return key
