"""Move stored bytes as they are: whole data files, references to parts of them, single chunks.

References are taken over under new names: the target has the data files at the same relative paths
as the source. No path grows, however often a checkpoint is converted.
"""

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import tensorstore as ts
from etils import epath

from nnxconv.planning import Transfer, in_windows
from nnxconv.storage import together
from nnxconv.storage.files import copy_file, placed
from nnxconv.storage.gcs import REQUESTS_AT_ONCE, is_remote
from nnxconv.storage.ocdbt import Columns
from nnxconv.storage.orbax import Item, Writer
from nnxconv.storage.transfer.planned import TransferPlan, chunk_places
from nnxconv.storage.zarr import all_done, damaged

FILES_AT_ONCE = 8
"""Files that go through this process; servers copy more at once."""


@dataclass
class Moved:
    """What was moved without being decoded."""

    copied_files: int = 0
    linked_files: int = 0
    copied_chunks: int = 0
    nbytes: int = 0
    notes: list[str] = field(default_factory=list)


def moved_by_all(every: Sequence[Moved]) -> Moved:
    """What several processes have moved together; each remark once."""
    return Moved(
        sum(one.copied_files for one in every),
        sum(one.linked_files for one in every),
        sum(one.copied_chunks for one in every),
        sum(one.nbytes for one in every),
        list(dict.fromkeys(note for one in every for note in one.notes)),
    )


@dataclass(frozen=True)
class _Value:
    old: str
    new: str
    block_bytes: int


Tell = Callable[[int], None]
"""Is told how many bytes have been moved since the last time."""


class Carrier:
    """Takes stored values over from one item to a target that is being written."""

    def __init__(self, item: Item, writer: Writer, transfer: Transfer, moved: Moved) -> None:
        self._item = item
        self._writer = writer
        self._target = writer.directory
        self._transfer: Transfer = transfer
        self._moved = moved
        self._saying = threading.Lock()
        ends = [is_remote(item.path), is_remote(self._target)]
        self._is_remote, self._is_served = any(ends), all(ends)

    async def carry(self, transfers: TransferPlan, tell: Tell) -> None:
        """Gives the target the files and the single values that the plan names."""
        await self._take_files(transfers, tell)
        await self._copy_values(transfers, tell)

    def references(self, transfers: TransferPlan) -> Columns:
        """What the target's database has to refer to in data files that it has now."""
        found = Columns()
        contents = self._item.contents
        if contents is None:
            return found
        stored = contents.values
        single = {old: new for old, new in transfers.references.items() if not old.endswith("/")}
        places: list[np.ndarray] = []
        names: list[str] = []
        for old, new in transfers.references.items():
            if old not in single:
                places.append(chunk_places(self._item, old[:-1], stored))
                names += [new + stored.names[place][len(old) :] for place in places[-1].tolist()]
        places.append(np.array([stored.place(old) for old in single], np.int64))
        found.take(stored, np.concatenate(places), [*names, *single.values()])
        return found

    async def _copy_values(self, transfers: TransferPlan, tell: Tell) -> None:
        """Encoded values, read and written as they are, a window to a commit."""
        if not transfers.values:
            return
        store = await ts.KvStore.open(self._writer.values_spec, context=self._writer.context)
        sized = [
            _Value(old, new, transfers.value_bytes[old]) for old, new in transfers.values.items()
        ]
        window_bytes = transfers.window_bytes // self._writer.windows_under_way
        for number, window in enumerate(in_windows(sized, window_bytes)):
            nbytes = sum(value.block_bytes for value in window)
            unit = f"values {number}"
            if not self._writer.is_done(unit):
                is_large = nbytes > window_bytes
                async with self._writer.commit(unit, is_large=is_large) as transaction:
                    await self._copy_window(window, store.with_transaction(transaction))
            self._moved.copied_chunks += len(window)
            self._moved.nbytes += nbytes
            tell(nbytes)

    async def _copy_window(self, window: Sequence[_Value], into: ts.KvStore) -> None:
        reads = {value: self._item.kvstore.read(value.old) for value in window}
        await all_done(list(reads.values()))
        for value, read in reads.items():
            try:
                into.write(value.new, read.result().value).result()
            except (ValueError, OSError) as error:
                raise damaged(self._item.path, value.old, error) from error

    async def _take_files(self, transfers: TransferPlan, tell: Tell) -> None:
        """Links or copies files of the item into the target, several at once."""
        at_once = REQUESTS_AT_ONCE if self._is_served else FILES_AT_ONCE
        is_stopped = False

        def take(old: str, new: str) -> bool | None:
            return None if is_stopped else self._take_file(old, new)

        async def took(old: str, new: str) -> None:
            nonlocal is_stopped
            try:
                was_linked = await loop.run_in_executor(pool, take, old, new)
                if was_linked is not None:
                    nbytes = transfers.file_sizes[old]
                    self._moved.nbytes += nbytes
                    self._moved.linked_files += was_linked
                    self._moved.copied_files += not was_linked
                    tell(nbytes)
            except BaseException:
                is_stopped = True
                raise

        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(at_once) as pool:
            await together(took(old, new) for old, new in transfers.files.items())

    def _take_file(self, old: str, new: str) -> bool:
        """Whether a file was linked; one that an interrupted run has copied is there."""
        journal, unit = self._writer.journal, f"file {new}"
        if self._writer.is_done(unit):
            return False
        was_linked = self._link_or_copy(old, new)
        if journal is not None and was_linked:
            journal.skip_file(new)
        elif journal is not None:
            journal.enter_file(unit, new)
        return was_linked

    def _link_or_copy(self, old: str, new: str) -> bool:
        """Whether a file was linked; a copy is on disk when this returns."""
        source, target = self._item.path / old, self._target / new
        if self._is_remote:
            if self._transfer == "link":
                who = "the server copied the files" if self._is_served else "files were copied"
                self._copy_from_now_on(f"{who}: there are no links to files on gs://")
            copy_file(source, target)
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._transfer == "link":
            try:
                os.link(source, target)
                return True
            except OSError as error:
                reason = error.strerror or str(error)
                self._copy_from_now_on(f"files were copied, because links failed: {reason}")
        _copy_file(source, target)
        return False

    def _copy_from_now_on(self, why: str) -> None:
        """Says once, however many threads find out, that there are no links."""
        with self._saying:
            if self._transfer == "link":
                self._transfer = "copy"
                self._moved.notes.append(why)


def _copy_file(source: epath.Path, target: epath.Path) -> None:
    """Copies a file within the kernel where that is possible, and waits until it is on disk."""
    with placed(target), open(source, "rb") as old, open(target, "xb") as new:  # noqa: PTH123
        left = os.fstat(old.fileno()).st_size
        try:
            while left > 0:
                count = os.copy_file_range(old.fileno(), new.fileno(), left)
                if count == 0:
                    break
                left -= count
        except OSError:
            old.seek(new.tell())
            shutil.copyfileobj(old, new, 2**22)
        new.flush()
        os.fsync(new.fileno())
