"""Which two modules can be one another, by shapes and roles, and how their kind is turned."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from nnxconv.matching.modules import BIAS, MAIN, MEAN, VAR, ModuleFamily, Slot
from nnxconv.matching.orientation import (
    Scopes,
    SlotReadings,
    Votes,
    kept_alike,
    kind_of,
    slot_readings,
)
from nnxconv.matching.pairs import LeafPair, ModulePair
from nnxconv.matching.readings import HEADS_FIRST, Kind, Orientation
from nnxconv.matching.roles import roles_of
from nnxconv.matching.vocabulary import disagree, is_norm
from nnxconv.renaming import Divide, Merge, Step

_WITH_HEADS = ("query", "key", "value", "out")
_NEVER_THE_SAME = ({"kernel", "embedding"}, {"kernel", "scale"}, {"scale", "embedding"})
"""Names that flax itself gives to arrays of different kinds."""


class Fitting:
    """What is known of the modules of two trees, whatever they are paired with.

    Args:
      left, right: the modules of the source and of the template.
    """

    def __init__(self, left: Sequence[ModuleFamily], right: Sequence[ModuleFamily]) -> None:
        self._roles = {**roles_of(left), **roles_of(right)}
        self._votes = Votes(kept_alike((*left, *right)))
        self._readings: dict[tuple[ModuleFamily, ModuleFamily], SlotReadings] = {}

    def role(self, module: ModuleFamily) -> str:
        """What a module is; empty where it is not known."""
        return self._roles.get(module, "")

    def role_of_pair(self, a: ModuleFamily, b: ModuleFamily) -> str:
        """What two modules are, by the names of either."""
        return self.role(a) or self.role(b)

    def main_readings(self, a: ModuleFamily, b: ModuleFamily) -> SlotReadings:
        """How the main arrays of two modules may be one another's."""
        if (a, b) not in self._readings:
            role = self.role_of_pair(a, b)
            kind = kind_of(a, b, a.main, b.main, role)
            self._readings[a, b] = slot_readings(a.main, b.main, kind, role)
        return self._readings[a, b]

    def fits(self, scope: Scopes, a: ModuleFamily, b: ModuleFamily, *, by_name: bool) -> bool:
        """True when two modules can be one another; names count for more than other arrays do."""
        role, other = self.role(a), self.role(b)
        if disagree(role, other):
            return False
        if (MAIN in a.slots) != (MAIN in b.slots):
            return False
        if {a.main.name, b.main.name} in _NEVER_THE_SAME:
            return False
        if _is_no_norm(role, b) or _is_no_norm(other, a):
            return False
        if not by_name and not _further_fit(a, b):
            return False
        found = self.main_readings(a, b)
        known = self._votes.decided(scope, *self._kind(a, b))
        return bool(found) and (by_name or bool(as_known(found, known)))

    def shapes_tell(self, scope: Scopes, a: ModuleFamily, b: ModuleFamily) -> bool:
        """True when of two modules that fit no others the shapes say that they are the same.

        Where axes are cut or put together, and no name says that heads are the reason, something
        else may be meant.
        """
        if self.role_of_pair(a, b).endswith(_WITH_HEADS):
            return True
        known = self._votes.decided(scope, *self._kind(a, b))
        found = self.main_readings(a, b)
        return any(not _cuts_axes(steps) for steps in as_known(found, known).values())

    def _kind(self, a: ModuleFamily, b: ModuleFamily) -> tuple[Kind, tuple[str, str]]:
        kind = kind_of(a, b, a.main, b.main, self.role_of_pair(a, b))
        return kind, (a.main.name, b.main.name)

    def vote(self, scope: Scopes, a: ModuleFamily, b: ModuleFamily) -> None:
        """Counts two modules that are one another's, where that can be read in one way."""
        which = self.main_readings(a, b)
        if len(which) == 1:
            self._votes.add(scope, *self._kind(a, b), next(iter(which)))

    def with_leaves(self, found: ModulePair) -> ModulePair:
        """The pair with what is known of each of its leaves."""
        if len(found.sources) + len(found.templates) > 2:
            return found
        a, b = found.sources[0], found.templates[0]
        role = self.role_of_pair(a, b)
        leaves = []
        for name, slot in a.slots.items():
            other = b.slots.get(name)
            if other is not None:
                kind = kind_of(a, b, slot, other, role)
                fitting = slot_readings(slot, other, kind, role)
                fitting = self.narrowed(fitting, scopes_of(a, b), kind, (slot.name, other.name))
                leaves += [LeafPair((slot,), (other,), fitting)] if fitting else []
        return replace(found, leaves=tuple(leaves))

    def narrowed(
        self, fitting: SlotReadings, scope: Scopes, kind: Kind, names: tuple[str, str]
    ) -> SlotReadings:
        """Of several readings the one for which others have voted."""
        return as_known(fitting, self._votes.decided(scope, kind, names)) or fitting


def as_known(found: SlotReadings, known: Orientation | None) -> SlotReadings:
    """The readings that keep to a known orientation, whether heads come first or not."""
    if known is None:
        return found
    for name in (known, HEADS_FIRST.get(known, known)):
        if name in found:
            return {name: found[name]}
    return {}


def scopes_of(a: ModuleFamily, b: ModuleFamily) -> Scopes:
    """The paths of the scopes in which two modules stand."""
    return a.scope.path, b.scope.path


def _further_fit(a: ModuleFamily, b: ModuleFamily) -> bool:
    """True when what stands beside the main arrays, such as biases, has the same sizes.

    What only one of them has, or has in other layers, tells nothing.
    """
    both = (
        (a.slots[name], b.slots[name]) for name in _FURTHER if name in a.slots and name in b.slots
    )
    return all(x.size == y.size for x, y in both if _are_comparable(x, y))


_FURTHER = (BIAS, MEAN, VAR)


def _are_comparable(a: Slot, b: Slot) -> bool:
    """True for leaves of one collection in the same layers."""
    return a.collection == b.collection and a.ranks == b.ranks


def _cuts_axes(steps: Iterable[Sequence[Step]]) -> bool:
    """True when axes are cut or put together, as only heads are for certain."""
    return any(isinstance(step, Divide | Merge) for each in steps for step in each)


def _is_no_norm(role: str, other: ModuleFamily) -> bool:
    """True when one is known to be no norm, and the other is called one."""
    is_known = bool(role) and {"norm", "scale"}.isdisjoint(role.split("."))
    return is_known and bool(other.path) and is_norm(other.path[-1])
