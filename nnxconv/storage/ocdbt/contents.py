"""Where an OCDBT database keeps each value: in its own nodes, or at a place in a data file."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TypeAlias

import tensorstore as ts
from etils import epath

from nnxconv.errors import DamagedCheckpoint
from nnxconv.storage import MANIFEST
from nnxconv.storage.gcs import count_repetition, first_sentence, is_remote
from nnxconv.storage.ocdbt.nodes import (
    MAX_NODE_BYTES,
    Interior,
    Leaf,
    Reference,
    Root,
    decode_manifest,
    decode_node,
)
from nnxconv.storage.ocdbt.values import NO_VALUES, Columns, Values
from nnxconv.storage.zarr import context, directory_spec

MAX_KEYS_BYTES = 2**30
"""Of all keys of a database, each in full."""


@dataclass(frozen=True)
class Contents:
    """All keys of a database with their values' places, and the files that hold its nodes."""

    values: Values
    node_files: frozenset[str]

    def files(self) -> set[str]:
        """Every data file that the database refers to."""
        return self.values.used_files() | self.node_files


NO_CONTENTS = Contents(NO_VALUES, frozenset())
"""Those of a database that is not there yet."""


def read_contents(path: epath.Path, manifest: bytes | None = None) -> Contents:
    """Walks the newest version of the database at `path`, without reading its values.

    Its manifest may have been read already. In a bucket all is read again where its own checksums
    differ: it may have been damaged on the way.

    Raises:
      DamagedCheckpoint: it cannot be read, or refers to files outside of itself.
    """
    for _ in range(_READS_AGAIN if is_remote(path) else 0):
        try:
            return _contents(path, manifest)
        except DamagedCheckpoint as error:
            if not isinstance(error.__cause__, _WrongBytes):
                raise  # what TensorStore could not read it has asked for again itself
            count_repetition()
            manifest = None
    return _contents(path, manifest)


_READS_AGAIN = 2


def _contents(path: epath.Path, encoded: bytes | None) -> Contents:
    """What `read_contents` returns, read once."""
    try:
        store = ts.KvStore.open(directory_spec(path), context=context()).result()
        if encoded is None:
            found = store.read(MANIFEST).result()
            if found.state == "missing":
                message = f"the OCDBT database has no `{MANIFEST}`"
                raise DamagedCheckpoint(message, where=str(path))
            encoded = found.value
        with _told_of(f"`{MANIFEST}`"):
            manifest = decode_manifest(encoded)
        tree = _Tree(store, manifest.config.max_node_bytes, set())
        values = NO_VALUES
        if manifest.root is not None:
            if is_remote(path):
                tree.read_first(manifest.root)
            values = _in_columns(tree.leaves(manifest.root, b""))
        return Contents(values, frozenset(file for file, _ in tree.seen))
    except (ValueError, OSError) as error:
        message = f"the OCDBT database cannot be read: {first_sentence(error)}"
        raise DamagedCheckpoint(message, where=str(path)) from error


_NODES_AT_ONCE, _AHEAD_BYTES, _KNOWN_BYTES = 32, 2**25, 2**22
_Reading: TypeAlias = "ts.Future[ts.KvStore.ReadResult] | None"


