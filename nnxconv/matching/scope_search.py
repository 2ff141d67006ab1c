"""The pairs of modules within two scopes, one kind of evidence after the other."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from nnxconv.matching.fitting import Fitting
from nnxconv.matching.modules import ModuleFamily, Path
from nnxconv.matching.orientation import Scopes
from nnxconv.matching.pairs import ModulePair
from nnxconv.matching.parting import in_experts, in_parts
from nnxconv.matching.roles import spoken
from nnxconv.matching.vocabulary import as_counted, is_norm

LARGEST_GROUP = 4096
"""How many pairs of modules of one size are looked at; beyond that their names alone can tell."""
_EXCHANGEABLE = ("query", "key", "value", "out", "gate", "up", "down")
"""Roles in which modules of one shape differ in meaning, and not in a number alone."""

_COUNTED = re.compile(r"[A-Z]\w*_\d+")
"""Names that flax gives to modules without one, as `Dense_0`: they say a class, and no more."""
_NUMBER_WITHIN = re.compile(r"_(?=[0-9]+(\.|$))")


def _with_numbers_apart(path: Path) -> str:
    """A path in which every number is a name of its own.

    >>> [_with_numbers_apart(path) for path in (("h_0", "out_0"), ("h", "0", "out.0"))]
    ['h.0.out.0', 'h.0.out.0']
    """
    return _NUMBER_WITHIN.sub(".", ".".join(path))


def _own_names(modules: Iterable[ModuleFamily]) -> dict[ModuleFamily, str]:
    """The last names of modules, where they are such that somebody has given."""
    paths = {module.path: module for module in modules}
    counted = {module: as_counted(path, paths) == path for path, module in paths.items()}
    return {
        module: path[-1]
        for path, module in paths.items()
        if path and counted[module] and not _COUNTED.fullmatch(path[-1])
    }


class ScopeSearch:
    """What is left of two scopes that are paired.

    Attributes:
      scope: the two.
    """

    def __init__(
        self,
        fitting: Fitting,
        scope: Scopes,
        left: Sequence[ModuleFamily],
        right: Sequence[ModuleFamily],
    ) -> None:
        self.scope = scope
        self._known = fitting
        self._left = dict.fromkeys(left)
        self._right = dict.fromkeys(right)
        self._own_names = {**_own_names(left), **_own_names(right)}
        self._parents: dict[Path, set[Path]] = defaultdict(set)
        self._origins: dict[Path, set[Path]] = defaultdict(set)

    def step(self) -> list[ModulePair]:
        """Takes the pairs of the strongest evidence that there is; none when there is none."""
        for evidence in (
            self._same_path,
            self._same_spelling,
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
                return found
        return []

    def _accept(self, found: ModulePair) -> None:
        for a in found.sources:
            del self._left[a]
            self._parents[a.path[:-1]] |= {b.path[:-1] for b in found.templates}
        for b in found.templates:
            del self._right[b]
            self._origins[b.path[:-1]] |= {a.path[:-1] for a in found.sources}
        if len(found.sources) + len(found.templates) == 2:
            self._known.vote(self.scope, found.sources[0], found.templates[0])

    def _parts(self) -> Iterator[ModulePair]:
        yield from in_parts(self._known, self._left, self._right)
        yield from in_experts(self._known, self._left, self._right)

    def _fits(self, a: ModuleFamily, b: ModuleFamily, *, by_name: bool = False) -> bool:
        return self._known.fits(self.scope, a, b, by_name=by_name)

    # --- by names

    def _same_path(self) -> Iterator[ModulePair]:
        yield from self._alike(lambda module: module.path, "the same name")

    def _same_spelling(self) -> Iterator[ModulePair]:
        """The same names, of which one project puts numbers into, and another beside them."""
        yield from self._alike(lambda module: _with_numbers_apart(module.path), "the same name")

    def _same_role(self) -> Iterator[ModulePair]:
        for found in self._alike(lambda module: self._known.role(module) or None, ""):
            role = self._known.role(found.sources[0])
            yield replace(found, evidence=f"both are {spoken(role)}")

    def _same_name(self) -> Iterator[ModulePair]:
        yield from self._alike(self._own_names.get, "the same name")

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
                and self._known.shapes_tell(self.scope, a, found[0])
            ):
                yield ModulePair((a,), (found[0],), f"nothing else has {a.main.told}")

    def _beside(
        self, fitting: Mapping[ModuleFamily, Sequence[ModuleFamily]]
    ) -> Iterator[ModulePair]:
        """The only one of its size in a module of a layer whose other parts are paired.

        Outside of layers, in a module that has the same name, as `actor` beside `critic`.
        """
        rivals: Counter[tuple[ModuleFamily, Path]] = Counter()
        inside: dict[ModuleFamily, list[ModuleFamily]] = {}
        for a, found in fitting.items():
            home = self._home(a.path[:-1]) if all(self.scope) else self._namesake(a.path[:-1])
            inside[a] = [b for b in found if home and b.path[:-1] == home]
            rivals.update((b, a.path[:-1]) for b in inside[a])
        for a, found in inside.items():
            is_only = len(found) == 1 and rivals[found[0], a.path[:-1]] == 1
            if is_only and self._known.shapes_tell(self.scope, a, found[0]):
                names = ".".join(a.path[:-1]), ".".join(found[0].path[:-1])
                yield ModulePair((a,), (found[0],), f"in {names[0]}, which is {names[1]}")

    def _home(self, parent: Path) -> Path:
        """The one module to which all that is paired of a module belongs; empty for none."""
        there = self._parents.get(parent, set())
        if not parent or len(there) != 1:
            return ()
        [target] = there
        return target if self._origins[target] == {parent} else ()

    def _namesake(self, parent: Path) -> Path:
        """The module of the same name, where nothing of either is paired with anything else."""
        others = self._parents.get(parent, set()) | self._origins.get(parent, set())
        return parent if others <= {parent} else ()

    def _numbered(self) -> Iterator[ModulePair]:
        """As many of one size under one name on both sides, which differ in their number."""
        for some, others in self._groups():
            if not self._is_series(some, others):
                continue
            some, others = (sorted(group, key=lambda m: m.numbers) for group in (some, others))
            both = list(zip(some, others, strict=True))
            if all(self._fits(a, b) and self._known.shapes_tell(self.scope, a, b) for a, b in both):
                told = f"{len(some)} of {some[0].main.told}, in their order"
                yield from (ModulePair((a,), (b,), told) for a, b in both)

    def _is_series(self, some: Sequence[ModuleFamily], others: Sequence[ModuleFamily]) -> bool:
        names = {m.skeleton for m in some}, {m.skeleton for m in others}
        if len(some) != len(others) or len(some) < 2 or any(len(n) > 1 for n in names):
            return False
        roles = [self._known.role(m).rpartition(".")[2] for m in (*some, *others)]
        if any(role in _EXCHANGEABLE for role in roles):
            return False
        # a third norm may come after attention, or after everything
        return len(some) == 2 or not any(m.path and is_norm(m.path[-1]) for m in (*some, *others))

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
