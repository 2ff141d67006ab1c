"""Run a plan whose target is safetensors: shards of known sizes, filled where each array lies."""

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nnxconv.planning import TargetArray
from nnxconv.running.events import Event, Watcher, ignore
from nnxconv.running.shard_run import ShardRun
from nnxconv.running.sharing import work_shard_of
from nnxconv.state import Tree
from nnxconv.storage import ADAPTER_CONFIG, deferred_interrupts, run, to_the_end, together
from nnxconv.storage.files import placed, write_files
from nnxconv.storage.orbax import (
    Item,
    Proof,
    Reader,
    Staging,
    Target,
    nothing_left_on_failure,
    refuse_changed,
    tensors_item,
)
from nnxconv.storage.safetensors import (
    ADAPTER_FILE,
    INDEX,
    OpenFiles,
    Shard,
    Tensor,
    begin,
    copy_bytes,
    index_text,
    shards_of,
    write_region,
)
from nnxconv.storage.transfer import Moved, Share
from nnxconv.storage.zarr import RAW, damaged
from nnxconv.tree import Key, Region, Source, dtype_of

COPIES_AT_ONCE = 4
_WEIGHTS = (".safetensors", ".safetensors.index.json")


def execute_tensors(
    share: Share,
    items: Mapping[str, Item],
    target: Target,
    *,
    shard_bytes: int,
    proof: Proof | None = None,
    watch: Watcher = ignore,
) -> Moved:
    """Writes a share's arrays as safetensors and commits them, unless the proof fails.

    Raises:
      DamagedCheckpoint: a stored array cannot be read.
      BadInput: a cast would change an integer's value.
    """
    file = target.tensors_file
    with (
        deferred_interrupts() as check,
        nothing_left_on_failure(
            target.path, may_replace=target.may_replace, is_marked=False, file=file
        ) as place,
    ):
        folder = Path(os.fspath(place.directory))
        named = [(a.name, dtype_of(a.view), a.view.shape) for a in share.plan.arrays]
        only = ADAPTER_FILE if ADAPTER_CONFIG in target.files else ""
        shards = shards_of(named, shard_bytes, file or only)
        for shard in shards:
            begin(folder, shard)
        moved = Moved()
        with TensorsWriter(place, shards) as writer:
            run(_fill(share, items, writer, moved, check, watch, proof))
        for name, source in target.files.items():
            write_files({place.directory / name: source.read_bytes()})
        if len(shards) > 1:
            write_files({place.directory / INDEX: index_text(shards)})
        if not file and target.may_replace:
            _keep_others(Path(os.fspath(target.path)), folder)
        refuse_changed(items.values())
        check()
        with to_the_end():
            place.commit()
    return moved


def _keep_others(old: Path, new: Path) -> None:
    """Keeps what stands beside the safetensors that are replaced, such as a README.

    A file is not copied but has both names until the old folder goes, where the disk can do that.
    """
    for file in old.iterdir() if old.is_dir() else ():
        if file.name.endswith(_WEIGHTS) or file.is_dir() or (new / file.name).exists():
            continue
        try:
            (new / file.name).hardlink_to(file)
        except OSError:
            shutil.copy2(file, new / file.name, follow_symlinks=False)


async def _fill(
    share: Share,
    items: Mapping[str, Item],
    writer: "TensorsWriter",
    moved: Moved,
    check: Callable[[], None],
    watch: Watcher,
    proof: Proof | None,
) -> None:
    """All bytes of all arrays, on disk; then the proof."""
    arrays = share.plan.arrays
    whole = [array for array in arrays if _is_whole(array, items)]
    await _copy_all(whole, items, writer, check)
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
    return stored.zarr_format == RAW and len(stored.metadata.get("parts", ())) == 1


async def _copy_all(
    arrays: Sequence[TargetArray],
    items: Mapping[str, Item],
    writer: "TensorsWriter",
    check: Callable[[], None],
) -> None:
    """Copies the bytes of whole arrays, several at once."""
    files = OpenFiles()
    limit = asyncio.Semaphore(COPIES_AT_ONCE)

    async def copy(array: TargetArray) -> None:
        source, there = array.view, writer.tensors[array.name]
        assert isinstance(source, Source)
        stored = items[source.store].formats[source.name]
        async with limit:
            check()
            try:
                await asyncio.to_thread(
                    copy_bytes,
                    files.descriptor(stored.metadata["file"]),
                    stored.metadata["parts"][0][0],
                    writer.descriptor(there),
                    there.start,
                    there.nbytes,
                )
            except ValueError as error:
                raise damaged(items[source.store].path, source.name, error) from error

    await together(copy(array) for array in arrays)


class TensorsWriter:
    """The arrays of new safetensors files, whose headers are written."""

    def __init__(self, place: Staging, shards: Sequence[Shard]) -> None:
        folder = Path(os.fspath(place.directory))
        self._place = place.directory
        self._files = {shard.file: (folder / shard.file).open("r+b", 0) for shard in shards}
        self.tensors = {name: one for shard in shards for name, one in shard.tensors.items()}

    def descriptor(self, tensor: Tensor) -> int:
        """The open file of an array."""
        return self._files[tensor.file].fileno()

    def puts(self, key: Key, region: Region) -> bool:
        """Each region of each array is written where it belongs."""
        del key, region
        return True

    def put(self, key: Key, region: Region, values: np.ndarray) -> None:
        """Writes a region of an array."""
        tensor = self.tensors[".".join(map(str, key))]
        file = self._files[tensor.file]
        with placed(str(file.name)):
            write_region(file.fileno(), tensor.start, tensor.shape, region, values)

    def settle(self) -> None:
        """Waits until all is on disk."""
        for file in self._files.values():
            with placed(str(file.name)):
                os.fsync(file.fileno())

    def __enter__(self) -> "TensorsWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    def read_back(self, tree: Tree) -> Item:
        """The item as it has been written so far."""
        del tree
        return tensors_item(self._place, self._place, self.tensors, {})
