"""Modules that one tree keeps as one, and the other apart: queries, keys and values; gates.

>>> for orientation, steps in ways_to_part((24, 48), ((24, 4, 4),) * 3, "dense", ("query",) * 3):
...     print(orientation, *steps)
same Split(axis=1, sizes=None) Divide(axis=1, into=(4, 4))
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from nnxconv.matching.readings import Kind, Orientation, readings
from nnxconv.renaming import Divide, Merge, Split, Step, Unstack
from nnxconv.tree import Shape

PARTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "qkv": (("query", "key", "value"),),
    "kv": (("key", "value"),),
    "gate_up": (("gate", "up"),),
    "gates": (("i", "f", "g", "o"), ("r", "z", "n")),
}
"""What is in a module of these roles, in this order; the gates are those of an LSTM or a GRU."""


def ways_to_part(
    whole: Shape,
    parts: Sequence[Shape],
    kind: Kind,
    roles: Sequence[str],
    *,
    is_stacked: bool = False,
) -> Iterator[tuple[Orientation, tuple[Step, ...]]]:
    """The steps that may make arrays of the shapes `parts`, in their order, of one.

    Args:
      whole: the shape of the one.
      parts: theirs.
      kind: what they are.
      roles: what each of them is, where this is known.
      is_stacked: they lie one after the other on a first axis of its own, as experts do.
    """
    total = math.prod(whole)
    if total != sum(map(math.prod, parts)):
        return
    if whole[:1] == (len(parts),):
        found = list(_each(Unstack(0), [whole[1:]] * len(parts), parts, kind, roles))
        if found or is_stacked:
            yield from found
            return
    for axis, size in enumerate(whole):
        shares = [size * math.prod(part) // total for part in parts]
        is_cut = sum(shares) == size and min(shares) > 0
        if is_cut and _keeps_inputs(whole, axis, parts):
            pieces = [(*whole[:axis], share, *whole[axis + 1 :]) for share in shares]
            sizes = None if len(set(shares)) == 1 else tuple(shares)
            yield from _each(Split(axis, sizes), pieces, parts, kind, roles)
        if size == len(parts):
            pieces = [(*whole[:axis], *whole[axis + 1 :])] * size
            yield from _each(Unstack(axis), pieces, parts, kind, roles)


def _keeps_inputs(whole: Shape, axis: int, parts: Sequence[Shape]) -> bool:
    """True unless the other axis of a matrix is none of a part's: what is fused are the outputs."""
    return len(whole) != 2 or all(whole[1 - axis] in part for part in parts)


def _each(
    cut: Step,
    pieces: Sequence[Shape],
    parts: Sequence[Shape],
    kind: Kind,
    roles: Sequence[str],
) -> Iterator[tuple[Orientation, tuple[Step, ...]]]:
    """The readings that all pieces share, after the cut."""
    read = [
        readings(*shapes, kind, role) for *shapes, role in zip(pieces, parts, roles, strict=True)
    ]
    for orientation in read[0]:
        if all(orientation in found for found in read):
            steps = _shared([found[orientation] for found in read])
            if steps is not None:
                yield orientation, (cut, *steps)


def _shared(each: Sequence[tuple[Step, ...]]) -> tuple[Step, ...] | None:
    """The steps that do to every piece what its own do; None when there are none."""
    if len({len(steps) for steps in each}) > 1:
        return None
    found: list[Step] = []
    for some in zip(*each, strict=True):
        step = some[0] if len(set(some)) == 1 else _of_any_size(some)
        if step is None:
            return None
        found.append(step)
    return tuple(found)


def _of_any_size(steps: Sequence[Step]) -> Step | None:
    """One division for axes of several sizes, as where there are fewer keys than queries."""
    first = steps[0]
    if not isinstance(first, Divide | Merge):
        return None
    alike = [step for step in steps if isinstance(step, type(first)) and step.axis == first.axis]
    sizes = {_sizes(step)[1] for step in alike}
    if len(alike) < len(steps) or len(sizes) > 1:
        return None
    return type(first)(first.axis, (-1, sizes.pop()))


def _sizes(step: Divide | Merge) -> tuple[int, int]:
    sizes = step.into if isinstance(step, Divide) else step.of
    assert sizes is not None
    return sizes
