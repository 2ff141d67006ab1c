"""The target's whole tree: each converted state where it stands, and around it what was there."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from shlex import quote
from typing import Any

from nnxconv.errors import BadInput, CannotHold
from nnxconv.layouts.around import dropping, stays_around
from nnxconv.layouts.conversion import Conversion
from nnxconv.layouts.left_behind import refuse_left_behind
from nnxconv.layouts.located import Located, Survey
from nnxconv.layouts.names import ALONE
from nnxconv.layouts.options import Options
from nnxconv.layouts.parts import bare
from nnxconv.layouts.placement import Placement, at_key
from nnxconv.layouts.recorded_states import STATES
from nnxconv.layouts.rivals import refuse_rivals
from nnxconv.state import Tree
from nnxconv.tree import Key, Leaf, Literal, counted, in_order, notation, sources_of, spell


@dataclass(frozen=True)
class Part:
    """A state, or a second copy of parameters, that is converted, and where it goes."""

    located: Located
    conversion: Conversion
    placement: Placement

    @property
    def is_copy(self) -> bool:
        """True for a second copy of another state's parameters."""
        return self.located.copy_of is not None

    def places(self) -> dict[Key, Key]:
        """For each key of the converted tree, where it stands in the target."""
        tree, placement = self.conversion.tree, self.placement
        if not placement.apart:
            return placement.spread(tree, {})
        by_path: dict[Key, str] = {
            key[1:]: str(key[0]) for key in self.conversion.arranged.aux if len(key) > 1
        }
        collections = {key: by_path[path] for key in tree if (path := _path(key)) in by_path}
        return placement.spread(tree, collections)

    def spread(self) -> dict[Key, Leaf]:
        """The converted tree as it stands in the target."""
        return {place: self.conversion.tree[key] for key, place in self.places().items()}


def _path(key: Key) -> Key:
    """A key below `model` as a path in the model."""
    return bare(key)[1:]


@dataclass(frozen=True)
class Whole:
    """What a conversion makes of a whole tree.

    Attributes:
      parts: its states first, then their copies; none where only storage changes.
      tree: of the target.
      kept: keys of the target that are as in the source.
      left_out: keys of the source that the target does not have, with the reason.
      converted: keys of the source whose leaves the states of the target are made of.
      record: what goes into the target's metadata for the way back; None for nothing.
      source: the source's tree.
    """

    parts: tuple[Part, ...]
    tree: Mapping[Key, Leaf]
    kept: tuple[Key, ...] = ()
    left_out: Mapping[Key, str] = field(default_factory=dict)
    converted: tuple[Key, ...] = ()
    record: Mapping[str, Any] | None = None
    source: Tree = field(default_factory=dict)

    @property
    def states(self) -> tuple[Part, ...]:
        """The parts that are no copies."""
        return tuple(part for part in self.parts if not part.is_copy)

    @property
    def conversion(self) -> Conversion | None:
        """The conversion of its first state, in most trees the only one."""
        return self.parts[0].conversion if self.parts else None

    @property
    def layout(self) -> str:
        """Of the target; that of its first state."""
        return self.parts[0].conversion.layout if self.parts else "unknown"

    @property
    def scan_layers(self) -> bool | None:
        """True when the target stacks its layers; None when it has none, or differs within."""
        told = {part.conversion.scan_layers for part in self.states} - {None}
        return told.pop() if len(told) == 1 else None


def alone(conversion: Conversion) -> Whole:
    """A conversion whose source is one state, in whatever format."""
    located = Located((), Placement(), conversion.source, {k: k for k in conversion.source.tree})
    part = Part(located, conversion, Placement())
    used = _sources(conversion.tree.values())
    converted = tuple(k for k, leaf in conversion.source.tree.items() if _is_in(leaf, used))
    return Whole(
        (part,),
        conversion.tree,
        converted=converted,
        left_out=_left_out_of(part, used),
        record=conversion.record.to_json(),
        source=conversion.source.tree,
    )


