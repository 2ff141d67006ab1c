"""The search for pairs that are certain.

A pair is certain when the two have the same name, or names that mean the same (see `vocabulary`),
and no rival; or when within what is paired around them nothing else fits, on either side; or when
several fit each other only in the order of their numbers. How alike two names are spelled is no
evidence.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from nnxconv.matching.fused import PARTS, ways_to_part
from nnxconv.matching.modules import MAIN, ModuleFamily, Path, Slot, scopes_in
from nnxconv.matching.orientation import (
    Scopes,
    SlotReadings,
    Votes,
    kept_alike,
    kind_of,
    slot_readings,
)
from nnxconv.matching.pairs import LeafPair, ModulePair
from nnxconv.matching.readings import Kind, Orientation
from nnxconv.matching.roles import roles_of, spoken
from nnxconv.matching.scopes import pair_scopes
from nnxconv.matching.series import series_as_layers
from nnxconv.matching.vocabulary import is_norm
from nnxconv.renaming import Divide, Merge, Step

LARGEST_GROUP = 4096
"""How many pairs of modules of one size are looked at; beyond that their names alone can tell."""
_WITH_HEADS = ("query", "key", "value", "out")
_EXCHANGEABLE = (*_WITH_HEADS, "gate", "up", "down")
"""Roles in which modules of one shape differ in meaning, and not in a number alone."""


_NEVER_THE_SAME = ({"kernel", "embedding"}, {"kernel", "scale"}, {"scale", "embedding"})
"""Names that flax itself gives to arrays of different kinds."""


class Search:
    """What is known of two trees while their modules are paired.

    Attributes:
      certain: the pairs so far, in the order in which they were found.
      left, right: the modules of the source and of the template.
      scopes: the pairs of scopes.
    """

    def __init__(self, left: Sequence[ModuleFamily], right: Sequence[ModuleFamily]) -> None:
        self.scopes = pair_scopes(left, right)
        counted = series_as_layers(left, right, self.scopes)
        self.left, self.right = left, right = counted.left, counted.right
        self.certain: list[ModulePair] = []
        self._roles = {**roles_of(left), **roles_of(right)}
        self._votes = Votes(kept_alike((*left, *right)))
        self._readings: dict[tuple[ModuleFamily, ModuleFamily], SlotReadings] = {}
        here, there = scopes_in(left), scopes_in(right)
        self._searches = [
            _ScopeSearch(self, (a, b), here[a], there[b])
            for a, b in self.scopes
            if a in here and b in there
        ]
        self._searches += [_ScopeSearch(self, _scopes(a, b), [a], [b]) for a, b in counted.pairs]

    def run(self) -> None:
        """Takes pairs as long as there is evidence for one."""
        is_new = True
        while is_new:
            is_new = False
            for search in self._searches:
                is_new = search.step() or is_new

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
        if role and other and role != other:
            return False
        if (MAIN in a.slots) != (MAIN in b.slots):
            return False
        if {a.main.name, b.main.name} in _NEVER_THE_SAME:
            return False
        if _is_no_norm(role, b) or _is_no_norm(other, a):
            return False
        found = self.main_readings(a, b)
        known = self._votes.decided(scope, *self._kind(a, b))
        return bool(found) and (by_name or known is None or known in found)

    def shapes_tell(self, scope: Scopes, a: ModuleFamily, b: ModuleFamily) -> bool:
        """True when of two modules that fit no others the shapes say that they are the same.

        Where axes are cut or put together, and no name says that heads are the reason, something
        else may be meant.
        """
        if self.role_of_pair(a, b).endswith(_WITH_HEADS):
            return True
        known = self._votes.decided(scope, *self._kind(a, b))
        found = self.main_readings(a, b)
        return any(not _cuts_axes(found[way]) for way in found if known in (None, way))

    def _kind(self, a: ModuleFamily, b: ModuleFamily) -> tuple[Kind, tuple[str, str]]:
        kind = kind_of(a, b, a.main, b.main, self.role_of_pair(a, b))
        return kind, (a.main.name, b.main.name)

    def accept(self, scope: Scopes, found: ModulePair) -> None:
        """Takes a pair, which is a vote where it can be read in one way."""
        self.certain.append(found)
        if len(found.sources) + len(found.templates) == 2:
            a, b = found.sources[0], found.templates[0]
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
                fitting = self._narrowed(fitting, _scopes(a, b), kind, (slot.name, other.name))
                leaves += [LeafPair((slot,), (other,), fitting)] if fitting else []
        return replace(found, leaves=tuple(leaves))

    def _narrowed(
        self, fitting: SlotReadings, scope: Scopes, kind: Kind, names: tuple[str, str]
    ) -> SlotReadings:
        """Of several readings the one for which others have voted."""
        known = self._votes.decided(scope, kind, names)
        return fitting if known is None or known not in fitting else {known: fitting[known]}

    def taken_apart(
        self, whole: ModuleFamily, parts: Sequence[ModuleFamily], *, is_source: bool
    ) -> tuple[LeafPair, ...] | None:
        """The leaves of a module in the parts that the other tree has; None when one does not fit.

        Args:
          whole: the one that is kept as one.
          parts: the others, in the order in which they are in it.
          is_source: the whole one is the source's.
        """
        leaves = []
        for name, slot in whole.slots.items():
            slots = [part.slots[name] for part in parts if name in part.slots]
            if len(slots) < len(parts) or any(s.ranks != slot.ranks for s in slots):
                return None
            ways = self._ways(whole, parts, slot, slots)
            if not ways:
                return None
            if not is_source:
                ways = {
                    orientation: tuple(_undone(steps) for steps in each)
                    for orientation, each in ways.items()
                }
            one, several = (slot,), tuple(slots)
            sources, templates = (one, several) if is_source else (several, one)
            leaves.append(LeafPair(sources, templates, ways))
        if any(len(part.slots) != len(whole.slots) for part in parts):
            return None
        return tuple(leaves)

    def _ways(
        self,
        whole: ModuleFamily,
        parts: Sequence[ModuleFamily],
        slot: Slot,
        slots: Sequence[Slot],
    ) -> SlotReadings:
        """How one leaf is taken apart in every member."""
        roles = [self.role(part) for part in parts]
        kind = kind_of(whole, parts[0], slot, slots[0], roles[0])
        found: dict[Orientation, tuple[tuple[Step, ...], ...]] = {}
        columns = zip(*(s.shapes or () for s in slots), strict=True)
        each = [
            list(ways_to_part(shape, shapes, kind, roles))
            for shape, shapes in zip(slot.shapes or (), columns, strict=True)
        ]
        for member in zip(*each, strict=False):
            [orientation, *others] = {name for name, _ in member}
            if others or orientation in found or len({len(ways) for ways in each}) > 1:
                return {}
            found[orientation] = tuple(steps for _, steps in member)
        return self._narrowed(found, _scopes(whole, parts[0]), kind, (slot.name, slots[0].name))

    def candidates(self) -> Iterator[tuple[Scopes, ModuleFamily, list[ModuleFamily]]]:
        """What is left on the source's side, and what of the template it could be."""
        for search in self._searches:
            for module, found in search.candidates():
                yield search.scope, module, found


