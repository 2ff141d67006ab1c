"""How the axes of one tree's arrays are turned to be the other's: decided once for all of a kind.

Every pair of arrays whose shapes leave one reading is a vote for its kind: for the matrices called
`weight` that become a `kernel`, say. Votes are counted within a pair of scopes first, then in the
whole trees. Where they differ, or there is none, a square array stays open.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from nnxconv.matching.modules import MAIN, ModuleFamily, Path, Slot
from nnxconv.matching.readings import SAME, Kind, Orientation, readings
from nnxconv.matching.vocabulary import within
from nnxconv.renaming import Step
from nnxconv.tree import Shape

Scopes: TypeAlias = tuple[Path, Path]
SlotReadings: TypeAlias = Mapping[Orientation, tuple[tuple[Step, ...], ...]]
"""For each orientation the steps of every member."""

_KEPT_ALIKE = frozenset(("kernel", "w", "embedding"))
"""Names under which arrays are kept in one way: inputs first, or one row for each token."""
_ALSO_CALLED = {"w": "kernel", "": "kernel"}
"""Names of arrays that are kept as those of another name in the same tree are."""
_OUTPUTS_FIRST = ("c_attn", "c_fc", "c_proj", "q_attn")
"""Modules of transformers' FlaxConv1D, whose `kernel` has its outputs first."""
_TABLES = ("embedding", "embeddings", "emb_var")
_TABLE_ROLES = ("token", "position", "type")


def kind_of(a: ModuleFamily, b: ModuleFamily, slot: Slot, other: Slot, role: str) -> Kind:
    """What an array is, as far as its axes are concerned."""
    shapes = (*(slot.shapes or ()), *(other.shapes or ()))
    if a.slots.get(MAIN) is not slot or all(_is_vector(shape) for shape in shapes):
        return "vector"
    if slot.name in _TABLES or other.name in _TABLES or role in _TABLE_ROLES:
        return "table"
    ranks = {len(shape) for shape in shapes}
    around = (within(name) for m in (a, b) for name in (*m.scope.path, *m.path))
    if min(ranks) == 3 and any(told in ("moe", "shared") for told in around):
        return "experts"
    names = "".join((*a.path[-1:], *b.path[-1:])).lower()
    if min(ranks) > 3 or (min(ranks) == 3 and "conv" in names):
        return "conv"
    return "dense"


def _is_vector(shape: Shape) -> bool:
    return sum(size != 1 for size in shape) <= 1


def slot_readings(slot: Slot, other: Slot, kind: Kind, role: str) -> SlotReadings:
    """The readings that fit every member."""
    if slot.size != other.size:
        return {}
    if slot.shapes is None or other.shapes is None:
        return {SAME: ((),) * len(slot.keys)}
    each = [readings(a, b, kind, role) for a, b in zip(slot.shapes, other.shapes, strict=True)]
    shared = [name for name in each[0] if all(name in found for found in each)]
    return {name: tuple(found[name] for found in each) for name in shared}


def kept_alike(modules: Iterable[ModuleFamily]) -> frozenset[str]:
    """The names of arrays that need no step when both trees, of these modules, have them."""
    odd = {m.main.name for m in modules if m.path and m.path[-1] in _OUTPUTS_FIRST}
    return _KEPT_ALIKE - odd


@dataclass
class Votes:
    """What the pairs so far say, by scope and kind, and by kind in all layers.

    Attributes:
      kept_alike: the names of arrays that are kept in one way wherever they are called so.
    """

    kept_alike: frozenset[str]
    _of_scope: dict[Hashable, set[Orientation]] = field(default_factory=lambda: defaultdict(set))
    _of_layers: dict[Hashable, set[Orientation]] = field(default_factory=lambda: defaultdict(set))

    def add(self, scope: Scopes, kind: Kind, names: tuple[str, str], which: Orientation) -> None:
        """Counts a pair that can be read in one way only."""
        names = _kept_as(names)
        self._of_scope[scope, kind, names].add(which)
        if all(scope):
            self._of_layers[kind, names].add(which)

    def decided(self, scope: Scopes, kind: Kind, names: tuple[str, str]) -> Orientation | None:
        """The orientation of all arrays of this kind; None where it is not known.

        What is outside of layers says nothing about them: GPT-2 keeps its layers' weights with
        inputs first, and those of its head with inputs last.
        """
        if kind == "vector":
            return SAME
        kept = _kept_as(names)
        found = self._of_scope.get((scope, kind, kept)) or self._of_layers.get((kind, kept))
        if found:
            return next(iter(found)) if len(found) == 1 else None
        return SAME if kept[0] == kept[1] and {*names, *kept} <= self.kept_alike else None


def _kept_as(names: tuple[str, str]) -> tuple[str, str]:
    """The names of two arrays, each by the one under which most of its kind are kept."""
    return _ALSO_CALLED.get(names[0], names[0]), _ALSO_CALLED.get(names[1], names[1])
