"""The values of leaves that are compared, block by block: both sides read, and measured."""

import asyncio
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnxconv.comparing.difference import Difference, Tolerance, measure
from nnxconv.comparing.pairing import Pair
from nnxconv.planning import check_fits, in_windows, is_last, regions
from nnxconv.running import (
    Event,
    Watcher,
    as_viewed,
    check_memory,
    ignore,
    read_region,
    read_view,
    spread,
)
from nnxconv.running.cluster import SINGLE_PROCESS, Team
from nnxconv.storage import run, together
from nnxconv.storage.orbax import EncodedChunks, Item, Reader
from nnxconv.tree import (
    Key,
    Piece,
    Region,
    Shape,
    View,
    arithmetic_of,
    dtype_of,
    is_computed,
    item_bytes,
    pieces,
    region_cost,
    size_bytes,
)

BLOCK_BYTES = 16 * 2**20
BLOCK_COPIES = 6
"""How many times a block is in memory at once: both sides encoded, decoded and in C order."""

CHECKS_AT_ONCE = 8
"""Threads that compare encoded chunks, which wait for disks or servers."""


@dataclass
class Values:
    """What comparing values found, leaf by leaf.

    Attributes:
      statistics: of every leaf.
      scalars: the two values of every leaf that is a single number.
      read_bytes: bytes that were decoded, both sides together.
      equal_chunk_bytes: bytes that were proved equal by their encoded chunks, one side.
    """

    statistics: dict[Key, Difference] = field(default_factory=dict)
    scalars: dict[Key, tuple[str, str]] = field(default_factory=dict)
    read_bytes: int = 0
    equal_chunk_bytes: int = 0

    def to_json(self) -> list[Any]:
        """As JSON values; leaves that were not looked at are left out, keys are positions."""
        places = {key: place for place, key in enumerate(self.statistics)}
        seen = {key: found for key, found in self.statistics.items() if found.count}
        return [
            [[places[key], found.to_json()] for key, found in seen.items()],
            [[places[key], *pair] for key, pair in self.scalars.items()],
            self.read_bytes,
            self.equal_chunk_bytes,
        ]

    @staticmethod
    def sum(every: Iterable[list[Any]], keys: Sequence[Key]) -> "Values":
        """What several processes found in leaves of these keys, as `to_json` gave it."""
        found = Values({key: Difference() for key in keys})
        for statistics, scalars, read_bytes, equal_chunk_bytes in every:
            for place, told in statistics:
                found.statistics[keys[place]].add(Difference.from_json(told))
            for place, a, b in scalars:
                found.scalars[keys[place]] = (a, b)
            found.read_bytes += read_bytes
            found.equal_chunk_bytes += equal_chunk_bytes
        return found


def compare_values(
    pairs: Sequence[Pair],
    items: Mapping[str, Item],
    tolerance: Tolerance,
    max_memory: int,
    team: Team = SINGLE_PROCESS,
    watch: Watcher = ignore,
) -> Values:
    """Reads both sides of every pair, block by block, and measures how much they differ.

    The processes of a team share the blocks by their bytes; each has the whole result.

    Raises:
      DamagedCheckpoint: an array cannot be read.
      PlanError: one block does not fit in `max_memory`.
    """
    total = sum(size_bytes(pair.a) + size_bytes(pair.b) for pair in pairs)
    check_memory(min(max_memory, BLOCK_COPIES * total))
    return run(compare_pairs(pairs, items, tolerance, max_memory, team, watch))


async def compare_pairs(
    pairs: Sequence[Pair],
    items: Mapping[str, Item],
    tolerance: Tolerance,
    max_memory: int,
    team: Team = SINGLE_PROCESS,
    watch: Watcher = ignore,
) -> Values:
    """`compare_values` for callers that are in an event loop already."""
    return await _Comparison(pairs, items, tolerance, max_memory, team, watch).run()


