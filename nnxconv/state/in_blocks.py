"""Layers apart that shall be stacked in blocks: of which family they are."""

from collections.abc import Iterable, Mapping, Sequence

from nnxconv.errors import LayerError
from nnxconv.state.families import Family
from nnxconv.state.layer_groups import DEFAULT_AXIS, Apart, Blocks, LayerGroup
from nnxconv.state.train_state import TrainState
from nnxconv.tree import Key, Literal, spell


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
        likely = [family for family in families if family.mark and _is_beside(state, family)]
        marked = ((group, _by_mark(group, _names(state, group), likely)) for group in apart)
        return {group.key: blocks for group, blocks in marked if blocks is not None}
    found = {
        group.key: _asked(group, _names(state, group), asked)
        for group in apart
        if asked.is_general or group.key[-1] == asked.apart
    }
    if not found and not any(isinstance(group.arrangement, Blocks) for group in groups):
        raise LayerError(f"no layers are called `{asked.apart}`, as those of {asked.name} are")
    return found


def _is_beside(state: TrainState, family: Family) -> bool:
    """True where the model has what a family's mark needs beside it, if it needs anything."""
    if not (family.beside or family.vocabulary):
        return True
    parts = {str(part) for path in state.params for part in path} if family.beside else set()
    return any(part.startswith(family.beside) for part in parts) or any(
        path[-1] == "embedding" and leaf.shape[:1] == (family.vocabulary,)
        for path, leaf in state.params.items()
        if not isinstance(leaf, Literal)
    )


def _names(state: TrainState, group: LayerGroup) -> dict[int, set[str]]:
    """The names in each layer of a group that is apart."""
    names: dict[int, set[str]] = {i: set() for i in group.indices}
    size = len(group.key)
    for path in state.params:
        if path[:size] == group.key and path[size] in names:
            names[path[size]].update(map(str, path[size + 1 :]))  # pyright: ignore
    return names


def _asked(group: LayerGroup, names: Mapping[int, set[str]], family: Family) -> Blocks:
    if family.period is None:
        raise LayerError(
            f"the description of {family.name} does not say how many layers a block has",
            hint="`period = N` in it does",
        )
    marked = [i for i, parts in names.items() if family.mark in parts]
    if marked and family.mark_of and (fitting := _fitting(group, family, marked)):
        return fitting
    blocks = Blocks(DEFAULT_AXIS, family.period, family=family, prefix=family.prefix)
    if not _has_place(len(group.indices), blocks):
        raise LayerError(f"{_few(group, family)}, as {family.name} has it")
    return blocks


def _by_mark(
    group: LayerGroup, names: Mapping[int, set[str]], families: Iterable[Family]
) -> Blocks | None:
    """The blocks of the first family whose marks the layers have."""
    for family in families:
        marked = [i for i, parts in names.items() if family.mark in parts]
        if not marked or not (family.is_general or group.key[-1] == family.apart):
            continue
        if family.never_stacked:
            raise LayerError(
                f"the layers of `{spell(group.key)}` are those of {family.models}, which are not"
                f" stacked: {family.never_stacked}",
                hint="without `--scan_layers` they stay apart",
            )
        if fitting := _fitting(group, family, marked):
            return fitting
        if family.period is not None and not family.mark_of:
            raise LayerError(
                f"{_few(group, family)}, as {family.models} has them",
                hint="`--family FILE` describes other blocks, and `--like` shows them",
            )
    return None


def _fitting(group: LayerGroup, family: Family, marked: Sequence[int]) -> Blocks | None:
    """The blocks of a family in which the layers with its mark are where they ought to be."""
    if family.period is None:
        return None
    others = range(2, len(group.indices) + 1) if family.mark_of else ()
    tried = (
        Blocks(DEFAULT_AXIS, period, family=family, prefix=family.prefix)
        for period in (family.period, *others)
    )
    return next((blocks for blocks in tried if _fits(group, blocks, marked)), None)


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
    meant = family.last_or(family.mark_of, blocks.period)
    numbers = range(blocks.prefix, count)
    wanted = [i for i in numbers if (i - blocks.prefix) % blocks.period in meant]
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
    if family.beside or family.vocabulary:
        return ", and what is beside them is theirs as well"
    return f", as those of `--family {family.alike}` have" if family.alike else ""