def join(
    survey: Survey,
    conversions: Sequence[tuple[Located, Conversion]],
    options: Options,
    like: Located | None = None,
) -> Whole:
    """The target's whole tree.

    Args:
      survey: the source.
      conversions: of each of its states and copies that is converted.
      options: how.
      like: where the state stands whose conventions are followed.

    Raises:
      CannotHold: the target's program has no place for what is around, or keys are taken twice.
    """
    if not options.params_only:
        refuse_left_behind(survey, conversions)
    layouts = {c.layout for located, c in conversions if located.copy_of is None}
    is_alone = bool(layouts & set(ALONE))
    parts = [
        Part(located, c, _target_placement(located, c, options, is_alone, like))
        for located, c in conversions
    ]
    left_aside = {one.at for one in survey.states} - {located.at for located, _ in conversions}
    around, left_out = stays_around(survey, options, next(iter(layouts), ""), is_alone)
    parts = [_with_step_aside(part, around) for part in parts]
    tree: dict[Key, Leaf] = {}
    _add(tree, around)
    for part in parts:
        _add(tree, part.spread())
    _refuse_mixed(tree, around)
    used = _sources(leaf for part in parts for leaf in part.conversion.tree.values())
    for part in parts:
        left_out |= _left_out_of(part, used)
    for one in survey.states:
        if one.at in left_aside:
            left_out |= dict.fromkeys(one.stored.values(), "--params_only")
    converted = tuple(
        part.located.stored[key]
        for part in parts
        for key, leaf in part.located.understood.tree.items()
        if part.located.stored[key] not in left_out
    )
    return Whole(
        tuple(parts),
        tree,
        tuple(around),
        {key: left_out[key] for key in survey.tree if key in left_out},
        converted,
        _record(parts, around),
        survey.tree,
    )


def unchanged(survey: Survey, source: Tree | None = None) -> Whole:
    """A tree that is written as it is, or under new names: in another container, or in part."""
    source = survey.tree if source is None else source
    return Whole((), survey.tree, tuple(survey.tree), source=source)


def _target_placement(
    located: Located,
    conversion: Conversion,
    options: Options,
    is_alone: bool,
    like: Located | None,
) -> Placement:
    """Where a converted state goes: where it stood, or where it stood in that layout before."""
    if like is not None and located.copy_of is None:
        return like.placement
    if options.params_only:
        return Placement()
    if conversion.layout == located.understood.codec.name:
        return located.placement
    known = located.placements.get(conversion.layout)
    return known or (Placement() if is_alone else at_key(located.at))


def _with_step_aside(part: Part, around: Tree) -> Part:
    """A state whose step goes beside a step that is there already, which stays what it is.

    Two steps stand beside an NNX optimizer: its own below it, and one that the program counts.
    """
    home, step = at_key(part.located.at), ("step",)
    place = (*part.located.at, *step)
    if part.placement != home or place not in around or step not in part.conversion.tree:
        return part
    aside = (*part.located.at, "optimizer_step")
    if aside in around:
        return part
    return replace(part, placement=Placement((*home.moves, (aside, step))))


def _add(tree: dict[Key, Leaf], more: Mapping[Key, Leaf]) -> None:
    """Puts leaves into a tree.

    Raises:
      CannotHold: a key is there already, or stands within another leaf.
    """
    clash = tree.keys() & more.keys()
    if clash:
        first = min(spell(key) for key in clash)
        raise CannotHold(
            f"{counted(len(clash), 'key')} of the target would be there twice",
            where=first,
            hint=f"`--drop '{first}'` leaves out what stands there now",
        )
    tree.update(more)


def _refuse_mixed(tree: Tree, around: Tree) -> None:
    """Refuses a tree where names and indices, or a leaf and a subtree, stand in one place.

    Raises:
      CannotHold: it is such a tree; what is around is named.
    """
    kinds: dict[Key, type] = {}
    wrong: set[Key] = set()
    for key in tree:
        for size in range(len(key)):
            above = key[:size]
            if above in tree or kinds.setdefault(above, type(key[size])) is not type(key[size]):
                wrong.add(above)
    if not wrong:
        return
    place = in_order(wrong)[0]
    beside = [key for key in around if key[: len(place)] == place] or list(around)
    if not beside:
        raise CannotHold(
            f"names and indices would stand side by side at {_called(place)}",
            hint="`--params_only` converts the parameters alone",
        )
    roots = dict.fromkeys(spell(key[: len(place) + 1]) for key in beside)
    raise CannotHold(
        f"the converted state and what stands beside it cannot share {_called(place)}",
        details=[f"{spell(key)}  {notation(tree[key])}" for key in beside],
        hint=dropping(roots),
    )


