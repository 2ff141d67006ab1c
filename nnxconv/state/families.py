"""Families of models whose layers are stacked in blocks: descriptions, not code.

`families.toml` has those that come with nnxconv, and says what a description holds; `--family FILE`
and entry points of the group `nnxconv.families` (a text of that form each) add others.

```
layers/local_layers  (.., blocks, 3, ..)     layers_0, layers_1, layers_2, layers_4, ...
layers/global_layer  (.., blocks, ..)        layers_3, layers_7, ...
```
"""

import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from nnxconv.errors import BadInput
from nnxconv.tree import is_digits

GROUP = "nnxconv.families"
"""The entry points by which other packages announce families."""

_LAYERS = "{layers}"
_TEXTS = ("models", "stack", "apart", "remainder", "mark", "mark_of", "alike")
_NUMBERS = ("period", "prefix")


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
        digits = [str(name).removeprefix(self.name) for name in names]
        if not all(str(n).startswith(self.name) for n in names) or not all(map(is_digits, digits)):
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

    def words(self) -> set[str]:
        """The names in it that no layers apart have."""
        names = {self.stack, *(m.name for m in self.members), *self.remainder}
        names |= {self.rest.name} if self.rest else set()
        return names - {self.apart, f"{self.apart}_"}

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


# --- descriptions as TOML -------------------------------------------------------------------------

Read = Callable[[str], str | None]
"""Gives the text of a file; None when it is not there."""


def _read_local(name: str) -> str | None:
    path = Path(name)
    return path.read_text() if path.is_file() else None


def parse_families(text: str, where: str) -> dict[str, Family]:
    """The families that a TOML document describes, one in each table.

    Raises:
      BadInput: it is no TOML, or no description; all faults are listed.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput(f"this describes no family of models: {error}", where=where) from error
    problems: list[str] = []
    found: dict[str, Family] = {}
    for name, table in document.items():
        try:
            found[name] = _family(name, table)
        except BadInput as error:
            problems.append(f"{name}: {error.message}")
    if problems or not found:
        details = problems or ["there is no table in it"]
        raise BadInput("this describes no family of models", where=where, details=details)
    return found


def _family(name: str, table: Any) -> Family:
    if not isinstance(table, dict):
        raise BadInput("this is no table")
    unknown = sorted(table.keys() - {*_TEXTS, *_NUMBERS, "members"})
    if unknown:
        raise BadInput(f"`{unknown[0]}` is not known")
    texts = {key: table[key] for key in _TEXTS if key in table}
    numbers = {key: table[key] for key in _NUMBERS if key in table}
    members = table.get("members")
    wrong = [key for key, value in texts.items() if not isinstance(value, str) or not value]
    wrong += [key for key, value in numbers.items() if type(value) is not int or value < 0]
    if wrong:
        raise BadInput(f"`{wrong[0]}` is {table[wrong[0]]!r}")
    if "stack" not in texts or not isinstance(members, list) or not members:
        raise BadInput("it has no `stack`, or no list of `members`")
    return _checked(name, texts, numbers, tuple(map(_member, members)))


def _checked(
    name: str,
    texts: Mapping[str, str],
    numbers: Mapping[str, int],
    members: tuple[Member, ...],
) -> Family:
    if sum(member.is_open for member in members) > 1:
        raise BadInput("more than one member has the `{i}`")
    *above, last = texts.get("remainder", "").split(".")
    rest = _member(last) if last else None
    if rest is not None and not rest.is_open:
        raise BadInput("`remainder` has no `{i}`")
    period = numbers.get("period")
    if period is not None and period < max(1, sum(not member.is_open for member in members)):
        raise BadInput(f"`period` is {period}, with {len(members)} members")
    rest_of = {k: v for k, v in texts.items() if k not in ("stack", "remainder")}
    prefix = numbers.get("prefix", 0)
    return Family(
        *(name, texts["stack"], members),
        remainder=tuple(above),
        rest=rest,
        period=period,
        prefix=prefix,
        **rest_of,
    )


_PLACE = re.compile(r"(?P<name>[^\[\]]+?)(?P<open>\[\{i\}\]|\{i\})?")


def _member(text: object) -> Member:
    found = _PLACE.fullmatch(text) if isinstance(text, str) else None
    if found is None or "{i}" in found["name"]:
        raise BadInput(f"{text!r} is no member: `layers_{{i}}`, `local_layers[{{i}}]` or a name")
    return Member(found["name"], found["open"] == "{i}", found["open"] == "[{i}]")


# --- where descriptions come from -----------------------------------------------------------------


@cache
def known_families() -> Mapping[str, Family]:
    """The families that come with nnxconv, and those that other packages announce, by name.

    Raises:
      BadInput: a package's description cannot be loaded, or has a name that is taken.
    """
    text = resources.files("nnxconv.state").joinpath("families.toml").read_text()
    found = parse_families(text, "families.toml")
    for point in dict.fromkeys(metadata.entry_points(group=GROUP)):
        added = _announced(point)
        taken = sorted(added.keys() & found.keys())
        if taken:
            raise BadInput(f"the family `{taken[0]}` is described twice", where=point.value)
        found |= added
    return found


def _announced(point: metadata.EntryPoint) -> dict[str, Family]:
    try:
        text = point.load()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BadInput(
            f"the families of `{point.name}` cannot be loaded",
            where=point.value,
            details=[reason],
        ) from error
    return parse_families(str(text), point.value)


def asked_family(name: "str | Family | None", read: Read = _read_local) -> Family | None:
    """The family that a file describes, or the known one of this name.

    Raises:
      BadInput: there is none, or the file describes more than one.
    """
    if name is None or isinstance(name, Family):
        return name
    text = read(name)
    if text is None and name in known_families():
        return known_families()[name]
    if text is None:
        known = ", ".join(known_families())
        raise BadInput(
            f"`{name}` is no file that describes a family of models, and no family that is known",
            hint=f"known are: {known}",
        )
    found = list(parse_families(text, name).values())
    if len(found) > 1:
        told = ", ".join(family.name for family in found)
        raise BadInput("this describes more than one family of models", where=name, details=[told])
    return found[0]


def families_with(asked: Family | None) -> tuple[Family, ...] | None:
    """The one that is asked for before all that are known; None, for those, where none is."""
    return None if asked is None else (asked, *known_families().values())


def for_names(families: Iterable[Family], names: Iterable[str]) -> Iterator[tuple[Family, str]]:
    """The descriptions, each with the names of layers that it is tried for."""
    for family in families:
        yield from ((family, name) for name in (names if family.is_general else (family.apart,)))
