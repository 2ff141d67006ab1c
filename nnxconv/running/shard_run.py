"""One process's shard of a plan: blocks are read, rearranged and written, window by window."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Protocol

import numpy as np

from nnxconv.planning import Gather, Job, Plan, Scatter, TargetArray, written
from nnxconv.running.cluster import total
from nnxconv.running.events import Event, Watcher
from nnxconv.running.memory import kept_blocks
from nnxconv.running.sharing import WorkShard
from nnxconv.running.values import converted, read_region, read_view
from nnxconv.storage import together
from nnxconv.storage.orbax import Reader
from nnxconv.storage.transfer import Carrier, Share
from nnxconv.tree import Key, Region, dtype_of, is_computed, item_bytes, spell


class BlockWriter(Protocol):
    """Where blocks are written to."""

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

    async def rewrite(self, writer: BlockWriter) -> None:
        """Decodes, rearranges and encodes every other block, window by window."""
        with kept_blocks() if self._plan.keeps_blocks else nullcontext():
            await self._rewrite(writer)

    async def _rewrite(self, writer: BlockWriter) -> None:
        under_way = writer.windows_under_way
        windows = self._plan.windows(self._shard.jobs, under_way)
        for number, window in enumerate(windows):
            unit = f"blocks {number}"
            if writer.is_done(unit):
                self._skip(window)
            else:
                held = sum(job.block_bytes for job in window)
                is_large = held > self._plan.window_bytes // under_way
                async with writer.commit(unit, is_large=is_large) as transaction:
                    await together(self._move(job, writer, transaction) for job in window)
            self._tell()

    def _skip(self, window: Sequence[Job]) -> None:
        """Counts what an interrupted run has written."""
        for job in window:
            for array, region in written(job):
                self._count(array, math.prod(part.stop - part.start for part in region))

    async def _move(self, job: Job, writer: BlockWriter, transaction: Any) -> None:
        match job:
            case Scatter(source, region, into):
                values = await self._reader.read(source, region)
                for array, piece in into:
                    where = piece.target_region(region)
                    if where is not None:
                        turned = piece.turn(values, region)
                        await self._write(array, where, turned, writer, transaction)
            case Gather(array, region, parts):
                if is_computed(array.view):
                    values = await read_view(self._reader, array.view, region)
                else:
                    values = await read_region(self._reader, parts, region)
                await self._write(array, region, values, writer, transaction)

    async def _write(
        self,
        array: TargetArray,
        region: Region,
        values: np.ndarray,
        writer: BlockWriter,
        transaction: Any,
    ) -> None:
        store = await writer.open(array.key, transaction)
        await store[region].write(converted(values, array.view, spell(array.key)))
        self._count(array, values.size)

    def _count(self, array: TargetArray, elements: int) -> None:
        self._left[array.key] -= elements
        self._done_bytes += elements * item_bytes(dtype_of(array.view))

    def _tell(self) -> None:
        self._check()
        counted = self._shard.counted
        done = sum(not self._left.get(key, 0) for key in counted)
        self._watch(Event(done, len(counted), self._done_bytes, self._shard.total_bytes))
