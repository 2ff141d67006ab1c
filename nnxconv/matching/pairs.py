"""Which module of one tree is which module of the other: what is certain, with the evidence.

A pair is certain when the two have the same name, or names that mean the same (see `vocabulary`),
and no rival; or when within what is paired around them nothing else fits, on either side; or when
several fit each other only in the order of their numbers. How alike two names are spelled is no
evidence.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nnxconv.matching.modules import MAIN, ModuleFamily, Path, Slot, modules_of, scopes_in
from nnxconv.matching.orientation import SlotReadings, Votes, kept_alike, kind_of, slot_readings
from nnxconv.matching.scopes import pair_scopes
from nnxconv.matching.vocabulary import is_norm, roles, side, spelled
from nnxconv.renaming import Divide, Merge, Step
from nnxconv.tree import Key, Leaf

LARGEST_GROUP = 4096
"""How many pairs of modules of one size are looked at; beyond that their names alone can tell."""
_WITH_HEADS = ("query", "key", "value", "out")
_EXCHANGEABLE = ("query", "key", "value", "gate", "up", "out", "down")
"""Roles in which modules of one shape differ in meaning, and not in a number alone."""


@dataclass(frozen=True)
class LeafPair:
    """A leaf and its counterpart in all members of a scope, and the steps from one to the other.

    Attributes:
      source, template: the two.
      readings: the steps of every member, by orientation; one where it is decided.
    """

    source: Slot
    template: Slot
    readings: SlotReadings

    @property
    def is_decided(self) -> bool:
        """True when the steps are known."""
        return len(self.readings) == 1

    @property
    def steps(self) -> tuple[tuple[Step, ...], ...]:
        """The steps of every member; those of the first reading where several fit."""
        return next(iter(self.readings.values()))


@dataclass(frozen=True)
class ModulePair:
    """A module and its counterpart, and why they are that."""

    source: ModuleFamily
    template: ModuleFamily
    evidence: str
    leaves: tuple[LeafPair, ...] = ()


@dataclass
class Pairs:
    """What was found.

    Attributes:
      certain: modules that are each other's; leaves whose orientation is open are among them.
      scopes: the scopes that were paired.
      left, right: the modules of each side that are in no pair, with what they may be.
    """

    certain: list[ModulePair] = field(default_factory=list)
    scopes: list[tuple[Path, Path]] = field(default_factory=list)
    left: list[ModuleFamily] = field(default_factory=list)
    right: list[ModuleFamily] = field(default_factory=list)
    candidates: dict[ModuleFamily, list[ModuleFamily]] = field(default_factory=dict)
    left_roles: Mapping[ModuleFamily, str] = field(default_factory=dict)
    right_roles: Mapping[ModuleFamily, str] = field(default_factory=dict)


def pair(source: Mapping[Key, Leaf], template: Mapping[Key, Leaf]) -> Pairs:
    """Pairs the modules of two canonical trees, without their RNG state.

    >>> from nnxconv.tree import Source
    >>> w = Source("w", (4, 5), "float32", (4, 5))
    >>> found = pair({("params", "Dense_0", "kernel"): w}, {("params", "out", "kernel"): w})
    >>> found.certain[0].evidence
    'nothing else has f32[4,5]'
    """
    return _Search(modules_of(source), modules_of(template)).run()


class _Search:
    def __init__(self, left: list[ModuleFamily], right: list[ModuleFamily]) -> None:
        self._roles = {**roles_of(left), **roles_of(right)}
        self._votes = Votes(kept_alike((*left, *right)))
        self._by_scope = scopes_in(left), scopes_in(right)
        self._scopes = pair_scopes(left, right)
        self._certain: list[ModulePair] = []
        self._left, self._right = left, right
        self._readings: dict[tuple[ModuleFamily, ModuleFamily], SlotReadings] = {}

    def run(self) -> Pairs:
        searches = [
            _ScopeSearch(self, scope, self._by_scope[0][scope[0]], self._by_scope[1][scope[1]])
            for scope in self._scopes
            if scope[0] in self._by_scope[0] and scope[1] in self._by_scope[1]
        ]
        for evidence in (0, 1):
            del evidence
        while any([search.step() for search in searches]):
            pass
        taken = {id(m) for p in self._certain for m in (p.source, p.template)}
        candidates = {a: found for search in searches for a, found in search.candidates()}
        return Pairs(
            [self._with_leaves(found) for found in self._certain],
            self._scopes,
            [module for module in self._left if id(module) not in taken],
            [module for module in self._right if id(module) not in taken],
            candidates,
            {m: self._roles[m] for m in self._left if m in self._roles},
            {m: self._roles[m] for m in self._right if m in self._roles},
        )

    def role(self, module: ModuleFamily) -> str:
        return self._roles.get(module, "")

    def main_readings(self, a: ModuleFamily, b: ModuleFamily) -> SlotReadings:
        """How the main arrays of two modules may be one another's."""
        if (a, b) not in self._readings:
            kind = kind_of(a, b, a.main, b.main, self.role(a) or self.role(b))
            role = self.role(a) or self.role(b)
            self._readings[a, b] = slot_readings(a.main, b.main, kind, role)
        return self._readings[a, b]

    def fits(self, scope: Hashable, a: ModuleFamily, b: ModuleFamily, *, by_name: bool) -> bool:
        """True when two modules can be one another; names count for more than other arrays."""
        role, other = self.role(a), self.role(b)
        if role and other and role != other:
            return False
        if (MAIN in a.slots) != (MAIN in b.slots):
            return False
        if _is_no_norm(a, role, b) or _is_no_norm(b, other, a):
            return False
        found = self.main_readings(a, b)
        if not by_name and not (role or other).endswith(_WITH_HEADS):
            found = {name: steps for name, steps in found.items() if not _cuts_axes(steps)}
        known = self._votes.decided(scope, *self._key(a, b))
        return bool(found) and (by_name or known is None or known in found)

    def _key(self, a: ModuleFamily, b: ModuleFamily):
        kind = kind_of(a, b, a.main, b.main, self.role(a) or self.role(b))
        return kind, (a.main.name, b.main.name)

    def accept(self, scope: Hashable, found: ModulePair) -> None:
        """Takes a pair, which is a vote where it can be read in one way."""
        self._certain.append(found)
        which = self.main_readings(found.source, found.template)
        if len(which) == 1:
            self._votes.add(scope, *self._key(found.source, found.template), next(iter(which)))

    def _with_leaves(self, found: ModulePair) -> ModulePair:
        """The pair with what is known of each of its leaves."""
        a, b = found.source, found.template
        scope = (a.scope.path, b.scope.path)
        role = self.role(a) or self.role(b)
        leaves = []
        for name, slot in a.slots.items():
            other = b.slots.get(name)
            if other is None:
                continue
            kind = kind_of(a, b, slot, other, role)
            fitting = slot_readings(slot, other, kind, role)
            known = self._votes.decided(scope, kind, (slot.name, other.name))
            if known in fitting:
                fitting = {known: fitting[known]}
            if fitting:
                leaves.append(LeafPair(slot, other, fitting))
        return replace(found, leaves=tuple(leaves))


