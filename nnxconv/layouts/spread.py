"""Parameters that stand beside their optimizer, module by module, with no level of their own.

```
encoder/...  decoder/...  opt_state/0/mu/{encoder,decoder}/...
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
from nnxconv.layouts.vocabulary import UNMISTAKABLE, is_copys
from nnxconv.state import LEVEL, Tree
from nnxconv.tree import Key


@dataclass(frozen=True)
class Spread:
    """A tree whose parameters have been put under `params`, in thought.

    Attributes:
      homes: where modules stand, and what the optimizer there calls them.
      tree: with them under `params`.
      real: for each of its keys, the key in the tree as it is.
    """

    homes: Mapping[Key, tuple[str | int, ...]]
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
            moves |= {(*home, name): (*target, name) for name in names}
        return Placement(tuple(moves.items()), placement.apart)


def spread_parameters(tree: Tree, found: Found) -> Spread | None:
    """The tree with parameters under `params` that stand beside their optimizers; None for none."""
    sure = (place for place in found.places if not is_copys(place.params))
    used = {key for place in sure for key in place.optimizers}
    homes: dict[Key, tuple[str | int, ...]] = {}
    for top in found.tops:
        if top.key not in used and (home := _home(top, found.root)) is not None:
            names = (*homes.get(home[0].key, ()), *home[1])
            homes[home[0].key] = tuple(dict.fromkeys(names))
    if not homes:
        return None
    real = {_under_level(key, homes): key for key in tree}
    return Spread(homes, {new: tree[old] for new, old in real.items()}, real)


def _home(top: Node, root: Node) -> tuple[Node, tuple[str | int, ...]] | None:
    """What stands around an optimizer and has all modules of its moments, and their names."""
    for moments in _moments(top):
        core = moments.core()
        wanted = {str(name) for name, kid in core.kids.items() if kid.trainable}
        for size in range(len(top.key) - 1, -1, -1):
            node = root.at(top.key[:size])
            names = tuple(name for name in node.kids if str(name) in wanted)
            are_trees = all(node.kids[name].value() is None for name in names)
            if names and are_trees and LEVEL not in node.kids and holds(node, core, alike=True):
                return node, names
    return None


def _moments(top: Node) -> Iterator[Node]:
    """The trees of an optimizer's state that nothing but moments is called like."""
    return (node for node in walk(top) if node.name in UNMISTAKABLE and node.trainable)


def _under_level(key: Key, homes: Mapping[Key, tuple[str | int, ...]]) -> Key:
    for home, names in homes.items():
        size = len(home)
        if key[:size] == home and key[size : size + 1] and key[size] in names:
            return (*home, LEVEL, *key[size:])
    return key
