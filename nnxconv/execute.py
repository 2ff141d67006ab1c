"""Run a plan inside an Orbax save: a window of blocks at a time, each window one commit.

Several processes each do their share of it. The first one alone names the target, and commits it
when all have written theirs.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np

from nnxconv.allocator import kept_blocks
from nnxconv.assemble import converted, read_region
from nnxconv.events import Event, Watcher, ignore
from nnxconv.keys import spell
from nnxconv.pieces import Region
from nnxconv.plan import (
    Gather,
    Job,
    Plan,
    Scatter,
    TargetArray,
    Transfer,
)
from nnxconv.shares import Share, share_of
from nnxconv.storage.formats import Container, target_metadata
from nnxconv.storage.freight import Freight
from nnxconv.storage.item import Item
from nnxconv.storage.read import Reader
from nnxconv.storage.save import Target, save
from nnxconv.storage.transfer import Carrier, Moved, moved_by_all
from nnxconv.storage.unchanged import refuse_changed
from nnxconv.storage.writer import NewArray, Work, Writer, join
from nnxconv.tasks import deferred_interrupts, run, together
from nnxconv.team import ALONE, Team
from nnxconv.views import dtype_of, first_source, item_bytes


def execute(
    plan: Plan,
    items: Mapping[str, Item],
    target: Target,
    *,
    container: Container,
    freight: Freight,
    custom_metadata: dict[str, Any],
    transfer: Transfer = "copy",
    proof: Work | None = None,
    team: Team = ALONE,
    watch: Watcher = ignore,
) -> Moved:
    """Writes the plan's arrays to the target and commits it, unless the proof fails.

    Renamed arrays are those of the first item. Every process of the team does its share; the first
    one alone names and commits the target.

    Returns what was moved without being decoded, by all processes together.

    Raises:
      DamagedCheckpoint: a stored array cannot be read.
      BadInput: a cast would change an integer's value.
    """
    new_arrays = {array.key: _new_array(array, items, container) for array in plan.arrays}
    share = share_of(plan, freight, team.number, team.count)
    source = next(iter(items.values()))
    moved = Moved()
    with deferred_interrupts() as check_interrupt:

        def check() -> None:
            check_interrupt()
            team.check()

        mine = _Run(plan, share, Reader(items), team.watching(watch), check)

        async def work(writer: Writer) -> None:
            carrier = Carrier(source, writer, transfer, moved)
            async with writer.on_disk():
                await writer.create(new_arrays.values())
                await mine.rename(carrier)
                await mine.rewrite(writer)
            team.gather("written", check=check)
            if team.number == 0:
                await carrier.refer(share.freight.references)
                await writer.merge(team.count)
            if proof is not None:
                team.gather("merged", check=check)
                await proof(writer)
            refuse_changed(items.values())
            team.gather("done", check=check)
            check()

        async def lead(writer: Writer) -> None:
            try:
                team.gather("directory", writer.directory.as_posix(), check)
                await work(writer)
            except BaseException as error:
                team.fail(error)  # the others stop, before what they have written is removed
                raise

        async def follow() -> None:
            [directory, *_] = team.gather("directory", check=check)
            await work(join(directory, container.use_ocdbt, team.number))

        if team.number == 0:
            save(
                target,
                new_arrays.values(),
                plan.literals,
                use_ocdbt=container.use_ocdbt,
                use_zarr3=container.use_zarr3,
                custom_metadata=custom_metadata,
                work=lead,
            )
        else:
            run(follow())
        every = team.gather("committed", asdict(moved), check)
    return moved_by_all([Moved(**one) for one in every])


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
        share: Share,
        reader: Reader,
        watch: Watcher,
        check: Callable[[], None],
    ) -> None:
        self._check = check
        self._plan = plan
        self._share = share
        self._reader = reader
        self._watch = watch
        self._left = dict.fromkeys((array.key for array in plan.renamed), 1)
        self._left |= share.elements
        self._done_bytes = 0

    async def rename(self, carrier: Carrier) -> None:
        """Takes encoded chunks over as they are."""
        if not self._plan.renamed:
            return
        await carrier.carry(self._share.freight, self._tell_moved)
        for array in self._plan.renamed:
            self._left[array.key] = 0
        self._done_bytes = self._share.renamed_bytes
        self._tell()

    def _tell_moved(self, nbytes: int) -> None:
        self._done_bytes += nbytes
        self._tell()

    async def rewrite(self, writer: Writer) -> None:
        """Decodes, rearranges and encodes every other block, window by window."""
        with kept_blocks() if self._plan.keeps_blocks else nullcontext():
            await self._rewrite(writer)

    async def _rewrite(self, writer: Writer) -> None:
        for window in self._plan.windows(self._share.jobs):
            held = sum(job.block_bytes for job in window)
            is_large = held > self._plan.window_bytes
            async with writer.commit(is_large=is_large) as transaction:
                await together(self._move(job, writer, transaction) for job in window)
            self._tell()

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
        self._left[array.key] -= values.size
        self._done_bytes += values.size * item_bytes(dtype_of(array.view))

    def _tell(self) -> None:
        self._check()
        counted = self._share.counted
        done = sum(not self._left.get(key, 0) for key in counted)
        self._watch(Event(done, len(counted), self._done_bytes, self._share.total_bytes))
