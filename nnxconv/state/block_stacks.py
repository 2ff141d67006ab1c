"""Stacks of layers in blocks, found by the names of their members."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from nnxconv.state.families import Family, for_names
from nnxconv.state.layer_groups import (
    DEFAULT_NAMES,
    Spelling,
    apart,
)
from nnxconv.tree import Key, is_digits, spell


@dataclass(frozen=True)
class Stack:
    """A stack as its names tell it, its shapes not seen yet.

    Attributes:
      key: of the group of its layers, once they are apart.
      path: where it stands, below which everything has a layer axis.
      family: how its blocks are made, in its own terms; None where it has no blocks.
      prefix: how many layers are apart before it, spelled so.
      is_rest: it is the remainder of blocks of which there is none.
      problem: why it cannot be taken apart, whatever its shapes; empty otherwise.
    """

    key: Key
    path: Key
    family: Family | None = None
    prefix: int = 0
    spelling: Spelling = "suffix"
    is_rest: bool = False
    problem: str = ""

    @cached_property
    def concrete(self) -> Family | None:
        """The family in the names that are here."""
        return None if self.family is None else self.family.called(str(self.key[-1]))

    @cached_property
    def _within(self) -> set[str]:
        members = self.concrete.members if self.concrete else ()
        return {member.name for member in members if member.is_stack}

    def depth(self, path: Key) -> int:
        """How many layer axes the arrays have that stand at a path within the stack."""
        return 2 if path and path[0] in self._within else 1

    def beside(self) -> Iterator[Key]:
        """Where layers of the group stand besides the stack."""
        for i in range(self.prefix):
            yield apart(self.key, i, self.spelling)
        if self.concrete is not None and self.concrete.remainder and not self.is_rest:
            yield (*self.key[:-1], *self.concrete.remainder)


def find_blocks(
    params: Iterable[Key], names: Sequence[str], families: Iterable[Family]
) -> Iterator[Stack]:
    """The stacks whose members are called as those of a family; its remainder is there, if any is.

    A family's stack is left alone where `names` has it, or a stack within, as layers of its own.
    """
    kids = _kids(params)
    called = [(family, name, family.called(name)) for family, name in for_names(families, names)]
    stacks: dict[str | int, list[Key]] = {concrete.stack: [] for _, _, concrete in called}
    for path in kids:
        if path[-1] in stacks:
            stacks[path[-1]].append(path)
    found: dict[Key, Stack] = {}
    with_rest: set[Key] = set()
    for family, name, concrete in called:
        own = {concrete.stack, *(m.name for m in concrete.members if m.is_stack)}
        if own & (set(names) - {name, *DEFAULT_NAMES}):
            continue
        for path in stacks[concrete.stack]:
            if concrete.period_of(kids[path], 1) is None:
                continue
            key = (*path[:-1], name)
            rest = _rest(kids, path[:-1], concrete)
            spelled = _prefix(kids, key, path)
            if rest is None or spelled is None:
                told = f"what stands beside the blocks in `{spell(path)}` is not what remains"
                found.setdefault(path, Stack(key, path, family, problem=f"{told} of them"))
                continue
            if path in found and (not rest or path in with_rest):
                continue
            found[path] = Stack(key, path, family, *spelled)
            with_rest |= {path} if rest else set()
    yield from found.values()
    yield from _only_rests(kids, set(names), families, {stack.key for stack in found.values()})


def _only_rests(
    kids: Mapping[Key, Mapping[str | int, None]],
    names: Collection[str],
    families: Iterable[Family],
    settled: set[Key],
) -> Iterator[Stack]:
    """The remainders whose blocks are not there, for the model has fewer layers than a block.

    Several families may have remainders of that name: it is the first one's whose mark is there.
    Where no family's is, as among the factors of an adapter, it is the first one's.
    """
    families = list(families)
    marks = {family.mark for family in families if family.remainder} - {""}
    ends = {family.remainder[-1] for family in families if family.remainder}
    ending = [path for path in kids if path[-1] in ends]
    for must_have_mark, family in itertools.product((True, False), families):
        above, rest = family.remainder, family.rest
        if not above or rest is None or family.is_general or family.apart not in names:
            continue
        for path in ending:
            parent = path[: -len(above)]
            key = (*parent, family.apart)
            if path[-len(above) :] != above or key in settled or (*parent, family.stack) in kids:
                continue
            found = marks & _names_in(kids, path)
            is_its_own = not family.mark or family.mark in found
            if not _rest(kids, parent, family) or not (is_its_own if must_have_mark else not found):
                continue
            settled.add(key)
            where = (*path, rest.name) if rest.is_stack else path
            spelled = _prefix(kids, key, where)
            if spelled is not None and family.period is not None:
                yield Stack(key, where, family, *spelled, is_rest=True)


def _names_in(kids: Mapping[Key, Mapping[str | int, None]], path: Key) -> set[str | int]:
    inside = (names for key, names in kids.items() if key[: len(path)] == path)
    return {name for names in inside for name in names}


def _kids(paths: Iterable[Key]) -> dict[Key, dict[str | int, None]]:
    """The names below each path that others begin with."""
    kids: dict[Key, dict[str | int, None]] = {}
    for path in paths:
        size = len(path) - 1
        while size > 0 and path[:size] not in kids:
            size -= 1
        for known in range(max(size, 1), len(path)):
            kids.setdefault(path[:known], {})[path[known]] = None
    return kids


def _rest(kids: Mapping[Key, Mapping[str | int, None]], parent: Key, family: Family) -> bool | None:
    """Whether a remainder is there; None where something else stands in its place."""
    if family.rest is None:
        return False
    names = kids.get((*parent, *family.remainder), {})
    own = [name for name in names if str(name).startswith(family.rest.name)]
    if family.remainder and len(own) != len(names):
        return None
    if family.rest.is_stack:
        return bool(own) if own in ([], [family.rest.name]) else None
    numbers = family.rest.numbers(own) if own else []
    return bool(own) if numbers == list(range(len(own))) else None


def _prefix(
    kids: Mapping[Key, Mapping[str | int, None]], key: Key, stack: Key
) -> tuple[int, Spelling] | None:
    """How many layers are apart before a stack, and how they are spelled; None with gaps."""
    base = f"{key[-1]}_"
    beside = [str(name) for name in kids.get(key[:-1], {})]
    numbers = [int(n.removeprefix(base)) for n in beside if _is_numbered(n, base)]
    spelling: Spelling = "suffix"
    if not numbers and key != stack and all(map(is_digits, kids.get(key, {}))):
        numbers, spelling = [int(name) for name in kids.get(key, {})], "index"
    return (len(numbers), spelling) if sorted(numbers) == list(range(len(numbers))) else None


def _is_numbered(name: str, base: str) -> bool:
    return name.startswith(base) and is_digits(name.removeprefix(base))
