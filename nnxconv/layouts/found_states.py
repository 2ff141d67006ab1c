"""The states that a tree's structure shows, each in a known layout, and their second copies."""

from collections.abc import Mapping
from dataclasses import replace

from nnxconv.errors import NnxconvError, UnknownLayout
from nnxconv.layouts.finding import Found
from nnxconv.layouts.gathering import parts_of, placements
from nnxconv.layouts.located import Located, Survey, survey_of
from nnxconv.layouts.placement import Placement, at_key
from nnxconv.layouts.places import Place
from nnxconv.layouts.survey_options import SurveyOptions
from nnxconv.state import Role, Tree, children
from nnxconv.tree import Key, spell


def states_in(found: Found, tree: Tree, how: SurveyOptions) -> Survey:
    """The states that have been found, in known layouts, and their copies."""
    states: list[Located] = []
    copies: list[Located] = []
    problems: list[UnknownLayout] = []
    claims = {place.at: parts_of(place, found.root) for place in found.places}
    for place in found.places:
        try:
            try:
                located = _located(place, found, claims[place.at], tree, how)
            except UnknownLayout:
                if place.parts or not place.optimizers:
                    raise
                place = _alone(place)
                located = _located(place, found, parts_of(place, found.root), tree, how)
        except UnknownLayout as error:
            problems.append(error)
            continue
        states.append(located)
        copies += [
            copy
            for key in place.copies
            if (copy := _copy(key, place, found, tree, how)) is not None
        ]
    if not states:
        is_below = bool(problems) and all(place.at for place in found.places)
        problem = problems[0] if is_below else _no_state(tree, how)
        return Survey(tree, (), (), dict(tree), found.roles, problem)
    order = {key: number for number, key in enumerate(tree)}
    states.sort(key=lambda one: min(order[k] for k in one.stored.values()))
    return survey_of(tree, states, copies, found.roles)


def _alone(place: Place) -> Place:
    """The parameters without an optimizer that follows none of them, which stays beside them.

    PyTorch's numbers its parameters.
    """
    inner = [key for key in place.copies if key[: len(place.params)] == place.params]
    return Place(place.params, place.params, copies=tuple(inner))


def _no_state(tree: Tree, how: SurveyOptions) -> UnknownLayout:
    """Why a tree that shows no state is of no layout."""
    try:
        how.of(tree)
    except UnknownLayout as error:
        return error
    roots = ", ".join(spell((root,)) for root in children(tree)[:8])
    return UnknownLayout(
        "this is none of the layouts that nnxconv knows",
        where=how.where,
        details=[
            f"at the root: {roots}",
            "no parameters: no optimizer state repeats a subtree, and no name and type tell one",
        ],
        hint="`--at KEY` takes a subtree; `nnxconv inspect PATH --tree` lists the keys",
    )


def _located(
    place: Place, found: Found, parts: set[Key], tree: Tree, how: SurveyOptions
) -> Located:
    """A found state in a known layout.

    Raises:
      UnknownLayout: it is in none.
    """
    aside = set(place.copies)
    keys = [
        key for key in tree if _is_within(key, parts) and not (aside and _is_within(key, aside))
    ]
    first: UnknownLayout | None = None
    beside = {key for key in keys if any(key[: len(rng)] == rng for rng in place.rngs)}
    for placement in placements(place, found):
        stored = placement.gathered(
            [key for key in keys if key not in beside or placement.inward(key) is not None]
        )
        if stored is None:
            continue
        gathered = {new: tree[old] for new, old in stored.items()}
        try:
            understood = how.of(gathered, {} if not placement.is_plain else None)
        except UnknownLayout as error:
            first = first or error
            continue
        located = Located(
            place.at,
            placement,
            understood,
            stored,
            rivals=place.rivals,
            optimizers=place.optimizers,
        )
        if _is_sound(located, found.roles):
            return located
    raise first or UnknownLayout("this is none of the layouts that nnxconv knows", where=how.where)


def _is_within(key: Key, above: set[Key]) -> bool:
    """True for a key that one of these begins."""
    return any(key[:size] in above for size in range(len(key) + 1))


_MAY_BE: Mapping[Role, tuple[Role, ...]] = {
    "parameters": ("parameters", "variables", "rng"),
    "variables": ("variables", "rng"),
    "rng": ("rng", "variables"),
    "optimizer": ("optimizer",),
    "step": ("step", "optimizer"),
    "other": ("other",),
}
"""What a layout may take a leaf for that is something by the tree's structure."""


def _is_sound(located: Located, roles: Mapping[Key, Role]) -> bool:
    """True when a reading takes no leaf for what it is not by the tree's structure.

    Where several optimizers count the steps, what they count may stay theirs; a step alone may not.
    """
    steps = [role for key, role in located.own_roles.items() if roles[key] == "step"]
    is_lost = steps == ["optimizer"]
    return not is_lost and all(
        role in _MAY_BE[roles[key]] for key, role in located.own_roles.items()
    )


def _copy(key: Key, place: Place, found: Found, tree: Tree, how: SurveyOptions) -> Located | None:
    """A second copy of parameters, as parameters alone; None where it cannot be read so."""
    inner = replace(how, layout=None, custom_metadata={})
    core = found.root.at(key).core().key
    keys = [k for k in tree if k[: len(key)] == key]
    for placement in (at_key(key), Placement(((core, ("params",)),))):
        stored = placement.gathered(keys)
        if stored is None:
            continue
        try:
            understood = inner.of({new: tree[old] for new, old in stored.items()})
        except NnxconvError:
            continue
        if understood.state.opt_state is None:
            return Located(key, placement, understood, stored, place.at)
    return None
