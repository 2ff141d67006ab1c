"""Many small pieces of one array, copied as few: where they lie at equal distances on both sides.

Rotary heads are put into pairs by one piece for each row; sorted by where they come from, or by
where they go, the rows of half a head are one copy with steps.

>>> from nnxconv.tree import Source, concat, pieces, part
>>> w = Source("w", (4, 3), "float32", (4, 3))
>>> view = concat([part(w, 0, i, i + 1) for i in (0, 2, 1, 3)], 0)
>>> whole = (slice(0, 4), slice(0, 3))
>>> for one in copies([(piece, piece.source_region(whole)) for piece in pieces(view)]):
...     print(one.source[0], one.target[0])
slice(0, 2, 1) slice(0, 3, 2)
slice(2, 4, 1) slice(1, 4, 2)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from nnxconv.tree import Piece, Region, fill

Read: TypeAlias = tuple[Piece, Region]
"""A piece, and the region of its source that is copied."""


@dataclass(frozen=True)
class Copy:
    """A region of a source, and where it goes; both may have steps.

    Attributes:
      source, target: slices of each axis.
      axes: which axis of the target an axis of the source becomes; None where it goes away.
    """

    source: Region
    target: Region
    axes: tuple[int | None, ...]

    def carry(self, stored: np.ndarray, start: Region, values: np.ndarray, origin: Region) -> None:
        """Copies from an array that begins at `start` of the source to one at `origin`."""
        taken = stored[_counted_from(self.source, start)]
        kept = [place for place, axis in enumerate(self.axes) if axis is not None]
        gone = tuple(place for place, axis in enumerate(self.axes) if axis is None)
        order = sorted(range(len(kept)), key=lambda nth: self.axes[kept[nth]] or 0)
        turned = taken.squeeze(gone).transpose(order)
        new = tuple(axis for axis in range(len(self.target)) if axis not in self.axes)
        fill(values[_counted_from(self.target, origin)], np.expand_dims(turned, new))


def copies(reads: Sequence[Read]) -> list[Copy]:
    """What is copied for pieces of one source: as many copies as they are, or fewer."""
    single = [
        Copy(wanted, piece.target_region(wanted) or (), piece.axes) for piece, wanted in reads
    ]
    if len(single) < _WORTH_IT:
        return single
    ways = (sorted(single, key=_starts_there), sorted(single, key=_starts_here))
    return min((list(_joined(way)) for way in ways), key=len)


_WORTH_IT = 4


def _starts_there(one: Copy) -> list[int]:
    return [part.start for part in (*one.source, *one.target)]


def _starts_here(one: Copy) -> list[int]:
    return [part.start for part in (*one.target, *one.source)]


def _joined(ordered: Sequence[Copy]) -> Iterator[Copy]:
    """Neighbours at equal distances as one copy."""
    at = 0
    while at < len(ordered):
        first = ordered[at]
        step = _step(first, ordered[at + 1]) if at + 1 < len(ordered) else None
        last = at
        while step is not None and last + 1 < len(ordered):
            if _step(ordered[last], ordered[last + 1]) != step:
                break
            last += 1
        yield first if step is None else _run(first, ordered[last], step)
        at = last + 1


Step: TypeAlias = tuple[int, int, int, int]
"""An axis of the source, how far along it; an axis of the target, how far along that."""


def _step(a: Copy, b: Copy) -> Step | None:
    """From one copy to the next one; None where they are not of one row."""
    if a.axes != b.axes:
        return None
    here, there = _moved(a.source, b.source), _moved(a.target, b.target)
    if here is None or there is None or a.axes[here[0]] not in (None, there[0]):
        return None
    if a.axes[here[0]] is None and there[0] in a.axes:
        return None
    return *here, *there


def _moved(a: Region, b: Region) -> tuple[int, int] | None:
    """The only axis, one long, on which two regions differ, and by how much; else None."""
    differing = [axis for axis, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    if len(differing) != 1:
        return None
    [axis] = differing
    by = b[axis].start - a[axis].start
    lengths = {part.stop - part.start for part in (a[axis], b[axis])}
    return (axis, by) if lengths == {1} and by > 0 else None


def _run(first: Copy, last: Copy, step: Step) -> Copy:
    """The copies from the first to the last one, at equal distances."""
    here, by, there, far = step
    source, target, axes = list(first.source), list(first.target), list(first.axes)
    source[here] = slice(first.source[here].start, last.source[here].stop, by)
    target[there] = slice(first.target[there].start, last.target[there].stop, far)
    axes[here] = there
    return Copy(tuple(source), tuple(target), tuple(axes))


def _counted_from(region: Region, start: Region) -> Region:
    """A region as it is counted from where another one begins."""
    return tuple(
        slice(part.start - whole.start, part.stop - whole.start, part.step)
        for part, whole in zip(region, start, strict=True)
    )
