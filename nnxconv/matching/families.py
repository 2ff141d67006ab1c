"""Families: leaves whose keys differ in numbers only, such as the kernels of `Dense_0`, `Dense_1`.

>>> from nnxconv.tree import Source
>>> w = Source("w", (4, 4), "float32", (4, 4))
>>> [family] = families({("params", f"Dense_{i}", "kernel"): w for i in range(3)})
>>> str(family), family.varying
('Dense_#.kernel', (0,))
"""

import re
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from nnxconv.renaming import literal
from nnxconv.tree import Key, Leaf, Literal, dtype_of, in_order, short_dtype

Numbers: TypeAlias = tuple[int, ...]
_NUMBER = re.compile(r"(0|[1-9][0-9]*)")


@dataclass(frozen=True)
class Family:
    """Leaves of one collection with the same names, apart from their numbers.

    Attributes:
      collection: `params`, or the name of another one.
      members: the module path of every leaf, in the order of its numbers.
      leaves: in the same order.
    """

    collection: str
    members: tuple[Key, ...]
    leaves: tuple[Leaf, ...]

    @cached_property
    def numbers(self) -> tuple[Numbers, ...]:
        """The numbers in each member's key."""
        return tuple(numbers_in(key) for key in self.members)

    @cached_property
    def varying(self) -> tuple[int, ...]:
        """Which of the numbers differ between members."""
        columns = zip(*self.numbers, strict=True)
        return tuple(place for place, column in enumerate(columns) if len(set(column)) > 1)

    @cached_property
    def signature(self) -> tuple[object, ...]:
        """What two families must have in common to be each other's: shapes, in order of numbers."""
        ranks = []
        for place in self.varying:
            values = sorted({numbers[place] for numbers in self.numbers})
            ranks.append([values.index(numbers[place]) for numbers in self.numbers])
        shapes = tuple(map(_shape_of, self.leaves))
        return self.collection, shapes, tuple(map(tuple, ranks))

    def split(self) -> list["Family"]:
        """Smaller families: one for each shape, or else for each last number that differs."""
        shapes = list(map(_shape_of, self.leaves))
        if len(set(shapes)) > 1:
            return self._parted(shapes)
        return self._parted([numbers[self.varying[-1]] for numbers in self.numbers])

    def _parted(self, by: Sequence[Hashable]) -> list["Family"]:
        """The members with the same value together."""
        parts: dict[Hashable, list[int]] = defaultdict(list)
        for at, value in enumerate(by):
            parts[value].append(at)
        return [
            Family(
                self.collection,
                tuple(self.members[at] for at in found),
                tuple(self.leaves[at] for at in found),
            )
            for found in parts.values()
        ]

    def __str__(self) -> str:
        if len(self.members) == 1:
            return as_in_rules(self.members[0])
        places = iter(range(len(self.numbers[0])))

        def shown(found: re.Match[str]) -> str:
            return "#" if next(places) in self.varying else found[0]

        return _NUMBER.sub(shown, as_in_rules(self.members[0]))


def as_in_rules(key: Key) -> str:
    """A module path as rules spell it: names that are numbers without quotes."""
    return str(literal(key))


def numbers_in(key: Key) -> Numbers:
    """The numbers in a key, in the order in which they are spelled."""
    return tuple(int(text) for part in key for text in _NUMBER.findall(str(part)))


def skeleton(key: Key) -> tuple[str, ...]:
    """A key without its numbers; layers are told from names.

    >>> skeleton(("blocks", 3, "norm1"))
    ('blocks', '[#]', 'norm#')
    """
    return tuple("[#]" if isinstance(part, int) else _NUMBER.sub("#", part) for part in key)


def families(leaves: Mapping[Key, Leaf]) -> list[Family]:
    """The leaves by family; keys are canonical, `params...` or `aux.<collection>...`."""
    groups: dict[tuple[str, tuple[str, ...]], list[Key]] = defaultdict(list)
    by_path: dict[tuple[str, Key], Leaf] = {}
    for key in in_order(leaves):
        collection, path = ("params", key[1:]) if key[0] == "params" else (str(key[1]), key[2:])
        by_path[(collection, path)] = leaves[key]
        groups[(collection, skeleton(path))].append(path)
    found = []
    for (collection, _), paths in groups.items():
        members = tuple(sorted(paths, key=numbers_in))
        found.append(Family(collection, members, tuple(by_path[collection, p] for p in members)))
    return found


def regrouped(some: Sequence[Family]) -> list[Family]:
    """The same leaves in families anew, those of different shapes apart."""
    leaves: dict[Key, Leaf] = {}
    for family in some:
        is_param = family.collection == "params"
        head = ("params",) if is_param else ("aux", family.collection)
        for path, leaf in zip(family.members, family.leaves, strict=True):
            leaves[(*head, *path)] = leaf
    return [
        part
        for family in families(leaves)
        for part in (family.split() if len(set(map(_shape_of, family.leaves))) > 1 else [family])
    ]


def _shape_of(leaf: Leaf) -> tuple[Hashable, ...]:
    if isinstance(leaf, Literal):
        return (leaf,)
    return (_kind(dtype_of(leaf)), *leaf.shape)


def _kind(dtype: str) -> str:
    """Floats of every size are alike, and integers: a conversion may cast them."""
    short = short_dtype(dtype)
    return "f" if short.startswith(("f", "bf")) else short[0]
