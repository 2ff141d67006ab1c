"""Layers apart that shall be stacked in blocks: of which family they are."""

from collections.abc import Iterable, Mapping, Sequence

from nnxconv.errors import LayerError
from nnxconv.state.families import Family
from nnxconv.state.layer_groups import DEFAULT_AXIS, Apart, Blocks, LayerGroup
from nnxconv.state.train_state import TrainState
from nnxconv.tree import Key, spell


def blocks_for(
    state: TrainState,
    groups: Iterable[LayerGroup],
    families: Iterable[Family],
    asked: Family | None = None,
) -> dict[Key, Blocks]:
    """How the layers are stacked that are apart and of a family with blocks, by their groups.

    Args:
      state: with its layers apart.
      groups: its layer groups.
      families: those that are recognised by their marks.
      asked: what all layers are of that have the family's name for them, whatever their marks.

    Raises:
      LayerError: no layers have that name, or they are fewer than a block.
    """
    groups = list(groups)
    apart = [group for group in groups if isinstance(group.arrangement, Apart)]
    if asked is None:
        marked = ((group, _by_mark(state, group, families)) for group in apart)
        return {group.key: blocks for group, blocks in marked if blocks is not None}
    found = {
        group.key: _asked(group, asked)
        for group in apart
        if asked.is_general or group.key[-1] == asked.apart
    }
    if not found and not any(isinstance(group.arrangement, Blocks) for group in groups):
        raise LayerError(f"no layers are called `{asked.apart}`, as those of {asked.name} are")
    return found


def _asked(group: LayerGroup, family: Family) -> Blocks:
    if family.period is None:
        raise LayerError(
            f"the description of {family.name} does not say how many layers a block has",
            hint="`period = N` in it does",
        )
    blocks = Blocks(DEFAULT_AXIS, family.period, family=family, prefix=family.prefix)
    if not _has_place(len(group.indices), blocks):
        raise LayerError(f"{_few(group, family)}, as {family.name} has it")
    return blocks


def _by_mark(state: TrainState, group: LayerGroup, families: Iterable[Family]) -> Blocks | None:
    """The blocks of the first family whose marks the layers have."""
    names: dict[int, set[str]] = {i: set() for i in group.indices}
    size = len(group.key)
    for path in state.params:
        if path[:size] == group.key and path[size] in names:
            names[path[size]].update(map(str, path[size + 1 :]))  # pyright: ignore
    for family in families:
        if not family.mark or group.key[-1] != family.apart:
            continue
        marked = [i for i, parts in names.items() if family.mark in parts]
        if marked and family.never_stacked:
            raise LayerError(
                f"the layers of `{spell(group.key)}` are those of {family.models}, which are never"
                f" stacked: {family.never_stacked}",
                hint="without `--scan_layers` they stay apart",
            )
        if family.period is None:
            continue
        for period in (family.period, *range(2, len(names) + 1)) if marked else ():
            blocks = Blocks(DEFAULT_AXIS, period, family=family, prefix=family.prefix)
            if _fits(group, blocks, marked):
                return blocks
            if not family.mark_of:
                raise LayerError(
                    f"{_few(group, family)}, as {family.models} has them",
                    hint="`--family FILE` describes other blocks, and `--like` shows them",
                )
    return None


def _has_place(count: int, blocks: Blocks) -> bool:
    """True where so many layers fill a block, or are all a remainder, as a family has one."""
    least = 1 if blocks.family.remainder else blocks.period
    return count >= blocks.prefix + least


def _few(group: LayerGroup, family: Family) -> str:
    before = f" after the first {family.prefix}" if family.prefix else ""
    return (
        f"the {len(group.indices)} layers of `{spell(group.key)}` fill no block of"
        f" {family.period}{before}"
    )


def _fits(group: LayerGroup, blocks: Blocks, marked: Sequence[int]) -> bool:
    """True where the layers with the mark are those that it stands for."""
    count, family = len(group.indices), blocks.family
    if not _has_place(count, blocks):
        return False
    if not family.mark_of:
        return True
    if family.rest is None and (count - blocks.prefix) % blocks.period:
        return False
    names = {
        i: slot.name
        for slot in family.slots(blocks.period)
        for i in range(slot.first, slot.first + slot.count)
    }
    numbers = range(blocks.prefix, count)
    wanted = [i for i in numbers if names[(i - blocks.prefix) % blocks.period] == family.mark_of]
    return wanted == sorted(marked)


def told_by_marks(found: Mapping[Key, Blocks]) -> list[str]:
    """What is assumed of layers whose family their marks tell."""
    return [
        f"`{spell(key)}` has blocks of {blocks.period} as {blocks.family.models} has them, for its"
        f" layers have `{blocks.family.mark}`{_alike(blocks.family)}; `--family` or `--like` says"
        " otherwise"
        for key, blocks in found.items()
    ]


def _alike(family: Family) -> str:
    return f", as those of `--family {family.alike}` have" if family.alike else ""
