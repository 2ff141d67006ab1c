"""A database that is written at once: all its values, as references to data files or in its nodes.

TensorStore takes references over one by one, in time that grows with their square; here they are
sorted once and written as nodes of a B+tree, with one version of it in the manifest. The layout is
that which `nodes` reads.
"""

import struct
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np
import zstandard

from nnxconv.storage.ocdbt.nodes import MANIFEST_MAGIC, NODE_MAGIC
from nnxconv.storage.ocdbt.values import Values
from nnxconv.storage.zarr import OCDBT_CONFIG

NODE_BYTES = 2**18
"""About how large a node is, decoded; who looks up one key decodes one of each height."""

_ARITY_LOG2 = 4
_ZSTD_LEVEL = 0


@dataclass(frozen=True)
class Database:
    """The two files that make a database out of data files.

    Attributes:
      manifest: what `manifest.ocdbt` says.
      node_file: path of the file that holds the nodes.
      nodes: its bytes.
    """

    manifest: bytes
    node_file: str
    nodes: bytes


@dataclass(frozen=True)
class _Subtree:
    """A node that has been written, and what is below it.

    Attributes:
      first, last: the keys at its ends, in full.
      prefix: what all its keys begin with, and which they lack in the node.
      offset, nbytes: where the node is.
      keys, tree_bytes, value_bytes: how many keys there are below, and bytes of nodes and values.
    """

    first: bytes
    last: bytes
    prefix: bytes
    offset: int
    nbytes: int
    keys: int
    tree_bytes: int
    value_bytes: int


def new_database(values: Values) -> Database:
    """The database of these values, of which there is one at least."""
    file = f"d/{uuid.uuid4().hex}"
    written = bytearray()
    level = list(_leaves(values, written))
    height = 0
    while len(level) > 1:
        height += 1
        level = list(_interiors(level, height, file.encode(), written))
    [root] = level
    return Database(_manifest(root, height, file.encode()), file, bytes(written))


def _leaves(values: Values, written: bytearray) -> Iterator[_Subtree]:
    ends = _ends(values)
    for start, stop in zip([0, *ends], ends, strict=False):
        names = [name.encode() for name in values.names[start:stop]]
        prefix = _common(names[0], names[-1]) if len(ends) > 1 else b""
        body, value_bytes = _leaf(values, start, stop, names, len(prefix))
        offset, nbytes = len(written), _append(written, body)
        yield _Subtree(names[0], names[-1], prefix, offset, nbytes, len(names), nbytes, value_bytes)


