"""What OCDBT's manifest and B+tree nodes say: bytes in, places of values and nodes out.

The layout is that of TensorStore's documentation, "OCDBT storage format"
(https://google.github.io/tensorstore/kvstore/ocdbt/index.html#storage-format): the entries stand
column by column, each key and path without what it shares with the one before.

A database may come from anywhere. All that is not of this layout raises ValueError, and no count
is believed that the bytes at hand cannot hold.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress, pairwise
from operator import add

from nnxconv.storage.ocdbt.encoding import MAX_NUMBER, Body, unwrap

MAX_NODE_BYTES = 2**28
"""Of a node, and of the keys in it, each in full; Orbax limits its nodes to 100 MB."""
MAX_MANIFEST_BYTES = 2**24
"""The newest versions take 100 bytes each; there are 16 of them, and never more than 65,536."""
_LARGEST_ENTRIES_BYTES = 2**22
"""A node is divided between entries: where they are large, it has more than it should."""
MANIFEST_MAGIC = bytes.fromhex("0cdb3a2a")
NODE_MAGIC = bytes.fromhex("0cdb20de")
_MAX_NAME_BYTES = 2**16 - 1
_MAX_ENTRIES = 2**20
_MAX_ARITY_LOG2 = 16
_MAX_END = 2**63 - 1


@dataclass(frozen=True)
class DataFile:
    """A file by its path in the database; the nodes in it name files relative to `base`."""

    base: bytes
    path: bytes


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a value or a node is."""

    file: DataFile
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Config:
    """How a database is written; the level of compression is None where there is none."""

    uuid: bytes
    max_inline_value_bytes: int
    max_decoded_node_bytes: int
    version_tree_arity_log2: int
    compression_level: int | None

    @property
    def max_node_bytes(self) -> int:
        """To how many bytes a node may decompress."""
        return min(self.max_decoded_node_bytes + _LARGEST_ENTRIES_BYTES, MAX_NODE_BYTES)


@dataclass(frozen=True)
class Root:
    """The uppermost node of a version; the height of a leaf is 0."""

    node: Reference
    height: int


@dataclass(frozen=True)
class Manifest:
    """How the database is written, and the root of its newest version: None where it is empty."""

    config: Config
    root: Root | None


@dataclass(frozen=True)
class Leaf:
    """Keys in order, and in columns where their values are: in a file, or here themselves.

    The keys lack what the nodes above say that they begin with.

    Attributes:
      keys: in order.
      nbytes: of each value.
      files: where each value is; None where it stands here.
      offsets: in those files; 0 for a value that stands here.
      inline: the values that stand here; others are empty.
    """

    keys: list[bytes]
    nbytes: list[int]
    files: list[DataFile | None]
    offsets: list[int]
    inline: list[bytes]


@dataclass(frozen=True)
class Child:
    """A node whose keys are not less than `key`, and all begin with `prefix`, which they lack."""

    key: bytes
    prefix: bytes
    node: Reference


@dataclass(frozen=True)
class Interior:
    """A node that has other nodes, in the order of their keys."""

    children: tuple[Child, ...]


def decode_manifest(encoded: bytes) -> Manifest:
    """What a file `manifest.ocdbt` says of the newest version.

    Raises:
      ValueError: it is damaged, or its versions are in other files, numbered manifests.
    """
    body = unwrap(encoded, MANIFEST_MAGIC, MAX_MANIFEST_BYTES)
    config = _config(body)
    files = _data_files(body, b"")
    root = _newest_root(body, files, 2**config.version_tree_arity_log2)
    _skip_older_versions(body)
    body.end()
    return Manifest(config, root)


def decode_node(encoded: bytes, file: DataFile, height: int, max_bytes: int) -> Leaf | Interior:
    """What a node says that stands in `file`.

    Raises:
      ValueError: it is damaged, of another height, or decompresses to more than `max_bytes`.
    """
    body = unwrap(encoded, NODE_MAGIC, max_bytes)
    if (stored := body.byte()) != height:
        raise ValueError(f"its height is {stored}, not {height}")
    files = _data_files(body, file.base)
    count = body.count(_MAX_ENTRIES)
    if count == 0:
        raise ValueError("it has no entries")
    node = _interior(body, files, count) if height else _leaf(body, files, count)
    body.end()
    return node


def _config(body: Body) -> Config:
    uuid, kind = body.take(16), body.byte()
    if kind == 1:
        raise ValueError("its manifests are numbered, which is not supported")
    if kind > 1:
        raise ValueError(f"its kind is {kind}, which is not supported")
    max_inline, max_decoded, arity = body.varint(), body.varint(), body.byte()
    if not 1 <= arity <= _MAX_ARITY_LOG2:
        raise ValueError(f"its arity is 2**{arity}, not 2**1 to 2**{_MAX_ARITY_LOG2}")
    level = None
    if (compression := body.varint()) > 1:
        raise ValueError(f"its compression is {compression}, which is not supported")
    if compression:
        level = int.from_bytes(body.take(4), "little", signed=True)
    return Config(uuid, max_inline, max_decoded, arity, level)


