"""Bring a tree to the conventions of another one that the target program wrote."""

from nnxconv.errors import Mismatch
from nnxconv.state import Tree
from nnxconv.tree import (
    Key,
    Leaf,
    Literal,
    View,
    cast,
    dtype_of,
    first_source,
    in_order,
    may_be_renamed,
    notation,
    short_dtype,
    spell,
    with_kind,
)

OTHER_NAMES = "where names alone differ, `nnxconv match SRC TEMPLATE` proposes rules for `--rename`"


def conform(tree: Tree, like: Tree) -> dict[Key, Leaf]:
    """The tree with the element types of `like`; everything else must be equal already.

    Only floats are cast to floats, and integers to integers.

    Raises:
      Mismatch: leaves are missing, unexpected, or of another shape or kind; all are listed.
    """
    problems: list[str] = []
    conformed: dict[Key, Leaf] = {}
    for key in in_order(tree.keys() | like.keys()):
        if key not in tree:
            problems.append(f"{spell(key)}  {notation(like[key])}  only in `--like`")
        elif key not in like:
            problems.append(f"{spell(key)}  {notation(tree[key])}  not in `--like`")
        else:
            conformed[key] = leaf = _cast_to(tree[key], like[key])
            if not _is_alike(leaf, like[key]):
                told = f"{notation(leaf)}, but {notation(like[key])} in `--like`"
                problems.append(f"{spell(key)}  {told}")
    if problems:
        count = len(problems)
        raise Mismatch(
            f"{count:,} {'leaf does' if count == 1 else 'leaves do'} not match `--like`",
            details=problems,
            hint=OTHER_NAMES if _is_renamed(tree, like) else "",
        )
    return conformed


def refuse_stepless(step: View | None, like: View | None, layout: str) -> None:
    """Refuses a checkpoint that does not count its steps where one is to be followed that does.

    Raises:
      Mismatch: the source has no step, and none is made up.
    """
    if step is None and like is not None:
        raise Mismatch(
            "the source has no step, and `--like` has one",
            details=[f"{first_source(like).name}  {notation(like)}  only in `--like`"],
            hint=f"`--to {layout}` without `--like` writes it without a step; with `--params_only`"
            " as well the parameters alone",
        )


def _is_renamed(tree: Tree, like: Tree) -> bool:
    return may_be_renamed(
        [tree[key] for key in tree.keys() - like.keys()],
        [like[key] for key in like.keys() - tree.keys()],
    )


def unlike(tree: Tree, like: Tree) -> list[str]:
    """How the keys and shapes of two trees differ, each side's type left aside.

    >>> from nnxconv.tree import Source
    >>> w = Source("w", (2,), "float32", (2,))
    >>> unlike({("a",): w}, {("b",): w})
    ['a  f32[2]  not in `--like`', 'b  f32[2]  only in `--like`']
    """
    problems = []
    for key in in_order(tree.keys() | like.keys()):
        if key not in tree:
            problems.append(f"{spell(key)}  {notation(like[key])}  only in `--like`")
        elif key not in like:
            problems.append(f"{spell(key)}  {notation(tree[key])}  not in `--like`")
        elif not _is_alike(_cast_to(tree[key], like[key]), like[key]):
            told = f"{notation(tree[key])}, but {notation(like[key])} in `--like`"
            problems.append(f"{spell(key)}  {told}")
    return problems


def _cast_to(leaf: Leaf, like: Leaf) -> Leaf:
    if isinstance(leaf, Literal) or isinstance(like, Literal):
        return leaf
    if leaf.shape == ():
        leaf = with_kind(leaf, first_source(like).kind)
    wanted = dtype_of(like)
    return cast(leaf, wanted) if _kind(dtype_of(leaf)) == _kind(wanted) else leaf


def _kind(dtype: str) -> str:
    """`f` for every float, `i` for every integer, else the type itself."""
    short = short_dtype(dtype)
    if short.startswith(("f", "bf")):
        return "f"
    return "i" if short.startswith(("i", "u")) else dtype


def _is_alike(leaf: Leaf, like: Leaf) -> bool:
    if isinstance(leaf, Literal) or isinstance(like, Literal):
        return isinstance(leaf, Literal) and isinstance(like, Literal) and leaf.kind == like.kind
    return notation(leaf) == notation(like)
