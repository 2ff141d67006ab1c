"""What looks like layers when no layers are found that could be stacked."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from nnxconv.errors import LayerError
from nnxconv.state.layer_groups import DEFAULT_NAMES, is_fixed
from nnxconv.state.train_state import TrainState
from nnxconv.tree import Key, is_digits, notation, spell

_NUMBERED = re.compile(r"(.+)_([0-9]+)")
_LIKE_LAYERS = re.compile(r"(.*_)?(layers?|blocks?|h)")


@dataclass(frozen=True)
class Series:
    """Modules that differ in their number alone: `blocks_0`, `blocks_1`, or `blocks/0`, `blocks/1`.

    Attributes:
      key: what they are called before the number.
      numbers: in order.
      is_suffix: the number is a suffix of the name.
      ends: the first and the last module, as they are spelled.
    """

    key: Key
    numbers: tuple[int, ...]
    is_suffix: bool
    ends: tuple[Key, Key]

    @property
    def is_like_layers(self) -> bool:
        """True for a name that programs give to layers."""
        return _LIKE_LAYERS.fullmatch(str(self.key[-1])) is not None

    @property
    def group(self) -> str:
        """The option that calls them layers; none for what is numbered as no program's layers are.

        Those are names such as `layers_00`.
        """
        name = str(self.key[-1])
        return "" if name in DEFAULT_NAMES else f"`--layer_group {name}`"

    def __str__(self) -> str:
        return " to ".join(map(spell, self.ends))


def alike_series(state: TrainState) -> list[Series]:
    """The outermost modules of the parameters that are numbered, with equal names and shapes."""
    modules: dict[tuple[Key, bool], dict[int, dict[Key, str]]] = defaultdict(dict)
    spelled: dict[tuple[Key, bool, int], Key] = {}
    for path, leaf in state.params.items():
        place = None if is_fixed(path) else _numbered(path)
        if place is not None:
            key, number, is_suffix, rest = place
            modules[key, is_suffix].setdefault(number, {})[rest] = notation(leaf)
            spelled[key, is_suffix, number] = path[: len(path) - len(rest)]
    return [
        Series(
            key,
            tuple(sorted(members)),
            is_suffix,
            (spelled[key, is_suffix, min(members)], spelled[key, is_suffix, max(members)]),
        )
        for (key, is_suffix), members in modules.items()
        if len(members) > 1 and _are_equal(members)
    ]


def refuse_left_apart(state: TrainState) -> None:
    """Refuses to leave apart what looks like layers, where layers shall be stacked and are none.

    Raises:
      LayerError: modules are numbered and alike; the hint says how they are named.
    """
    found = alike_series(state)
    if not found:
        return
    named = [one.group for one in found if one.group]
    what = "none are called `layers`" if named else "none are called `layers_0` or `layers/0`"
    way = f"{named[0]} says that they are layers; " if named else ""
    raise LayerError(
        f"no layers are stacked: {what}, and these are alike",
        details=list(map(str, found)),
        hint=f"{way}without `--scan_layers` they stay apart",
    )


def _numbered(path: Key) -> tuple[Key, int, bool, Key] | None:
    """The first module of a path that has a number: its name, number, and what is below it."""
    for place, part in enumerate(path[:-1]):
        if isinstance(part, int) or (place and is_digits(part)):
            return (path[:place], int(part), False, path[place + 1 :]) if place else None
        found = _NUMBERED.fullmatch(part)
        if found:
            return (*path[:place], found[1]), int(found[2]), True, path[place + 1 :]
    return None


def _are_equal(members: Mapping[int, Mapping[Key, str]]) -> bool:
    first, *others = members.values()
    return all(other == first for other in others)
