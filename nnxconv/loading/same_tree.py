"""A tree that is the checkpoint's own, leaf by leaf: it is filled without understanding it."""

import re
from collections.abc import Mapping
from typing import Any

from nnxconv.loading.template import Template
from nnxconv.state import Tree, is_stored
from nnxconv.tree import (
    Key,
    Literal,
    View,
    dtype_of,
    first_source,
    is_digits,
    notation,
    prng_impl_of,
)


def same_leaves(template: Template, tree: Tree) -> dict[Key, Key] | None:
    """For each key of `like`, the stored key of the same leaf; None where the trees differ.

    Orbax spells an int that is a key of a mapping as text, and a tuple as a list.
    """
    stored = {_plain(key): key for key, leaf in tree.items() if is_stored(leaf)}
    wanted = {
        _plain(key): key for key, leaf in template.leaves.items() if _is_filled(key, template)
    }
    if stored.keys() != wanted.keys() or not stored:
        return None
    pairs = {wanted[plain]: old for plain, old in stored.items()}
    return pairs if all(_is_alike(template, new, tree, old) for new, old in pairs.items()) else None


def texts(template: Template, tree: Tree, pairs: Mapping[Key, Key]) -> dict[Key, Any]:
    """The values of leaves that are no arrays, by key of `like`."""
    return {
        new: leaf.value
        for new, old in pairs.items()
        if isinstance(leaf := tree[old], Literal) and new in template.leaves
    }


def views(tree: Tree, pairs: Mapping[Key, Key]) -> dict[Key, View]:
    """The arrays by key of `like`."""
    return {new: leaf for new, old in pairs.items() if not isinstance(leaf := tree[old], Literal)}


def _plain(key: Key) -> tuple[str, ...]:
    return tuple(str(part) if isinstance(part, int) or is_digits(part) else part for part in key)


def _is_filled(key: Key, template: Template) -> bool:
    leaf = template.tree.get(key)
    return leaf is None or is_stored(leaf)


def _is_alike(template: Template, new: Key, tree: Tree, old: Key) -> bool:
    stored, wanted = tree[old], template.tree.get(new)
    if isinstance(stored, Literal):
        return isinstance(template.leaves[new], str) and stored.kind == "string"
    if wanted is None or isinstance(wanted, Literal):
        return False
    kinds = {first_source(stored).kind, first_source(wanted).kind}
    is_number = len(kinds) == 2 and stored.shape == wanted.shape == ()
    alike = is_number or are_alike(stored, wanted)
    return alike and prng_impl_of(stored) == prng_impl_of(wanted)


def are_alike(stored: View, wanted: View) -> bool:
    """True for one shape and type, and for two numbers of one kind: Python's have one width."""
    if notation(stored) == notation(wanted):
        return True
    kinds = {first_source(stored).kind, first_source(wanted).kind}
    types = {_WIDTH.sub("", dtype_of(view)) for view in (stored, wanted)}
    return kinds == {"scalar"} and len(types) == 1


_WIDTH = re.compile("^u(?=int)|[0-9]+$")
"""What differs between the names of types of one kind: `uint32`, `int64`."""
