"""Run a plan inside a save: a window of blocks at a time, each window one commit.

Several processes each do their share of it. The first one alone names the target, and commits it
when all have written theirs.
"""

import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np

from nnxconv.errors import DamagedCheckpoint
from nnxconv.planning import Gather, Job, Plan, Scatter, TargetArray, Transfer, written
from nnxconv.running.cluster import SINGLE_PROCESS, Team, total
from nnxconv.running.events import Event, Watcher, ignore
from nnxconv.running.memory import kept_blocks
from nnxconv.running.sharing import WorkShard, work_shard_of
from nnxconv.running.values import converted, read_region
from nnxconv.storage import deferred_interrupts, run, together
from nnxconv.storage.files import check_lock
from nnxconv.storage.orbax import (
    Item,
    NewArray,
    NewItem,
    Proof,
    Reader,
    Target,
    Work,
    Writer,
    Writers,
    join,
    refuse_changed,
    save,
)
from nnxconv.storage.resume import Journal
from nnxconv.storage.transfer import Carrier, Moved, Share, moved_by_all
from nnxconv.storage.zarr import Container, target_metadata
from nnxconv.tree import Region, dtype_of, first_source, item_bytes, spell

NO_JOURNALS: Mapping[str, Journal] = {}


def execute(
    shares: Sequence[Share],
    items: Mapping[str, Item],
    target: Target,
    *,
    custom_metadata: dict[str, Any],
    transfer: Transfer = "copy",
    proof: Proof | None = None,
    journals: Mapping[str, Journal] = NO_JOURNALS,
    team: Team = SINGLE_PROCESS,
    watch: Watcher = ignore,
) -> Moved:
    """Writes the shares' arrays to the target and commits it, unless the proof fails.

    Every process of the team does its shard of each share; the first one alone names and commits
    the target. With journals, by the shares' names, what an interrupted run has done is kept, and
    what this one does is entered.

    Returns what was moved without being decoded, by all processes together.

    Raises:
      DamagedCheckpoint: a stored array cannot be read.
      BadInput: a cast would change an integer's value.
    """
    moved = Moved()
    every: list[Any] = []
    reader = Reader(items)
    writers: dict[str, Writer] = {}
    shards = {
        share.name: work_shard_of(share.plan, share.transfers, team.number, team.count)
        for share in shares
    }
    tally = _Tally(shares, shards, team.watching(watch))
    new_arrays = {
        share.name: [_new_array(array, items, share.container) for array in share.plan.arrays]
        for share in shares
    }
    with deferred_interrupts() as check_interrupt:

        def check_kept(*, surely: bool = False) -> None:
            for journal in journals.values():
                journal.check(surely=surely)

        def check() -> None:
            check_interrupt()
            team.check()
            check_lock(target.path)
            check_kept()

        async def work(share: Share, writer: Writer) -> None:
            try:
                await work_alone(share, writer)
            except Exception:
                check_kept(surely=True)  # another run's writes explain whatever else goes wrong
                raise

        async def work_alone(share: Share, writer: Writer) -> None:
            mine = _Run(share.plan, shards[share.name], reader, tally.of(share), check)
            journal = journals.get(share.name)
            filled = writer if journal is None else writer.journalled(journal)
            async with filled.on_disk():
                await filled.create(new_arrays[share.name])
                await mine.rename(Carrier(share.source, filled, transfer, moved))
                await mine.rewrite(filled)
            if journal is not None:
                moved.notes.extend(journal.notes)
                check_kept(surely=True)
                writer.take_over(filled)
            team.gather("written", check=check)
            if team.number == 0:
                carrier = Carrier(share.source, writer, transfer, moved)
                await writer.merge(team.count, carrier.references(share.transfers))
            writers[share.name] = writer
            if len(writers) < len(shares):
                return
            if proof is not None:
                team.gather("merged", check=check)
                try:
                    await proof(writer if not share.name else Writers(target.path, writers))
                except DamagedCheckpoint:
                    for one in journals.values():
                        one.forget()
                    raise
            refuse_changed(items.values())
            check_kept(surely=True)
            check()
            every[:] = team.gather("done", asdict(moved), check)

        if team.number == 0:
            lead = _Lead(team, work, len(shares))
            new_items = [
                NewItem(
                    share.name or target.item_name,
                    new_arrays[share.name],
                    share.plan.literals,
                    share.container,
                    lead.of(share),
                )
                for share in shares
            ]
            save(
                target,
                new_items,
                custom_metadata=custom_metadata,
                is_witnessed=proof is not None,
                check=check_interrupt,
            )
        else:
            run(_follow(team, work, shares, check))
        team.ask_first()  # whether the target was committed; an interrupt comes too late by now
    return moved_by_all([Moved(**one) for one in every])


ShareWork = Callable[[Share, Writer], Coroutine[Any, Any, None]]


class _Lead:
    """The work of the process that names the target."""

    def __init__(self, team: Team, work: ShareWork, count: int) -> None:
        self._team = team
        self._work = work
        self._left = count

    def of(self, share: Share) -> Work:
        """The work of one share, which the others are told of."""

        async def lead(writer: Writer) -> None:
            try:
                self._team.ask_first([share.name, writer.directory.as_posix()])
                await self._work(share, writer)
                self._left -= 1
                if not self._left:
                    self._team.settle()
            except BaseException as error:
                self._team.fail(error)  # the others stop, before what they wrote is removed
                raise

        return lead


async def _follow(
    team: Team, work: ShareWork, shares: Sequence[Share], check: Callable[[], None]
) -> None:
    """The work of every other process, on one share after the other."""
    by_name = {share.name: share for share in shares}
    for _ in shares:
        name, directory = team.ask_first(check=check)
        share = by_name[name]
        await work(share, join(directory, share.container.use_ocdbt, team.number))


class _Tally:
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


def _new_array(array: TargetArray, items: Mapping[str, Item], container: Container) -> NewArray:
    """The metadata of a new array: encoded as its source is, where the container has that."""
    source = first_source(array.view)
    model = items[source.store].formats[source.name]
    if source.store != container.store or (model.zarr_format == 3) != container.use_zarr3:
        model = container.model
    metadata = target_metadata(model, array.view.shape, dtype_of(array.view), array.chunks)
    if source.prng_impl is not None:
        return NewArray(array.key, "jax.Array", model.zarr_format, metadata, source.prng_impl)
    value_type = "scalar" if array.is_scalar else "np.ndarray"
    return NewArray(array.key, value_type, model.zarr_format, metadata)


class _Run:
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

    async def rewrite(self, writer: Writer) -> None:
        """Decodes, rearranges and encodes every other block, window by window."""
        with kept_blocks() if self._plan.keeps_blocks else nullcontext():
            await self._rewrite(writer)

    async def _rewrite(self, writer: Writer) -> None:
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

    async def _move(self, job: Job, writer: Writer, transaction: Any) -> None:
        match job:
            case Scatter(source, region, into):
                values = await self._reader.read(source, region)
                for array, piece in into:
                    where = piece.target_region(region)
                    if where is not None:
                        turned = piece.turn(values, region)
                        await self._write(array, where, turned, writer, transaction)
            case Gather(array, region, parts):
                values = await read_region(self._reader, parts, region)
                await self._write(array, region, values, writer, transaction)

    async def _write(
        self,
        array: TargetArray,
        region: Region,
        values: np.ndarray,
        writer: Writer,
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