def _cuts_axes(steps: Iterable[Sequence[Step]]) -> bool:
    """True when axes are cut or put together, as only heads are for certain."""
    return any(isinstance(step, Divide | Merge) for each in steps for step in each)


def _is_no_norm(a: ModuleFamily, role: str, b: ModuleFamily) -> bool:
    """True when one is known to be no norm, and the other is called one."""
    is_known = bool(role) and not role.startswith(("norm.", "scale."))
    return is_known and bool(b.path) and is_norm(b.path[-1])


class _ScopeSearch:
    """What is left of two scopes that are paired."""

    def __init__(
        self,
        search: _Search,
        scope: tuple[Path, Path],
        left: Sequence[ModuleFamily],
        right: Sequence[ModuleFamily],
    ) -> None:
        self._search = search
        self._scope = scope
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
            self._only,
            self._beside,
            self._numbered,
        ):
            found = list(evidence())
            if found:
                for one in found:
                    self._accept(one)
                return True
        return False

    def _accept(self, found: ModulePair) -> None:
        del self._left[found.source], self._right[found.template]
        self._parents[found.source.path[:-1]].add(found.template.path[:-1])
        self._origins[found.template.path[:-1]].add(found.source.path[:-1])
        self._search.accept(self._scope, found)

    def _fits(self, a: ModuleFamily, b: ModuleFamily, *, by_name: bool = False) -> bool:
        return self._search.fits(self._scope, a, b, by_name=by_name)

    # --- names

    def _same_path(self) -> Iterator[ModulePair]:
        yield from self._alike(lambda module: module.path, "the same name")

    def _same_role(self) -> Iterator[ModulePair]:
        def told(module: ModuleFamily) -> Hashable:
            return self._search.role(module) or None

        for found in self._alike(told, ""):
            yield replace(found, evidence=f"both are {_spoken(self._search.role(found.source))}")

    def _same_name(self) -> Iterator[ModulePair]:
        yield from self._alike(lambda module: module.path[-1:] or None, "the same name")

    def _alike(self, by: Callable[[ModuleFamily], Hashable], evidence: str) -> Iterator[ModulePair]:
        """The modules that have something in common which no other has, on either side."""
        left, right = _grouped(self._left, by), _grouped(self._right, by)
        for value, some in left.items():
            others = right.get(value, [])
            if value is not None and len(some) == len(others) == 1:
                if self._fits(some[0], others[0], by_name=True):
                    yield ModulePair(some[0], others[0], evidence)

    # --- shapes

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

    def _only(self) -> Iterator[ModulePair]:
        fitting, rivals = self._fitting()
        for a, found in fitting.items():
            if len(found) == 1 and rivals[found[0]] == 1:
                yield ModulePair(a, found[0], f"nothing else has {a.main.told}")

    def _beside(self) -> Iterator[ModulePair]:
        """The only one of its size in a module of a layer whose other parts are paired."""
        if not all(self._scope):
            return
        fitting, _ = self._fitting()
        home: Counter[tuple[ModuleFamily, Path]] = Counter()
        inside: dict[ModuleFamily, list[ModuleFamily]] = {}
        for a, found in fitting.items():
            parent = a.path[:-1]
            there = self._parents.get(parent, set())
            if not parent or len(there) != 1:
                continue
            [target] = there
            if not target or self._origins[target] != {parent}:
                continue
            inside[a] = [b for b in found if b.path[:-1] == target]
            for b in inside[a]:
                home[b, parent] += 1
        for a, found in inside.items():
            if len(found) == 1 and home[found[0], a.path[:-1]] == 1:
                names = ".".join(a.path[:-1]), ".".join(found[0].path[:-1])
                yield ModulePair(a, found[0], f"in {names[0]}, which is {names[1]}")

    def _numbered(self) -> Iterator[ModulePair]:
        """As many of one size under one name on both sides, which differ in their number."""
        for some, others in self._groups():
            names = {m.skeleton for m in some}, {m.skeleton for m in others}
            if len(some) != len(others) or len(some) < 2 or any(len(n) > 1 for n in names):
                continue
            told = [self._search.role(m) for m in (*some, *others)]
            if any(role.rpartition(".")[2] in _EXCHANGEABLE for role in told):
                continue
            if len(some) > 2 and any(is_norm(m.path[-1]) for m in (*some, *others) if m.path):
                continue  # a third norm may come after attention, or after everything
            some, others = (sorted(group, key=lambda m: m.numbers) for group in (some, others))
            if all(self._fits(a, b) for a, b in zip(some, others, strict=True)):
                for a, b in zip(some, others, strict=True):
                    yield ModulePair(a, b, f"{len(some)} of {a.main.told}, in their order")

    def candidates(self) -> Iterator[tuple[ModuleFamily, list[ModuleFamily]]]:
        """What is left on the source's side, and what it could be."""
        yield from ((a, found) for a, found in self._fitting()[0].items() if found)


