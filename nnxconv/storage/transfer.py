"""Move stored bytes as they are: whole data files, references to parts of them, single chunks.

An OCDBT database refers to its data files by paths relative to itself. A target that has a
source's data files at the same relative paths can therefore take over references to parts of
them under new names: the source's nodes are opened over the target's directory, and key ranges
are copied from there. No path grows, however often a checkpoint is converted.
"""

import asyncio
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import tensorstore as ts
from etils import epath

from nnxconv.errors import DamagedCheckpoint
from nnxconv.plan import Transfer
from nnxconv.storage.arrays import (
    all_done,
    context,
    damaged,
    directory_spec,
    new_kvstore_spec,
)
from nnxconv.storage.item import Item
from nnxconv.storage.ocdbt import Contents, Value, read_contents
from nnxconv.storage.remote import copy_file, files_below, is_remote
from nnxconv.tasks import together

FILES_AT_ONCE = 8
WORTH_A_FILE = 0.5
"""A data file is taken over whole when at least this part of it is needed."""


@dataclass
class Moved:
    """What was moved without being decoded."""

    copied_files: int = 0
    linked_files: int = 0
    copied_chunks: int = 0
    nbytes: int = 0
    notes: list[str] = field(default_factory=list)


Tell = Callable[[int], None]
"""Is told how many bytes have been moved since the last time."""


