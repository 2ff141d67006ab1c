"""Encoded chunks on their way to a local disk: in data files, or in one each."""

import os
import threading
import uuid
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from etils import epath

from nnxconv.storage.files import placed
from nnxconv.storage.ocdbt import Columns
from nnxconv.storage.orbax.file_writer import FILE_BYTES, PIECE_BYTES
from nnxconv.storage.zarr import OCDBT_CONFIG

_SYNCED_AT_ONCE = 2
_WAITING = 4
"""Full files that are not on disk yet; who fills one more waits."""


@dataclass
class _DataFile:
    name: str
    stream: FileIO
    nbytes: int = 0


class DataFiles:
    """The chunks of one item; several threads may write at once, each to a file of its own."""

    def __init__(self, directory: epath.Path, use_ocdbt: bool) -> None:
        self._directory = Path(os.fspath(directory))
        self._use_ocdbt = use_ocdbt
        self._open: list[_DataFile] = []
        self._pool = ThreadPoolExecutor(_SYNCED_AT_ONCE)
        self._syncs: deque[tuple[_DataFile, Future[None]]] = deque()
        self._changing = threading.Lock()
        self._written: list[tuple[str, str, int, int, bytes]] = []

    def write(self, key: str, parts: Sequence[bytes | memoryview]) -> None:
        """Writes a value.

        Raises:
          OSError: it, or one before, could not be written.
        """
        nbytes = sum(map(len, parts))
        if not self._use_ocdbt:
            self._write_alone(key, parts)
            return
        if nbytes <= OCDBT_CONFIG["max_inline_value_bytes"]:
            self._written.append((key, "", 0, nbytes, b"".join(parts)))
            return
        with self._changing:
            file = self._open.pop() if self._open else self._begun()
        try:
            _write(file.stream, parts)
        except BaseException:
            file.stream.close()
            raise
        self._written.append((key, file.name, file.nbytes, nbytes, b""))
        file.nbytes += nbytes
        with self._changing:
            if file.nbytes < FILE_BYTES:
                self._open.append(file)
                return
            first = self._syncs.popleft() if len(self._syncs) >= _WAITING else None
            self._syncs.append((file, self._pool.submit(_sync, file.stream)))
        if first is not None:
            first[1].result()

    def settle(self) -> None:
        """Waits until all is on disk.

        Raises:
          OSError: some could not be written.
        """
        with self._changing:
            self._syncs.extend((f, self._pool.submit(_sync, f.stream)) for f in self._open)
            self._open.clear()
        for _, sync in self._syncs:
            sync.result()
        self._pool.shutdown()

    def abandon(self) -> None:
        """Closes what is open: it will be removed."""
        self._pool.shutdown(cancel_futures=True)
        for file in (*self._open, *(file for file, _ in self._syncs)):
            file.stream.close()

    def take_into(self, columns: Columns) -> None:
        """Adds where the values of a database are to those of others."""
        if self._written:
            names, files, offsets, sizes, inline = zip(*self._written, strict=True)
            columns.extend(names, files, offsets, sizes, inline)

    def _begun(self) -> _DataFile:
        name = f"d/{uuid.uuid4().hex}"
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return _DataFile(name, path.open("xb", buffering=0))

    def _write_alone(self, key: str, parts: Sequence[bytes | memoryview]) -> None:
        path = self._directory / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb", buffering=0) as stream:
            _write(stream, parts)
            _sync(stream)


def _write(stream: FileIO, parts: Sequence[bytes | memoryview]) -> None:
    """In small pieces, for which the kernel takes small pages."""
    with placed(str(stream.name)):
        for part in parts:
            whole = memoryview(part)
            done = 0
            while done < len(whole):
                done += stream.write(whole[done : done + PIECE_BYTES])


def _sync(stream: FileIO) -> None:
    with stream, placed(str(stream.name)):
        os.fsync(stream.fileno())
