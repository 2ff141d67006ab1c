"""Parts of a tree, as a user names them: a subtree, what to leave out, a copy, one replica."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nnxconv.errors import BadInput
from nnxconv.layouts.located import Located, Survey
from nnxconv.layouts.surveying import SurveyOptions, survey
from nnxconv.state import Tree
from nnxconv.tree import (
    Key,
    Leaf,
    Literal,
    View,
    counted,
    fits_no_key,
    in_order,
    matches,
    notation,
    slot,
    sources_of,
    spell,
)


@dataclass(frozen=True)
class Chosen:
    """A part of a tree.

    Attributes:
      survey: of the part.
      stored: for each of its keys, the key of the whole tree.
      left_out: keys of the whole tree that are not in it, with the reason.
    """

    survey: Survey
    stored: Mapping[Key, Key]
    left_out: Mapping[Key, str] = field(default_factory=dict)


def choose_part(
    tree: Tree,
    how: SurveyOptions,
    *,
    at: str | None = None,
    drop: Sequence[str] = (),
    params_from: str | None = None,
    replica: int | None = None,
) -> Chosen:
    """The part of a tree that is asked for.

    Raises:
      BadInput: a name or glob fits nothing, or the replicas are not what they should be.
    """
    chosen = Chosen(Survey(tree, ()), {key: key for key in tree})
    globs = list(drop)
    chosen = _at(chosen, at, how) if at else chosen
    if globs:
        chosen, globs = _without_stored(chosen, globs)
    if replica is not None:
        chosen = replace(chosen, survey=Survey(one_replica(chosen.survey.tree, replica), ()))
    chosen = replace(chosen, survey=survey(chosen.survey.tree, _how(how, at)))
    if globs:
        chosen = _without_canonical(chosen, globs, _how(how, at))
    if params_from is not None:
        chosen = _with_params_from(chosen, params_from, _how(how, at))
    return chosen


def _how(how: SurveyOptions, at: str | None) -> SurveyOptions:
    """How a part is read: what is recorded of the whole does not hold for it."""
    return replace(how, custom_metadata={}, items=()) if at else how


# --- a subtree -----------------------------------------------------------------------------------


def _at(chosen: Chosen, at: str, how: SurveyOptions) -> Chosen:
    """The subtree at a key; the whole state where one is said to stand there.

    Raises:
      BadInput: there is nothing, or a single leaf.
    """
    tree = chosen.survey.tree
    prefix = _prefix(tree, at)
    if prefix is None:
        states = [spell(one.at) for one in survey(tree, how).states if one.at]
        names = states or [spell((name,)) for name in dict.fromkeys(k[0] for k in tree if k)]
        raise BadInput(
            f"there is no subtree at `{at}`",
            details=names[:20],
            hint="`nnxconv inspect PATH --tree` lists the keys",
        )
    size = len(prefix)
    stored = {key[size:]: key for key in tree if key[:size] == prefix}
    if any(key[:size] != prefix for key in tree):
        whole = [one for one in survey(tree, how).states if one.at == prefix]
        odd = [k for one in whole for k in one.stored.values() if k[:size] != prefix]
        if odd:
            stored = {key: key for one in whole for key in one.stored.values()}
    part = {key: tree[old] for key, old in stored.items()}
    kept = set(stored.values())
    gone = {key: f"--at {at}" for key in tree if key not in kept}
    return Chosen(Survey(part, ()), stored, gone)


def _prefix(tree: Tree, at: str) -> Key | None:
    """The key of a subtree that is spelled so."""
    for key in tree:
        for size in range(1, len(key)):
            if spell(key[:size]) == at:
                return key[:size]
    return None


# --- what is left out ----------------------------------------------------------------------------


def _without_stored(chosen: Chosen, globs: Sequence[str]) -> tuple[Chosen, list[str]]:
    """The part without leaves whose keys, or what they stand in, a glob fits; and unused globs."""
    gone: dict[Key, str] = {}
    used: set[str] = set()
    for key in chosen.survey.tree:
        glob = _fitting(key, globs)
        if glob is not None:
            gone[key] = f"--drop {glob}"
            used.add(glob)
    return _dropped(chosen, gone), [glob for glob in globs if glob not in used]


def _fitting(key: Key, globs: Sequence[str]) -> str | None:
    names = [spell(key[:size]) for size in range(1, len(key) + 1)]
    return next((glob for glob in globs if any(matches(name, glob) for name in names)), None)


def _dropped(chosen: Chosen, gone: Mapping[Key, str]) -> Chosen:
    left = {key: leaf for key, leaf in chosen.survey.tree.items() if key not in gone}
    told = {chosen.stored[key]: reason for key, reason in gone.items()}
    stored = {key: old for key, old in chosen.stored.items() if key not in gone}
    return Chosen(Survey(left, ()), stored, {**chosen.left_out, **told})


def _without_canonical(chosen: Chosen, globs: Sequence[str], how: SurveyOptions) -> Chosen:
    """The part without leaves of its states whose canonical keys a glob fits.

    Raises:
      BadInput: a glob fits nothing, or some layers of a stack alone.
    """
    found: dict[Key, set[str | None]] = {}
    keys: list[Key] = []
    for located in chosen.survey.states:
        names = stored_names(located)
        for key, leaf in located.understood.state.leaves().items():
            glob = _fitting(key, globs)
            keys.append(key)
            for name in names_of(leaf):
                if name in names:
                    found.setdefault(names[name], set()).add(glob)
    gone = {
        key: f"--drop {next(iter(g))}" for key, g in found.items() if g - {None} and None not in g
    }
    partly = [spell(key) for key, g in found.items() if g - {None} and None in g]
    if partly:
        raise BadInput("`--drop` fits some layers of a stack, which is one array", details=partly)
    used = {glob for globs_of in found.values() for glob in globs_of}
    unused = [glob for glob in globs if glob not in used]
    if unused:
        raise BadInput(
            f"--drop: {fits_no_key(unused[0], keys)}",
            hint="`nnxconv inspect PATH --tree` lists the keys",
        )
    chosen = _dropped(chosen, gone)
    return replace(chosen, survey=survey(chosen.survey.tree, how))


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


# --- one replica ---------------------------------------------------------------------------------


def one_replica(tree: Tree, index: int) -> dict[Key, Leaf]:
    """The tree with one of every array along the leading axis, which all of them have.

    Raises:
      BadInput: some arrays have no such axis, or it is shorter.
    """
    shapes = {
        key: leaf.shape
        for key, leaf in tree.items()
        if not isinstance(leaf, Literal) and leaf.shape
    }
    sizes = {shape[0] for shape in shapes.values()}
    counters = {shape[0] for shape in shapes.values() if len(shape) == 1}
    count = min(counters & sizes) if len(sizes) > 1 and counters else min(sizes, default=0)
    others = [key for key in in_order(shapes) if shapes[key][0] != count]
    if others or not shapes:
        raise BadInput(
            f"`--replica {index}` needs one leading axis in every array, and"
            f" {counted(len(others), 'array')} of {len(shapes):,} have another one than {count}",
            details=[f"{spell(key)}  {notation(tree[key])}" for key in others],
            hint="`--at KEY` takes a replicated part alone, `--drop GLOB` leaves others out",
        )
    if not 0 <= index < count:
        raise BadInput(f"there is no replica {index}", hint=f"they are 0 to {count - 1}")
    return {key: _one(leaf, index) for key, leaf in tree.items()}


def _one(leaf: Leaf, index: int) -> Leaf:
    if isinstance(leaf, Literal) or not leaf.shape:
        return leaf
    view: View = slot(leaf, 0, index)
    return view


# --- a copy in the parameters' place -------------------------------------------------------------


def _with_params_from(chosen: Chosen, key: str, how: SurveyOptions) -> Chosen:
    """The part with a second copy of the parameters in their place.

    Raises:
      BadInput: there is no such copy, or it has other paths and shapes.
    """
    copies = {spell(copy.at): copy for copy in chosen.survey.copies}
    if key not in copies:
        raise BadInput(
            f"there is no second copy of the parameters at `{key}`",
            details=list(copies),
            hint="`nnxconv inspect PATH` names the copies",
        )
    copy = copies[key]
    [own] = [one for one in chosen.survey.states if one.at == copy.copy_of]
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
    tree = dict(chosen.survey.tree)
    stored = dict(chosen.stored)
    left_out = dict(chosen.left_out)
    for old in copy.stored.values():
        del tree[old]
        left_out[stored.pop(old)] = f"--params_from {key}"
    for path, (place, _) in ours.items():
        source, leaf = theirs[path]
        tree[place] = leaf
        left_out[chosen.stored[place]] = f"--params_from {key}"
        left_out.pop(chosen.stored[source], None)
        stored[place] = chosen.stored[source]
    return Chosen(survey(tree, how), stored, left_out)


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
