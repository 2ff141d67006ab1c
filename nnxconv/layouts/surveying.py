"""What a whole tree is: its states, each in a known layout, and everything else with its role."""

from dataclasses import replace
from itertools import chain

from nnxconv.errors import BadInput, NnxconvError, UnknownLayout
from nnxconv.layouts.finding import Found, find
from nnxconv.layouts.folding import Folded, folded
from nnxconv.layouts.former_optimizers import Rearranged, rearranged
from nnxconv.layouts.found_states import states_in
from nnxconv.layouts.located import Located, Survey, survey_of
from nnxconv.layouts.names import announced
from nnxconv.layouts.placement import Placement
from nnxconv.layouts.recognition import CODECS
from nnxconv.layouts.recorded_states import STATES, recorded_placements, states_recorded
from nnxconv.layouts.spread import Spread, spread_parameters
from nnxconv.layouts.survey_options import SurveyOptions
from nnxconv.layouts.understanding import RECORD, TENSORS
from nnxconv.state import Role, Tree


def survey(tree: Tree, how: SurveyOptions) -> Survey:
    """What a tree is.

    A tree without a state that can be understood is no error here: `problem` says what it is not.

    Raises:
      BadInput: the tree is not of the layout that is stated, or has no group of a stated name.
      DamagedCheckpoint: its record is none.
    """
    record = how.custom_metadata.get(RECORD) or {}
    if isinstance(record, dict) and STATES in record:
        written = states_recorded(tree, how, record)
        if written is not None:
            return written
        how = replace(how, custom_metadata={})
    elif how.layout is not None or (isinstance(record, dict) and record.get("layout")):
        stated = _as_stated(tree, how)
        if stated is not None:
            return stated
    return _as_plugged_in(tree, how) or _as_found(tree, how)


def _as_plugged_in(tree: Tree, how: SurveyOptions) -> Survey | None:
    """The tree as one state in a layout of another package, which alone knows what it means."""
    fitting = [name for name in announced() if not CODECS[name].recognise(tree).objections]
    if len(fitting) != 1:
        return None
    understood = replace(how, layout=fitting[0]).of(tree)
    itself = Located((), Placement(), understood, {key: key for key in tree})
    return survey_of(tree, [itself], [], {})


def _as_stated(tree: Tree, how: SurveyOptions) -> Survey | None:
    """The tree as one state in the layout that is stated, or that it was written in."""
    try:
        understood = how.of(tree)
    except (UnknownLayout, BadInput):
        if how.layout is not None and not find(tree).places:
            raise
        return None
    if understood.evidence in (("stated by `--from`",), ("written by nnxconv",), (TENSORS,)):
        record = how.custom_metadata.get(RECORD) or {}
        known = recorded_placements(record, how.where)
        same = {key: key for key in tree}
        itself = Located((), Placement(), understood, same, placements=known)
        return survey_of(tree, [itself], [], {})
    return None


def _as_found(tree: Tree, how: SurveyOptions) -> Survey:
    """The states that the tree's structure shows."""
    return _as_folded(tree, how) or _read(find(tree, how.items), tree, how)


def _as_folded(tree: Tree, how: SurveyOptions) -> Survey | None:
    """The states of a tree whose repeated layers mean what a few of them mean; None without such.

    Other packages are shown whole trees, and what has a problem is looked at as a whole.
    """
    is_told = how.layout is not None or RECORD in how.custom_metadata
    short = None if is_told or announced() else folded(tree)
    if short is None:
        return None
    found = find(short.tree, how.items)
    if short.is_repeated(found.keys()) or _thoughts(found, short.tree):
        return None
    try:
        return _unfolded(states_in(found, short.tree, how), short, tree, how)
    except NnxconvError:
        return None


def _unfolded(few: Survey, short: Folded, tree: Tree, how: SurveyOptions) -> Survey | None:
    """What a tree is, some of whose layers are this; None where more than roles depends on them."""
    found = (*few.states, *few.copies)
    homes = (key for one in found for key in one.placement.stands)
    groups = (group.key for one in found for group in one.understood.groups)
    rivals = (key for one in found for keys in one.rivals.items() for key in (keys[0], *keys[1]))
    decisive = chain(homes, groups, rivals)
    if few.problem is not None or not few.states or short.is_repeated(decisive):
        return None
    whole: list[Located] = []
    for one in found:
        own = short.unfolded(tree, frozenset(one.stored.values()))
        stored = one.placement.gathered(own)
        if stored is None:
            return None
        gathered = dict(zip(stored, map(tree.__getitem__, stored.values()), strict=True))
        understood = how.of(gathered, {}, one.understood)
        whole.append(replace(one, understood=understood, stored=stored))
    states = whole[: len(few.states)]
    if len(states) > 1:
        order = {key: number for number, key in enumerate(tree)}
        states.sort(key=lambda one: min(order[k] for k in one.stored.values()))
    around = short.unfolded(tree, few.around)
    roles: list[Role] = [few.roles[key] for key in short.tree]
    return Survey(
        tree,
        states=tuple(states),
        copies=tuple(whole[len(few.states) :]),
        around={key: tree[key] for key in around},
        roles={key: roles[place] for key, place in zip(tree, short.like, strict=True)},
    )


def _read(found: Found, tree: Tree, how: SurveyOptions) -> Survey:
    """What a tree is in which these states have been found."""
    for thought in _thoughts(found, tree):
        told = states_in(find(thought.tree, how.items), thought.tree, how)
        if told.states:
            return thought.undone(told, tree)
    return states_in(found, tree, how)


def _thoughts(found: Found, tree: Tree) -> list[Rearranged | Spread]:
    """The tree with a state in another place, where that is how it is to be read."""
    thoughts = (rearranged(tree, found), spread_parameters(tree, found))
    return [thought for thought in thoughts if thought is not None]
