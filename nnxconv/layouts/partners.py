"""Parameters and the moments that follow them; models in turn, with an optimizer each."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from nnxconv.layouts.outline import Node
from nnxconv.tree import Key, is_digits


@dataclass(frozen=True)
class Partner:
    """The parameters that a tree of moments repeats.

    `rivals` are the keys of others that it may repeat as well, by all that names tell.
    """

    moments: Node
    part: Node
    whole: Node
    rivals: tuple[Key, ...] = ()


def in_turn(mine: Sequence[Partner], size: int) -> Sequence[Partner]:
    """The partners, of a list of models each by itself that has an optimizer of its own.

    Args:
      mine: the partners of one optimizer's state, or of a list of such.
      size: how long its key is.
    """
    [*wholes] = {partner.whole.key: partner.whole for partner in mine}.values()
    if len(wholes) != 1 or not all(isinstance(name, int) for name in wholes[0].kids):
        return mine
    by_kid: dict[str | int, set[Key]] = defaultdict(set)
    for partner in mine:
        by_kid[partner.moments.key[size]].add(partner.part.key)
    elements = {kid.key for kid in wholes[0].kids.values()}
    are_all = elements == {part for some in by_kid.values() for part in some}
    if len(by_kid) < 2 or not are_all or not are_apart(by_kid.values()):
        return mine
    return [replace(partner, whole=partner.part) for partner in mine]


def are_apart(groups: Collection[set[Key]]) -> bool:
    """True for groups of one each, all different."""
    return all(len(some) == 1 for some in groups) and len(set[Key]().union(*groups)) == len(groups)


def first_number(key: Key) -> int | None:
    """The first number in a key, which tells models in turn apart, and their optimizers."""
    return next((int(part) for part in key if isinstance(part, int) or is_digits(part)), None)


def overlap(one: Key, other: Key) -> bool:
    """True for two keys one of which begins the other."""
    size = min(len(one), len(other))
    return one[:size] == other[:size]


def common(keys: Sequence[Key]) -> Key:
    """The longest key that all these begin with."""
    first, *others = keys
    size = 0
    while all(key[: size + 1] == first[: size + 1] for key in others) and size < len(first):
        size += 1
    return first[:size]
