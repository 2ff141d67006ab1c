"""The canonical state: one tree of views that every layout decodes to and is encoded from.

Keys inside each part are bare module paths: no `params` level, no `value` wrappers, and in
`opt_state` an int for every element of a chain, whichever container the layout uses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from nnxconv.tree import Key, Leaf, View

Tree: TypeAlias = Mapping[Key, Leaf]

RNGS = "rngs"
BATCH_STATS = "batch_stats"


@dataclass(frozen=True)
class TrainState:
    """What a training run saved.

    Attributes:
      params: the trainable arrays, by module path.
      opt_state: the optimizer's state; None when the checkpoint holds parameters only.
      step: the number of steps done, a scalar; None when the checkpoint does not say.
      aux: every other variable, its key starting with the name of its collection
        (`rngs`, `batch_stats`, ...).
    """

    params: Tree
    opt_state: Tree | None = None
    step: View | None = None
    aux: Tree = field(default_factory=dict)

    def leaves(self) -> dict[Key, Leaf]:
        """Every leaf under its canonical key, for example `opt_state[0].mu.decoder...`."""
        parts = {"params": self.params, "opt_state": self.opt_state or {}, "aux": self.aux}
        found: dict[Key, Leaf] = {
            (part, *key): leaf for part, tree in parts.items() for key, leaf in tree.items()
        }
        if self.step is not None:
            found[("step",)] = self.step
        return found

    def with_aux(self, aux: Tree) -> "TrainState":
        """The same state with other non-parameters."""
        return replace(self, aux=aux)


def below(tree: Tree, prefix: Key) -> dict[Key, Leaf]:
    """The part of a tree under `prefix`, with the prefix taken off its keys."""
    size = len(prefix)
    return {key[size:]: leaf for key, leaf in tree.items() if key[:size] == prefix}


def under(prefix: Key, tree: Tree) -> dict[Key, Leaf]:
    """The tree moved under `prefix`.

    >>> under(("model",), {("w",): 1})
    {('model', 'w'): 1}
    """
    return {(*prefix, *key): leaf for key, leaf in tree.items()}


def children(tree: Tree, prefix: Key = ()) -> list[str | int]:
    """The distinct names directly under `prefix`, in order of appearance."""
    if not prefix:
        return list({key[0]: None for key in tree if key})
    size = len(prefix)
    return list({key[size]: None for key in tree if key[:size] == prefix and len(key) > size})
