"""Arrays that are parts of one of the other side, found by what they hold.

The order of the parts and the steps are those that make the whole's values, tried on one of each
family. Parts whose elements are all alike, such as zero biases, tell no order: they follow the
parts of the same modules.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from nnxconv.matching.arrangements import Steps, unusual_ways_to_join, ways_to_join
from nnxconv.matching.fingerprints import NOTHING, Fingerprint
from nnxconv.matching.generalise import Move, skeleton
from nnxconv.matching.modules import Path
from nnxconv.matching.parts import leaves_that_add_up
from nnxconv.matching.readings import undone
from nnxconv.matching.rounds import Round
from nnxconv.matching.values import Found, bare_names
from nnxconv.renaming import Divide, Transpose
from nnxconv.tree import Key, Shape, View

_ToJoin: TypeAlias = Callable[[Sequence[Shape], Shape], Sequence[tuple[tuple[int, ...], Steps]]]


def take_joined(one: Round) -> None:
    """Takes the arrays that are parts of one of the other side, and what follows them."""
    before = len(one.found)
    for is_cut in (True, False):
        for group in _by_family(one, _added_up(one, is_cut=is_cut)):
            any(
                _keep(one, group, list(_ways(one, group[0], to_join)), one.evidence)
                for to_join in (ways_to_join, unusual_ways_to_join)
            )
    joined = [found.moves[0] for found in one.found[before:]]
    for like in joined:
        for move in _beside(one, like):
            every = (_ways(one, move, how) for how in (ways_to_join, unusual_ways_to_join))
            ways = _like(list(itertools.chain(*every)), like)
            _keep(one, [move], ways, f"{one.evidence}, in paired modules")


def _by_family(one: Round, moves: Iterable[Move]) -> list[list[Move]]:
    """The moves that differ in their layers only."""
    families: dict[Hashable, list[Move]] = defaultdict(list)
    for move in moves:
        names = tuple(map(skeleton, move.sources)), tuple(map(skeleton, move.targets))
        families[*names, _shapes(one, move)].append(move)
    return list(families.values())


def _shapes(one: Round, move: Move) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
    olds = tuple(one.left[key].shape for key in move.sources)
    return olds, tuple(one.right[key].shape for key in move.targets)


def _keep(
    one: Round, group: Sequence[Move], ways: Sequence[tuple[Sequence[int], Steps]], why: str
) -> bool:
    """Takes those of a family that hold by a way that does for the first; False for none."""
    holding = one.holding([_ordered(group[0], *way) for way in ways])
    which = next((way for way, holds in zip(ways, holding, strict=True) if holds), None)
    if which is None:
        return False
    moves = [_ordered(move, *which) for move in group]
    proved = zip(moves, one.holding(moves), strict=True)
    one.keep([Found((move,), why) for move, holds in proved if holds])
    return True


def _ways(one: Round, move: Move, to_join: _ToJoin) -> Iterator[tuple[tuple[int, ...], Steps]]:
    """The orders of the parts of a move, and the steps."""
    is_cut = len(move.targets) > 1
    parts, wholes = _shapes(one, move)[::-1] if is_cut else _shapes(one, move)
    for order, way in to_join(parts, wholes[0]):
        yield order, (undone(way) or ()) if is_cut else way


def _ordered(move: Move, order: Sequence[int], steps: Steps) -> Move:
    """The move with its parts in an order."""

    def some(keys: tuple[Key, ...]) -> tuple[Key, ...]:
        return tuple(keys[place] for place in order) if len(keys) > 1 else keys

    return Move(some(move.sources), some(move.targets), steps)


# --- which leaves are parts ---------------------------------------------------------------------


def _added_up(one: Round, *, is_cut: bool) -> Iterator[Move]:
    """Leaves that add up to one of the other side; nothing is known of steps yet."""
    wholes, parts = (one.left, one.right) if is_cut else (one.right, one.left)
    held, held_parts = one.held if is_cut else one.held[::-1]
    some: dict[Hashable, dict[Key, Fingerprint]] = defaultdict(dict)
    there: dict[Hashable, dict[Fingerprint, list[Key]]] = defaultdict(lambda: defaultdict(list))
    for key, view in parts.items():
        if not held_parts[key].is_constant:
            some[one.kind(key, view)][key] = held_parts[key]
    for key, view in wholes.items():
        there[one.kind(key, view)][held[key]].append(key)
    for kind, fingerprints in some.items():
        names = {key: bare_names(key) for key in fingerprints}
        for several, whole in leaves_that_add_up(fingerprints, names, there[kind]):
            yield Move((whole,), several) if is_cut else Move(several, (whole,))


def _beside(one: Round, like: Move) -> list[Move]:
    """What is left in modules of which other leaves are joined or cut: the same for those."""
    is_cut = len(like.targets) > 1
    wholes, parts = (one.left, one.right) if is_cut else (one.right, one.left)
    held, held_parts = one.held if is_cut else one.held[::-1]
    several, whole = (like.targets, like.sources[0]) if is_cut else (like.sources, like.targets[0])
    modules = [bare_names(key)[:-1] for key in several]
    if len(set(modules)) < len(modules):
        return []
    inside = [_inside(parts, module) for module in modules]
    found: list[Move] = []
    for name in inside[0]:
        keys = tuple(some[name] for some in inside if name in some)
        total = sum((held_parts[key] for key in keys), NOTHING)
        others = _inside(wholes, bare_names(whole)[:-1]).values()
        fitting = [key for key in others if held[key] == total]
        if len(keys) == len(inside) and len(fitting) == 1:
            one_side: tuple[Key, ...] = (fitting[0],)
            found.append(Move(one_side, keys) if is_cut else Move(keys, one_side))
    return found


def _inside(side: Mapping[Key, View], module: Path) -> dict[str, Key]:
    """The leaves of a module, by their last names."""
    names = {key: bare_names(key) for key in side}
    return {path[-1]: key for key, path in names.items() if path[:-1] == module}


def _like(
    ways: Sequence[tuple[tuple[int, ...], Steps]], like: Move
) -> list[tuple[tuple[int, ...], Steps]]:
    """The one way that keeps the order of the parts, or does what is done to the others."""
    found = [(order, steps) for order, steps in ways if list(order) == sorted(order)]
    for what in (_kinds, _heads):
        if len(found) > 1:
            found = [(order, steps) for order, steps in found if what(steps) == what(like.steps)]
    return found if len(found) == 1 else []


def _kinds(steps: Steps) -> list[str]:
    return sorted(type(step).__name__ for step in steps if not isinstance(step, Transpose))


def _heads(steps: Steps) -> list[int]:
    """Into how many an axis is cut, by each division."""
    return [step.into[0] for step in steps if isinstance(step, Divide)]
