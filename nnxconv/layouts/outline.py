"""A tree as nodes that know what is below them, so that trees of the same structure are found.

Two subtrees have the same `paths` when what could be parameters in them has the same paths, and the
same `shapes` when it has the same shapes as well. Levels called `params`, wrappers called `value`,
and what is never trained do not count, so that a model, its moments and its average are alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nnxconv.layouts.parts import WRAPPER, collection_of
from nnxconv.state import LEVEL, Tree
from nnxconv.tree import Key, Leaf, Literal, Source, dtype_of, is_digits, short_dtype

_TRANSPARENT = (LEVEL, WRAPPER)
_NOTHING = 0
_LEAF = 1


@dataclass(eq=False, slots=True)  # one for each leaf: frozen ones take three times as long to make
class Node:
    """A subtree, which nothing changes once it is made.

    Attributes:
      key: where it stands.
      kids: what stands below it, by name; empty for a leaf.
      leaf: what stands there, of a leaf.
      trainable: how many leaves below it, or itself, could be parameters.
      paths: the same number for all nodes whose possible parameters have the same paths.
      shapes: the same where also their shapes are equal.
    """

    key: Key
    kids: "dict[str | int, Node]" = field(default_factory=dict)
    leaf: Leaf | None = None
    trainable: int = 0
    paths: int = _NOTHING
    shapes: int = _NOTHING

    @property
    def name(self) -> str:
        """The last part of its key, as text."""
        return str(self.key[-1]) if self.key else ""

    @property
    def is_sequence(self) -> bool:
        """True for a sequence, and for a mapping that is keyed by digits as one."""
        return bool(self.kids) and all(isinstance(k, int) or is_digits(k) for k in self.kids)

    def value(self) -> Leaf | None:
        """The leaf that it is, wrapped or not; None for a subtree."""
        if self.leaf is None and self.kids.keys() == {WRAPPER}:
            return self.kids[WRAPPER].leaf
        return self.leaf

    def trees(self) -> "list[Node]":
        """The subtrees directly below it."""
        return [kid for kid in self.kids.values() if kid.value() is None]

    def leaves(self) -> "Iterator[Node]":
        """Every leaf in it."""
        if self.leaf is not None:
            yield self
        for kid in self.kids.values():
            yield from kid.leaves()

    def at(self, key: Key) -> "Node":
        """The node at a key, which begins with this one's."""
        node = self
        for part in key[len(self.key) :]:
            node = node.kids[part]
        return node

    def core(self) -> "Node":
        """Where its possible parameters stand: below levels called `params`."""
        node = self
        while [k.name for k in node.kids.values() if k.trainable] == [LEVEL]:
            node = node.kids[LEVEL]
        return node


def is_floating(leaf: Leaf | None) -> bool:
    """True for an array of floats, of whatever width."""
    if leaf is None or isinstance(leaf, Literal):
        return False
    return short_dtype(dtype_of(leaf)).startswith(("f", "bf")) and not is_number(leaf)


def is_number(leaf: Leaf | None) -> bool:
    """True for a Python number."""
    return isinstance(leaf, Source) and leaf.kind == "scalar"


def is_integer(leaf: Leaf | None) -> bool:
    """True for an array or number of integers that is no PRNG key."""
    if leaf is None or isinstance(leaf, Literal):
        return False
    return short_dtype(dtype_of(leaf)).startswith(("i", "u")) and not (
        isinstance(leaf, Source) and leaf.prng_impl
    )


def outline(tree: Tree) -> Node:
    """The root of a tree's nodes."""
    nested: dict[str | int, Any] = {}
    for key, leaf in tree.items():
        inner = nested
        for part in key[:-1]:
            inner = inner.setdefault(part, {})
        if key:
            inner[key[-1]] = leaf
    if () in tree:
        return _leaf((), tree[()])
    known: dict[object, int] = {}
    return _node((), nested, known)


def _node(key: Key, found: Any, known: dict[object, int]) -> Node:
    if not isinstance(found, dict):
        return _leaf(key, found, known)
    kids = {name: _node((*key, name), inner, known) for name, inner in found.items()}
    trained = sorted((str(n), kid.paths, kid.shapes) for n, kid in kids.items() if kid.trainable)
    count = sum(kid.trainable for kid in kids.values())
    if not trained:
        return Node(key, kids)
    if len(trained) == 1 and trained[0][0] in _TRANSPARENT:
        return Node(key, kids, None, count, *trained[0][1:])
    paths = known.setdefault(("paths", *((n, p) for n, p, _ in trained)), len(known) + 2)
    shapes = known.setdefault(("shapes", *((n, s) for n, _, s in trained)), len(known) + 2)
    return Node(key, kids, None, count, paths, shapes)


def _leaf(key: Key, leaf: Leaf, known: dict[object, int] | None = None) -> Node:
    name = next((part for part in reversed(key) if part != WRAPPER), None)
    is_named = name is not None and collection_of(name) is not None
    if is_named or isinstance(leaf, Literal) or not is_floating(leaf):
        return Node(key, {}, leaf)
    shape = (known if known is not None else {}).setdefault(leaf.shape, len(known or ()) + 2)
    return Node(key, {}, leaf, 1, _LEAF, shape)