def _newest_root(body: Body, files: Sequence[DataFile], limit: int) -> Root | None:
    count = body.count(limit)
    generations, heights = body.varints(count), body.take(count)
    indices, offsets, lengths = (body.varints(count) for _ in range(3))
    _skip_statistics(body, count)
    body.take(8 * count)  # times
    if count == 0 or any(b <= a for a, b in pairwise([0, *generations])):
        raise ValueError("its versions are not numbered in order")
    if offsets[-1] == lengths[-1] == MAX_NUMBER:
        return None
    [newest] = _references(files, indices[-1:], offsets[-1:], lengths[-1:])
    return Root(newest, heights[-1])


def _skip_older_versions(body: Body) -> None:
    count = body.count(64)
    for _ in range(5):  # generations, three columns of places, numbers of generations
        body.varints(count)
    body.take(8 * count + count)  # times and heights


def _leaf(body: Body, data_files: Sequence[DataFile], count: int) -> Leaf:
    shared, added = _name_lengths(body, count)
    keys = _names(body, shared, added)
    _refuse_disorder(keys)
    lengths, kinds = body.varints(count), body.take(count)
    if max(kinds) > 1:
        raise ValueError(f"a value is of kind {max(kinds)}, which is not supported")
    elsewhere = list(compress(lengths, kinds))
    indices, starts = body.varints(len(elsewhere)), body.varints(len(elsewhere))
    _refuse_places(data_files, indices, starts, elsewhere)
    files: list[DataFile | None] = [None] * count
    offsets, inline = [0] * count, [b""] * count
    places = compress(range(count), kinds)
    for place, index, start in zip(places, indices, starts, strict=True):
        files[place], offsets[place] = data_files[index], start
    for place, (length, kind) in enumerate(zip(lengths, kinds, strict=True)):
        if not kind:
            inline[place] = body.take(length)
    return Leaf(keys, lengths, files, offsets, inline)


def _interior(body: Body, files: Sequence[DataFile], count: int) -> Interior:
    shared, added = _name_lengths(body, count)
    prefixes = body.varints(count)
    keys = _names(body, shared, added)
    _refuse_disorder(keys)
    places = _references(files, *(body.varints(count) for _ in range(3)))
    _skip_statistics(body, count)
    if any(prefix > len(key) for key, prefix in zip(keys, prefixes, strict=True)):
        raise ValueError("a key is shorter than what all below it begin with")
    return Interior(
        tuple(
            Child(key, key[:prefix], place)
            for key, prefix, place in zip(keys, prefixes, places, strict=True)
        )
    )


def _refuse_disorder(keys: Sequence[bytes]) -> None:
    if any(b <= a for a, b in pairwise(keys)):
        raise ValueError("its keys are not in order")


def _skip_statistics(body: Body, count: int) -> None:
    """How many keys there are below each node, and how many bytes nodes and values have."""
    for _ in range(3):
        body.varints(count)


def _data_files(body: Body, base: bytes) -> list[DataFile]:
    """The files that entries name by their index; an empty version's has no path."""
    count = body.count(MAX_NODE_BYTES)
    if count == 0:
        return []
    shared, added = _name_lengths(body, count)
    base_lengths = body.varints(count)
    paths = _names(body, shared, added)
    if any(length > len(path) for path, length in zip(paths, base_lengths, strict=True)):
        raise ValueError("a path is shorter than its base")
    if len(base) + max(map(len, paths)) > _MAX_NAME_BYTES:
        raise ValueError(_too_long())
    return [
        DataFile(base + path[:length], base + path)
        for path, length in zip(paths, base_lengths, strict=True)
    ]


def _name_lengths(body: Body, count: int) -> tuple[list[int], list[int]]:
    """How many bytes each key or path shares with the one before, and how many it adds."""
    return [0, *body.varints(count - 1)], body.varints(count)


def _names(body: Body, shared: Sequence[int], added: Sequence[int]) -> list[bytes]:
    """Keys or paths, once it is known that all of them have room."""
    lengths = [prefix + suffix for prefix, suffix in zip(shared, added, strict=True)]
    if any(prefix > length for prefix, length in zip(shared, [0, *lengths], strict=False)):
        raise ValueError("a key or a path shares more than there is")
    if max(lengths) > _MAX_NAME_BYTES:
        raise ValueError(_too_long())
    if sum(lengths) > MAX_NODE_BYTES:
        raise ValueError(f"its keys or paths have more than {MAX_NODE_BYTES} bytes")
    suffixes = body.take(sum(added))
    names, name = [], b""
    for prefix, suffix, end in zip(shared, added, accumulate(added), strict=True):
        name = name[:prefix] + suffixes[end - suffix : end]
        names.append(name)
    return names


def _too_long() -> str:
    return f"a key or a path is longer than {_MAX_NAME_BYTES} bytes"


def _references(
    files: Sequence[DataFile],
    indices: Sequence[int],
    offsets: Sequence[int],
    lengths: Sequence[int],
) -> Iterator[Reference]:
    _refuse_places(files, indices, offsets, lengths)
    return map(Reference, [files[index] for index in indices], offsets, lengths)


def _refuse_places(
    files: Sequence[DataFile],
    indices: Sequence[int],
    offsets: Sequence[int],
    lengths: Sequence[int],
) -> None:
    if max(indices, default=-1) >= len(files):
        raise ValueError(f"it names file {max(indices)} of {len(files)}")
    if max(map(add, offsets, lengths), default=0) > _MAX_END:
        raise ValueError("it refers to bytes beyond the end of any file")