@dataclass(frozen=True)
class _Block:
    pair: Pair
    a: tuple[Piece, ...]
    b: tuple[Piece, ...]
    region: Region
    is_last: bool

    @property
    def block_bytes(self) -> int:
        """Bytes of the wider side of the block in memory."""
        computed = [view for view in (self.pair.a, self.pair.b) if is_computed(view)]
        if computed:
            return max(region_cost(view, self.region) for view in computed)
        size = math.prod(part.stop - part.start for part in self.region)
        return size * _item_bytes(self.pair)


class _Comparison:
    def __init__(
        self,
        pairs: Sequence[Pair],
        items: Mapping[str, Item],
        tolerance: Tolerance,
        max_memory: int,
        team: Team,
        watch: Watcher,
    ) -> None:
        self._pairs = pairs
        self._reader = Reader(items)
        self._encoded = EncodedChunks(items)
        self._tolerance = tolerance
        self._window_bytes = max_memory // BLOCK_COPIES
        self._max_memory = max_memory
        self._team = team
        self._watch = team.watching(watch)
        self._found = Values()
        self._owners: list[int] | None = None

    async def run(self) -> Values:
        for pair in self._pairs:
            self._found.statistics |= {key: Difference() for key in pair.keys}
        leaves, total_bytes = self._work()
        done = done_bytes = 0
        for window in in_windows(self._mine(), self._window_bytes):
            unequal = await asyncio.to_thread(self._without_equal, window)
            await together(self._compare(block) for block in unequal)
            done += sum(len(block.pair.keys) for block in window if block.is_last)
            done_bytes += sum(block.block_bytes for block in window)
            self._watch(Event(done, leaves, done_bytes, total_bytes))
            self._team.check()
        return self._of_all()

    def _work(self) -> tuple[int, int]:
        """How many leaves this process finishes, and the bytes of its blocks."""
        whole = [(len(pair.keys), _side_bytes(pair)) for pair in self._pairs]
        if self._team.count > 1 or any(nbytes is None for _, nbytes in whole):
            blocks = list(self._mine())
            leaves = sum(len(block.pair.keys) for block in blocks if block.is_last)
            return leaves, sum(block.block_bytes for block in blocks)
        return sum(leaves for leaves, _ in whole), sum(nbytes or 0 for _, nbytes in whole)

    def _mine(self) -> Iterator[_Block]:
        """The blocks that this process compares."""
        if self._team.count == 1:
            return self._blocks()
        if self._owners is None:
            sizes = [block.block_bytes for block in self._blocks()]
            self._owners = spread(sizes, self._team.count)
        number = self._team.number
        owned = zip(self._blocks(), self._owners, strict=True)
        return (block for block, owner in owned if owner == number)

    def _of_all(self) -> Values:
        """What all processes have found together."""
        if self._team.count == 1:
            return self._found
        keys = list(self._found.statistics)
        told = self._team.combine(
            "values", self._found.to_json(), lambda every: Values.sum(every, keys).to_json()
        )
        return Values.sum([told], keys)

    def _blocks(self) -> Iterator[_Block]:
        for pair in self._pairs:
            a, b = _pieces(pair.a), _pieces(pair.b)
            item = _item_bytes(pair)
            shape = _block_shape(pair.a.shape, item, a, b)
            block_bytes = math.prod(shape) * item
            check_fits(pair.keys[0], pair.a, block_bytes, BLOCK_COPIES, self._max_memory)
            for region in regions(pair.a.shape, shape):
                yield _Block(pair, a, b, region, is_last(region, pair.a.shape))

    async def _compare(self, block: _Block) -> None:
        sides = ((block.pair.a, block.a), (block.pair.b, block.b))
        a, b = await together(self._read(view, parts, block.region) for view, parts in sides)
        self._found.read_bytes += a.nbytes + b.nbytes
        if len(block.pair.keys) == 1:
            self._add(block.pair.keys[0], a, b, block.region)
            return
        for layer in range(a.shape[0]):
            key = block.pair.keys[block.region[0].start + layer]
            self._add(key, a[layer], b[layer], block.region[1:])

    async def _read(self, view: View, parts: Sequence[Piece], region: Region) -> np.ndarray:
        """One side of a block; what is computed has no parts."""
        if not parts:
            return await read_view(self._reader, view, region)
        return as_viewed(await read_region(self._reader, parts, region), view)

    def _add(self, key: Key, a: np.ndarray, b: np.ndarray, region: Region) -> None:
        if a.shape == ():
            self._found.scalars[key] = (str(a[()]), str(b[()]))
        found = measure(a, b, self._tolerance)
        self._found.statistics[key].add(found, tuple(part.start for part in region))

    def _without_equal(self, window: Sequence[_Block]) -> list[_Block]:
        """The blocks that have to be decoded; the others are counted as equal."""
        with ThreadPoolExecutor(CHECKS_AT_ONCE) as pool:
            equal = list(pool.map(self._is_equal_encoded, window))
        for block, is_equal in zip(window, equal, strict=True):
            if is_equal:
                self._add_equal(block)
        return [block for block, is_equal in zip(window, equal, strict=True) if not is_equal]

    def _is_equal_encoded(self, block: _Block) -> bool:
        """True when both sides' stored chunks of the block are byte for byte the same."""
        if not self._tolerance.equal_nan or dtype_of(block.pair.a) != dtype_of(block.pair.b):
            return False
        if arithmetic_of(block.pair.a) != arithmetic_of(block.pair.b):
            return False
        return self._encoded.are_equal(block.a, block.b, block.region)

    def _add_equal(self, block: _Block) -> None:
        inner = block.region if len(block.pair.keys) == 1 else block.region[1:]
        count = math.prod(part.stop - part.start for part in inner)
        layers = block.region[0] if len(block.pair.keys) > 1 else slice(0, 1)
        for key in block.pair.keys[layers]:
            self._found.statistics[key].count += count
        self._found.equal_chunk_bytes += block.block_bytes


