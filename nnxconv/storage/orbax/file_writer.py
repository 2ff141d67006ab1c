"""Encoded values on their way to disk: TensorStore puts them into memory, and we into files.

TensorStore would write each file in one piece, and the kernel would take large fresh pages for it,
which can cost several times what the pages of small pieces do. Small pieces are written at the
speed of a file copy, in threads, while the next blocks are read and encoded.
"""

import asyncio
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorstore as ts
import xxhash
from etils import epath

from nnxconv.storage.files import placed
from nnxconv.storage.resume import Commit, Journal, Stamp
from nnxconv.storage.zarr import OCDBT_CONFIG, directory_spec

PIECE_BYTES = 64 * 2**10
FILE_BYTES = 64 * 2**20
"""About how large OCDBT's data files are. One of them at a time is copied by each thread."""
FILES_AT_ONCE = 2
_VALUES = "d/v"


class FileWriter:
    """The files of one local database or directory, which are first put together in memory.

    A journal is told of each commit when its files are on disk.
    """

    def __init__(
        self,
        directory: epath.Path,
        use_ocdbt: bool,
        context: ts.Context,
        journal: Journal | None = None,
    ) -> None:
        self._journal = journal
        self._context = context
        self._directory = Path(os.fspath(directory))
        self._use_ocdbt = use_ocdbt
        self._memory_spec = {"driver": "memory", "path": f"{uuid.uuid4().hex}/"}
        self._writing: asyncio.Task[None] | None = None
        base = directory_spec(directory)
        layers = [{"base": base}, {"prefix": _VALUES, "base": self._memory_spec}]
        self.spec: dict[str, Any] = self._memory_spec
        if use_ocdbt:
            self.spec = {
                "driver": "ocdbt",
                "base": {"driver": "kvstack", "layers": layers},
                "config": OCDBT_CONFIG,
                "value_data_prefix": _VALUES,
                "target_data_file_size": FILE_BYTES,
            }

    async def start(self, unit: str) -> None:
        """Begins to write the unit that was committed, when what was begun before is written.

        Raises:
          OSError: what was begun before could not be written.
        """
        await self.settled()
        commit = None if self._journal is None else self._journal.committed(unit)
        self._writing = asyncio.create_task(asyncio.to_thread(self._write_all, commit))

    async def settled(self) -> None:
        """Waits until what was begun is on disk.

        Raises:
          OSError: it could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            await writing

    def _write_all(self, commit: Commit | None) -> None:
        memory = ts.KvStore.open(self._memory_spec, context=self._context).result()
        keys = memory.list().result()

        def write(key: bytes) -> tuple[str, Stamp]:
            file = _VALUES + key.decode() if self._use_ocdbt else key.decode()
            value = memory.read(key).result().value
            self._write(file, value)
            memory.write(key, None).result()
            digest = "" if commit is None else xxhash.xxh3_128_hexdigest(value)
            return file, Stamp(len(value), digest)

        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            writes = [pool.submit(write, key) for key in keys]
            written = dict(done.result() for done in writes)
        if self._journal is not None and commit is not None:
            self._journal.enter_commit(commit, written)

    def _write(self, file: str, value: bytes) -> None:
        path = self._directory / file
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = memoryview(value)
        with placed(path), path.open("wb", buffering=PIECE_BYTES) as stream:
            for start in range(0, len(whole), PIECE_BYTES):
                stream.write(whole[start : start + PIECE_BYTES])
            stream.flush()
            os.fsync(stream.fileno())
