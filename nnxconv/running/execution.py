"""Run a plan inside a save: a window of blocks at a time, each window one commit.

Several processes each do their share of it. The first one alone names the target, and commits it
when all have written theirs.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nnxconv.errors import DamagedCheckpoint
from nnxconv.planning import TargetArray, Transfer
from nnxconv.running.cluster import SINGLE_PROCESS, Team
from nnxconv.running.events import Watcher, ignore
from nnxconv.running.shard_run import ShardRun, Tally
from nnxconv.running.sharing import work_shard_of
from nnxconv.storage import deferred_interrupts, interrupt, last_resort, run, together
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
from nnxconv.storage.transfer import Carrier, Moved, Share, moved_by_all, written_bytes
from nnxconv.storage.zarr import Container, compressed, target_metadata
from nnxconv.tree import dtype_of, first_source

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
    with deferred_interrupts() as check_interrupt:
        execution = _Execution(
            shares, items, target, transfer, proof, journals, team, watch, check_interrupt
        )
        if team.number == 0:
            save(
                target,
                execution.new_items(),
                custom_metadata=custom_metadata,
                is_witnessed=proof is not None,
                check=check_interrupt,
            )
        else:
            run(execution.follow())
        team.ask_first()  # whether the target was committed; an interrupt comes too late by now
    return moved_by_all([Moved(**one) for one in execution.moved_by_each])


class _Execution:
    """What one process does for all shares; `moved_by_each` is told when all have done theirs."""

    def __init__(
        self,
        shares: Sequence[Share],
        items: Mapping[str, Item],
        target: Target,
        transfer: Transfer,
        proof: Proof | None,
        journals: Mapping[str, Journal],
        team: Team,
        watch: Watcher,
        check_interrupt: Callable[[], None],
    ) -> None:
        self._shares = {share.name: share for share in shares}
        self._items = items
        self._target = target
        self._transfer: Transfer = transfer
        self._proof = proof
        self._journals = journals
        self._team = team
        self._check_interrupt = check_interrupt
        self._reader = Reader(items)
        self._moved = Moved()
        self._writers: dict[str, Writer] = {}
        self._shards = {
            share.name: work_shard_of(share.plan, share.transfers, team.number, team.count)
            for share in shares
        }
        self._tally = Tally(shares, self._shards, team.watching(watch))
        self._new_arrays = {
            share.name: [_new_array(array, items, share.container) for array in share.plan.arrays]
            for share in shares
        }
        self.moved_by_each: list[Any] = []

    def new_items(self) -> list[NewItem]:
        """The items that are written, each with the work that fills it."""
        lead = _Lead(self._team, self._work, len(self._shares))
        return [
            NewItem(
                share.name or self._target.item_name,
                self._new_arrays[share.name],
                share.plan.literals,
                share.container,
                lead.of(share),
            )
            for share in self._shares.values()
        ]

    async def follow(self) -> None:
        """The work of every process but the first, on one share after the other."""
        for _ in self._shares:
            name, directory = self._team.ask_first(check=self._check)
            share = self._shares[name]
            use_ocdbt = share.container.use_ocdbt
            await self._work(share, join(directory, use_ocdbt, self._team.number))

    def _check(self) -> None:
        """Goes on, unless this run was interrupted, or another process or run is in the way."""
        self._check_interrupt()
        self._team.check()
        check_lock(self._target.path)
        self._check_kept()

    def _check_kept(self, *, surely: bool = False) -> None:
        for journal in self._journals.values():
            journal.check(surely=surely)

    async def _work(self, share: Share, writer: Writer) -> None:
        try:
            await self._fill(share, writer)
            is_last = len(self._writers) + 1 == len(self._shares)
            is_read = is_last and self._proof is None  # a proof reads the source again
            checks = [asyncio.to_thread(self._refuse_changed)] if is_read else []
            await together([self._merge(share, writer), *checks])
            self._writers[share.name] = writer
            if is_last:
                await self._finish()
        except Exception:
            self._check_kept(surely=True)  # another run's writes explain whatever else goes wrong
            raise

    async def _fill(self, share: Share, writer: Writer) -> None:
        """Writes this process's shard of a share, in the journal's directory where there is one."""
        shard, watch = self._shards[share.name], self._tally.of(share)
        mine = ShardRun(share.plan, shard, self._reader, watch, self._check)
        journal = self._journals.get(share.name)
        filled = writer if journal is None else writer.journalled(journal)
        if journal is None and self._team.count == 1:
            filled.keep(written_bytes(share))
        async with filled.on_disk():
            carrier = Carrier(share.source, filled, self._transfer, self._moved)
            await together([filled.create(self._new_arrays[share.name]), mine.rename(carrier)])
            await mine.rewrite(filled, filled)
        if journal is not None:
            self._moved.notes.extend(journal.notes)
            self._check_kept(surely=True)
            writer.take_over(filled)

    async def _merge(self, share: Share, writer: Writer) -> None:
        """Makes one database of what all processes have written, once they have."""
        self._team.gather("written", check=self._check)
        if self._team.number == 0:
            carrier = Carrier(share.source, writer, self._transfer, self._moved)
            await writer.merge(self._team.count, carrier.references(share.transfers))

    async def _finish(self) -> None:
        """Proves what was written, and makes sure that nothing has changed meanwhile."""
        if self._proof is not None:
            self._team.gather("merged", check=self._check)
            await self._prove(self._proof)
            self._refuse_changed()
        self._check_kept(surely=True)
        self._check()
        self.moved_by_each = self._team.gather("done", asdict(self._moved), self._check)

    def _refuse_changed(self) -> None:
        refuse_changed(self._items.values())

    async def _prove(self, proof: Proof) -> None:
        name, writer = next(iter(self._writers.items()))
        try:
            await proof(Writers(self._target.path, self._writers) if name else writer)
        except DamagedCheckpoint:
            for journal in self._journals.values():
                journal.forget()
            raise


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
                with last_resort(lambda: self._team.fail(interrupt())):
                    self._team.ask_first([share.name, writer.directory.as_posix()])
                    await self._work(share, writer)
                    self._left -= 1
                    if not self._left:
                        self._team.settle()
            except BaseException as error:
                self._team.fail(error)  # the others stop, before what they wrote is removed
                raise

        return lead


def _new_array(array: TargetArray, items: Mapping[str, Item], container: Container) -> NewArray:
    """The metadata of a new array: encoded as its source is, where the container has that."""
    source = first_source(array.view)
    model = items[source.store].formats[source.name]
    if source.store != container.store or (model.zarr_format == 3) != container.use_zarr3:
        model = container.model
    metadata = target_metadata(model, array.view.shape, dtype_of(array.view), array.chunks)
    if container.compression is not None and array.how == "rewrite":
        metadata = compressed(metadata, container.compression)
    if source.prng_impl is not None:
        return NewArray(array.key, "jax.Array", model.zarr_format, metadata, source.prng_impl)
    value_type = "scalar" if array.is_scalar else "np.ndarray"
    return NewArray(array.key, value_type, model.zarr_format, metadata)
