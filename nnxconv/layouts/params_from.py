"""A second copy of the parameters in their place: `--params_from`."""

from collections.abc import Iterable

from nnxconv.errors import BadInput
from nnxconv.layouts.located import Located, Survey
from nnxconv.layouts.stored_arrays import names_of, stored_names
from nnxconv.layouts.subset import Subset
from nnxconv.tree import Key, Leaf, Literal, in_order, spell


def with_params_from(part: Subset, survey: Survey, key: str) -> Subset:
    """The part with a second copy of the parameters in their place.

    Raises:
      BadInput: there is no such copy, or it has other paths and shapes.
    """
    copies = {spell(copy.at): copy for copy in survey.copies}
    if key not in copies:
        raise BadInput(
            f"there is no second copy of the parameters at `{key}`",
            details=list(copies),
            hint="`nnxconv inspect PATH` names the copies",
        )
    copy = copies[key]
    [own] = [one for one in survey.states if one.at == copy.copy_of]
    ours, theirs = _params(own), _params(copy)
    unlike = [
        spell(path)
        for path in in_order(ours.keys() | theirs.keys())
        if path not in ours
        or path not in theirs
        or _shape(ours[path][1]) != _shape(theirs[path][1])
    ]
    if unlike:
        raise BadInput(f"`{key}` is not a copy of all parameters", details=unlike)
    tree = dict(part.tree)
    stored = dict(part.stored)
    left_out = dict(part.left_out)
    for old in copy.stored.values():
        del tree[old]
        left_out[stored.pop(old)] = f"--params_from {key}"
    for path, (place, _) in ours.items():
        source, leaf = theirs[path]
        tree[place] = leaf
        left_out[part.stored[place]] = f"--params_from {key}"
        left_out.pop(part.stored[source], None)
        stored[place] = part.stored[source]
    return Subset(tree, stored, left_out)


def _params(located: Located) -> dict[Key, tuple[Key, Leaf]]:
    """The parameters as they are stored, with their keys in the tree, by path."""
    understood = located.understood
    names = stored_names(located)
    return {
        path: (names[next(iter(names_of(leaf)))], leaf)
        for path, leaf in understood.as_stored.params.items()
        if not isinstance(leaf, Literal)
    }


def _shape(leaf: Leaf) -> Iterable[int]:
    return () if isinstance(leaf, Literal) else leaf.shape
