"""What a search by values asks for, and what it finds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nnxconv.matching.fingerprints import Fingerprint
from nnxconv.matching.generalise import Move
from nnxconv.matching.modules import Path, names_in
from nnxconv.renaming import Rules
from nnxconv.tree import Key


class Values(Protocol):
    """The values of two checkpoints, which are read when they are asked for."""

    def fingerprints(
        self, source: Sequence[Key], template: Sequence[Key], dtype: str | None
    ) -> tuple[Mapping[Key, Fingerprint], Mapping[Key, Fingerprint]]:
        """What leaves of both sides hold; cast to `dtype`, where one is given."""
        ...

    def holding(self, moves: Sequence[Move], dtype: str | None) -> Sequence[bool]:
        """Of each move of leaves, whether it makes the template's values of the source's."""
        ...


@dataclass(frozen=True)
class Found:
    """Leaves that hold the same, and how one side is made of the other.

    Attributes:
      moves: the same leaves by each way that holds; one, unless all of their elements are alike.
      evidence: why.
    """

    moves: tuple[Move, ...]
    evidence: str


@dataclass(frozen=True)
class KnownRules:
    """Rules that lead from one side to the other.

    Attributes:
      rules: those of a family.
      is_back: they lead from the template's names to the source's.
    """

    rules: Rules
    is_back: bool = False


@dataclass(frozen=True)
class Alike:
    """Leaves of both sides that hold the same, of which nothing tells which is which."""

    sources: tuple[Key, ...]
    templates: tuple[Key, ...]


@dataclass(frozen=True)
class Echo:
    """A leaf in no pair that holds what a leaf of the other side holds: tied, or padded.

    Attributes:
      source, template: the two by canonical key; one of them may be in a pair.
      zeros: how many zeros more the template's has.
    """

    source: Key
    template: Key
    zeros: int


def bare_names(key: Key) -> Path:
    """The names in a canonical key, without those of its collection."""
    return names_in(key[1:] if key[0] == "params" else key[2:])