def _pieces(view: View) -> tuple[Piece, ...]:
    """The pieces of a view; none where it is computed."""
    return () if is_computed(view) else tuple(pieces(view))


def _item_bytes(pair: Pair) -> int:
    """Bytes of an element of the wider side."""
    return max(item_bytes(dtype_of(view)) for view in (pair.a, pair.b))


def _side_bytes(pair: Pair) -> int | None:
    """Bytes of the wider side; None where one is computed: its blocks cost what they read."""
    if is_computed(pair.a) or is_computed(pair.b):
        return None
    return max(size_bytes(pair.a), size_bytes(pair.b))


def _block_shape(whole: Shape, item: int, a: Sequence[Piece], b: Sequence[Piece]) -> Shape:
    """A block that is whole chunks of both sides where it can be, and several where they are small.

    The side that is one stored array leads, because its chunks may span all layers.
    """
    a, b = a or b, b or a  # what is computed takes after the other side
    lead, other = (a, b) if len(a) == 1 or len(b) > 1 else (b, a)
    first, second = lead[0].image_of_chunks(), other[0].image_of_chunks()
    block = [min(size, _common(x, y)) for x, y, size in zip(first, second, whole, strict=True)]
    if math.prod(block) * item > BLOCK_BYTES:
        block = [min(x, size) for x, size in zip(first, whole, strict=True)]
    for axis in reversed(range(len(block))):
        room = BLOCK_BYTES // max(1, math.prod(block) * item)
        if room > 1 and block[axis] < whole[axis]:
            block[axis] = min(whole[axis], block[axis] * room)
    return tuple(max(1, size) for size in block)


def _common(x: int, y: int) -> int:
    """The smallest run that is whole chunks of both sizes."""
    return math.lcm(max(x, 1), max(y, 1))