def _scopes(a: ModuleFamily, b: ModuleFamily) -> Scopes:
    return a.scope.path, b.scope.path


_COUNTED = re.compile(r"[A-Z]\w*_\d+")
"""Names that flax gives to modules without one, as `Dense_0`: they say a class, and no more."""


def _own_name(module: ModuleFamily) -> str | None:
    """The last name of a module, where it is one that somebody has given."""
    name = module.path[-1] if module.path else None
    return None if name is None or _COUNTED.fullmatch(name) else name


def _undone(steps: Sequence[Step]) -> tuple[Step, ...]:
    undone = [step.inverse() for step in reversed(steps)]
    return tuple(step for step in undone if step is not None)


def _cuts_axes(steps: Iterable[Sequence[Step]]) -> bool:
    """True when axes are cut or put together, as only heads are for certain."""
    return any(isinstance(step, Divide | Merge) for each in steps for step in each)


def _is_no_norm(role: str, other: ModuleFamily) -> bool:
    """True when one is known to be no norm, and the other is called one."""
    is_known = bool(role) and not role.startswith(("norm.", "scale."))
    return is_known and bool(other.path) and is_norm(other.path[-1])


class _ScopeSearch:
    """What is left of two scopes that are paired."""

    def __init__(
        self,
        search: Search,
        scope: Scopes,
        left: Sequence[ModuleFamily],
        right: Sequence[ModuleFamily],
    ) -> None:
        self.scope = scope
        self._search = search
        self._left = dict.fromkeys(left)
        self._right = dict.fromkeys(right)
        self._parents: dict[Path, set[Path]] = defaultdict(set)
        self._origins: dict[Path, set[Path]] = defaultdict(set)

    def step(self) -> bool:
        """Accepts the pairs of the strongest evidence that there is; False when there is none."""
        for evidence in (
            self._same_path,
            self._same_role,
            self._same_name,
            self._by_shape,
            self._numbered,
            self._parts,
        ):
            found = list(evidence())
            for one in found:
                self._accept(one)
            if found:
                return True
        return False

    def _accept(self, found: ModulePair) -> None:
        for a in found.sources:
            del self._left[a]
            self._parents[a.path[:-1]] |= {b.path[:-1] for b in found.templates}
        for b in found.templates:
            del self._right[b]
            self._origins[b.path[:-1]] |= {a.path[:-1] for a in found.sources}
        self._search.accept(self.scope, found)

    def _fits(self, a: ModuleFamily, b: ModuleFamily, *, by_name: bool = False) -> bool:
        return self._search.fits(self.scope, a, b, by_name=by_name)

    # --- by names

    def _same_path(self) -> Iterator[ModulePair]:
        yield from self._alike(lambda module: module.path, "the same name")

    def _same_role(self) -> Iterator[ModulePair]:
        for found in self._alike(lambda module: self._search.role(module) or None, ""):
            role = self._search.role(found.sources[0])
            yield replace(found, evidence=f"both are {spoken(role)}")

    def _same_name(self) -> Iterator[ModulePair]:
        yield from self._alike(_own_name, "the same name")

    def _alike(self, by: Callable[[ModuleFamily], Hashable], evidence: str) -> Iterator[ModulePair]:
        """The modules that have something in common which no other has, on either side."""
        left, right = _grouped(self._left, by), _grouped(self._right, by)
        for value, some in left.items():
            others = right.get(value, [])
            is_unique = value is not None and len(some) == len(others) == 1
            if is_unique and self._fits(some[0], others[0], by_name=True):
                yield ModulePair((some[0],), (others[0],), evidence)

    # --- by shapes

    def _groups(self) -> Iterator[tuple[list[ModuleFamily], list[ModuleFamily]]]:
        """The modules of one size that are left on both sides."""
        left, right = (_grouped(s, lambda m: m.main.size) for s in (self._left, self._right))
        for size, some in left.items():
            others = right.get(size, [])
            if others:
                yield some, others

    def _fitting(self) -> tuple[dict[ModuleFamily, list[ModuleFamily]], Counter[ModuleFamily]]:
        """For every module what it can be, and how many could be each."""
        fitting: dict[ModuleFamily, list[ModuleFamily]] = {}
        rivals: Counter[ModuleFamily] = Counter()
        for some, others in self._groups():
            if len(some) * len(others) <= LARGEST_GROUP:
                for a in some:
                    fitting[a] = [b for b in others if self._fits(a, b)]
                    rivals.update(fitting[a])
        return fitting, rivals

    def _by_shape(self) -> Iterator[ModulePair]:
        fitting, rivals = self._fitting()
        found = list(self._only(fitting, rivals))
        yield from found or self._beside(fitting)

    def _only(
        self,
        fitting: Mapping[ModuleFamily, Sequence[ModuleFamily]],
        rivals: Mapping[ModuleFamily, int],
    ) -> Iterator[ModulePair]:
        """The only one of its size that is left, on both sides."""
        for a, found in fitting.items():
            if (
                len(found) == 1
                and rivals[found[0]] == 1
                and self._search.shapes_tell(self.scope, a, found[0])
            ):
                yield ModulePair((a,), (found[0],), f"nothing else has {a.main.told}")

    def _beside(
        self, fitting: Mapping[ModuleFamily, Sequence[ModuleFamily]]
    ) -> Iterator[ModulePair]:
        """The only one of its size in a module of a layer whose other parts are paired."""
        if not all(self.scope):
            return
        rivals: Counter[tuple[ModuleFamily, Path]] = Counter()
        inside: dict[ModuleFamily, list[ModuleFamily]] = {}
        for a, found in fitting.items():
            home = self._home(a.path[:-1])
            inside[a] = [b for b in found if home and b.path[:-1] == home]
            rivals.update((b, a.path[:-1]) for b in inside[a])
        for a, found in inside.items():
            is_only = len(found) == 1 and rivals[found[0], a.path[:-1]] == 1
            if is_only and self._search.shapes_tell(self.scope, a, found[0]):
                names = ".".join(a.path[:-1]), ".".join(found[0].path[:-1])
                yield ModulePair((a,), (found[0],), f"in {names[0]}, which is {names[1]}")

    def _home(self, parent: Path) -> Path:
        """The one module to which all that is paired of a module belongs; empty for none."""
        there = self._parents.get(parent, set())
        if not parent or len(there) != 1:
            return ()
        [target] = there
        return target if self._origins[target] == {parent} else ()

    def _numbered(self) -> Iterator[ModulePair]:
        """As many of one size under one name on both sides, which differ in their number."""
        for some, others in self._groups():
            if not self._is_series(some, others):
                continue
            some, others = (sorted(group, key=lambda m: m.numbers) for group in (some, others))
            both = list(zip(some, others, strict=True))
            if all(
                self._fits(a, b) and self._search.shapes_tell(self.scope, a, b) for a, b in both
            ):
                told = f"{len(some)} of {some[0].main.told}, in their order"
                yield from (ModulePair((a,), (b,), told) for a, b in both)

    def _is_series(self, some: Sequence[ModuleFamily], others: Sequence[ModuleFamily]) -> bool:
        names = {m.skeleton for m in some}, {m.skeleton for m in others}
        if len(some) != len(others) or len(some) < 2 or any(len(n) > 1 for n in names):
            return False
        roles = [self._search.role(m).rpartition(".")[2] for m in (*some, *others)]
        if any(role in _EXCHANGEABLE for role in roles):
            return False
        # a third norm may come after attention, or after everything
        return len(some) == 2 or not any(m.path and is_norm(m.path[-1]) for m in (*some, *others))

    # --- by parts

    def _parts(self) -> Iterator[ModulePair]:
        """What one side keeps as one, and the other apart, where all names say what it is."""
        here = {self._search.role(m): m for m in self._left if self._search.role(m)}
        there = {self._search.role(m): m for m in self._right if self._search.role(m)}
        for wholes, others, is_source in ((here, there, True), (there, here, False)):
            for role, whole in wholes.items():
                head, _, last = role.rpartition(".")
                names = [f"{head}.{name}" if head else name for name in PARTS.get(last, ())]
                parts = [others[name] for name in names if name in others]
                if not names or len(parts) < len(names) or role in others:
                    continue
                leaves = self._search.taken_apart(whole, parts, is_source=is_source)
                if leaves is not None:
                    told = f"{', '.join(map(spoken, names[:-1]))} and {spoken(names[-1])} in one"
                    one, several = (whole,), tuple(parts)
                    sources, templates = (one, several) if is_source else (several, one)
                    yield ModulePair(sources, templates, told, leaves)

    def candidates(self) -> Iterator[tuple[ModuleFamily, list[ModuleFamily]]]:
        """What is left on the source's side, and what it could be."""
        for some, others in self._groups():
            if len(some) * len(others) > LARGEST_GROUP:
                continue
            for a in some:
                found = [b for b in others if self._fits(a, b, by_name=True)]
                if found:
                    yield a, found


def _grouped(
    modules: Iterable[ModuleFamily], by: Callable[[ModuleFamily], Hashable]
) -> Mapping[Hashable, list[ModuleFamily]]:
    found: dict[Hashable, list[ModuleFamily]] = defaultdict(list)
    for module in modules:
        found[by(module)].append(module)
    return found
