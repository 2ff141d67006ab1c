"""Two canonical states side by side: what is on one side only, and what can be compared."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal as OneOf

from nnxconv.comparing.difference import Difference
from nnxconv.comparing.report import Finding
from nnxconv.errors import LayerError
from nnxconv.layouts import Understood, is_rng_state
from nnxconv.renaming import reread
from nnxconv.state import Family, LayerGroup, Tree
from nnxconv.tree import (
    Key,
    Leaf,
    Literal,
    View,
    dtype_of,
    in_order,
    matches,
    notation,
    short_dtype,
    spell,
    stack,
)

Scope = OneOf["params", "all"]


@dataclass(frozen=True)
class Selection:
    """Which leaves are compared: names and defaults are those of the command."""

    compare_only: Scope = "params"
    ignore_rngs: bool = True
    ignore_dtype: bool = False
    filter: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """The same leaf, or the same leaf of several layers, on both sides.

    With more than one key the views are stacks with the layers on axis 0, in the order of `keys`.
    """

    keys: tuple[Key, ...]
    a: View
    b: View


def select(leaves: Tree, selection: Selection) -> tuple[dict[Key, Leaf], Counter[str]]:
    """The leaves to compare, and how many were left aside by which option."""
    chosen: dict[Key, Leaf] = {}
    ignored: Counter[str] = Counter()
    for key, leaf in leaves.items():
        option = _ignoring_option(key, leaf, selection)
        if option is None:
            chosen[key] = leaf
        else:
            ignored[option] += 1
    return chosen, ignored


def _ignoring_option(key: Key, leaf: Leaf, selection: Selection) -> str | None:
    if selection.compare_only == "params" and key[0] != "params":
        return "--compare_only params"
    if selection.ignore_rngs and key[0] == "aux" and is_rng_state(key[1:], leaf):  # of copies too
        return "--ignore_rngs"
    name = spell(key)
    if selection.filter and not any(matches(name, glob) for glob in selection.filter):
        return "--filter"
    if any(matches(name, glob) for glob in selection.exclude):
        return "--exclude"
    return None


def line_up(
    a: Mapping[Key, Leaf], b: Mapping[Key, Leaf], *, ignore_dtype: bool
) -> tuple[list[Finding], list[tuple[Key, View, View]]]:
    """What differs in the metadata, and the leaves whose values can be compared."""
    findings: list[Finding] = []
    common: list[tuple[Key, View, View]] = []
    for key in in_order(a.keys() | b.keys()):
        left, right = a.get(key), b.get(key)
        if left is None or right is None:
            findings.append(Finding("missing" if right is None else "extra", key, left, right))
        elif isinstance(left, Literal) or isinstance(right, Literal):
            if left != right:
                findings.append(Finding("shape", key, left, right))
        elif left.shape != right.shape:
            findings.append(Finding("shape", key, left, right))
        elif dtype_of(left) == dtype_of(right) or ignore_dtype or _is_counter(left, right):
            common.append((key, left, right))
        else:
            findings.append(Finding("dtype", key, left, right))
    return findings, common


def _is_counter(left: View, right: View) -> bool:
    """True for two integer scalars: steps and counts compare by value."""
    return left.shape == () and all(
        short_dtype(dtype_of(view)).startswith(("i", "u")) for view in (left, right)
    )


def join_layers(
    common: Iterable[tuple[Key, View, View]], groups: Sequence[LayerGroup]
) -> list[Pair]:
    """The pairs with the layers of each group side by side again, so that stacks are whole."""
    runs: dict[tuple[object, ...], list[tuple[Key, View, View]]] = defaultdict(list)
    names = {group.key for group in groups}
    for key, left, right in common:
        place = layer_place(key, names)
        template = (*key[:place], None, *key[place + 1 :]) if place else key
        runs[(template, notation(left), notation(right))].append((key, left, right))
    return [_pair(run) for run in runs.values()]


def layer_place(key: Key, names: Collection[Key]) -> int:
    """Where in a canonical key the index of its outermost layer stands; 0 for none."""
    for place, part in enumerate(key):
        if isinstance(part, int) and any(key[max(place - len(n), 0) : place] == n for n in names):
            return place
    return 0


def _pair(run: Sequence[tuple[Key, View, View]]) -> Pair:
    keys = tuple(key for key, _, _ in run)
    if len(run) == 1:
        return Pair(keys, run[0][1], run[0][2])
    return Pair(keys, stack([a for _, a, _ in run], 0), stack([b for _, _, b in run], 0))


def value_findings(
    common: Iterable[tuple[Key, View, View]],
    statistics: Mapping[Key, Difference],
    scalars: Mapping[Key, tuple[str, str]],
) -> list[Finding]:
    """The leaves whose values differ beyond the tolerance."""
    return [
        Finding("value", key, a, b, statistics[key], scalars.get(key))
        for key, a, b in common
        if statistics[key].beyond
    ]


def agree_on_layers(a: Understood, b: Understood) -> tuple[Understood, Understood]:
    """Both sides with their layers apart, where one side's stacks can be told by the other's.

    A stack whose layer axis its own shapes do not tell is read as the other side has it; two such
    stacks are compared as they are.

    Raises:
      LayerError: a stack cannot be taken apart, but the other side's layers are.
    """
    names = tuple(dict.fromkeys((*a.layer_group, *b.layer_group)))
    families = b.families if a.families is None else a.families
    a, b = (_with_names(side, names, families) for side in (a, b))
    a, b = _told_by(a, b), _told_by(b, a)
    whole_a, whole_b = _whole(a), _whole(b)
    for key in whole_a.keys() ^ whole_b.keys():
        others = b.groups if key in whole_a else a.groups
        if any(group.key == key for group in others):
            problem = (whole_a | whole_b)[key]
            raise LayerError(problem, hint="the other side has these layers apart")
    return a, b


def _with_names(
    side: Understood, names: tuple[str, ...], families: tuple[Family, ...] | None
) -> Understood:
    """The side, with the names of layer groups, and the families, that the other one knows."""
    if side.layer_group == names and side.families == families:
        return side
    return reread(replace(side, layer_group=names, families=families), None)


def _whole(side: Understood) -> dict[Key, str]:
    return {group.key: group.problem for group in side.groups if group.problem}


def _told_by(side: Understood, other: Understood) -> Understood:
    """The side with the one layer axis for which its shapes are those of the other, if there is."""
    unclear = [group.key for group in side.groups if group.arrangement is None]
    if not unclear or not any(g.key in unclear and g.indices for g in other.groups):
        return side
    wanted = {key: notation(leaf) for key, leaf in other.state.params.items()}
    readings = [reread(side, axis) for axis in (0, 1)]
    fitting = [
        reading
        for reading in readings
        if {key: notation(leaf) for key, leaf in reading.state.params.items()} == wanted
    ]
    return fitting[0] if len(fitting) == 1 else side
