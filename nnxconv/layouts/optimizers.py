"""Optimizer states in any tree, found by what they hold: counts, and trees that repeat others."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nnxconv.layouts.outline import Node, is_floating, is_integer, is_number
from nnxconv.layouts.parts import WRAPPER
from nnxconv.layouts.vocabulary import (
    COUNTS,
    INNER,
    MOMENTS,
    PARAMETERS,
    UNMISTAKABLE,
    is_copys,
    is_optimizers,
)
from nnxconv.tree import Key, Literal, is_digits

Repeats = Mapping[int, list[Node]]
"""The subtrees of each structure, by `Node.paths`; those of single leaves left aside."""


@dataclass(frozen=True)
class Tops:
    """The optimizer states of a tree.

    Attributes:
      nodes: the outermost node of each, in the tree's order.
      elements: the nodes that hold moments, by their keys.
    """

    nodes: tuple[Node, ...]
    elements: Mapping[Key, Node]


def repeats_in(root: Node) -> Repeats:
    """Which subtrees are alike."""
    found: dict[int, list[Node]] = defaultdict(list)
    for node in walk(root):
        trees = node.trees()
        if node.trainable and node.value() is None and node.paths not in {t.paths for t in trees}:
            found[node.paths].append(node)
    return found


def walk(node: Node) -> Iterator[Node]:
    """The node and all subtrees below it, from the top."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [kid for kid in reversed(node.kids.values()) if kid.leaf is None]


def find_optimizers(root: Node, repeats: Repeats) -> Tops:
    """The optimizer states of a tree."""
    everywhere = list(walk(root))
    parents = {kid.key: node for node in everywhere for kid in node.kids.values()}
    elements = {node.key: node for node in _elements(root, repeats, is_one_of_many=False)}
    named = [node for node in everywhere if _is_named_so(node)]
    tops: dict[Key, Node] = {}
    inside = {key[:size] for key in elements for size in range(len(key) + 1)}
    for node in [*elements.values(), *named]:
        for top in _each_of(_top(node, parents, inside)):
            tops[top.key] = top
    outermost = [
        node
        for key, node in sorted(tops.items(), key=lambda pair: len(pair[0]))
        if not any(key[:size] in tops for size in range(len(key)))
    ]
    order = {node.key: place for place, node in enumerate(everywhere)}
    return Tops(tuple(sorted(outermost, key=lambda node: order[node.key])), elements)


def _elements(node: Node, repeats: Repeats, *, is_one_of_many: bool) -> Iterator[Node]:
    """The outermost nodes that hold moments: each an element of a chain, such as Adam's state.

    In a list of layers many are alike; the elements of a chain differ.
    """
    if _is_element(node, repeats, is_one_of_many=is_one_of_many):
        yield node
        return
    many = Counter(kid.paths for kid in node.kids.values()) if node.is_sequence else Counter[int]()
    for kid in node.kids.values():
        if kid.trainable and kid.leaf is None:
            yield from _elements(kid, repeats, is_one_of_many=many[kid.paths] > 1)


def _is_element(node: Node, repeats: Repeats, *, is_one_of_many: bool) -> bool:
    trees = [kid for kid in node.trees() if kid.trainable]
    names = {kid.name for kid in trees}
    if not trees or node.is_sequence:
        return False
    if names & {*PARAMETERS, *INNER} and not names & UNMISTAKABLE:
        return False
    if any(is_optimizers(kid.name) for kid in trees):
        return False
    if names >= _OF_KFAC:
        return True
    is_counted = any(is_integer(kid.value()) for n, kid in node.kids.items() if n in COUNTS)
    others = [kid for kid in node.kids.values() if kid.value() is not None]
    is_placed = _is_placed(node.key)
    if names == {"ema"} and not is_placed:
        return False  # an average of the parameters, as `optax.ema` keeps it
    if is_counted and names <= MOMENTS:
        return True
    if is_placed and names <= MOMENTS and names & UNMISTAKABLE:
        return _are_alike(trees) or _are_unexplained(trees, node, repeats)
    if is_one_of_many or not _are_unexplained(trees, node, repeats):
        return False
    if is_placed and not is_counted and not _is_called(node.key) and not names & MOMENTS:
        is_placed = False  # blocks of layers are numbered as the elements of a chain are
    if is_counted or is_placed:
        return not any(is_floating(other.value()) for other in others)
    return len(trees) > 1 and _repeat_parameters(trees, others, node, repeats)


_OF_KFAC = {"velocities", "estimator_state"}
"""What the state of K-FAC holds: trees of the parameters' shapes, and factors of its own."""


def _is_placed(key: Key) -> bool:
    """True where optimizer states stand: in a chain, or under a name that says so."""
    if _is_called(key):
        return True
    is_number = bool(key) and (isinstance(key[-1], int) or is_digits(key[-1]))
    return is_number and not any(part in PARAMETERS for part in key)


