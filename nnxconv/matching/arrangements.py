"""Every way to make arrays of given shapes of others of as many elements; values choose of them.

Unlike `readings` these know no names: axes in any order, cut or put together, the same for parts of
an array that the other side has as one.

>>> for way in ways_to_one((5, 6), (2, 3, 5)):
...     print(*way)
Divide(axis=1, into=(2, 3)) Transpose(order=(1, 2, 0))
Divide(axis=1, into=(3, 2)) Transpose(order=(2, 1, 0))
"""

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TypeAlias

from nnxconv.errors import BadInput
from nnxconv.matching.readings import resized, undone
from nnxconv.renaming import (
    Concat,
    Divide,
    Halves,
    Pairs,
    Pile,
    Reshape,
    Step,
    Transpose,
    apply_steps,
)
from nnxconv.tree import Shape, Source, View

Steps: TypeAlias = tuple[Step, ...]
_MOST_AXES = 5
"""Of arrays with more axes only the order that they have is tried."""
_MOST_PARTS = 4
"""Of more parts that one array holds, the order is that of their numbers."""


@lru_cache(maxsize=4096)
def ways_to_one(old: Shape, new: Shape) -> tuple[Steps, ...]:
    """The ways from one shape to another that keep or cut whole axes, the plain one first."""
    if math.prod(old) != math.prod(new):
        return ()
    plain = _exactly(old, new)
    found = [plain, *_turned(old, new), *map(undone, _turned(new, old))]
    return _distinct([way for way in found if way is not None], [old])