@dataclass(frozen=True)
class _Tree:
    """The nodes of a database; `seen` has the files and offsets of those that were read.

    TensorStore's `ts.ocdbt.dump` tells what is in a node, but never frees what it has told.
    """

    store: ts.KvStore
    max_node_bytes: int
    seen: set[tuple[str, int]]
    known: dict[str, bytes] = field(default_factory=dict)

    def read_first(self, top: Root) -> None:
        """Reads the file of the topmost node up to it, if that is little: other nodes stand there.

        Of many small nodes that is one request instead of one for each.
        """
        end = top.node.offset + top.node.nbytes
        if top.height and end <= _KNOWN_BYTES:
            file = _file(top.node.file.path)
            reading = self.store.read(file, byte_range=slice(0, end))
            self.known[file] = _read(reading, file, replace(top.node, offset=0, nbytes=end))

    def leaves(
        self, top: Root, prefix: bytes, reading: _Reading = None
    ) -> Iterator[tuple[bytes, Leaf]]:
        """The leaves below one node, which may be being read, and what their keys begin with."""
        match self._node(top, reading):
            case Leaf() as leaf:
                yield prefix, leaf
            case Interior(children):
                readings = self._ahead([child.node for child in children])
                for child, begun in zip(children, readings, strict=True):
                    below = Root(child.node, top.height - 1)
                    yield from self.leaves(below, prefix + child.prefix, begun)

    def _ahead(self, places: Sequence[Reference]) -> Iterator[_Reading]:
        """The nodes at these places, of which the next few are read meanwhile."""
        under_way: deque[_Reading] = deque()
        begun = ahead_bytes = 0
        for place in places:
            while begun < len(places) and (
                not under_way
                or (
                    len(under_way) < _NODES_AT_ONCE
                    and ahead_bytes + places[begun].nbytes <= _AHEAD_BYTES
                )
            ):
                ahead_bytes += places[begun].nbytes
                under_way.append(self._begin(places[begun]))
                begun += 1
            ahead_bytes -= place.nbytes
            yield under_way.popleft()

    def _begin(self, place: Reference) -> _Reading:
        """Begins to read a node, unless its place is one that will be refused."""
        with suppress(ValueError):
            file = _file(place.file.path)
            if place.nbytes <= MAX_NODE_BYTES and not self._known(file, place):
                return self.store.read(file, byte_range=_part(place))
        return None

    def _node(self, top: Root, reading: _Reading) -> Leaf | Interior:
        """A node, which no tree has twice: one of crafted nodes could grow without end."""
        place = top.node
        file = _file(place.file.path)
        with _told_of(f"`{file}` at {place.offset}"):
            if (file, place.offset) in self.seen:
                raise ValueError("this node stands twice in the tree")
            if place.nbytes > MAX_NODE_BYTES:
                raise ValueError(f"a node of {place.nbytes} bytes is too large")
        self.seen.add((file, place.offset))
        encoded = self._known(file, place)
        if not encoded:
            reading = reading or self.store.read(file, byte_range=_part(place))
            encoded = _read(reading, file, place)
        with _told_of(f"`{file}` at {place.offset}"):
            return decode_node(encoded, place.file, top.height, self.max_node_bytes)

    def _known(self, file: str, place: Reference) -> bytes:
        """A node that was read with the topmost one; nothing where it was not."""
        found = self.known.get(file, b"")[_part(place)]
        return found if len(found) == place.nbytes else b""


class _WrongBytes(ValueError):
    """What was read is not what a database has there."""


def _part(place: Reference) -> slice:
    return slice(place.offset, place.offset + place.nbytes)


def _read(reading: "ts.Future[ts.KvStore.ReadResult]", file: str, place: Reference) -> bytes:
    """The bytes of a node, and no others of its file."""
    try:
        found = reading.result()
    except ValueError as error:
        if str(error).startswith("OUT_OF_RANGE"):
            raise _WrongBytes(f"`{file}` ends before {_part(place).stop}") from error
        raise
    if found.state == "missing":
        raise ValueError(f"`{file}` is missing")
    return found.value


@contextmanager
def _told_of(place: str) -> Iterator[None]:
    """Says what a ValueError is about."""
    try:
        yield
    except ValueError as error:
        raise _WrongBytes(f"{place}: {error}") from error


def _in_columns(leaves: Iterator[tuple[bytes, Leaf]]) -> Values:
    """Values by key, of which each is greater than the one before."""
    columns = Columns()
    last, total_bytes = None, 0
    for prefix, leaf in leaves:
        first = prefix + leaf.keys[0]
        if last is not None and first <= last:
            raise ValueError(f"`{_text(first)}` comes after `{_text(last)}`")
        last = prefix + leaf.keys[-1]
        total_bytes += len(prefix) * len(leaf.keys) + sum(map(len, leaf.keys))
        if total_bytes > MAX_KEYS_BYTES:
            raise ValueError(f"its keys have more than {MAX_KEYS_BYTES} bytes")
        begin = _text(prefix) if prefix.isascii() else None
        keys = [_text(prefix + key) if begin is None else begin + _text(key) for key in leaf.keys]
        files = ["" if file is None else _file(file.path) for file in leaf.files]
        columns.extend(keys, files, leaf.offsets, leaf.nbytes, leaf.inline)
    return columns.values()


@lru_cache(maxsize=1024)
def _file(path: bytes) -> str:
    """A data file's path relative to the database; many values are in each."""
    file = _text(path)
    if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
        raise ValueError(f"it refers to `{file}`, which is outside of the checkpoint")
    if not file or "\0" in file:
        raise ValueError(f"it refers to {file!r}, which is no name of a file")
    return file


def _text(name: bytes) -> str:
    """A key or a path."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{name!r} is not UTF-8") from None
