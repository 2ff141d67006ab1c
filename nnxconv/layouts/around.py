"""What stands around the states of a tree: what the target keeps, and what has no place there."""

from collections.abc import Collection, Iterable
from shlex import quote

from nnxconv.errors import CannotHold
from nnxconv.layouts.leaving_out import is_excluded
from nnxconv.layouts.located import Located, Survey
from nnxconv.layouts.options import Options
from nnxconv.layouts.placement import at_key
from nnxconv.state import Tree, is_stored
from nnxconv.tree import Key, Leaf, counted, in_order, notation, spell


def stays_around(
    survey: Survey, options: Options, layout: str, is_alone: bool
) -> tuple[dict[Key, Leaf], dict[Key, str]]:
    """What stays around the states, and what is left out of it.

    Raises:
      CannotHold: the target's program has no place for it.
    """
    copies = {
        stored: survey.tree[stored] for copy in survey.copies for stored in copy.stored.values()
    }
    if options.params_only:
        return {}, dict.fromkeys((*survey.around, *copies), "--params_only")
    excluded = _excluded_copies(survey, options)
    if not is_alone:
        return dict(survey.around), excluded
    reason = f"the {layout} layout keeps none"
    keeps = {key: leaf for key, leaf in {**survey.around, **copies}.items() if key not in excluded}
    rngs = [key for key in survey.around if survey.roles[key] == "rng" and not options.strict]
    empty = [key for key, leaf in keeps.items() if not is_stored(leaf)]
    expendable = {*rngs, *empty}
    _refuse_around(layout, {k: leaf for k, leaf in keeps.items() if k not in expendable}, survey)
    return {}, {**excluded, **dict.fromkeys(in_order(expendable), reason)}


def _excluded_copies(survey: Survey, options: Options) -> dict[Key, str]:
    """The leaves of copies that `--without` leaves out: `aux`, or `aux.ema_params`."""
    gone: dict[Key, str] = {}
    for copy in survey.copies:
        if is_excluded(copy.at, options.without):
            name = next(n for n in options.without if is_excluded(copy.at, (n,)))
            gone |= dict.fromkeys(copy.stored.values(), f"--without {name}")
    return gone


def _refuse_around(layout: str, around: Tree, survey: Survey) -> None:
    """Refuses what stands around a state where the target's program has one state alone.

    Raises:
      CannotHold: there is something; the hint is the narrowest option that goes on.
    """
    states = survey.states
    if len(states) > 1:
        first = next(one for one in states if one.at)
        raise CannotHold(
            f"the {layout} layout holds one state, and there are {len(states)}",
            details=[spell(one.at) or "(the root)" for one in states],
            hint=f"`{_alone(first, around)}` takes that one alone",
        )
    state = next(iter(states))
    at = state.at
    if at and state.placement == at_key(at):
        raise CannotHold(
            f"the {layout} layout has no place for a state below `{spell(at)}`",
            details=[f"{spell(key)}  {notation(leaf)}" for key, leaf in around.items()],
            hint=f"`{_alone(state, around)}` takes it alone",
        )
    if not around:
        return
    width = max(len(spell(key)) for key in around)
    taken = _beginnings(state)
    roots = dict.fromkeys(spell(_root_of(key, at, taken)) for key in around)
    raise CannotHold(
        f"the {layout} layout has no place for {counted(len(around), 'leaf', 'leaves')}"
        " beside the state",
        details=[f"{spell(key):<{width}}  {notation(leaf)}" for key, leaf in around.items()],
        hint=dropping(roots),
    )


def dropping(roots: Iterable[str]) -> str:
    """The hint that leaves out what stands at these keys: one text for a command line."""
    return f"`{_drops(roots)}` leaves out what is in the way"


def _drops(roots: Iterable[str]) -> str:
    return " ".join(f"--drop '{root}'" for root in roots)


def _alone(state: Located, around: Tree) -> str:
    """The options that take one state, without what stands in its subtree besides."""
    at, taken = state.at, _beginnings(state)
    inner = [key for key in around if key[: len(at)] == at]
    roots = dict.fromkeys(spell(_root_of(key, at, taken)[len(at) :]) for key in inner)
    return " ".join(filter(None, (f"--at {quote(spell(at))}", _drops(roots))))


def _beginnings(state: Located) -> set[Key]:
    """All that the keys of a state begin with."""
    return {key[:n] for key in state.stored.values() for n in range(len(key) + 1)}


def _root_of(key: Key, at: Key, taken: Collection[Key]) -> Key:
    """The part of a key that says which thing beside the state it belongs to.

    Nothing of the state stands below it: `taken` has all that the state's own keys begin with.
    """
    first = len(at) + 1 if key[: len(at)] == at else 1
    return next((key[:n] for n in range(first, len(key)) if key[:n] not in taken), key)
