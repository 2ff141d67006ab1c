"""Repeated layers left aside, so that the names of a small tree say what those of a large one mean.

```
decoder/layers_0/...  layers_1/...  ...  layers_95/...      all alike, also in the moments
decoder/layers_0/...  layers_1/...  layers_2/...            stand for them
```

Two numbers of a name are alike when exchanging them everywhere gives the same tree again: the same
keys in the same order, with arrays of the same shapes and types. What is found out of one is then
so of the other.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from nnxconv.state import Tree
from nnxconv.tree import Key, Leaf, Literal, Source, dtype_of, first_source, is_digits

_KEPT = 3
"""Of all numbers that are alike, how many stay: one alone would not show that there are several."""


@dataclass(frozen=True)
class Folded:
    """A tree without most of its repeated layers.

    Attributes:
      tree: what is left of it.
      like: for each leaf of the whole tree, in its order, the place in `tree` of the one that is as
        it is.
      repeated: the names that were left aside, and those that are as they are.
    """

    tree: Tree
    like: Sequence[int]
    repeated: frozenset[str | int]

    def is_repeated(self, keys: Iterable[Key]) -> bool:
        """True when any of these keys stands in layers of which some were left aside."""
        return not self.repeated.isdisjoint(chain.from_iterable(keys))

    def unfolded(self, tree: Tree, keys: Collection[Key]) -> list[Key]:
        """The leaves of the whole tree that are as these of what is left of it."""
        is_one = [key in keys for key in self.tree]
        return [key for key, place in zip(tree, self.like, strict=True) if is_one[place]]


def folded(tree: Tree) -> Folded | None:
    """The tree without most of its repeated layers; None where it has no layers to leave aside."""
    short, stand_in, repeated = tree, dict[str | int, str | int](), set[str | int]()
    while groups := _alike(short):
        alike = {
            name: numbers[0].names[kind]
            for numbers in groups
            for number in numbers[_KEPT:]
            for kind, name in number.names.items()
        }
        aside = frozenset(alike)
        short = {key: leaf for key, leaf in short.items() if aside.isdisjoint(key)}
        stand_in = {name: alike.get(other, other) for name, other in stand_in.items()} | alike
        repeated.update(*(number.names.values() for numbers in groups for number in numbers))
    if not stand_in:
        return None
    other, places = stand_in.get, {key: place for place, key in enumerate(short)}
    like = [places[tuple(map(other, key, key))] for key in tree]
    return Folded(short, like, frozenset(repeated))


@dataclass(frozen=True)
class _Number:
    """One number of a name: how it is spelled, and where it stands.

    A sequence has ints where a mapping has digits; both are the same number. Each place is told by
    the number of all that is in it besides.
    """

    names: dict[type, str | int] = field(default_factory=dict)
    places: list[int] = field(default_factory=list)


def _alike(tree: Tree) -> list[list[_Number]]:
    """Numbers that are alike, where there are more than are to stay; the first stands for all."""
    numbers: dict[str, dict[str, _Number]] = defaultdict(lambda: defaultdict(_Number))
    for name in dict.fromkeys(chain.from_iterable(tree)):
        base, digits = _numbered(name)
        if digits:
            numbers[base][digits].names[type(name)] = name
    many = {base: found for base, found in numbers.items() if len(found) > _KEPT}
    if not many:
        return []
    places = {
        name: number.places
        for found in many.values()
        for number in found.values()
        for name in number.names.values()
    }
    names = frozenset(places)
    known: dict[Hashable, int] = {}
    number_of = known.setdefault
    for key, leaf in tree.items():
        for name in names.intersection(key):
            place = key.index(name)
            rest = (type(name), key[:place], key[place + 1 :])
            form = (
                (*rest, leaf.shape, leaf.dtype, leaf.kind, leaf.prng_impl)
                if isinstance(leaf, Source)
                else (*rest, _form(leaf))
            )
            places[name].append(number_of(form, len(known)))
    alike: dict[Hashable, list[_Number]] = defaultdict(list)
    for base, found in many.items():
        for digits, number in found.items():
            # `layers_01` is no layer.
            alike[base, is_digits(digits), tuple(number.places)].append(number)
    return [numbers for numbers in alike.values() if len(numbers) > _KEPT]


_ENDS_WITH_DIGITS = re.compile(r"(.*?)([0-9]+)", re.DOTALL)


def _numbered(name: str | int) -> tuple[str, str]:
    """A name without the number at its end, and the number's digits; none where it has none."""
    if isinstance(name, int):
        return "", str(name)
    found = _ENDS_WITH_DIGITS.fullmatch(name)
    return (name, "") if found is None else (found[1], found[2])


def _form(leaf: Leaf) -> Hashable:
    """All of a leaf that says what it may be, of one that is no stored array."""
    if isinstance(leaf, Literal):
        return type(leaf.value), leaf.kind, leaf.value
    source = first_source(leaf)
    return type(leaf), leaf.shape, dtype_of(leaf), source.kind, source.prng_impl