def _ends(values: Values) -> list[int]:
    """Where leaves end, so that each has about so many bytes."""
    sizes = np.fromiter(map(len, values.names), np.int64, len(values.names)) + 16
    sizes += np.where(values.file_numbers < 0, values.nbytes, 0)
    groups = np.cumsum(sizes) // NODE_BYTES
    return [*(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(values.names)]


def _leaf(
    values: Values, start: int, stop: int, names: Sequence[bytes], prefix: int
) -> tuple[bytes, int]:
    """A node of height 0, and the bytes of the values that it refers to."""
    numbers = values.file_numbers[start:stop]
    is_elsewhere = numbers >= 0
    used, indices = np.unique(numbers[is_elsewhere], return_inverse=True)
    files = [values.data_files[number].encode() for number in used.tolist()]
    nbytes = values.nbytes[start:stop]
    inline = [values.inline[start + place] for place in np.flatnonzero(~is_elsewhere).tolist()]
    shared, added, suffixes = _names([name[prefix:] for name in names])
    columns = [
        b"\0",
        _files(files),
        varints([len(names)]),
        varints(shared),
        varints(added),
        suffixes,
        varints(nbytes),
        is_elsewhere.astype(np.uint8).tobytes(),
        varints(indices),
        varints(values.offsets[start:stop][is_elsewhere]),
        *inline,
    ]
    return b"".join(columns), int(nbytes[is_elsewhere].sum())


def _interiors(
    level: Sequence[_Subtree], height: int, file: bytes, written: bytearray
) -> Iterator[_Subtree]:
    """The nodes above those of a level."""
    sizes = np.fromiter((len(below.first) + 32 for below in level), np.int64, len(level))
    groups = np.cumsum(sizes) // NODE_BYTES  # several in each, as no key has more than 64 KiB
    ends = [*(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(level)]
    for start, stop in zip([0, *ends], ends, strict=False):
        below = level[start:stop]
        first, last = below[0].first, below[-1].last
        prefix = _common(first, last) if len(ends) > 1 else b""
        offset = len(written)
        nbytes = _append(written, _interior(below, height, file, len(prefix)))
        yield _Subtree(
            first,
            last,
            prefix,
            offset,
            nbytes,
            sum(one.keys for one in below),
            nbytes + sum(one.tree_bytes for one in below),
            sum(one.value_bytes for one in below),
        )


def _interior(below: Sequence[_Subtree], height: int, file: bytes, prefix: int) -> bytes:
    shared, added, suffixes = _names([one.first[prefix:] for one in below])
    columns = [
        bytes([height]),
        _files([file]),
        varints([len(below)]),
        varints(shared),
        varints(added),
        varints([len(one.prefix) - prefix for one in below]),
        suffixes,
        varints([0] * len(below)),
        varints([one.offset for one in below]),
        varints([one.nbytes for one in below]),
        varints([one.keys for one in below]),
        varints([one.tree_bytes for one in below]),
        varints([one.value_bytes for one in below]),
    ]
    return b"".join(columns)


def _manifest(root: _Subtree, height: int, file: bytes) -> bytes:
    config = [
        uuid.uuid4().bytes,
        b"\0",
        varints([OCDBT_CONFIG["max_inline_value_bytes"], OCDBT_CONFIG["max_decoded_node_bytes"]]),
        bytes([_ARITY_LOG2]),
        varints([1]),
        struct.pack("<i", _ZSTD_LEVEL),
    ]
    version = [
        varints([1, 1]),  # one version, the first
        bytes([height]),
        varints([0, root.offset, root.nbytes]),
        varints([root.keys, root.tree_bytes, root.value_bytes]),
        struct.pack("<Q", time.time_ns()),
    ]
    no_older_versions = varints([0])
    return _wrapped(
        MANIFEST_MAGIC, b"".join([*config, _files([file]), *version, no_older_versions])
    )


def _append(written: bytearray, body: bytes) -> int:
    """Adds a node, and says how many bytes it has."""
    node = _wrapped(NODE_MAGIC, body)
    written += node
    return len(node)


def _wrapped(magic: bytes, body: bytes) -> bytes:
    """A compressed body, its length before it and its checksum after."""
    content = varints([0, 1]) + zstandard.ZstdCompressor(level=1).compress(body)
    whole = magic + struct.pack("<Q", 12 + len(content) + 4) + content
    return whole + struct.pack("<I", google_crc32c.value(whole))


def _files(paths: Sequence[bytes]) -> bytes:
    """The table of the data files that entries name by their index; each path in full."""
    if not paths:
        return varints([0])
    lengths = [len(path) for path in paths]
    nothing = [0] * len(paths)
    columns = [varints([len(paths)]), varints(nothing[1:]), varints(lengths), varints(nothing)]
    return b"".join([*columns, *paths])


def _names(names: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, bytes]:
    """How many bytes keys share with the one before, how many they add, and those bytes."""
    lengths = np.fromiter(map(len, names), np.int64, len(names))
    width = max(int(lengths.max()), 1)
    letters = np.array(names, f"S{width}").view(np.uint8).reshape(len(names), width)
    is_equal = letters[1:] == letters[:-1]
    first_other = np.where(is_equal.all(axis=1), width, is_equal.argmin(axis=1))
    shared = np.minimum(first_other, np.minimum(lengths[1:], lengths[:-1]))
    starts = [0, *shared.tolist()]
    suffixes = b"".join([name[start:] for name, start in zip(names, starts, strict=True)])
    return shared, lengths - np.array(starts), suffixes


def _common(a: bytes, b: bytes) -> bytes:
    """What two keys begin with.

    >>> _common(b"layers_1/0", b"layers_10/0")
    b'layers_1'
    """
    pairs = enumerate(zip(a, b, strict=False))
    return a[: next((place for place, (x, y) in pairs if x != y), min(len(a), len(b)))]


def varints(numbers: Sequence[int] | np.ndarray) -> bytes:
    """Numbers with seven bits a byte, the lowest first, and an eighth where they go on.

    >>> varints([1, 300]).hex()
    '01ac02'
    """
    values = np.asarray(numbers, np.uint64)
    if not values.size:
        return b""
    if int(values.max()) < 0x80:
        return values.astype(np.uint8).tobytes()
    sizes = np.ones(len(values), np.int64)
    for seven in range(1, 10):
        sizes += values >= np.uint64(1 << 7 * seven)
    starts = np.cumsum(sizes) - sizes
    encoded = np.zeros(int(sizes.sum()), np.uint8)
    for seven in range(int(sizes.max())):
        has_it = sizes > seven
        bits = (values[has_it] >> np.uint64(7 * seven)).astype(np.uint8) & np.uint8(0x7F)
        goes_on = np.where(sizes[has_it] > seven + 1, 0x80, 0).astype(np.uint8)
        encoded[starts[has_it] + seven] = bits | goes_on
    return encoded.tobytes()
