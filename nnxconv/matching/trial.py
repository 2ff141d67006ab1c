"""Rules for what is certain, tried before anyone is told."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nnxconv.matching.generalise import rules_for
from nnxconv.matching.pairs import Pairs
from nnxconv.renaming import Rules, rename
from nnxconv.state import RNGS, LayerGroup, TrainState
from nnxconv.tree import Key, Leaf, Literal, notation, spell


@dataclass(frozen=True)
class Trial:
    """Two states, between which rules shall lead.

    Attributes:
      source: what is renamed; `groups` are its layers.
      template: the leaves that shall come out.
    """

    source: TrainState
    groups: Sequence[LayerGroup]
    template: Mapping[Key, Leaf]

    def rules(self, pairs: Pairs) -> Rules:
        """The rules that make what is certain, and leave everything else where it is."""
        moves = [move for found in pairs.certain for leaf in found.leaves for move in leaf.moves()]
        keys = list(dict.fromkeys(_path(key) for key in variables(self.source)))
        return Rules(rules_for(moves, keys))

    def problems(self, pairs: Pairs, rules: Rules) -> Iterator[str]:
        """What the rules do not do that they should."""
        if not rules.rules:
            return
        renamed = rename(self.source, self.groups, rules, spelling="suffix", has_notes=False)
        found = variables(renamed.state)
        yield from renamed.problems
        slots = (slot for p in pairs.certain for leaf in p.leaves for slot in leaf.templates)
        for slot in slots:
            for path in slot.keys:
                key: Key = (*head(slot.collection), *path)
                if key not in found:
                    yield f"{spell(key)} is not there"
                elif _shape(found[key]) != _shape(self.template[key]):
                    told = f"{notation(found[key])}, but {notation(self.template[key])}"
                    yield f"{spell(key)} is {told} in the template"


def head(collection: str) -> Key:
    """What canonical keys of a collection begin with."""
    return ("params",) if collection == "params" else ("aux", collection)


def variables(state: TrainState) -> dict[Key, Leaf]:
    """Parameters and other variables but RNG state, by canonical key."""
    return {
        key: leaf
        for key, leaf in state.leaves().items()
        if key[0] in ("params", "aux") and key[:2] != ("aux", RNGS)
    }


def _path(key: Key) -> Key:
    return key[1:] if key[0] == "params" else key[2:]


def _shape(leaf: Leaf) -> object:
    return leaf if isinstance(leaf, Literal) else leaf.shape
