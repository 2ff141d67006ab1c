"""A part of a tree, before it is known what it means."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nnxconv.state import Tree
from nnxconv.tree import Key


@dataclass(frozen=True)
class Subset:
    """A part of a tree.

    Attributes:
      tree: the part.
      stored: for each of its keys, the key of the whole tree.
      left_out: keys of the whole tree that are not in it, with the reason.
    """

    tree: Tree
    stored: Mapping[Key, Key]
    left_out: Mapping[Key, str] = field(default_factory=dict)

    def without(self, gone: Mapping[Key, str]) -> "Subset":
        """The part without these of its keys, each with the reason."""
        left = {key: leaf for key, leaf in self.tree.items() if key not in gone}
        stored = {key: old for key, old in self.stored.items() if key not in gone}
        told = {self.stored[key]: reason for key, reason in gone.items()}
        return Subset(left, stored, {**self.left_out, **told})
