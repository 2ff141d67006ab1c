"""What a whole tree is: its states, each in a known layout, and everything else with its role."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nnxconv.errors import BadInput, NnxconvError, UnknownLayout
from nnxconv.layouts.finding import Found, find
from nnxconv.layouts.folding import Folded, folded
from nnxconv.layouts.form import Codec, Reading, key_of, mapping
from nnxconv.layouts.former_optimizers import Rearranged, rearranged
from nnxconv.layouts.gathering import parts_of, placements
from nnxconv.layouts.located import Located, Survey
from nnxconv.layouts.names import announced
from nnxconv.layouts.placement import Placement, at_key
from nnxconv.layouts.places import Place
from nnxconv.layouts.recognition import CODECS
from nnxconv.layouts.spread import Spread, spread_parameters
from nnxconv.layouts.understanding import RECORD, TENSORS, Understood, no_record, understand
from nnxconv.state import Family, Role, Tree, children
from nnxconv.tree import Key, spell

STATES = "states"
"""Where a record of several states, or of one among other things, has them."""


@dataclass(frozen=True)
class SurveyOptions:
    """How a tree shall be read: what `understand` takes besides the tree."""

    custom_metadata: Mapping[str, Any] = field(default_factory=dict)
    is_scanned: bool | None = None
    layout: str | None = None
    layer_axis: int | None = None
    layer_group: Sequence[str] = ()
    family: Family | None = None
    where: str = ""
    items: tuple[str, ...] = ()

    def of(
        self,
        tree: Tree,
        record: Mapping[str, Any] | None = None,
        known: tuple[Codec, Reading] | None = None,
    ) -> Understood:
        """A tree with its meaning; `record` takes the place of what the metadata say."""
        custom = self.custom_metadata if record is None else {RECORD: record}
        return understand(
            tree,
            custom_metadata=custom,
            is_scanned=self.is_scanned,
            layout=self.layout,
            layer_axis=self.layer_axis,
            layer_group=self.layer_group,
            family=self.family,
            where=self.where,
            known=known,
        )


def survey(tree: Tree, how: SurveyOptions) -> Survey:
    """What a tree is.

    A tree without a state that can be understood is no error here: `problem` says what it is not.

    Raises:
      BadInput: the tree is not of the layout that is stated, or has no group of a stated name.
      DamagedCheckpoint: its record is none.
    """
    record = how.custom_metadata.get(RECORD) or {}
    if isinstance(record, dict) and STATES in record:
        written = _as_written(tree, how, record)
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
    return _whole(tree, [itself], [], {})


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
        known = _placements(record, how.where)
        same = {key: key for key in tree}
        itself = Located((), Placement(), understood, same, placements=known)
        return _whole(tree, [itself], [], {})
    return None


def _as_written(tree: Tree, how: SurveyOptions, record: Mapping[str, Any]) -> Survey | None:
    """The states of a tree that nnxconv wrote; None where the tree has been changed since."""
    try:
        entries = [_entry(mapping(STATES, one)) for one in record[STATES]]
        kept = {key_of("kept", key) for key in record.get("kept", [])}
    except (ValueError, TypeError) as error:
        raise no_record(error, how.where) from error
    regions: dict[int, list[Key]] = {number: [] for number in range(len(entries))}
    around: list[Key] = []
    for key in tree:
        number = _owner(key, entries, kept)
        (around if number is None else regions[number]).append(key)
    states: list[Located] = []
    copies: list[Located] = []
    for number, (at, placement, copy_of, inner) in enumerate(entries):
        stored = placement.gathered(regions[number])
        if not stored:
            return None
        try:
            understood = how.of({new: tree[old] for new, old in stored.items()}, inner)
        except (UnknownLayout, BadInput):
            return None
        known = _placements(inner, how.where)
        located = Located(at, placement, understood, stored, copy_of, known)
        (states if copy_of is None else copies).append(located)
    return _whole(tree, states, copies, find(tree).roles, around)


def _placements(record: Mapping[str, Any], where: str) -> dict[str, Placement]:
    """Where a state stood in other layouts, as a record has it."""
    try:
        found = mapping("placements", record.get("placements", {}))
        return {name: Placement.from_json(one) for name, one in found.items()}
    except ValueError as error:
        raise no_record(error, where) from error


_Entry = tuple[Key, Placement, Key | None, Mapping[str, Any]]


def _entry(one: Mapping[str, Any]) -> _Entry:
    copy_of = one.get("copy_of")
    return (
        key_of("at", one.get("at")),
        Placement.from_json(one.get("placement")),
        None if copy_of is None else key_of("copy_of", copy_of),
        mapping("record", one.get("record")),
    )


def _owner(key: Key, entries: Sequence[_Entry], kept: set[Key]) -> int | None:
    """Which state a leaf belongs to: that with the longest prefix of its key, if any."""
    best: tuple[int, int] | None = None
    for number, (_, placement, _, _) in enumerate(entries):
        prefixes = [old for old, _ in placement.moves] + [old for _, old in placement.apart]
        for old in prefixes:
            if key[: len(old)] == old and (best is None or len(old) > best[0]):
                best = (len(old), number)
    is_kept = any(key[:size] in kept for size in range(best[0] if best else 0, len(key) + 1))
    return None if best is None or is_kept else best[1]


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
        return _unfolded(_told(found, short.tree, how), short, tree, how)
    except NnxconvError:
        return None


def _unfolded(few: Survey, short: Folded, tree: Tree, how: SurveyOptions) -> Survey | None:
    """What a tree is, some of whose layers are this; None where more than roles depends on them."""
    found = (*few.states, *few.copies)
    homes = (key for one in found for key in one.placement.stands)
    if few.problem is not None or not few.states or short.is_repeated(homes):
        return None
    whole: list[Located] = []
    for one in found:
        mine = frozenset(one.stored.values())
        own = [key for key, like in zip(tree, short.like, strict=True) if like in mine]
        stored = one.placement.gathered(own)
        if stored is None:
            return None
        gathered = dict(zip(stored, map(tree.__getitem__, stored.values()), strict=True))
        read = one.understood
        known = read.codec, Reading(read.evidence, others=read.others)
        whole.append(replace(one, understood=how.of(gathered, {}, known), stored=stored))
    states = whole[: len(few.states)]
    if len(states) > 1:
        order = {key: number for number, key in enumerate(tree)}
        states.sort(key=lambda one: min(order[k] for k in one.stored.values()))
    around = [key for key, like in zip(tree, short.like, strict=True) if like in few.around]
    return Survey(
        tree,
        states=tuple(states),
        copies=tuple(whole[len(few.states) :]),
        around={key: tree[key] for key in around},
        roles={key: few.roles[like] for key, like in zip(tree, short.like, strict=True)},
    )


def _read(found: Found, tree: Tree, how: SurveyOptions) -> Survey:
    """What a tree is in which these states have been found."""
    for thought in _thoughts(found, tree):
        told = _told(find(thought.tree, how.items), thought.tree, how)
        if told.states:
            return thought.undone(told, tree)
    return _told(found, tree, how)


def _thoughts(found: Found, tree: Tree) -> list[Rearranged | Spread]:
    """The tree with a state in another place, where that is how it is to be read."""
    thoughts = (rearranged(tree, found), spread_parameters(tree, found))
    return [thought for thought in thoughts if thought is not None]


def _told(found: Found, tree: Tree, how: SurveyOptions) -> Survey:
    """The states that have been found, in known layouts, and their copies."""
    states: list[Located] = []
    copies: list[Located] = []
    problems: list[UnknownLayout] = []
    claims = {place.at: parts_of(place, found.root) for place in found.places}
    for place in found.places:
        try:
            located = _located(place, found, claims[place.at], tree, how)
        except UnknownLayout as error:
            problems.append(error)
            continue
        states.append(located)
        copies += [
            copy
            for key in place.copies
            if (copy := _copy(key, place, found, tree, located, how)) is not None
        ]
    if not states:
        is_below = bool(problems) and all(place.at for place in found.places)
        problem = problems[0] if is_below else _no_state(tree, how)
        return Survey(tree, (), (), dict(tree), found.roles, problem)
    order = {key: number for number, key in enumerate(tree)}
    states.sort(key=lambda one: min(order[k] for k in one.stored.values()))
    return _whole(tree, states, copies, found.roles)


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
        located = Located(place.at, placement, understood, stored)
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


def _copy(
    key: Key, place: Place, found: Found, tree: Tree, located: Located, how: SurveyOptions
) -> Located | None:
    """A second copy of parameters, as parameters alone; None where it cannot be read so."""
    inner = replace(how, layout=None, custom_metadata={})
    core = found.root.at(key).core().key
    for placement in (at_key(key), Placement(((core, ("params",)),))):
        keys = [k for k in tree if k[: len(key)] == key]
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


def _whole(
    tree: Tree,
    states: Sequence[Located],
    copies: Sequence[Located],
    roles: Mapping[Key, Role],
    around: Iterable[Key] | None = None,
) -> Survey:
    """The survey of a tree with these states: roles are those of the states' meaning."""
    roles = dict(roles)
    claimed: set[Key] = set()
    for located in (*states, *copies):
        for key, role in located.own_roles.items():
            if roles.get(key) == "step" and role == "optimizer":
                continue  # where several optimizers follow one model, each counts
            roles[key] = role if located.copy_of is None or role == "rng" else "variables"
        claimed.update(located.stored.values())
    rest = [key for key in tree if key not in claimed] if around is None else list(around)
    for key in tree:
        roles.setdefault(key, "other")
    for key in rest:
        if roles[key] == "parameters":
            roles[key] = "other"
    return Survey(tree, tuple(states), tuple(copies), {k: tree[k] for k in rest}, roles)