def _is_called(key: Key) -> bool:
    """True under a name that says so, and not within what is called parameters there."""
    for part in reversed(key):
        if part in PARAMETERS:
            return False
        if is_optimizers(str(part)) or part in INNER:
            return True
    return False


def _are_alike(trees: list[Node]) -> bool:
    return len(trees) > 1 and len({kid.paths for kid in trees}) == 1


def _are_unexplained(trees: list[Node], node: Node, repeats: Repeats) -> bool:
    """True when each tree is repeated more often than the node that it stands in.

    Layers of a model stand in its moments as often as the whole model is repeated there; moments
    are repeated by the parameters besides.
    """
    times = len(repeats.get(node.paths, ())) or 1
    inside = Counter(kid.paths for kid in trees)
    return all(len(repeats.get(paths, ())) > times * count for paths, count in inside.items())


_ENOUGH = 64
"""Of all subtrees alike, how many are looked at."""


def _repeat_parameters(trees: list[Node], others: list[Node], node: Node, repeats: Repeats) -> bool:
    """True when all trees repeat, paths and shapes, what is called parameters elsewhere."""
    if others and not all(is_integer(o.value()) or _is_nothing(o) for o in others):
        return False
    if any(is_copys((kid.name,)) for kid in trees) or is_copys(node.key):
        return False
    if node.name in PARAMETERS:
        return False
    size = len(node.key)
    return all(
        any(
            twin.name in PARAMETERS
            and twin.shapes == kid.shapes
            and twin.key[:size] != node.key
            and UNMISTAKABLE.isdisjoint(twin.key)
            for twin in repeats.get(kid.paths, ())[:_ENOUGH]
        )
        for kid in trees
    )


def _is_nothing(node: Node) -> bool:
    return isinstance(node.leaf, Literal)


def _is_named_so(node: Node) -> bool:
    """True for a subtree that is called an optimizer's and holds no parameters or settings.

    The state of plain SGD has a count at most, and a schedule's hyperparameters are numbers.
    """
    if not node.key or not is_optimizers(node.name) or node.leaf is not None:
        return False
    kids = set(map(str, node.kids))
    if kids & {*PARAMETERS, "target"}:
        return False
    if node.kids and all(map(_is_bare_count, node.kids.values())):
        return True
    if is_counting(node) and is_integer(node.kids["step"].value()):
        return WRAPPER in node.kids["step"].kids or not is_number(node.kids["step"].leaf)
    leaves = list(node.leaves())
    if any(isinstance(leaf.leaf, Literal) and leaf.leaf.kind == "string" for leaf in leaves):
        return False
    if all(is_number(leaf.leaf) for leaf in leaves):
        return False
    return any(
        part in COUNTS or part == "step" or isinstance(part, int) or is_digits(part)
        for leaf in leaves
        for part in leaf.key[len(node.key) :]
    )


def _top(node: Node, parents: Mapping[Key, Node], inside: set[Key]) -> Node:
    """The outermost node of an optimizer's state that a node belongs to."""
    while node.key:
        parent = parents[node.key]
        is_chain = parent.is_sequence and bool(parent.key or not _has_strangers(parent, inside))
        leads_on = (
            is_chain
            or (bool(parent.key) and (is_optimizers(parent.name) or parent.name in INNER))
            or node.name in INNER
            or is_whole(parent)
        )
        if not leads_on or _has_strangers(parent, inside):
            break
        node = parent
    return node


def _each_of(node: Node) -> list[Node]:
    """The states of several instances of `nnx.Optimizer`, which stand together; or one state."""
    kids = list(node.kids.values())
    are_apart = kids and (all(map(is_whole, kids)) or all(map(_is_bare_count, kids)))
    return kids if are_apart else [node]


def _is_bare_count(node: Node) -> bool:
    """True for the state of an `nnx.Optimizer` of plain SGD: a `step`, and nothing else."""
    return set(node.kids) == {"step"} and is_integer(node.kids["step"].value())


def is_whole(node: Node) -> bool:
    """True for the state of an `nnx.Optimizer`: `opt_state` and `step`, and nothing else."""
    return set(node.kids) == {"opt_state", "step"}


def is_counting(node: Node) -> bool:
    """True for the state of an `nnx.Optimizer`, which keeps a `step`, and maybe nothing else."""
    return is_whole(node) or set(node.kids) == {"step"}


def _has_strangers(node: Node, inside: set[Key]) -> bool:
    """True when a subtree that is no optimizer's has what could be parameters."""
    return any(
        kid.trainable and kid.key not in inside and kid.name not in MOMENTS and _has_axes(kid)
        for kid in node.trees()
    )


def _has_axes(node: Node) -> bool:
    """True for more than numbers such as a schedule's hyperparameters."""
    return any(
        leaf.trainable and not isinstance(leaf.leaf, Literal) and leaf.leaf and leaf.leaf.shape
        for leaf in node.leaves()
    )
