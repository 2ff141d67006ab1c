"""Pairs of trees of one model under different names, of which the truth is known by values."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nnxconv.state import DEFAULT_NAMES, LayerGroup, TrainState, unstack
from nnxconv.tree import Key, Source, View, pieces
from tests.support.dialects import REAL, SPELLINGS, Dialect, automatic, made_up, render
from tests.support.model_families import FAMILIES, Maker, Model
from tests.support.more_dialects import MORE


@dataclass(frozen=True)
class Side:
    """A tree with its values, by canonical key."""

    told: str
    values: Mapping[Key, np.ndarray]

    def state(self) -> tuple[TrainState, tuple[LayerGroup, ...]]:
        """The tree as views without bytes, with the layers apart, and its layer groups."""
        leaves = {key: _source(key, array) for key, array in self.values.items()}
        params = {key[1:]: leaf for key, leaf in leaves.items() if key[0] == "params"}
        aux = {key[1:]: leaf for key, leaf in leaves.items() if key[0] == "aux"}
        return unstack(TrainState(params, aux=aux), names=DEFAULT_NAMES)

    def evaluated(self, view: View) -> np.ndarray:
        """The values of a view of these leaves."""
        by_name = {str(key): array for key, array in self.values.items()}
        found = np.full(view.shape, np.nan)
        for piece in pieces(view):
            region = tuple(slice(0, size) for size in piece.source.shape)
            where = piece.target_region(region)
            found[where] = piece.turn(by_name[piece.source.name], region)
        return found


def _source(key: Key, array: np.ndarray) -> Source:
    return Source(str(key), array.shape, "float32", array.shape)


@dataclass(frozen=True)
class GeneratedPair:
    """The same model twice; `is_known` when all names on both sides are those of projects."""

    family: str
    source: Side
    template: Side
    is_known: bool


def generated_pair(seed: int) -> GeneratedPair:
    """A pair of which everything is drawn from a seed."""
    rng = random.Random(seed)
    family = rng.choice(sorted(FAMILIES))
    model = FAMILIES[family](Maker(rng))
    gate_first = rng.random() < 0.5
    kinds = [
        rng.choices(("real", "made up", "odd", "automatic"), (6, 2, 1.5, 0.5))[0] for _ in "ab"
    ]
    sides = [_side(family, model, rng, k, gate_first, s) for k, s in zip(kinds, "ab", strict=True)]
    return GeneratedPair(family, *sides, set(kinds) <= {"real", "made up"})


def projects_of(family: str) -> dict[str, Dialect]:
    """The projects whose names for a family's modules are known."""
    return {**REAL[family], **MORE.get(family, {})}


def pair_of(family: str, source: str, template: str, seed: int) -> GeneratedPair:
    """A model as two projects keep it, its leaves shuffled."""
    rng = random.Random(seed)
    model = FAMILIES[family](Maker(rng))
    known = projects_of(family)
    sides = [_rendered(model, known[name], rng, "", "nested", name) for name in (source, template)]
    return GeneratedPair(family, *sides, is_known=True)


def _side(
    family: str, model: Model, rng: random.Random, kind: str, gate_first: bool, side: str
) -> Side:
    match kind:
        case "real":
            known = projects_of(family)
            kind = rng.choice(sorted(known))
            dialect = known[kind]
        case "automatic":
            dialect = automatic(model, gate_first)
        case _:
            oddness = rng.choice([0.1, 0.5, 1]) if kind == "odd" else 0
            dialect = made_up(model, rng, oddness, side)
    prefix = rng.choice(["", "", "", "net.", "module."])
    spelling = rng.choice(["nested"] * 4 + ["layers"] * 2 + sorted(SPELLINGS))
    return _rendered(model, dialect, rng, prefix, spelling, kind)


def _rendered(
    model: Model, dialect: Dialect, rng: random.Random, prefix: str, spelling: str, kind: str
) -> Side:
    leaves, stats = render(model, dialect, prefix)
    order = list(leaves)
    rng.shuffle(order)
    values: dict[Key, np.ndarray] = {}
    for path in order:
        head: Key = ("aux", "batch_stats") if path in stats else ("params",)
        values[*head, *SPELLINGS[spelling](path)] = leaves[path]
    return Side(f"{kind}, {spelling}", values)
