"""Families of models whose layers are stacked in blocks: descriptions, not code.

`families.toml` has those that come with nnxconv, and says what a description holds; who else may
describe one is in `family_sources.py`.

```
layers/local_layers  (.., blocks, 3, ..)     layers_0, layers_1, layers_2, layers_4, ...
layers/global_layer  (.., blocks, ..)        layers_3, layers_7, ...
```
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from nnxconv.tree import is_digits

_LAYERS = "{layers}"
LAST = "{last}"
"""What `mark_of` calls the last layer of a block."""


@dataclass(frozen=True)
class Member:
    """A member of a block: one layer, or one for each number, or a stack of layers within."""

    name: str
    is_numbered: bool = False
    is_stack: bool = False

    @property
    def is_open(self) -> bool:
        """True where it is as many layers as the block's other members leave."""
        return self.is_numbered or self.is_stack

    def numbers(self, names: Collection[str | int]) -> list[int] | None:
        """The numbers of a numbered member's names; None where a name is none of it."""
        if not all(str(name).startswith(self.name) for name in names):
            return None
        digits = [str(name).removeprefix(self.name) for name in names]
        if not all(map(is_digits, digits)):
            return None
        return sorted(map(int, digits))


@dataclass(frozen=True)
class Slot:
    """Where in a block layers stand: below which name, from which on, and how many."""

    name: str
    first: int
    count: int
    is_stack: bool


@dataclass(frozen=True)
class Family:
    """How a family of models stacks its layers in blocks (the form: `families.toml`)."""

    name: str
    stack: str
    members: tuple[Member, ...]
    models: str = ""
    apart: str = "layers"
    remainder: tuple[str, ...] = ()
    rest: Member | None = None
    period: int | None = None
    prefix: int = 0
    mark: str = ""
    mark_of: str = ""
    alike: str = ""
    beside: str = ""
    vocabulary: int = 0
    never_stacked: str = ""

    @property
    def is_general(self) -> bool:
        """True for a description that takes every name of layers."""
        return _LAYERS in self.stack

    def called(self, layers: str) -> "Family":
        """The description for layers of this name."""

        def told(text: str) -> str:
            return text.replace(_LAYERS, layers)

        return replace(
            self,
            stack=told(self.stack),
            apart=layers,
            members=tuple(replace(m, name=told(m.name)) for m in self.members),
            remainder=tuple(map(told, self.remainder)),
            rest=None if self.rest is None else replace(self.rest, name=told(self.rest.name)),
        )

    def slots(self, period: int) -> list[Slot]:
        """The places of a block of `period` layers, in the layers' order."""
        found: list[Slot] = []
        first = 0
        for member in self.members:
            count = period - len(self.members) + 1 if member.is_open else 1
            if member.is_numbered:
                found += [Slot(f"{member.name}{i}", first + i, 1, False) for i in range(count)]
            elif count > 0:
                found.append(Slot(member.name, first, count, member.is_stack))
            first += count
        return found

    def last_or(self, member: str, period: int) -> set[int]:
        """Which layers of a block a description means: those of a member, or `{last}`."""
        if member == LAST:
            return {period - 1}
        slots = (slot for slot in self.slots(period) if slot.name == member)
        return {i for slot in slots for i in range(slot.first, slot.first + slot.count)}

    def names(self) -> set[str]:
        """The names in it, or what they begin with."""
        names = {self.stack, *(m.name for m in self.members), *self.remainder}
        return names | ({self.rest.name} if self.rest else set())

    def words(self) -> set[str]:
        """The names in it that no layers apart have."""
        return self.names() - {self.apart, f"{self.apart}_"}

    def period_of(self, kids: Collection[str | int], within: int) -> int | None:
        """How many layers a block has whose members have these names; None where it is none.

        Args:
          kids: the names below the stack.
          within: how many layers the stack within the stack has.
        """
        fixed = {member.name for member in self.members if not member.is_open}
        left = set(kids) - fixed
        [opened] = [m for m in self.members if m.is_open] or [None]
        if not fixed <= set(kids) or (opened is None and left):
            return None
        if opened is None or not left:
            return len(fixed) or None
        if opened.is_stack:
            return len(fixed) + within if left == {opened.name} else None
        numbers = opened.numbers(left)
        return len(fixed) + len(left) if numbers == list(range(len(left))) else None


def for_names(families: Iterable[Family], names: Iterable[str]) -> Iterator[tuple[Family, str]]:
    """The descriptions, each with the names of layers that it is tried for."""
    for family in families:
        yield from ((family, name) for name in (names if family.is_general else (family.apart,)))