def _grouped(
    modules: Iterable[ModuleFamily], by: Callable[[ModuleFamily], Hashable]
) -> dict[Hashable, list[ModuleFamily]]:
    found: dict[Hashable, list[ModuleFamily]] = defaultdict(list)
    for module in modules:
        found[by(module)].append(module)
    return found


# --- what modules are -------------------------------------------------------------------------


_EXPERTS = ("experts", "expert", "shared_expert", "shared_experts")


def roles_of(modules: Sequence[ModuleFamily]) -> dict[ModuleFamily, str]:
    """What the modules of a tree are, as far as their names say it."""
    experts = {
        path[:end]
        for path in ((*m.scope.path, *m.path) for m in modules)
        for end in range(len(path))
        if end and spelled(path[end]) in _EXPERTS and not path[end - 1].endswith("#")
    }
    sides = {told for module in modules if (told := side((*module.scope.path, *module.path)))}
    found: dict[ModuleFamily, str] = {}
    for scope, some in scopes_in(modules).items():
        paths = {(*scope, *module.path): module for module in some}
        known = roles(dict.fromkeys(paths, "block" if scope else "root"), experts)
        for path, role in known.items():
            told = side(path) if len(sides) > 1 and not scope else ""
            found[paths[path]] = f"{told}.{role}" if told else role
    return _without_odd_gates(found)


def _without_odd_gates(found: dict[ModuleFamily, str]) -> dict[ModuleFamily, str]:
    """Without the roles of an MLP whose gate is not shaped as what it gates: names misled."""
    kinds: dict[tuple[Path, Path, str], dict[str, ModuleFamily]] = defaultdict(dict)
    for module, role in found.items():
        head, _, last = role.rpartition(".")
        if last in ("gate", "up", "down"):
            kinds[module.scope.path, module.path[:-1], head][last] = module
    odd = {
        module
        for parts in kinds.values()
        if {"gate", "up"} <= parts.keys() and parts["gate"].main.shapes != parts["up"].main.shapes
        for module in parts.values()
    }
    return {module: role for module, role in found.items() if module not in odd}


_SPOKEN = {"query": "the query", "key": "the key", "value": "the value"}


def _spoken(role: str) -> str:
    """A role in words: `norm.attention` is `the norm of attention`."""
    head, _, last = role.partition(".")
    return f"the {head} of {last.replace('_', ' ')}" if last else f"the {head}"
