"""Which stored arrays leaves are made of, and where in the tree those stand."""

from nnxconv.layouts.located import Located
from nnxconv.tree import Key, Leaf, Literal, sources_of


def names_of(leaf: Leaf) -> set[tuple[str, str]]:
    """Stores and names of the stored arrays that a leaf is made of."""
    if isinstance(leaf, Literal):
        return set()
    return {(source.store, source.name) for source in sources_of(leaf)}


def stored_names(located: Located) -> dict[tuple[str, str], Key]:
    """For each stored array of a state, by store and name, the key in the tree."""
    return {
        name: located.stored[key]
        for key, leaf in located.understood.tree.items()
        for name in names_of(leaf)
    }
