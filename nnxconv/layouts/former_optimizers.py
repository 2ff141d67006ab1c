"""Training states with an optimizer of `flax.optim`, which flax had until 2022.

```
optimizer/target/<path>                     the parameters
optimizer/state/step
optimizer/state/param_states/<path>/grad_ema, grad_sq_ema, momentum, ...
```

They are read as if they stood as a `TrainState` does, and stay where they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from nnxconv.layouts.finding import Found
from nnxconv.layouts.located import Located, Survey
from nnxconv.layouts.optimizers import walk
from nnxconv.layouts.outline import Node
from nnxconv.layouts.placement import Placement
from nnxconv.layouts.vocabulary import is_optimizers
from nnxconv.state import Role, Tree
from nnxconv.tree import Key, Literal

_TARGET, _STATE, _STATES = "target", "state", "param_states"


@dataclass(frozen=True)
class Rearranged:
    """A tree whose former optimizers have been arranged as a `TrainState` is, in thought.

    Attributes:
      tree: with parameters under `params`, moments under `opt_state`.
      real: for each of its keys, the key in the tree as it is.
      levels: for each subtree of parameters, by its key in thought, the key as it is.
      counts: keys of optimizers' steps, as they are.
    """

    tree: Tree
    real: Mapping[Key, Key]
    levels: Mapping[Key, Key]
    counts: frozenset[Key]

    def undone(self, survey: Survey, tree: Tree) -> Survey:
        """A survey of this tree as one of the tree as it is."""
        undone = survey.undone(tree, self.real, self._placement)
        counts: dict[Key, Role] = dict.fromkeys(self.counts, "step")
        return replace(undone, roles={**undone.roles, **counts})

    def _placement(self, one: Located) -> Placement:
        """The parameters as one subtree, and each array of the optimizer by itself."""
        placement = one.placement
        moves = {self.levels.get(old, old): new for old, new in placement.moves}
        for level, real in self.levels.items():
            target = placement.inward(level)
            if target is not None:
                moves[real] = target
        found = Placement(tuple(moves.items()), placement.apart)
        apart = {real: key for key, real in one.stored.items() if found.inward(real) != key}
        return replace(found, moves=tuple((moves | apart).items()))


def rearranged(tree: Tree, found: Found) -> Rearranged | None:
    """The tree with former optimizers arranged as a `TrainState` is; None where it has none."""
    tops = [node for node in walk(found.root) if _is_former(node)]
    if not tops:
        return None
    real = {new: key for key in tree for new in [_in_thought(key, tree, tops, found.root)]}
    if len(real) != len(tree):
        return None
    return Rearranged(
        {new: tree[old] for new, old in real.items()},
        real,
        {(*_home(top, found.root), "params"): (*top.key, _TARGET) for top in tops},
        frozenset((*top.key, _STATE, "step") for top in tops),
    )


def _is_former(node: Node) -> bool:
    """True for what `flax.optim.Optimizer` was saved as."""
    if not {_TARGET, _STATE} <= set(node.kids):
        return False
    target, state = node.kids[_TARGET], node.kids[_STATE]
    return bool(target.trainable) and target.leaf is None and set(state.kids) == {"step", _STATES}


def _home(top: Node, root: Node) -> Key:
    """Where the state stands that has an optimizer: around what is called one."""
    if not top.key or not is_optimizers(top.name):
        return top.key
    around = root.at(top.key[:-1])
    return top.key if {"params", "opt_state"} & set(around.kids) else around.key


def _in_thought(key: Key, tree: Tree, tops: Sequence[Node], root: Node) -> Key:
    """The key that a leaf of a former optimizer has in a `TrainState`; any other as it is."""
    for top in tops:
        size = len(top.key)
        if key[:size] != top.key or key[size] not in (_TARGET, _STATE):
            continue
        return (*_home(top, root), *_of_state(key[size:], tree[key], _has_step(top, root)))
    return key


def _has_step(top: Node, root: Node) -> bool:
    home = root.at(_home(top, root))
    return "step" in home.kids


def _of_state(path: Key, leaf: object, has_step: bool) -> Iterator[str | int]:
    """A path below a former optimizer, as a `TrainState` has it."""
    match path:
        case (name, *rest) if name == _TARGET:
            yield from ("params", *rest)
        case (_, "step"):
            yield from ("opt_state", "count") if has_step else ("step",)
        case (_, _, *parts, name) if parts and not isinstance(leaf, Literal):
            yield from ("opt_state", name, *parts)
        case _:
            yield from ("opt_state", *path[1:])