class Carrier:
    """Takes stored values over from one item to a target that is being written."""

    def __init__(self, item: Item, target: epath.Path, transfer: Transfer, moved: Moved) -> None:
        self._item = item
        self._target = target
        self._transfer: Transfer = transfer
        self._moved = moved

    async def carry(self, keys: Mapping[str, str], tell: Tell) -> None:
        """Gives the target every value of the source named in `keys`, under its new key.

        Raises:
          DamagedCheckpoint: a value is missing.
        """
        contents = self._item.contents
        if contents is None:
            await self._carry_files(keys, tell)
        else:
            await self._carry_ocdbt(keys, contents, tell)

    async def _carry_files(self, keys: Mapping[str, str], tell: Tell) -> None:
        """One file per value."""
        missing = next((old for old in keys if old not in self._lengths), None)
        if missing is not None:
            raise _missing(self._item, missing)
        await self._take_files(keys, tell)

    async def _carry_ocdbt(self, keys: Mapping[str, str], contents: Contents, tell: Tell) -> None:
        missing = next((key for key in keys if key not in contents.values), None)
        if missing is not None:
            raise _missing(self._item, missing)
        self._check_lengths([contents.values[key] for key in keys])
        whole = self._files_to_take(contents, keys)
        await self._take_files({file: file for file in sorted(whole)}, tell)
        by_reference: dict[str, str] = {}
        one_by_one: dict[str, str] = {}
        for old, new in keys.items():
            file = contents.values[old].file
            (by_reference if not file or file in whole else one_by_one)[old] = new
        await self._refer(by_reference, contents)
        await self._copy_values(one_by_one, contents.values, tell)

    @cached_property
    def _lengths(self) -> Mapping[str, int]:
        """Bytes of the item's files."""
        return files_below(self._item.path)

    def _check_lengths(self, values: Iterable[Value]) -> None:
        """Refuses data files that end before a value that they should hold."""
        ends: Counter[str] = Counter()
        for value in values:
            if value.file:
                ends[value.file] = max(ends[value.file], value.offset + value.nbytes)
        for file, end in ends.items():
            length = self._lengths.get(file)
            if length is None or length < end:
                told = "is missing" if length is None else f"ends after {length:,} of {end:,} bytes"
                raise DamagedCheckpoint(f"data file `{file}` {told}", where=str(self._item.path))

    def _files_to_take(self, contents: Contents, keys: Iterable[str]) -> set[str]:
        """The data files of which enough is needed; with links, every one that is needed."""
        needed: Counter[str] = Counter()
        for key in keys:
            value = contents.values[key]
            if value.file:
                needed[value.file] += value.nbytes
        if self._transfer == "link":
            return set(needed)
        return {
            file for file, nbytes in needed.items() if nbytes >= WORTH_A_FILE * self._lengths[file]
        }

    async def _refer(self, keys: Mapping[str, str], contents: Contents) -> None:
        """References in the target's database to values in data files that it has now."""
        if not keys:
            return
        nodes = [file for file in contents.node_files if not (self._target / file).exists()]
        for file in nodes:
            (self._target / file).parent.mkdir(parents=True, exist_ok=True)
            (self._item.path / file).copy(self._target / file)
        target = new_kvstore_spec(self._target, use_ocdbt=True)
        manifest = directory_spec(self._item.path)
        source = {"driver": "ocdbt", "base": target["base"], "manifest": manifest}
        transaction = ts.Transaction(atomic=False)
        old_store = await ts.KvStore.open(source, context=context())
        new_store = await ts.KvStore.open(target, context=context())
        into = new_store.with_transaction(transaction)
        one_key = ts.KvStore.KeyRange("", "\0")
        copies = [
            (old_store + old).experimental_copy_range_to(into + new, source_range=one_key)
            for old, new in keys.items()
        ]
        await all_done(copies)
        for copy in copies:
            copy.result()
        await transaction.commit_async()
        still_needed = read_contents(self._target).files()
        for file in nodes:
            if file not in still_needed:
                (self._target / file).unlink()

    async def _copy_values(
        self, keys: Mapping[str, str], values: Mapping[str, Value], tell: Tell
    ) -> None:
        """Encoded values, read and written as they are, 32 MiB to a commit."""
        windows: dict[int, list[str]] = defaultdict(list)
        total = 0
        for old in keys:
            windows[total // 2**25].append(old)
            total += values[old].nbytes
        target = new_kvstore_spec(self._target, use_ocdbt=True)
        store = await ts.KvStore.open(target, context=context())
        for window in windows.values():
            transaction = ts.Transaction(atomic=False)
            into = store.with_transaction(transaction)
            reads = {old: self._item.kvstore.read(old) for old in window}
            await all_done(list(reads.values()))
            for old, read in reads.items():
                try:
                    into.write(keys[old], read.result().value).result()
                except (ValueError, OSError) as error:
                    raise damaged(self._item.path, old, error) from error
            await transaction.commit_async()
            self._moved.copied_chunks += len(window)
            nbytes = sum(values[old].nbytes for old in window)
            self._moved.nbytes += nbytes
            tell(nbytes)

    async def _take_files(self, files: Mapping[str, str], tell: Tell) -> None:
        """Links or copies files of the item into the target, several at once."""

        at_once = asyncio.Semaphore(FILES_AT_ONCE)
        is_stopped = False

        async def take(old: str, new: str) -> None:
            nonlocal is_stopped
            async with at_once:
                if is_stopped:
                    return
                try:
                    was_linked, nbytes = await asyncio.to_thread(self._take_file, old, new)
                    self._moved.nbytes += nbytes
                    self._moved.linked_files += was_linked
                    self._moved.copied_files += not was_linked
                    tell(nbytes)
                except BaseException:
                    is_stopped = True
                    raise

        await together(take(old, new) for old, new in files.items())

    def _take_file(self, old: str, new: str) -> tuple[bool, int]:
        """Whether a file was linked, and its length; a copy is on disk when this returns."""
        source, target = self._item.path / old, self._target / new
        if is_remote(source) or is_remote(target):
            return False, self._take_object(source, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        nbytes = source.stat().length
        if self._transfer == "link":
            try:
                os.link(source, target)
                return True, nbytes
            except OSError as error:
                self._transfer = "copy"
                reason = error.strerror or str(error)
                self._moved.notes.append(f"files were copied, because links failed: {reason}")
        _copy_file(source, target)
        return False, nbytes

    def _take_object(self, source: epath.Path, target: epath.Path) -> int:
        """Copies a file from or to a bucket, and gives its length."""
        nbytes = source.stat().length
        is_served = is_remote(source) and is_remote(target)
        if self._transfer == "link":
            self._transfer = "copy"
            who = "the server copied the files" if is_served else "files were copied"
            self._moved.notes.append(f"{who}: there are no links to files on gs://")
        copy_file(source, target)
        return nbytes


def _missing(item: Item, key: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"`{key}` is missing", where=str(item.path))


def _copy_file(source: epath.Path, target: epath.Path) -> None:
    """Copies a file within the kernel where that is possible, and waits until it is on disk."""
    with open(source, "rb") as old, open(target, "xb") as new:  # noqa: PTH123
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