def _called(place: Key) -> str:
    return f"`{spell(place)}`" if place else "the root"


def _record(parts: Sequence[Part], around: Tree) -> dict[str, Any]:
    """What is recorded of states and their places; of one state alone, as ever."""
    if len(parts) == 1 and not around and parts[0].placement.is_plain:
        return _record_of(parts[0])
    return {
        STATES: [
            {
                "at": list(part.located.at),
                "placement": part.placement.to_json(),
                "copy_of": None if part.located.copy_of is None else list(part.located.copy_of),
                "record": _record_of(part),
            }
            for part in parts
        ],
        "kept": [list(key) for key in _outermost(around, parts)],
    }


def _record_of(part: Part) -> dict[str, Any]:
    """The record of a state, with the places where it has stood in other layouts."""
    located, conversion = part.located, part.conversion
    known = {**located.placements, located.understood.codec.name: located.placement}
    odd = {name: place.to_json() for name, place in known.items() if place != at_key(located.at)}
    record = conversion.record.to_json()
    return record | ({"placements": odd} if odd else {})


def _outermost(around: Tree, parts: Sequence[Part]) -> list[Key]:
    """The shortest keys that have what is around below them, and nothing of a state."""
    taken: Counter[Key] = Counter()
    for part in parts:
        for key in part.spread():
            taken.update(key[:size] for size in range(len(key) + 1))
    return list(
        dict.fromkeys(
            next((key[:n] for n in range(1, len(key)) if not taken[key[:n]]), key) for key in around
        )
    )


def _sources(leaves: Iterable[Leaf]) -> set[tuple[str, str]]:
    """Stores and names of all stored arrays that the leaves are made of."""
    views = [leaf for leaf in leaves if not isinstance(leaf, Literal)]
    return {(source.store, source.name) for view in views for source in sources_of(view)}


def _is_in(leaf: Leaf, used: set[tuple[str, str]]) -> bool:
    """True where nothing that a leaf is made of is missing; a literal is made of nothing."""
    return _sources([leaf]) <= used


def _left_out_of(part: Part, used: set[tuple[str, str]]) -> dict[Key, str]:
    """The stored leaves of a state that the target does not have, with the reasons."""
    located, conversion = part.located, part.conversion
    reasons: dict[tuple[str, str], str] = {}
    aside = {key: leaf for key, (leaf, _) in conversion.source.aside.items()}
    for key, leaf in {**conversion.source.state.leaves(), **aside}.items():
        if key in conversion.left_out:
            for source in _sources([leaf]):
                reasons.setdefault(source, conversion.left_out[key])
    unused = {
        located.stored[key]: next(iter(_sources([leaf]) - used), None)
        for key, leaf in located.understood.tree.items()
    }
    return {key: reasons[source] for key, source in unused.items() if source in reasons}


def nothing_lost(whole: Whole) -> None:
    """Checks that every array of the source is in the target or named as left out.

    Raises:
      CannotHold: an array went missing, which is a defect of nnxconv.
    """
    written = _sources(whole.tree.values())
    lost = [
        spell(key)
        for key, leaf in whole.source.items()
        if not _is_in(leaf, written) and key not in whole.left_out
    ]
    if lost:
        raise CannotHold("these arrays would be lost", details=lost)


def one_state(
    survey: Survey, purpose: str, option: str = "--at", *, instead: str | None = None
) -> Located:
    """The only state of a tree, for what needs exactly one.

    With `instead`, the key of a copy, the hint is to take that one alone.

    Raises:
      BadInput: there are several, or its optimizer may be another's; the hint says how to choose.
      UnknownLayout: there is none.
    """
    if not survey.states:
        assert survey.problem is not None
        raise survey.problem
    main = [one for one in survey.states if not one.at]
    if len(survey.states) > 1 and len(main) != 1:
        ats = [spell(one.at) for one in survey.states]
        raise BadInput(
            f"there are {len(ats)} states, and {purpose} needs one",
            details=ats,
            hint=f"`{option} {instead}` takes that copy alone, without `--params_from`"
            if instead is not None
            else " or ".join(f"`{option} {quote(at)}`" for at in ats[:4]),
        )
    found = next(iter([*main, *survey.states]))
    refuse_rivals([found])
    return found
