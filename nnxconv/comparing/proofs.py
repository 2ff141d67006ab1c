"""The values of two checkpoints, for a search that pairs leaves by what they hold."""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnxconv.comparing.difference import Tolerance
from nnxconv.comparing.fingerprints import fingerprint_leaves
from nnxconv.comparing.pairing import Pair
from nnxconv.comparing.values import compare_values
from nnxconv.matching import Fingerprint, Move
from nnxconv.renaming import apply_steps
from nnxconv.running import Watcher, as_viewed, ignore, read_region
from nnxconv.state import LayerGroup
from nnxconv.storage import run, together
from nnxconv.storage.orbax import Item, Reader
from nnxconv.tree import (
    Key,
    Region,
    Source,
    View,
    cast,
    dtype_of,
    notation,
    pieces,
    size_bytes,
    stack,
)

_BITS = Tolerance(atol=0.0, rtol=0.0)
_SHARE = 8
"""Leaves that take this share of the memory, or less, are held whole while ways are tried."""
_GLANCE = 16
"""How many elements of each axis are looked at first."""


@dataclass(frozen=True)
class Holding:
    """One checkpoint: its arrays by key, its layer groups, and where they are read from."""

    leaves: Mapping[Key, View]
    groups: Sequence[LayerGroup]
    item: Item


@dataclass(frozen=True)
class CheckpointValues:
    """Two checkpoints whose values are read when they are asked for."""

    source: Holding
    template: Holding
    max_memory: int
    watch: Watcher = ignore

    def fingerprints(
        self, source: Sequence[Key], template: Sequence[Key], dtype: str | None
    ) -> tuple[Mapping[Key, Fingerprint], Mapping[Key, Fingerprint]]:
        """What leaves of both sides hold; cast to `dtype`, where one is given."""
        here, there = (
            fingerprint_leaves(
                {key: side.leaves[key] for key in keys},
                side.groups,
                side.item,
                self.max_memory,
                dtype,
                self.watch,
            )
            for side, keys in ((self.source, source), (self.template, template))
        )
        return here, there

    def holding(self, moves: Sequence[Move], dtype: str | None) -> list[bool]:
        """Of each move of leaves, whether it makes the template's values of the source's.

        Several moves of the same leaves are tried on values in memory, where these fit there;
        others are streamed.
        """
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for place, move in enumerate(moves):
            groups[frozenset(move.sources), frozenset(move.targets)].append(place)
        found = [False] * len(moves)
        streamed: list[int] = []
        for places in groups.values():
            some = [moves[place] for place in places]
            if len(places) > 1 and self._bytes(some[0]) * _SHARE <= self.max_memory:
                for place, holds in zip(places, run(self._tried(some, dtype)), strict=True):
                    found[place] = holds
            else:
                streamed += places
        for place, holds in self._streamed({place: moves[place] for place in streamed}, dtype):
            found[place] = holds
        return found

    def _bytes(self, move: Move) -> int:
        here = sum(size_bytes(self.source.leaves[key]) for key in move.sources)
        return here + sum(size_bytes(self.template.leaves[key]) for key in move.targets)

    # --- in memory

    async def _tried(self, moves: Sequence[Move], dtype: str | None) -> list[bool]:
        """Moves of the same leaves, whose values are read once."""
        olds = await _read(self.source, moves[0].sources, dtype)
        news = await _read(self.template, moves[0].targets, dtype)
        return [await _holds(move, olds, news) for move in moves]

    # --- streamed

    def _streamed(self, moves: Mapping[int, Move], dtype: str | None) -> list[tuple[int, bool]]:
        """Both sides read block by block; layers that are alike side by side."""
        groups: dict[Hashable, list[tuple[Key, View, View]]] = defaultdict(list)
        for place, move in moves.items():
            made = apply_steps(
                move.steps, [self.source.leaves[key] for key in move.sources], len(move.targets)
            )
            for view, key in zip(made, move.targets, strict=True):
                a, b = (_as(v, dtype) for v in (view, self.template.leaves[key]))
                family = tuple(map(_family, move.sources)), _family(key), move.steps
                groups[*family, notation(a), notation(b)].append(((place, *key), a, b))
        pairs = [_pair(group) for group in groups.values()]
        items = self.source.item.stores | self.template.item.stores
        values = compare_values(pairs, items, _BITS, self.max_memory, watch=self.watch)
        unlike = {key[0] for key, found in values.statistics.items() if found.unequal}
        return [(place, place not in unlike) for place in moves]


def _family(key: Key) -> Key:
    """A key without its outermost layer."""
    place = next((at for at, part in enumerate(key) if isinstance(part, int)), len(key))
    return *key[:place], *key[place + 1 :]


def _pair(group: Sequence[tuple[Key, View, View]]) -> Pair:
    keys = tuple(key for key, _, _ in group)
    if len(group) == 1:
        return Pair(keys, group[0][1], group[0][2])
    return Pair(keys, stack([a for _, a, _ in group], 0), stack([b for _, _, b in group], 0))


def _as(view: View, dtype: str | None) -> View:
    return view if dtype in (None, dtype_of(view)) else cast(view, str(dtype))


async def _read(side: Holding, keys: Sequence[Key], dtype: str | None) -> dict[Key, np.ndarray]:
    """The values of leaves."""
    reader = Reader(side.item.stores)
    views = [side.leaves[key] for key in keys]
    values = await together(read_region(reader, pieces(v), _whole(v.shape)) for v in views)
    return {
        key: as_viewed(array, _as(view, dtype))
        for key, view, array in zip(keys, views, values, strict=True)
    }


def _whole(shape: Sequence[int]) -> Region:
    return tuple(slice(0, size) for size in shape)


@dataclass(frozen=True)
class _InMemory:
    """Arrays that are read already, by their names."""

    arrays: Mapping[str, np.ndarray]

    async def read(self, source: Source, region: Region) -> np.ndarray:
        """The values of a region."""
        return self.arrays[source.name][region]


async def _holds(
    move: Move, olds: Mapping[Key, np.ndarray], news: Mapping[Key, np.ndarray]
) -> bool:
    """True when the move makes these values of those, bit by bit; a corner is compared first."""
    arrays = {str(place): olds[key] for place, key in enumerate(move.sources)}
    sources = [Source(n, a.shape, a.dtype.name, a.shape) for n, a in arrays.items()]
    made = apply_steps(move.steps, sources, len(move.targets))
    for size in (_GLANCE, math.inf):
        for view, key in zip(made, move.targets, strict=True):
            region = tuple(slice(0, int(min(size, length))) for length in view.shape)
            values = await read_region(_InMemory(arrays), pieces(view), region)
            if not _same_bits(values, news[key][region]):
                return False
    return True


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return (
        a.shape == b.shape
        and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    )
