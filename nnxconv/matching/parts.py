"""Which leaves of one tree are parts of one leaf of the other: fingerprints that add up to its own.

Parts are looked for among what has the same names but for one number, such as the layers of a
stack, and among the modules side by side, such as queries, keys and values.
"""

import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

from nnxconv.matching.fingerprints import NOTHING, Fingerprint
from nnxconv.matching.generalise import numbers_in, skeleton
from nnxconv.matching.modules import Path
from nnxconv.tree import Key

_MOST_PARTS = 4
_MOST_SIBLINGS = 12
"""Of more modules side by side only all of them are tried."""


def leaves_that_add_up(
    parts: Mapping[Key, Fingerprint],
    names: Mapping[Key, Path],
    wholes: Mapping[Fingerprint, Sequence[Key]],
) -> Iterator[tuple[tuple[Key, ...], Key]]:
    """Leaves, and the leaf of the other tree that holds what they hold together.

    Args:
      parts: what each leaf holds.
      names: what each is called.
      wholes: the leaves of the other tree by what they hold.
    """
    taken: set[Key] = set()
    for group in itertools.chain(_numbered(parts), _siblings(parts, names)):
        if taken.isdisjoint(group):
            found = wholes.get(_sum(parts[key] for key in group), ())
            if len(found) == 1 and found[0] not in taken:
                taken |= {*group, found[0]}
                yield group, found[0]


def _sum(several: Iterator[Fingerprint]) -> Fingerprint:
    return sum(several, NOTHING)


def _numbered(keys: Iterable[Key]) -> Iterator[tuple[Key, ...]]:
    """Leaves of which the names differ in one number only, in its order."""
    groups: dict[Hashable, list[tuple[int, Key]]] = defaultdict(list)
    for key in keys:
        numbers = numbers_in(key)
        for place, number in enumerate(numbers):
            rest = (*numbers[:place], None, *numbers[place + 1 :])
            groups[skeleton(key), rest].append((number, key))
    for group in groups.values():
        if len(group) > 1:
            yield tuple(key for _, key in sorted(group, key=lambda numbered: numbered[0]))


def _siblings(
    parts: Mapping[Key, Fingerprint], names: Mapping[Key, Path]
) -> Iterator[tuple[Key, ...]]:
    """Some or all of the leaves of one name in modules side by side, or of one module."""
    groups: dict[tuple[Path, str], list[Key]] = defaultdict(list)
    for key in parts:
        path = names[key]
        groups[path[:-1], ""].append(key)
        for up in (2, 3):
            if len(path) >= up:
                groups[path[:-up], path[-1]].append(key)
    for group in groups.values():
        sizes = range(2, min(len(group), _MOST_PARTS) + 1) if len(group) <= _MOST_SIBLINGS else ()
        for size in sizes:
            yield from itertools.combinations(group, size)
        if len(group) > _MOST_PARTS:
            yield tuple(group)
