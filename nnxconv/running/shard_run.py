"""One process's shard of a plan: blocks are read, rearranged and written, window by window."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import numpy as np

from nnxconv.planning import (
    Gather,
    Job,
    Plan,
    Scatter,
    TargetArray,
    written,
)
from nnxconv.running.cgroup import processors
from nnxconv.running.cluster import total
from nnxconv.running.events import Event, Watcher
from nnxconv.running.memory import kept_blocks
from nnxconv.running.sharing import WorkShard
from nnxconv.running.values import converted, read_region, read_view
from nnxconv.storage import Flight, in_thread, together
from nnxconv.storage.orbax import Reader
from nnxconv.storage.transfer import Carrier, Share
from nnxconv.tree import Key, Region, dtype_of, is_computed, item_bytes, spell


class PutsBlocks(Protocol):
    """What writes blocks as soon as their values are there."""

    def puts(self, key: Key, region: Region) -> bool:
        """True for a region of an array that it writes so."""
        ...

    def has(self, key: Key, region: Region) -> bool:
        """True for a region that an interrupted run has written."""
        ...

    def put(self, key: Key, region: Region, values: np.ndarray) -> None:
        """Writes a region; several threads may do so at once."""
        ...


class CommitsBlocks(Protocol):
    """What writes blocks in windows, each of which is one commit."""

    @property
    def windows_under_way(self) -> int:
        """Into how many parts a window is cut."""
        ...

    def is_done(self, unit: str) -> bool:
        """True for a unit that an interrupted run has finished."""
        ...

    def commit(self, unit: str, *, is_large: bool = False) -> AbstractAsyncContextManager[Any]:
        """A transaction for the blocks of one unit."""
        ...

    async def open(self, key: Key, transaction: Any) -> Any:
        """An array, whose regions have `write(values)`."""
        ...


Made = list[tuple[TargetArray, Region, np.ndarray]]
"""What a block is made of: regions of arrays, and their values as they are stored."""


class Tally:
    """How far all shares are, told by each of them."""

    def __init__(self, shares: Sequence[Share], shards: Mapping[str, WorkShard], watch: Watcher):
        self._watch = watch
        self._events = {
            share.name: Event(0, len(shards[share.name].counted), 0, shards[share.name].total_bytes)
            for share in shares
        }

    def of(self, share: Share) -> Watcher:
        """What one share tells."""

        def watch(event: Event) -> None:
            self._events[share.name] = event
            self._watch(total(list(self._events.values())))

        return watch


class ShardRun:
    """One run of a plan: reads, rearranges and writes, and says how far it is."""

    def __init__(
        self,
        plan: Plan,
        shard: WorkShard,
        reader: Reader,
        watch: Watcher,
        check: Callable[[], None],
    ) -> None:
        self._check = check
        self._plan = plan
        self._shard = shard
        self._reader = reader
        self._watch = watch
        self._left = dict.fromkeys((array.key for array in plan.renamed), 1)
        self._left |= shard.elements
        self._done_bytes = 0

    async def rename(self, carrier: Carrier) -> None:
        """Takes encoded chunks over as they are."""
        if not self._plan.renamed:
            return
        await carrier.carry(self._shard.transfers, self._tell_moved)
        for array in self._plan.renamed:
            self._left[array.key] = 0
        self._done_bytes = self._shard.renamed_bytes
        self._tell()

    def _tell_moved(self, nbytes: int) -> None:
        self._done_bytes += nbytes
        self._tell()

    async def rewrite(self, putting: PutsBlocks, committing: CommitsBlocks | None = None) -> None:
        """Decodes, rearranges and encodes every other block.

        Those that can be are put where they belong one by one, and all others are then written
        window by window.
        """
        with kept_blocks() if self._plan.keeps_blocks else nullcontext():
            arrays = self._plan.rewritten
            if any(putting.puts(array.key, _whole(array)) for array in arrays):
                await self._put_all(putting)
            if committing is not None:
                await self._commit_all(committing, lambda job: not _is_put(job, putting))

    async def _put_all(self, writer: PutsBlocks) -> None:
        """As many blocks at once as there are processors, and one that waits for a disk."""
        most = processors() + 1
        windows = self._plan.windows(self._shard.jobs, is_wanted=lambda job: _is_put(job, writer))
        async with Flight(most, self._plan.flight_bytes) as flight:
            for window in windows:
                for job in window:
                    if all(writer.has(array.key, region) for array, region in written(job)):
                        self._skip([job])
                        continue
                    await flight.begin(job.block_bytes, partial(self._put, job, writer))
                self._tell()
        self._tell()

    async def _put(self, job: Job, writer: PutsBlocks) -> None:
        made = await self._made(job)
        await in_thread(job.block_bytes, _put_values, made, writer)
        for array, _, values in made:
            self._count(array, values.size)

    async def _commit_all(self, writer: CommitsBlocks, is_left: Callable[[Job], bool]) -> None:
        under_way = writer.windows_under_way
        windows = self._plan.windows(self._shard.jobs, under_way, is_left)
        for number, window in enumerate(windows):
            unit = f"blocks {number}"
            if writer.is_done(unit):
                self._skip(window)
            else:
                held = sum(job.block_bytes for job in window)
                is_large = held > self._plan.window_bytes // under_way
                async with writer.commit(unit, is_large=is_large) as transaction:
                    await together(self._write(job, writer, transaction) for job in window)
            self._tell()

    def _skip(self, window: Sequence[Job]) -> None:
        """Counts what an interrupted run has written."""
        for job in window:
            for array, region in written(job):
                self._count(array, math.prod(part.stop - part.start for part in region))

    async def _write(self, job: Job, writer: CommitsBlocks, transaction: Any) -> None:
        for array, region, values in await self._made(job):
            store = await writer.open(array.key, transaction)
            where = spell(array.key)
            own = await in_thread(values.nbytes, converted, values, array.view, where)
            await store[region].write(own)
            self._count(array, values.size)

    async def _made(self, job: Job) -> Made:
        match job:
            case Scatter(source, region, into):
                values = await self._reader.read(source, region)
                there = [
                    (array, where, piece)
                    for array, piece in into
                    if (where := piece.target_region(region)) is not None
                ]
                return [(array, where, piece.turn(values, region)) for array, where, piece in there]
            case Gather(array, region, parts):
                if is_computed(array.view):
                    return [(array, region, await read_view(self._reader, array.view, region))]
                return [(array, region, await read_region(self._reader, parts, region))]

    def _count(self, array: TargetArray, elements: int) -> None:
        self._left[array.key] -= elements
        self._done_bytes += elements * item_bytes(dtype_of(array.view))

    def _tell(self) -> None:
        self._check()
        counted = self._shard.counted
        done = sum(not self._left.get(key, 0) for key in counted)
        self._watch(Event(done, len(counted), self._done_bytes, self._shard.total_bytes))


def _is_put(job: Job, writer: PutsBlocks) -> bool:
    return all(writer.puts(array.key, region) for array, region in written(job))


def _whole(array: TargetArray) -> Region:
    return tuple(slice(0, size) for size in array.view.shape)


def _put_values(made: Made, writer: PutsBlocks) -> None:
    for array, region, values in made:
        writer.put(array.key, region, converted(values, array.view, spell(array.key)))
