"""What the search by values has found, module by module, as `match` tells it."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace

from nnxconv.matching.modules import ModuleFamily, Slot, modules_of
from nnxconv.matching.orientation import SlotReadings
from nnxconv.matching.pairs import LeafPair, ModulePair, Pairs, Unclear
from nnxconv.matching.readings import SAME, TURNED
from nnxconv.matching.values import Alike, Found
from nnxconv.renaming import Step, Transpose
from nnxconv.tree import Key, Leaf


class _Tree:
    """The modules of one tree, and where in them each leaf is."""

    def __init__(self, leaves: Mapping[Key, Leaf]) -> None:
        self.modules = modules_of(leaves)
        self.places: dict[Key, tuple[ModuleFamily, Slot, int]] = {}
        for module in self.modules:
            for slot in module.slots.values():
                head: Key = ("params",) if slot.collection == "params" else ("aux", slot.collection)
                self.places |= {
                    (*head, *key): (module, slot, at) for at, key in enumerate(slot.keys)
                }

    def family(self, key: Key) -> tuple[ModuleFamily, Slot]:
        """The module of a leaf, and which of its leaves it is."""
        return self.places[key][:2]

    def kind(self, keys: Sequence[Key]) -> Hashable:
        """What leaves have in common with those of other layers."""
        return tuple(tuple(map(id, self.family(key))) for key in keys)

    def modules_of(self, keys: Sequence[Key]) -> tuple[ModuleFamily, ...]:
        """The modules of leaves, each once."""
        return tuple(dict.fromkeys(self.family(key)[0] for key in keys))

    def slot(self, keys: Sequence[Key]) -> Slot:
        """Some leaves of one slot as a slot of its own."""
        slot = self.places[keys[0]][1]
        at = [self.places[key][2] for key in keys]
        return Slot(
            slot.name,
            slot.collection,
            tuple(slot.keys[place] for place in at),
            tuple(slot.leaves[place] for place in at),
            tuple(slot.ranks[place] for place in at),
        )

    def left(self, taken: set[Key]) -> tuple[tuple[ModuleFamily, Slot], ...]:
        """What is in no pair."""
        rest: dict[Hashable, list[Key]] = defaultdict(list)
        for key in self.places:
            if key not in taken:
                rest[self.kind([key])].append(key)
        return tuple((self.family(keys[0])[0], self.slot(keys)) for keys in rest.values())


def pairs_by_value(
    source: Mapping[Key, Leaf],
    template: Mapping[Key, Leaf],
    found: Sequence[Found],
    alike: Sequence[Alike],
) -> Pairs:
    """Leaves that were found, by the modules in which they stand.

    Args:
      source, template: the canonical trees.
      found: what is paired.
      alike: what is not decided.
    """
    left, right = _Tree(source), _Tree(template)
    certain = [one for one in found if len(one.moves) == 1]
    turned = [one for one in found if len(one.moves) > 1]
    unclear = tuple(_unclear(left, right, alike))
    sides = (
        {key for one in found for key in one.moves[0].sources},
        {key for one in found for key in one.moves[0].targets},
    )
    sides[0].update(key for one in alike for key in one.sources)
    sides[1].update(key for one in alike for key in one.templates)
    return Pairs(
        tuple(_module_pairs(left, right, certain)),
        (),
        tuple(_module_pairs(left, right, turned)),
        unclear,
        left.left(sides[0]),
        right.left(sides[1]),
    )


def _module_pairs(left: _Tree, right: _Tree, found: Sequence[Found]) -> Iterator[ModulePair]:
    """The pairs of modules, with the leaves that they have in common."""
    families: dict[Hashable, list[Found]] = defaultdict(list)
    for one in found:
        move = one.moves[0]
        ways = tuple(other.steps for other in one.moves)
        shared = (left.kind(move.sources), right.kind(move.targets), one.evidence)
        families[*shared, len(ways) > 1 and ways].append(one)
    modules: dict[Hashable, ModulePair] = {}
    for group in families.values():
        move = group[0].moves[0]
        both = left.modules_of(move.sources), right.modules_of(move.targets)
        pair = modules.setdefault((*both, group[0].evidence), ModulePair(*both, group[0].evidence))
        leaves = (*pair.leaves, _leaf_pair(left, right, group))
        modules[*both, group[0].evidence] = replace(pair, leaves=leaves)
    yield from modules.values()


def _leaf_pair(left: _Tree, right: _Tree, group: Sequence[Found]) -> LeafPair:
    """The same leaf in all members of a family."""
    moves = [one.moves[0] for one in group]
    columns = zip(*(move.sources for move in moves), strict=True)
    others = zip(*(move.targets for move in moves), strict=True)
    each = [[move.steps for move in one.moves] for one in group]
    names = _readings_named(each[0])
    readings: SlotReadings = {
        name: tuple(ways[place] for ways in each) for place, name in enumerate(names)
    }
    sources = tuple(left.slot(column) for column in columns)
    return LeafPair(sources, tuple(right.slot(column) for column in others), readings)


def _readings_named(ways: Sequence[Sequence[Step]]) -> list[str]:
    """A name for each way: whether axes change their order."""
    names: list[str] = []
    for way in ways:
        name = TURNED if any(isinstance(step, Transpose) for step in way) else SAME
        again = sum(other.split(",")[0] == name for other in names)
        names.append(f"{name}, {again + 1}" if again else name)
    return names


def _unclear(left: _Tree, right: _Tree, alike: Sequence[Alike]) -> Iterator[Unclear]:
    """The modules that hold the same as several, and those."""
    for one in alike:
        families: dict[Hashable, list[Key]] = defaultdict(list)
        for key in one.sources:
            families[left.kind([key])].append(key)
        candidates: dict[Hashable, list[Key]] = defaultdict(list)
        for key in one.templates:
            candidates[right.kind([key])].append(key)
        for keys in families.values():
            module, slot = left.family(keys[0])[0], left.slot(keys)
            some = replace(module, slots={slot.name: slot})
            pairs = (_candidate(some, slot, right, others) for others in candidates.values())
            yield Unclear(some, tuple(pairs))


def _candidate(module: ModuleFamily, slot: Slot, right: _Tree, keys: Sequence[Key]) -> ModulePair:
    """What a module may be; with rules where as many leaves of the same shapes are there."""
    other, its_slot = right.family(keys[0])[0], right.slot(keys)
    is_alike = slot.ranks == its_slot.ranks and slot.shapes == its_slot.shapes
    readings: SlotReadings = {SAME: ((),) * len(keys)}
    leaves = (LeafPair((slot,), (its_slot,), readings),) if is_alike else ()
    return ModulePair((module,), (replace(other, slots={its_slot.name: its_slot}),), "", leaves)
