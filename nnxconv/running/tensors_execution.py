"""Run a plan whose target is safetensors: shards of known sizes, filled where each array lies."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from nnxconv.errors import DamagedCheckpoint
from nnxconv.planning import TargetArray
from nnxconv.running.events import Event, Watcher, ignore
from nnxconv.running.shard_run import ShardRun
from nnxconv.running.sharing import work_shard_of
from nnxconv.storage import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    deferred_interrupts,
    run,
    to_the_end,
    together,
)
from nnxconv.storage.files import check_lock, write_files
from nnxconv.storage.gcs import is_remote
from nnxconv.storage.orbax import (
    Item,
    Proof,
    Reader,
    ReadsBack,
    Target,
    TensorsWriter,
    nothing_left_on_failure,
    refuse_changed,
    temporary_files_told,
    tensors_writer,
    write_beside,
)
from nnxconv.storage.resume import Journal
from nnxconv.storage.safetensors import (
    INDEX,
    OpenFiles,
    Shard,
    index_text,
    shards_of,
)
from nnxconv.storage.transfer import Moved, Share
from nnxconv.storage.zarr import RAW, damaged
from nnxconv.tree import Source, dtype_of

COPIES_AT_ONCE = 4


def execute_tensors(
    share: Share,
    items: Mapping[str, Item],
    target: Target,
    *,
    shard_bytes: int,
    proof: Proof | None = None,
    journal: Journal | None = None,
    watch: Watcher = ignore,
) -> Moved:
    """Writes a share's arrays as safetensors and commits them, unless the proof fails.

    With a journal, what an interrupted run has done is kept, and what this one does is entered.

    Raises:
      DamagedCheckpoint: a stored array cannot be read.
      BadInput: a cast would change an integer's value.
      PlanError: a bucket is written, and there is no room for temporary files.
    """
    shards = _shards(share, target, shard_bytes)
    moved = Moved(notes=[] if journal is None else list(journal.notes))
    writers: list[TensorsWriter] = []

    def last(place: Any) -> None:
        """What makes a folder in a bucket complete."""
        if len(shards) > 1:
            write_files({place / INDEX: index_text(shards)})
        for writer in writers:
            writer.finish(place)

    with (
        deferred_interrupts() as check_interrupt,
        nothing_left_on_failure(
            target.path,
            may_replace=target.may_replace,
            is_marked=False,
            file=target.tensors_file,
            last=last,
        ) as place,
    ):
        check = _checks(target, journal, check_interrupt)
        with (
            temporary_files_told() if is_remote(place.directory) else nullcontext(),
            tensors_writer(share.plan, shards, place.directory, journal) as writer,
        ):
            writers.append(writer)
            run(_fill(share, items, writer, moved, check, watch, _proving(proof, journal)))
            if journal is not None:
                journal.give(place.directory)
            write_beside(target, shards, place.directory)
            refuse_changed(items.values())
            check()
            place.confirm()
            with to_the_end():
                place.commit()
    return moved


def _proving(proof: Proof | None, journal: Journal | None) -> Proof | None:
    """The proof, after which nothing is kept for another run where it fails."""
    if proof is None or journal is None:
        return proof

    async def prove(writer: ReadsBack) -> None:
        try:
            await proof(writer)
        except DamagedCheckpoint:
            journal.forget()
            raise

    return prove


def _shards(share: Share, target: Target, shard_bytes: int) -> list[Shard]:
    named = [(a.name, dtype_of(a.view), a.view.shape) for a in share.plan.arrays]
    only = ADAPTER_FILE if ADAPTER_CONFIG in target.files else ""
    return shards_of(named, shard_bytes, target.tensors_file or only)


def _checks(
    target: Target, journal: Journal | None, check_interrupt: Callable[[], None]
) -> Callable[[], None]:
    """Goes on, unless this run was interrupted, or another one is in the way."""

    def check() -> None:
        check_interrupt()
        check_lock(target.path)
        if journal is not None:
            journal.check()

    return check


async def _fill(
    share: Share,
    items: Mapping[str, Item],
    writer: TensorsWriter,
    moved: Moved,
    check: Callable[[], None],
    watch: Watcher,
    proof: Proof | None,
) -> None:
    """All bytes of all arrays, on disk; then the proof."""
    arrays = share.plan.arrays
    whole = [array for array in arrays if _is_whole(array, items)]
    left = [array for array in whole if not writer.has_all(array.name)]
    await _copy_all(left, items, writer, check)
    moved.copied_chunks += len(whole)
    moved.nbytes += sum(writer.tensors[array.name].nbytes for array in whole)
    gone = {array.key for array in whole}
    rest = replace(share.plan, arrays=tuple(array for array in arrays if array.key not in gone))
    total = sum(tensor.nbytes for tensor in writer.tensors.values())

    def tell(event: Event) -> None:
        done, done_bytes = event.arrays + len(whole), event.done_bytes + moved.nbytes
        watch(Event(done, len(arrays), done_bytes, total))

    shard = work_shard_of(rest, share.transfers, 0, 1)
    await ShardRun(rest, shard, Reader(items), tell, check).rewrite(writer)
    await asyncio.to_thread(writer.settle)
    if proof is not None:
        await proof(writer)


def _is_whole(array: TargetArray, items: Mapping[str, Item]) -> bool:
    """True for a stored array whose bytes lie in a file as they are wanted."""
    if not isinstance(array.view, Source):
        return False
    stored = items[array.view.store].formats[array.view.name]
    if stored.zarr_format != RAW or is_remote(stored.metadata.get("file", "")):
        return False
    return len(stored.metadata.get("parts", ())) == 1


async def _copy_all(
    arrays: Sequence[TargetArray],
    items: Mapping[str, Item],
    writer: TensorsWriter,
    check: Callable[[], None],
) -> None:
    """Copies the bytes of whole arrays, several at once."""
    files = OpenFiles()
    limit = asyncio.Semaphore(COPIES_AT_ONCE)

    async def copy(array: TargetArray) -> None:
        source = array.view
        assert isinstance(source, Source)
        stored = items[source.store].formats[source.name]
        async with limit:
            check()
            try:
                await asyncio.to_thread(
                    writer.copy,
                    array.name,
                    files.descriptor(stored.metadata["file"]),
                    stored.metadata["parts"][0][0],
                )
            except ValueError as error:
                raise damaged(items[source.store].path, source.name, error) from error

    await together(copy(array) for array in arrays)
