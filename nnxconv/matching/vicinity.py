"""Which leaf is which where several hold the same: told by what is paired around them.

The counterpart of a module is the innermost module of the other tree in which everything is that
is paired with something of it. A leaf belongs into the counterpart of the innermost module around
it of which anything is paired.

>>> paired = [(("h", "0", "q", "kernel"), ("layer", "0", "query", "kernel"))]
>>> paired.append((("h", "0", "k", "kernel"), ("layer", "0", "key", "kernel")))
>>> there = Vicinity(paired)
>>> there.counterpart(("h", "0", "q", "bias"))
('layer', '0', 'query')
>>> there.counterpart(("h", "0", "norm", "bias"))
('layer', '0')
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from nnxconv.matching.modules import Path


class Vicinity:
    """The counterparts of the modules of one tree.

    Args:
      paired: the names of leaves that are paired, of this tree and of the other.
    """

    def __init__(self, paired: Iterable[tuple[Path, Path]]) -> None:
        self._counterparts: dict[Path, Path] = {}
        for names, others in paired:
            for size in range(len(names)):
                self._include(names[:size], others[:-1])

    def _include(self, module: Path, other: Path) -> None:
        known = self._counterparts.get(module)
        self._counterparts[module] = other if known is None else _shared(known, other)

    def counterpart(self, names: Path) -> Path:
        """Where in the other tree a leaf of these names belongs."""
        for size in range(len(names) - 1, -1, -1):
            found = self._counterparts.get(names[:size])
            if found is not None:
                return found
        return ()


def _shared(a: Path, b: Path) -> Path:
    size = 0
    while size < min(len(a), len(b)) and a[size] == b[size]:
        size += 1
    return a[:size]


def only_fitting(
    left: Sequence[Path], right: Sequence[Path], there: Vicinity, back: Vicinity
) -> Iterator[tuple[int, int]]:
    """The pairs, by their places, of which either one is the only one that fits the other.

    Args:
      left, right: the names of leaves that hold the same.
      there: the counterparts of the modules on the left; `back`: of those on the right.
    """
    below: dict[Path, set[int]] = defaultdict(set)
    for place, names in enumerate(right):
        for size in range(len(names) + 1):
            below[names[:size]].add(place)
    homes = [back.counterpart(names) for names in right]
    fitting = [
        [b for b in below[there.counterpart(names)] if names[: len(homes[b])] == homes[b]]
        for names in left
    ]
    rivals: dict[int, int] = defaultdict(int)
    for found in fitting:
        for b in found:
            rivals[b] += 1
    for a, found in enumerate(fitting):
        if len(found) == 1 and rivals[found[0]] == 1:
            yield a, found[0]
