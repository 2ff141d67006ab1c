"""Modules that one tree keeps as one, and the other apart, as pairs of modules."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from nnxconv.matching.fitting import Fitting, scopes_of
from nnxconv.matching.fused import PARTS, ways_to_part
from nnxconv.matching.modules import ModuleFamily, Slot
from nnxconv.matching.orientation import SlotReadings, kind_of
from nnxconv.matching.pairs import LeafPair, ModulePair
from nnxconv.matching.readings import Orientation
from nnxconv.matching.roles import spoken
from nnxconv.renaming import Step


def in_parts(
    fitting: Fitting, left: Iterable[ModuleFamily], right: Iterable[ModuleFamily]
) -> Iterator[ModulePair]:
    """What one side keeps as one, and the other apart, where all names say what it is.

    Args:
      fitting: what is known of both trees.
      left, right: what is left of two scopes that are paired.
    """
    here = {fitting.role(m): m for m in left if fitting.role(m)}
    there = {fitting.role(m): m for m in right if fitting.role(m)}
    for wholes, others, is_source in ((here, there, True), (there, here, False)):
        for role, whole in wholes.items():
            head, _, last = role.rpartition(".")
            for several in PARTS.get(last, ()):
                names = [f"{head}.{name}" if head else name for name in several]
                parts = [others[name] for name in names if name in others]
                if len(parts) < len(names) or role in others:
                    continue
                leaves = _taken_apart(fitting, whole, parts, is_source=is_source)
                if leaves is not None:
                    told = f"{', '.join(map(spoken, names[:-1]))} and {spoken(names[-1])} in one"
                    yield ModulePair(*_sides(whole, parts, is_source=is_source), told, leaves)


def in_experts(
    fitting: Fitting, left: Iterable[ModuleFamily], right: Iterable[ModuleFamily]
) -> Iterator[ModulePair]:
    """What one side has for each expert apart, and the other for all of them in one array.

    Args:
      fitting: what is known of both trees.
      left, right: what is left of two scopes that are paired.
    """
    here, there = (_by_role(fitting, modules) for modules in (left, right))
    for wholes, others, is_source in ((here, there, True), (there, here, False)):
        for role, some in wholes.items():
            parts = sorted(others.get(role, []), key=lambda module: module.numbers)
            if not role.startswith("moe.") or len(some) > 1 or len(parts) < 2:
                continue
            leaves = _taken_apart(fitting, some[0], parts, is_source=is_source, is_stacked=True)
            if leaves is not None and len({part.skeleton for part in parts}) == 1:
                told = f"{spoken(role)}, {len(parts)} in one"
                yield ModulePair(*_sides(some[0], parts, is_source=is_source), told, leaves)


_T = TypeVar("_T")


def _sides(
    whole: _T, parts: Sequence[_T], *, is_source: bool
) -> tuple[tuple[_T, ...], tuple[_T, ...]]:
    """What is kept as one and its parts, the source's first."""
    one, several = (whole,), tuple(parts)
    return (one, several) if is_source else (several, one)


def _by_role(fitting: Fitting, modules: Iterable[ModuleFamily]) -> Mapping[str, list[ModuleFamily]]:
    found: dict[str, list[ModuleFamily]] = defaultdict(list)
    for module in modules:
        found[fitting.role(module)].append(module)
    return found


def _taken_apart(
    fitting: Fitting,
    whole: ModuleFamily,
    parts: Sequence[ModuleFamily],
    *,
    is_source: bool,
    is_stacked: bool = False,
) -> tuple[LeafPair, ...] | None:
    """The leaves of a module in the parts that the other tree has; None when one does not fit.

    Args:
      whole: the one that is kept as one.
      parts: the others, in the order in which they are in it.
      is_source: the whole one is the source's.
      is_stacked: the first axis of the whole one counts the parts.
    """
    leaves = []
    for name, slot in whole.slots.items():
        slots = [part.slots[name] for part in parts if name in part.slots]
        if len(slots) < len(parts) or any(s.ranks != slot.ranks for s in slots):
            return None
        ways = _ways(fitting, whole, parts, slot, slots, is_stacked=is_stacked)
        if not ways:
            return None
        if not is_source:
            ways = {
                orientation: tuple(_undone(steps) for steps in each)
                for orientation, each in ways.items()
            }
        leaves.append(LeafPair(*_sides(slot, slots, is_source=is_source), ways))
    if any(len(part.slots) != len(whole.slots) for part in parts):
        return None
    return tuple(leaves)


def _ways(
    fitting: Fitting,
    whole: ModuleFamily,
    parts: Sequence[ModuleFamily],
    slot: Slot,
    slots: Sequence[Slot],
    *,
    is_stacked: bool,
) -> SlotReadings:
    """How one leaf is taken apart in every member: in such a way as holds for all, if one does."""
    roles = [fitting.role(part) for part in parts]
    kind = kind_of(whole, parts[0], slot, slots[0], roles[0])
    columns = zip(*(s.shapes or () for s in slots), strict=True)
    each: list[dict[Orientation, tuple[Step, ...]]] = []
    for shape, shapes in zip(slot.shapes or (), columns, strict=True):
        ways = list(ways_to_part(shape, shapes, kind, roles, is_stacked=is_stacked))
        each.append(dict(ways))
        if len(each[-1]) < len(ways):
            return {}  # one orientation in two ways
    found: SlotReadings = {
        orientation: tuple(ways[orientation] for ways in each)
        for orientation in (each[0] if each else ())
        if all(orientation in ways for ways in each)
    }
    return fitting.narrowed(found, scopes_of(whole, parts[0]), kind, (slot.name, slots[0].name))


def _undone(steps: Sequence[Step]) -> tuple[Step, ...]:
    undone = [step.inverse() for step in reversed(steps)]
    return tuple(step for step in undone if step is not None)