@lru_cache(maxsize=4096)
def unusual_ways(old: Shape, new: Shape) -> tuple[Steps, ...]:
    """Further ways: rotary heads, from pairs of elements to halves or back; any other reshape."""
    found: list[Steps] = []
    for way in ways_to_one(old, new):
        for axis, size in enumerate(old):
            heads = [n for n in range(1, size // 4 + 1) if size % (2 * n) == 0]
            found += [(Halves(axis, n), *way) for n in heads]
            # of four elements in each head both do the same
            found += [(Pairs(axis, n), *way) for n in heads if size != 4 * n]
    plain = _exactly(old, new) is None and math.prod(old) == math.prod(new)
    return (*found, *(_distinct([(Reshape(new, old),)], [old]) if plain else ()))


def ways_to_join(parts: Sequence[Shape], whole: Shape) -> tuple[tuple[tuple[int, ...], Steps], ...]:
    """The ways to make an array of parts: the order of the parts, and the steps.

    >>> for order, way in ways_to_join(((4, 2), (4, 3)), (4, 5)):
    ...     print(order, *way)
    (0, 1) Concat(axis=1, sizes=(2, 3))
    (1, 0) Concat(axis=1, sizes=(3, 2))
    """
    return tuple(_in_orders(parts, whole, _joined))


def unusual_ways_to_join(
    parts: Sequence[Shape], whole: Shape
) -> tuple[tuple[tuple[int, ...], Steps], ...]:
    """Further ways: each head, or group of heads, of the whole has its share of all parts.

    >>> for order, way in unusual_ways_to_join(((4, 2), (2, 2)), (6, 2)):
    ...     print(order, *way)
    (0, 1) Divide(axis=0, into=(2, -1)) Concat(axis=1, sizes=(2, 1)) Merge(axis=0, of=(2, 3))
    (1, 0) Divide(axis=0, into=(2, -1)) Concat(axis=1, sizes=(1, 2)) Merge(axis=0, of=(2, 3))
    """
    return tuple(_in_orders(parts, whole, _joined_by_heads))


def _in_orders(
    parts: Sequence[Shape],
    whole: Shape,
    joined: Callable[[Sequence[Shape], Shape], Iterable[Steps]],
) -> Iterator[tuple[tuple[int, ...], Steps]]:
    """The orders that parts may have, and the ways to join them that do not do the same."""
    if sum(map(math.prod, parts)) != math.prod(whole):
        return
    places = range(len(parts))
    orders = itertools.permutations(places) if len(parts) <= _MOST_PARTS else [tuple(places)]
    for order in orders:
        some = [parts[place] for place in order]
        yield from ((order, way) for way in _distinct(sorted(joined(some, whole), key=len), some))


def _joined_by_heads(parts: Sequence[Shape], whole: Shape) -> Iterator[Steps]:
    """Parts in this order: their axes turned, one of them cut into heads, and joined in each."""
    rank = len(parts[0])
    if any(len(part) != rank for part in parts) or rank >= _MOST_AXES:
        return
    for order in itertools.permutations(range(rank)):
        turn = () if list(order) == sorted(order) else (Transpose(order),)
        moved = [tuple(part[axis] for axis in order) for part in parts]
        for axis in range(rank):
            sizes = [part[axis] for part in moved]
            if len({(*part[:axis], *part[axis + 1 :]) for part in moved}) > 1:
                continue
            for heads in _divisors(math.gcd(*sizes)):
                each = tuple(size // heads for size in sizes)
                cut = (*moved[0][:axis], heads, sum(each), *moved[0][axis + 1 :])
                if (then := _exactly(cut, whole)) is not None:
                    apart = Concat(axis + 1, None if len(set(each)) == 1 else each)
                    yield (*turn, Divide(axis, (heads, -1)), apart, *then)


def _divisors(number: int) -> list[int]:
    """Those above 1."""
    return [n for n in range(2, number + 1) if number % n == 0]


def _joined(parts: Sequence[Shape], whole: Shape) -> Iterator[Steps]:
    """Parts in this order: their axes turned, then joined along one, then resized."""
    rank = len(parts[0])
    if any(len(part) != rank for part in parts):
        return
    orders = itertools.permutations(range(rank)) if rank < _MOST_AXES else [tuple(range(rank))]
    for order in orders:
        turn = () if list(order) == sorted(order) else (Transpose(order),)
        moved = [tuple(part[axis] for axis in order) for part in parts]
        yield from ((*turn, *way) for way in _end_to_end(moved, whole))
        yield from ((*turn, *way) for way in _within_heads(moved, whole))
    if len(whole) > rank + 1 and len(set(parts)) == 1:
        yield from _as_pieces(parts[0], len(parts), whole)


def _as_pieces(part: Shape, count: int, whole: Shape) -> Iterator[Steps]:
    """Parts whose heads are taken apart and turned, and which then lie side by side in the whole.

    >>> print(*next(_as_pieces((6, 5), 2, (2, 3, 5, 2))))
    Divide(axis=0, into=(3, 2)) Transpose(order=(0, 2, 1)) Pile(axis=0)
    """
    for axis, size in enumerate(whole):
        if size == count:
            piece = (*whole[:axis], *whole[axis + 1 :])
            yield from ((*way, Pile(axis)) for way in ways_to_one(part, piece))


def _end_to_end(parts: Sequence[Shape], whole: Shape) -> Iterator[Steps]:
    """Parts side by side on a new axis, or end to end along one that they have."""
    first = parts[0]
    for axis in range(len(first)):
        rests = {(*part[:axis], *part[axis + 1 :]) for part in parts}
        sizes = tuple(part[axis] for part in parts)
        if len(rests) == 1:
            joined = (*first[:axis], sum(sizes), *first[axis + 1 :])
            if (then := _exactly(joined, whole)) is not None:
                yield (Concat(axis, None if len(set(sizes)) == 1 else sizes), *then)
    if len(set(parts)) == 1:
        for axis in range(len(first) + 1):
            stacked = (*first[:axis], len(parts), *first[axis:])
            if (then := _exactly(stacked, whole)) is not None:
                yield (Pile(axis), *then)


def _within_heads(parts: Sequence[Shape], whole: Shape) -> Iterator[Steps]:
    """Parts whose heads are taken apart, so that each head of the whole has all of them."""
    if len(set(parts)) > 1 or len(whole) != len(parts[0]) + 1:
        return
    for axis, size in enumerate(parts[0]):
        for heads in {n for n in whole if 1 < n < size and size % n == 0}:
            into = (heads, size // heads)
            cut = (*parts[0][:axis], *into, *parts[0][axis + 1 :])
            for way in _end_to_end([cut] * len(parts), whole):
                yield (Divide(axis, into), *way)


def _exactly(old: Shape, new: Shape) -> Steps | None:
    """The steps that cut axes or put them together, where one shape is the other one cut."""
    return _resized(old, new) if _ends(old) <= _ends(new) or _ends(new) <= _ends(old) else None


def _resized(old: Shape, new: Shape) -> Steps | None:
    """The elements in their order: by one division where it does, or a reshape."""
    found = resized(old, new)
    return (Reshape(new, old),) if found is None else found


def _turned(old: Shape, new: Shape) -> Iterator[Steps]:
    """The axes in another order, and then put together; the other way where `new` has more."""
    if not 1 < len(old) <= _MOST_AXES:
        return
    for order in itertools.permutations(range(len(old))):
        moved = tuple(old[axis] for axis in order)
        if list(order) != sorted(order) and _ends(new) <= _ends(moved):
            yield (Transpose(order), *(_resized(moved, new) or ()))


def _ends(shape: Shape) -> set[int]:
    """How many elements the first axes have together, for each number of axes."""
    return {1, *itertools.accumulate(shape, operator.mul)}


def _distinct(ways: Sequence[Steps], shapes: Sequence[Shape]) -> tuple[Steps, ...]:
    """The ways that can be taken, and do not do the same as one before."""
    sources = [Source(str(n), shape, "float32", shape) for n, shape in enumerate(shapes)]
    found: dict[object, Steps] = {}
    for way in ways:
        try:
            apply_steps(way, sources, 1)
            found.setdefault(_effect(way, sources), way)
        except BadInput:
            continue
    return tuple(found.values())


def _effect(way: Steps, sources: Sequence[View]) -> object:
    """What two ways that do the same have in common: axes of one element do not count."""
    effects: list[object] = []
    views = list(sources)
    for step in way:
        if isinstance(step, Transpose):
            shape = views[0].shape
            order = [axis for axis in step.order if shape[axis] != 1]
            atoms = tuple(size for size in shape if size != 1)
            ranks = tuple(sorted(order).index(axis) for axis in order)
            effects += [(atoms, ranks)] if order != sorted(order) else []
        elif isinstance(step, Concat | Pile):
            before = [math.prod(view.shape[: step.axis]) for view in views]
            effects.append(before)
        views = apply_steps([step], views, 1)
    return str(effects)
