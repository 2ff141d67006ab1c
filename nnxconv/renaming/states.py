"""Apply rules to a training state: to parameters, moments and other variables alike.

Layers are apart when rules are applied. Where a rule makes `layers[{i}]` of something else, that is
a new layer group; where it makes something else of all layers of a group, the group is gone. A
group whose layers move as they are keeps its arrangement, so that a stack moves as a whole.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nnxconv.errors import BadInput
from nnxconv.renaming.apply import Applied, Fits, apply, cannot_be_undone, fits
from nnxconv.renaming.rule import Rules
from nnxconv.state import (
    DEFAULT_NAMES,
    PARAMS,
    Apart,
    Family,
    LayerGroup,
    Sections,
    Spelling,
    TrainState,
    joined,
    sections_of,
    unstack,
)
from nnxconv.tree import Key, Leaf, Literal, notation, spell


@dataclass(frozen=True)
class Renamed:
    """A state with its new names.

    Attributes:
      state: the state; where there are problems, without the leaves that have them.
      groups: its layer groups.
      problems: collisions, rules that fit nothing, arrays that a step does not fit.
      moves: where every parameter has gone.
      notes: what was done, and whether it can be undone.
    """

    state: TrainState
    groups: tuple[LayerGroup, ...]
    problems: tuple[str, ...]
    moves: Mapping[Key, tuple[Key, ...]]
    notes: tuple[str, ...]


def rename(
    state: TrainState,
    groups: Sequence[LayerGroup],
    rules: Rules,
    *,
    spelling: Spelling,
    names: Sequence[str] = (),
    layer_axis: int | None = None,
    is_scanned: bool | None = None,
    families: Sequence[Family] | None = None,
    has_notes: bool = True,
) -> Renamed:
    """The state with the rules applied to all its trees, and its layers found anew.

    `has_notes=False` saves asking whether the rules can be undone.
    """
    sections, rest = sections_of(state)
    keys = list(dict.fromkeys(key for tree in sections.values() for key in tree))
    rules = rules.counted(keys)
    found = fits(keys, rules)
    renamed: Sections = {}
    problems = rules.unused({fit.rule for fit in found.values()}, keys)
    moves: dict[Key, tuple[Key, ...]] = {}
    for head, tree in sections.items():
        problems += _unlike_parameters(head, tree, sections[PARAMS], rules, found)
        applied: Applied = apply(tree, rules, found, head)
        renamed[head] = applied.tree
        if head[0] != "opt_state" or not problems:
            problems += applied.problems  # what is wrong with parameters is so with their moments
        moves |= applied.moves
    new_state = joined(state, renamed, rest)
    kept = _kept_groups(groups, {key: moves[key] for key in state.params}, spelling)
    if not problems:
        wanted = (*DEFAULT_NAMES, *names, *rules.layer_names()[1])
        new_state, further = unstack(
            new_state,
            names=wanted,
            layer_axis=layer_axis,
            is_scanned=is_scanned,
            families=families,
        )
        kept += [group for group in further if group.key not in {g.key for g in kept}]
    changed = sum(targets != (key,) for key, targets in moves.items())
    return Renamed(
        new_state,
        tuple(sorted(kept, key=lambda group: len(group.key))),
        tuple(dict.fromkeys(problems)),
        moves,
        _notes(rules, moves, changed) if has_notes else (),
    )


def _unlike_parameters(
    head: Key,
    tree: Mapping[Key, Leaf],
    params: Mapping[Key, Leaf],
    rules: Rules,
    found: Fits,
) -> list[str]:
    """Leaves of the optimizer that shall be cut, or joined, but are not shaped as parameters."""
    if head[0] != "opt_state":
        return []
    problems = []
    for key, leaf in tree.items():
        fit = found.get(key)
        param = params[key]
        if fit is None or isinstance(leaf, Literal) or isinstance(param, Literal):
            continue
        steps = rules.rules[fit.rule].steps
        if steps and leaf.shape != param.shape:
            told = f"{notation(leaf)}, but its parameter is {notation(param)}"
            problems.append(f"{spell((*head, *key))} is {told}: no step can be applied to it")
    return problems


def _notes(rules: Rules, moves: Mapping[Key, tuple[Key, ...]], changed: int) -> tuple[str, ...]:
    count = len(rules.rules)
    told = f"{changed:,} of {len(moves):,} keys renamed by {count} rule{'s' * (count != 1)}"
    told += f" of {rules.name}" if rules.name else ""
    try:
        lost = cannot_be_undone(moves, rules)
    except BadInput as error:
        return (told, f"not to be undone: {error.message}")
    if not lost:
        return (told,)
    more = f", and {len(lost) - 1:,} more" if len(lost) > 1 else ""
    return (told, f"not to be undone: {lost[0]}{more}")


# --- layer groups -----------------------------------------------------------------------------


def _kept_groups(
    groups: Sequence[LayerGroup], moves: Mapping[Key, tuple[Key, ...]], spelling: Spelling
) -> list[LayerGroup]:
    """The groups of the renamed parameters: those with layers, and whole stacks that moved."""
    layers: dict[Key, dict[int, set[Key]]] = defaultdict(lambda: defaultdict(set))
    for old, targets in moves.items():
        for new in targets:
            for place, part in enumerate(new):
                if isinstance(part, int):
                    layers[new[:place]][part].add(old)
    before = {group.key: group for group in groups}
    found = []
    for key, members in layers.items():
        indices = tuple(sorted(members))
        origin = _origin(members, before)
        usual = LayerGroup(key, indices, Apart(spelling))
        found.append(replace(origin, key=key) if origin and origin.indices == indices else usual)
    whole = (_moved_whole(group, moves) for group in groups if group.problem)
    return [*found, *(group for group in whole if group is not None)]


def _origin(members: Mapping[int, set[Key]], groups: Mapping[Key, LayerGroup]) -> LayerGroup | None:
    """The group from which all layers come, each under its own number."""
    common: list[Key] | None = None
    for index, olds in members.items():
        for old in olds:
            places = [old[:place] for place, part in enumerate(old) if part == index]
            keys = [key for key in places if key in groups]
            common = keys if common is None else [key for key in common if key in keys]
    return groups[common[0]] if common else None


def _moved_whole(group: LayerGroup, moves: Mapping[Key, tuple[Key, ...]]) -> LayerGroup | None:
    """A stack that could not be taken apart, where it is now; None when it went different ways."""
    size = len(group.key)
    heads = set()
    for old, targets in moves.items():
        if old[:size] != group.key:
            continue
        inner = old[size:]
        for new in targets:
            heads.add(new[: -len(inner)] if new[-len(inner) :] == inner else None)
    [head, *others] = heads or [None]
    return None if others or head is None else replace(group, key=head)
