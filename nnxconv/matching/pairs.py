"""What `match` finds: pairs of modules, leaf by leaf, with the evidence; and what it does not."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from nnxconv.matching.generalise import Move
from nnxconv.matching.modules import ModuleFamily, Path, Slot
from nnxconv.matching.orientation import SlotReadings
from nnxconv.matching.readings import Orientation
from nnxconv.matching.values import Echo
from nnxconv.renaming import Step


@dataclass(frozen=True)
class LeafPair:
    """A leaf and its counterpart in all members of a scope, and the steps from one to the other.

    Attributes:
      sources, templates: the two; several on one side where the other one has them as one.
      readings: the steps of every member, by orientation; one where it is decided.
    """

    sources: tuple[Slot, ...]
    templates: tuple[Slot, ...]
    readings: SlotReadings

    @property
    def is_decided(self) -> bool:
        """True when the steps are known."""
        return len(self.readings) == 1

    @property
    def steps(self) -> tuple[tuple[Step, ...], ...]:
        """The steps of every member; those of the first reading where several fit."""
        return next(iter(self.readings.values()))

    @property
    def count(self) -> int:
        """How many leaves of the template it makes."""
        return sum(len(slot.keys) for slot in self.templates)

    def read_as(self, orientation: Orientation) -> "LeafPair":
        """The pair by one of its readings; by its first where it has no such one."""
        name = orientation if orientation in self.readings else next(iter(self.readings))
        return replace(self, readings={name: self.readings[name]})

    def moves(self, orientation: Orientation | None = None) -> Iterator[Move]:
        """Where the leaves of every member go, by one of the readings."""
        steps = self.steps if orientation is None else self.readings[orientation]
        sources = zip(*(slot.keys for slot in self.sources), strict=True)
        templates = zip(*(slot.keys for slot in self.templates), strict=True)
        for olds, news, some in zip(sources, templates, steps, strict=True):
            yield Move(olds, news, some)


@dataclass(frozen=True)
class ModulePair:
    """A module and its counterpart, and why they are that.

    Attributes:
      sources, templates: the two; several on one side where the other one has them as one.
      evidence: why.
      leaves: their leaves; those of only one of them are left out.
    """

    sources: tuple[ModuleFamily, ...]
    templates: tuple[ModuleFamily, ...]
    evidence: str
    leaves: tuple[LeafPair, ...] = ()

    @property
    def is_decided(self) -> bool:
        """True when the steps of all leaves are known."""
        return all(leaf.is_decided for leaf in self.leaves)


@dataclass(frozen=True)
class Unclear:
    """A module of the source that could be one of several, the most alike first."""

    source: ModuleFamily
    candidates: tuple[ModulePair, ...]


@dataclass(frozen=True)
class Pairs:
    """What was found.

    Attributes:
      certain: modules that are each other's, and leaves whose steps are known.
      proposed: modules that may be each other's, for their names are alike.
      turned: pairs of modules that are certain, but not whether some of their arrays are turned.
      unclear: modules that could be several.
      only_source, only_template: leaves that are in no pair.
      echoes: leaves that are in no pair, and hold what another one does.
      scopes: the scopes that were paired.
    """

    certain: tuple[ModulePair, ...] = ()
    proposed: tuple[ModulePair, ...] = ()
    turned: tuple[ModulePair, ...] = ()
    unclear: tuple[Unclear, ...] = ()
    only_source: tuple[tuple[ModuleFamily, Slot], ...] = ()
    only_template: tuple[tuple[ModuleFamily, Slot], ...] = ()
    echoes: tuple[Echo, ...] = ()
    scopes: tuple[tuple[Path, Path], ...] = field(default=(), repr=False)
