"""The arrays of an item while it is being written."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tensorstore as ts
from etils import epath

from nnxconv.errors import BadInput
from nnxconv.planning import are_whole_chunks, chunk_grid
from nnxconv.state import Tree, below
from nnxconv.storage import MANIFEST
from nnxconv.storage.files import read_if_there, remove_files, write_files
from nnxconv.storage.gcs import is_remote
from nnxconv.storage.ocdbt import (
    NO_CONTENTS,
    Columns,
    new_database,
    read_contents,
)
from nnxconv.storage.orbax.data_files import DataFiles
from nnxconv.storage.orbax.file_writer import FileWriter
from nnxconv.storage.orbax.item import Item, array_name, joined_items
from nnxconv.storage.orbax.kept_values import MOST_KEPT_BYTES, KeptValues
from nnxconv.storage.orbax.location import absolute
from nnxconv.storage.orbax.new_arrays import NewArray, metadata_entry, stored_leaf
from nnxconv.storage.resume import Journal
from nnxconv.storage.zarr import (
    OCDBT_CONFIG,
    ChunkCodec,
    all_done,
    chunk_key,
    codec_of,
    directory_spec,
    new_array_spec,
    new_context,
    parse_format,
)
from nnxconv.tree import Key, Region, Shape


class Writer:
    """The arrays of one target item, while it is being written.

    Process 0 of several writes into the item's own database, every other one into a database of
    its own beneath that, as Orbax's processes do: `ocdbt.process_3`. Without OCDBT all write
    files of their own.

    With a journal, each commit is a unit that is entered there by its name, and files are too.
    `documents` are the files that describe the arrays, by name.
    """

    def __init__(
        self,
        directory: epath.Path,
        use_ocdbt: bool,
        process: int = 0,
        journal: Journal | None = None,
        documents: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.directory = directory
        self._documents = documents
        self.journal = journal
        self._database = _database(directory, process) if use_ocdbt else directory
        self._use_ocdbt = use_ocdbt
        self._arrays: dict[Key, NewArray] = {}
        self._process = process
        self._has_values = False
        self.context = new_context()
        self._kept: KeptValues | None = None
        self._data_files: DataFiles | None = None
        self._codecs: dict[Key, tuple[Shape, ChunkCodec | None]] = {}
        self._spill = None
        if not is_remote(directory):
            self._spill = FileWriter(self._database, use_ocdbt, self.context, journal)

    def keep(self, nbytes: int) -> None:
        """Values of so many bytes will be written, by this process alone.

        Where they are few, and go into a database in a bucket, they are kept in memory until all is
        made one database: one of their own takes ten requests, one after the other.
        """
        if not is_remote(self.directory):
            self._data_files = DataFiles(self._database, self._use_ocdbt)
        elif self._use_ocdbt and nbytes <= MOST_KEPT_BYTES:
            self._kept = KeptValues(self.context)

    def puts(self, key: Key, region: Region) -> bool:
        """True for a region that is written as soon as its values are there: of whole chunks."""
        if self._data_files is None:
            return False
        shape, codec = self._encoded(key)
        return codec is not None and are_whole_chunks(region, codec.shape, shape)

    def has(self, key: Key, region: Region) -> bool:
        """Never: with a journal regions are written in windows, which are units."""
        del key, region
        return False

    def _encoded(self, key: Key) -> tuple[Shape, ChunkCodec | None]:
        """The shape of an array, and how its chunks are encoded here."""
        if key not in self._codecs:
            array = self._arrays[key]
            stored = parse_format(array.zarr_format, dict(array.metadata))
            self._codecs[key] = stored.shape, codec_of(stored)
        return self._codecs[key]

    def put(self, key: Key, region: Region, values: np.ndarray) -> None:
        """Writes a region of whole chunks; several threads may do so at once.

        Raises:
          OSError: it, or one before, could not be written.
        """
        array, (_, codec), files = self._arrays[key], self._encoded(key), self._data_files
        assert codec is not None and files is not None
        for index in itertools.product(*chunk_grid(region, codec.shape)):
            starts = [
                nth * size - part.start
                for nth, size, part in zip(index, codec.shape, region, strict=True)
            ]
            inside = tuple(slice(at, at + n) for at, n in zip(starts, codec.shape, strict=True))
            name = chunk_key(array.zarr_format, array.metadata, index)
            files.write(f"{array_name(key)}/{name}", codec.encode(values[inside]))

    def journalled(self, journal: Journal) -> "Writer":
        """A writer that fills this item in the directory of a journal."""
        return Writer(journal.work, self._use_ocdbt, journal=journal)

    @property
    def windows_under_way(self) -> int:
        """Into how many parts a window is cut.

        On a disk one is moved while another is written. What a journal lacks, when a run is killed,
        is both: with two parts that is one window. A bucket has each window before the next.
        """
        return 1 if self.journal is None or self._spill is None else 2

    def is_done(self, unit: str) -> bool:
        """True for a unit that an interrupted run has finished."""
        return self.journal is not None and unit in self.journal

    @property
    def references_spec(self) -> dict[str, Any]:
        """The store of this process, to take references over into."""
        base = directory_spec(self._database) if self.journal is None else self.journal.base_spec
        return (
            {"driver": "ocdbt", "base": base, "config": OCDBT_CONFIG} if self._use_ocdbt else base
        )

    @property
    def values_spec(self) -> dict[str, Any]:
        """The store of this process, to write encoded values to."""
        if self._kept:
            return self._kept.spec
        return self._spill.spec if self._spill else self.references_spec

    @asynccontextmanager
    async def on_disk(self) -> AsyncIterator[None]:
        """At its end all that was committed within is on disk; after an error, nothing moves."""
        try:
            yield
            await self._settled()
            if self._data_files is not None:
                await asyncio.to_thread(self._data_files.settle)
        except BaseException:
            if self._data_files is not None:
                self._data_files.abandon()
            with suppress(OSError):
                await self._settled()
            raise

    @asynccontextmanager
    async def commit(self, unit: str, *, is_large: bool = False) -> AsyncIterator[ts.Transaction]:
        """A transaction that becomes one commit at the end.

        Its values are written to files while the next one is filled, but for a large one: that has
        the memory for itself.
        """
        if is_large:
            await self._settled()
        self._has_values = True
        transaction = ts.Transaction(atomic=False)
        try:
            yield transaction
            if self.journal is not None:
                self.journal.check()
        except BaseException:
            transaction.abort()
            raise
        await transaction.commit_async()
        if self._spill:
            await self._spill.start(unit)
        elif self.journal is not None:
            await asyncio.to_thread(_enter, self.journal, unit)
        if is_large:
            await self._settled()

    async def _settled(self) -> None:
        if self._spill:
            await self._spill.settled()

    def read_back(self, tree: Tree) -> Item:
        """The item as it has been written so far, before Orbax merges and commits it."""
        formats = {
            array_name(key): parse_format(array.zarr_format, dict(array.metadata))
            for key, array in self._arrays.items()
        }
        path = self.directory.as_posix()
        leaves = {
            key: stored_leaf(key, leaf, formats, path, self._arrays) for key, leaf in tree.items()
        }
        is_zarr3 = any(array.zarr_format == 3 for array in formats.values())
        contents = read_contents(self.directory) if self._use_ocdbt else None
        return Item(self.directory, leaves, formats, self._use_ocdbt, is_zarr3, contents=contents)

    async def create(self, arrays: Iterable[NewArray]) -> None:
        """Creates all arrays: process 0 stores their metadata, the others know them.

        A database has them when it is merged.
        """
        self._arrays = {array.key: array for array in arrays}
        if self._use_ocdbt or self._process or self.is_done("metadata"):
            return
        store = await ts.KvStore.open(self.values_spec, context=self.context)
        async with self.commit("metadata"):
            writes = [store.write(*metadata_entry(array)) for array in self._arrays.values()]
            await all_done(writes)
            for write in writes:
                write.result()

    async def open(self, key: Key, transaction: ts.Transaction) -> ts.TensorStore:
        """An array that has been created."""
        array = self._arrays[key]
        name, metadata = array_name(key), dict(array.metadata)
        spec = new_array_spec(self.values_spec, name, array.zarr_format, metadata)
        return await ts.open(spec, transaction=transaction, context=self.context)

    def take_over(self, filled: "Writer") -> None:
        """Gives the item what another writer has filled in the directory of a journal."""
        self._arrays = filled._arrays
        self._has_values = True
        if filled.journal is not None:
            filled.journal.give(self.directory)

    async def merge(self, processes: int, references: Columns) -> None:
        """Writes what describes the arrays, and makes one database of all that there is: their
        metadata, references to values in data files that the item has now, and what all processes
        have written."""
        await asyncio.to_thread(self._merge, processes, references)

    def _merge(self, processes: int, references: Columns) -> None:
        files: dict[epath.Path, str | bytes] = {}
        needless: set[str] = set()
        if self._use_ocdbt:
            files, needless = self._merged(processes, references)
        files |= {self.directory / name: text for name, text in self._documents().items()}
        write_files(files)
        remove_files([self.directory / file for file in needless])

    def _merged(
        self, processes: int, found: Columns
    ) -> tuple[dict[epath.Path, str | bytes], set[str]]:
        """The files of the one database, and those that it makes needless."""
        databases = [_database(self.directory, process) for process in range(processes)]
        is_needed = processes > 1 or (self._has_values and self._kept is None)
        written = [
            read_contents(path) if is_needed and _is_there(path) else NO_CONTENTS
            for path in databases
        ]
        for path, contents in zip(databases, written, strict=True):
            folder = "" if path == self.directory else f"{path.name}/"
            found.take(contents.values, range(len(contents.values)), contents.values.names, folder)
        if self._use_ocdbt and self._data_files is not None:
            self._data_files.take_into(found)
        files: dict[epath.Path, str | bytes] = {}
        if self._kept is not None:
            files = {self.directory / file: it for file, it in self._kept.take_into(found).items()}
        texts = dict(map(metadata_entry, self._arrays.values()))
        sizes, nothing = list(map(len, texts.values())), [0] * len(texts)
        found.extend(list(texts), [""] * len(texts), nothing, sizes, list(texts.values()))
        database = new_database(found.in_order())
        needless = written[0].node_files - written[0].values.used_files()
        files[self.directory / database.node_file] = database.nodes
        files[self.directory / MANIFEST] = database.manifest
        return files, set(needless)


def join(directory: str, use_ocdbt: bool, process: int) -> Writer:
    """A writer for the item that process 0 has begun.

    Raises:
      BadInput: this process does not see it.
    """
    path = absolute(directory)
    if not is_remote(path) and not path.exists():
        raise BadInput(
            f"process {process} does not see `{directory}`, which process 0 has made",
            hint="write to a file system that all processes share, or to gs://",
        )
    return Writer(path, use_ocdbt, process)


def _enter(journal: Journal, unit: str) -> None:
    """Says that a commit, and all that belongs to it, is there."""
    journal.enter_commit(journal.committed(unit), {})


def _is_there(database: epath.Path) -> bool:
    return read_if_there(database / MANIFEST) is not None


def _database(item: epath.Path, process: int) -> epath.Path:
    """The database that a process writes to."""
    return item / f"ocdbt.process_{process}" if process else item


@dataclass(frozen=True)
class Writers:
    """The items of a step that together are one tree, by name, while they are being written."""

    step: epath.Path
    writers: Mapping[str, Writer]

    def read_back(self, tree: Tree) -> Item:
        """The items as they have been written so far, as one."""
        return joined_items(
            self.step,
            {name: w.read_back(below(tree, (name,))) for name, w in self.writers.items()},
        )


class ReadsBack(Protocol):
    """What has been written, and is not committed yet."""

    def read_back(self, tree: Tree) -> Item:
        """The item as it has been written so far, by the target's tree."""
        ...


Work = Callable[[Writer], Awaitable[None]]
Proof = Callable[[ReadsBack], Awaitable[None]]
"""A check of what has been written."""
