"""Run a plan inside an Orbax save: a window of blocks at a time, each window one commit."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nnxconv.assemble import converted, read_region
from nnxconv.events import Event, Watcher, ignore
from nnxconv.keys import Key, spell
from nnxconv.pieces import Region
from nnxconv.plan import (
    Gather,
    Job,
    Plan,
    Scatter,
    TargetArray,
    Transfer,
)
from nnxconv.storage.formats import Container, target_metadata
from nnxconv.storage.freight import Freight
from nnxconv.storage.item import Item
from nnxconv.storage.read import Reader
from nnxconv.storage.save import NewItem, Target, save
from nnxconv.storage.shares import Share
from nnxconv.storage.transfer import Carrier, Moved
from nnxconv.storage.writer import NewArray, Proof, Writer, Writers
from nnxconv.tasks import deferred_interrupts, together
from nnxconv.views import dtype_of, first_source, item_bytes, size_bytes


def execute(
    shares: Sequence[Share],
    items: Mapping[str, Item],
    target: Target,
    *,
    custom_metadata: dict[str, Any],
    transfer: Transfer = "copy",
    proof: Proof | None = None,
    watch: Watcher = ignore,
) -> Moved:
    """Writes the shares' arrays to the target and commits it, unless the proof fails.

    Returns what was moved without being decoded.

    Raises:
      DamagedCheckpoint: a stored array cannot be read.
      BadInput: a cast would change an integer's value.
    """
    moved = Moved()
    reader = Reader(items)
    written: dict[str, Writer] = {}
    tally = _Tally(shares, watch)
    turn = asyncio.Lock()  # Orbax saves items at once; the plan's memory is that of one of them
    with deferred_interrupts() as check_interrupt:

        def new_item(share: Share) -> NewItem:
            new_arrays = {a.key: _new_array(a, items, share.container) for a in share.plan.arrays}
            run = _Run(share.plan, reader, new_arrays, tally.of(share), check_interrupt)

            async def work(writer: Writer) -> None:
                async with turn:
                    await run.rename(writer, share.source, share.freight, transfer, moved)
                    await run.rewrite(writer)
                written[share.name] = writer
                if proof is not None and len(written) == len(shares):
                    await proof(writer if not share.name else Writers(target.path, written))
                check_interrupt()

            return NewItem(
                share.name or target.item_name,
                new_arrays.values(),
                share.plan.literals,
                use_ocdbt=share.container.use_ocdbt,
                use_zarr3=share.container.use_zarr3,
                work=work,
            )

        save(target, [new_item(share) for share in shares], custom_metadata=custom_metadata)
    return moved


class _Tally:
    """How far all shares are, told by each of them."""

    def __init__(self, shares: Sequence[Share], watch: Watcher) -> None:
        self._watch = watch
        self._total_arrays = sum(len(share.plan.arrays) for share in shares)
        self._total_bytes = sum(share.plan.total_bytes for share in shares)
        self._done: dict[str, Event] = {}

    def of(self, share: Share) -> Watcher:
        """What one share tells."""

        def watch(event: Event) -> None:
            self._done[share.name] = event
            arrays = sum(done.arrays for done in self._done.values())
            nbytes = sum(done.done_bytes for done in self._done.values())
            self._watch(Event(arrays, self._total_arrays, nbytes, self._total_bytes))

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
        reader: Reader,
        new_arrays: Mapping[Key, NewArray],
        watch: Watcher,
        check_interrupt: Callable[[], None],
    ) -> None:
        self._check_interrupt = check_interrupt
        self._plan = plan
        self._reader = reader
        self._new_arrays = new_arrays
        self._watch = watch
        self._left = {array.key: math.prod(array.view.shape) for array in plan.arrays}
        self._done_bytes = 0

    async def rename(
        self, writer: Writer, item: Item, freight: Freight, transfer: Transfer, moved: Moved
    ) -> None:
        """Takes encoded chunks over as they are."""
        if not self._plan.renamed:
            return
        await writer.describe(self._new_arrays[array.key] for array in self._plan.renamed)
        carrier = Carrier(item, writer.directory, transfer, moved)
        await carrier.carry(freight, self._tell_moved)
        for array in self._plan.renamed:
            self._left[array.key] = 0
        self._done_bytes = sum(size_bytes(array.view) for array in self._plan.renamed)
        self._tell()

    def _tell_moved(self, nbytes: int) -> None:
        self._done_bytes += nbytes
        self._tell()

    async def rewrite(self, writer: Writer) -> None:
        """Decodes, rearranges and encodes every other block, window by window."""
        await self._create_empty(writer)
        for window in self._plan.windows():
            async with writer.commit() as transaction:
                await together(self._move(job, writer, transaction) for job in window)
            self._tell()

    async def _create_empty(self, writer: Writer) -> None:
        """Arrays without elements have no blocks, but are there all the same."""
        empty = [a.key for a in self._plan.rewritten if not math.prod(a.view.shape)]
        if empty:
            async with writer.commit() as transaction:
                for key in empty:
                    await writer.open(self._new_arrays[key], transaction)

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
        store = await writer.open(self._new_arrays[array.key], transaction)
        await store[region].write(converted(values, array.view, spell(array.key)))
        self._left[array.key] -= values.size
        self._done_bytes += values.size * item_bytes(dtype_of(array.view))

    def _tell(self) -> None:
        self._check_interrupt()
        done = sum(not left for left in self._left.values())
        self._watch(Event(done, len(self._left), self._done_bytes, self._plan.total_bytes))
