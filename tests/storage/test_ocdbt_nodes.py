"""OCDBT's manifest and nodes are read as TensorStore reads them, and damage is always told."""

import contextlib
import random
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from urllib.parse import unquote_to_bytes

import google_crc32c
import pytest
import tensorstore as ts
import zstandard
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnxconv.errors import DamagedCheckpoint
from nnxconv.storage.ocdbt.contents import read_contents
from nnxconv.storage.ocdbt.nodes import (
    MAX_MANIFEST_BYTES,
    MAX_NODE_BYTES,
    DataFile,
    Interior,
    decode_manifest,
    decode_node,
)
from nnxconv.storage.ocdbt.values import Value

pytestmark = pytest.mark.trust

CONTEXT = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
ZSTD = {"id": "zstd"}
MANIFEST, NODE = bytes.fromhex("0cdb3a2a"), bytes.fromhex("0cdb20de")
FILE = DataFile(b"", b"d/1")


def base(path: Path) -> ts.KvStore:
    return ts.KvStore.open({"driver": "file", "path": f"{path}/"}, context=CONTEXT).result()


def database(path: Path, **config) -> ts.KvStore:
    """A database whose small values are those of up to 20 bytes."""
    config = {"max_inline_value_bytes": 20, **config}
    spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}, "config": config}
    return ts.KvStore.open(spec, context=CONTEXT).result()


def commit(store: ts.KvStore, changes: dict[str, bytes | None]) -> None:
    """Writes values in one commit, and deletes the keys that have None."""
    transaction = ts.Transaction()
    for key, value in changes.items():
        store.with_transaction(transaction).write(key, value).result()
    transaction.commit_async().result()


def told_by_tensorstore(path: Path) -> tuple[dict[str, Value], set[str], int]:
    """Values by key, the nodes' files, and the root's height."""
    version = ts.ocdbt.dump(base(path)).result()["versions"][-1]
    values: dict[str, Value] = {}
    files: set[str] = set()

    def place(location: str) -> Value:
        _, folder, relative, offset, nbytes = location.split(":")
        file = unquote_to_bytes(folder) + unquote_to_bytes(relative)
        return Value(file.decode(), int(offset), int(nbytes))

    def walk(location: str, prefix: bytes) -> None:
        files.add(place(location).file)
        for entry in ts.ocdbt.dump(base(path), node=location).result()["entries"]:
            key = prefix + entry["key"]
            if "location" in entry:
                walk(entry["location"], prefix + entry.get("subtree_common_prefix", b""))
            elif "inline_value" in entry:
                inline = entry["inline_value"]
                values[key.decode()] = Value("", 0, len(inline), inline)
            else:
                values[key.decode()] = place(entry["indirect_value"])

    if "location" in version["root"]:
        walk(version["root"]["location"], b"")
    return values, files, version["root_height"]


def assert_same_as_tensorstore(path: Path) -> int:
    """Returns the height of the root."""
    values, files, height = told_by_tensorstore(path)
    contents = read_contents(epath.Path(path))
    assert contents.values == values
    assert list(contents.values) == sorted(values, key=str.encode)
    assert contents.node_files == files
    return height


# As TensorStore reads them


KEYS = st.builds(
    "/".join,
    st.lists(
        st.sampled_from(["params", "params.layers_1", "µ", "0.0", "日本", "a" * 130]), max_size=4
    ),
)
CHANGES = st.dictionaries(
    KEYS.filter(bool), st.one_of(st.none(), st.integers(0, 60).map(bytes)), max_size=30
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    commits=st.lists(CHANGES, min_size=1, max_size=4),
    node_bytes=st.sampled_from([200, 1000, 100_000_000]),
    compression=st.sampled_from([None, ZSTD]),
    arity=st.sampled_from([1, 4]),
)
def test_generated_databases_are_read_as_tensorstore_reads_them(
    commits, node_bytes, compression, arity, tmp_path_factory
):
    path = tmp_path_factory.mktemp("database")
    store = database(
        path,
        max_decoded_node_bytes=node_bytes,
        compression=compression,
        version_tree_arity_log2=arity,
    )
    for changes in commits:
        commit(store, changes)
    if (path / "manifest.ocdbt").exists():
        assert_same_as_tensorstore(path)


@pytest.mark.parametrize("compression", [None, ZSTD], ids=["plain", "zstd"])
def test_a_high_tree_is_read_as_tensorstore_reads_it(compression, tmp_path):
    store = database(tmp_path, max_decoded_node_bytes=300, compression=compression)
    drawn = random.Random(5)
    for _ in range(3):
        keys = [f"params.layers_{drawn.randrange(400)}/{n % 3}.0" for n in range(150)]
        commit(store, {key: bytes(drawn.randrange(60)) for key in keys})
    assert assert_same_as_tensorstore(tmp_path) >= 3


@pytest.mark.parametrize("node_bytes", [300, 100_000_000])
def test_merged_databases_are_read_as_tensorstore_reads_them(node_bytes, tmp_path):
    config = {"max_decoded_node_bytes": node_bytes}
    for process in range(3):
        part = database(tmp_path / f"ocdbt.process_{process}", **config)
        commit(part, {f"{key}.{process}": bytes(key) for key in range(40)})
        part.experimental_copy_range_to(database(tmp_path, **config)).result()
    assert_same_as_tensorstore(tmp_path)
    assert len(read_contents(epath.Path(tmp_path)).values) == 120
    assert "ocdbt.process_2/d/" in " ".join(read_contents(epath.Path(tmp_path)).files())


def test_a_database_of_which_all_was_deleted_is_empty(tmp_path):
    store = database(tmp_path)
    commit(store, {"a": b"1"})
    commit(store, {"a": None})
    assert_same_as_tensorstore(tmp_path)
    assert read_contents(epath.Path(tmp_path)).values == {}


def test_the_manifest_says_how_the_database_is_written(tmp_path):
    config = {"max_decoded_node_bytes": 999, "compression": {"id": "zstd", "level": -3}}
    commit(database(tmp_path, uuid="0123456789abcdef" * 2, **config), {"a": b"1"})
    manifest = decode_manifest((tmp_path / "manifest.ocdbt").read_bytes())
    assert manifest.config.uuid.hex() == "0123456789abcdef" * 2
    assert manifest.config.max_inline_value_bytes == 20
    assert manifest.config.max_decoded_node_bytes == 999
    assert manifest.config.compression_level == -3


def test_a_key_may_be_as_long_as_a_small_node(tmp_path):
    store = database(tmp_path, max_decoded_node_bytes=100, max_inline_value_bytes=2**20)
    commit(store, {f"{'k' * 30_000}{n}": bytes(2**20) for n in range(3)})
    assert_same_as_tensorstore(tmp_path)


# Damage


def with_checksum(content: bytes) -> bytes:
    return content + google_crc32c.value(content).to_bytes(4, "little")


def small(root: Path, compression) -> dict[str, tuple[bytes, object]]:
    """The manifest, a leaf and an interior node: bytes, and what decodes them."""
    store = database(root, max_decoded_node_bytes=200, compression=compression)
    commit(store, {f"layers_{n}": bytes(n) for n in range(18, 25)})
    encoded = (root / "manifest.ocdbt").read_bytes()
    top = decode_manifest(encoded).root
    assert top is not None and top.height > 0
    found = {"manifest": (encoded, decode_manifest)}
    for height in range(top.height, -1, -1):
        place = top.node
        content = (root / place.file.path.decode()).read_bytes()
        content = content[place.offset : place.offset + place.nbytes]

        def decode(encoded, height=height):
            return decode_node(encoded, FILE, height, 10_000)

        node = decode(content)
        found["leaf" if height == 0 else "interior"] = content, decode
        if isinstance(node, Interior):
            top = type(top)(node.children[0].node, height - 1)
    return found


@pytest.fixture(scope="module", params=[None, ZSTD], ids=["plain", "zstd"])
def pieces(request, tmp_path_factory):
    return small(tmp_path_factory.mktemp("small"), request.param)


PIECES = ["manifest", "leaf", "interior"]


@pytest.mark.parametrize("name", PIECES)
def test_every_changed_byte_and_every_length_is_refused(name, pieces):
    encoded, decode = pieces[name]
    decode(encoded)
    for place in range(len(encoded)):
        for change in (0x01, 0x80, 0xFF):
            changed = bytearray(encoded)
            changed[place] ^= change
            with pytest.raises(ValueError):
                decode(bytes(changed))
        with pytest.raises(ValueError):
            decode(encoded[:place])
    with pytest.raises(ValueError):
        decode(encoded + b"\0")


@pytest.mark.parametrize("name", PIECES)
def test_changes_with_a_right_checksum_are_read_or_refused_at_once(name, pieces):
    encoded, decode = pieces[name]
    drawn = random.Random(7)
    start, refused = time.monotonic(), 0
    changed = [(place, value) for place in range(4, len(encoded) - 4) for value in (0, 127, 255)]
    for place, value in changed + drawn.choices(changed, k=300):
        content = bytearray(encoded[:-4])
        content[place] = value
        content[drawn.randrange(12, len(content))] ^= drawn.choice((0, 1 << drawn.randrange(8)))
        try:
            decode(with_checksum(bytes(content)))
        except ValueError as error:
            assert str(error)[0].islower() or str(error)[0] == "`"
            refused += 1
    assert refused > len(changed) / 4
    assert time.monotonic() - start < 10


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([0, 1]), st.binary(max_size=80), st.integers(0, 3))
def test_noise_with_a_right_checksum_is_read_or_refused(compression, noise, height):
    content = bytes([height]) + noise
    encoded = wrapped(NODE, zstandard.compress(content) if compression else content, compression)
    with contextlib.suppress(ValueError):
        decode_node(encoded, FILE, height, 10_000)


# Crafted


def varint(*numbers: int) -> bytes:
    content = bytearray()
    for number in numbers:
        while number >= 0x80:
            content.append(number & 0x7F | 0x80)
            number >>= 7
        content.append(number)
    return bytes(content)


def wrapped(magic: bytes, body: bytes, compression: int = 0, version: int = 0) -> bytes:
    content = varint(version, compression) + body
    return with_checksum(magic + (len(content) + 16).to_bytes(8, "little") + content)


def table(*paths: bytes, base_bytes: int = 0) -> bytes:
    """Data files that share no letters."""
    count = len(paths)
    shared = varint(*[0] * (count - 1))
    lengths = varint(*map(len, paths)) + varint(*[base_bytes] * count)
    return varint(count) + shared + lengths + b"".join(paths)


def leaf(*keys: bytes, files: bytes = b"\0", values: bytes | None = None) -> bytes:
    """Empty values, in the node itself."""
    count = len(keys)
    names = varint(*[0] * (count - 1)) + varint(*map(len, keys)) + b"".join(keys)
    return b"\0" + files + varint(count) + names + (values or bytes(2 * count))


def interior(height: int, files: bytes, *children: tuple[bytes, int, int]) -> bytes:
    """Nodes in the first file: the least key, and the offset and the length."""
    count = len(children)
    keys, offsets, lengths = zip(*children, strict=True)
    names = varint(*[0] * (count - 1)) + varint(*map(len, keys)) + bytes(count) + b"".join(keys)
    places = bytes(count) + varint(*offsets) + varint(*lengths)
    return bytes([height]) + files + varint(count) + names + places + bytes(3 * count)


def manifest(
    files: bytes, offset: int, length: int, height: int = 0, kind: int = 0, nodes: int = 10_000
) -> bytes:
    """One version, whose root is in the first file."""
    config = bytes(16) + bytes([kind]) + varint(100, nodes) + bytes([4, 0])
    version = varint(1, 1) + bytes([height, 0]) + varint(offset, length) + bytes(3 + 8)
    return wrapped(MANIFEST, config + files + version + b"\0")


def crafted(
    path: Path, root: int, height: int, *nodes: bytes, file: bytes = b"d/1", **more
) -> Path:
    """A database of these nodes, one after another in a file; the number of one is the root."""
    ends = [sum(map(len, nodes[:n])) for n in range(len(nodes) + 1)]
    (path / "d").mkdir(parents=True)
    (path / "d" / "1").write_bytes(b"".join(nodes))
    place = ends[root], len(nodes[root])
    (path / "manifest.ocdbt").write_bytes(manifest(table(file), *place, height, **more))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DamagedCheckpoint) as caught:
        read_contents(epath.Path(path))
    assert caught.value.where == str(path)
    return caught.value.message.removeprefix("the OCDBT database cannot be read: ")


def test_a_crafted_database_is_read_as_tensorstore_reads_it(tmp_path):
    low, high = (wrapped(NODE, leaf(*keys)) for keys in ((b"a", b"b"), (b"c", b"d")))
    top = interior(1, table(b"d/1"), (b"a", 0, len(low)), (b"c", len(low), len(high)))
    crafted(tmp_path, 2, 1, low, high, wrapped(NODE, top))
    assert_same_as_tensorstore(tmp_path)
    assert list(read_contents(epath.Path(tmp_path)).values) == ["a", "b", "c", "d"]


def bomb(nbytes: int) -> bytes:
    frame = zstandard.ZstdCompressor().compressobj()
    return b"".join(frame.compress(bytes(2**20)) for _ in range(nbytes >> 20)) + frame.flush()


BOMB = bomb(2**28)
NODES = {
    "too few bytes": (b"\x0c\xdb\x20\xde", "it has only 4 bytes"),
    "another kind": (wrapped(MANIFEST, b""), "it begins with `0cdb3a2a`, not `0cdb20de`"),
    "a newer version": (wrapped(NODE, b"", version=3), "its version is 3, which is not supported"),
    "a compression": (wrapped(NODE, b"", 9), "its compression is 9, which is not supported"),
    "no zstd": (wrapped(NODE, b"\1\2\3\4\5", 1), "it cannot be decompressed"),
    "a bomb": (wrapped(NODE, BOMB, 1), "it is larger than 10000 bytes"),
    "large and not compressed": (wrapped(NODE, bytes(10_001)), "it is larger than 10000 bytes"),
    "half a frame": (
        wrapped(NODE, zstandard.compress(leaf(b"a"))[:-1], 1),
        "its compressed body ends too soon",
    ),
    "bytes after the frame": (
        wrapped(NODE, zstandard.compress(leaf(b"a")) + b"\0", 1),
        "it has bytes after its compressed body",
    ),
    "bytes far after the frame": (
        wrapped(NODE, zstandard.compress(leaf(b"a")) + bytes(5000), 1),
        "it has bytes after its compressed body",
    ),
    "bytes after the entries": (wrapped(NODE, leaf(b"a") + b"\0"), "it has 1 bytes too many"),
    "another height": (wrapped(NODE, b"\1" + leaf(b"a")[1:]), "its height is 1, not 0"),
    "no entries": (wrapped(NODE, bytes(3)), "it has no entries"),
    "many entries": (
        wrapped(NODE, b"\0\0" + varint(2**60) + bytes(50)),
        f"it cannot have {2**60} entries",
    ),
    "more entries than bytes": (
        wrapped(NODE, b"\0\0" + varint(51) + bytes(50)),
        "it cannot have 51 entries",
    ),
    "many files": (
        wrapped(NODE, b"\0" + varint(2**60) + bytes(50)),
        f"it cannot have {2**60} entries",
    ),
    "a number that goes on": (
        wrapped(NODE, b"\0" + b"\x80" * 20 + b"\0"),
        "it has a number of more than 64 bits",
    ),
    "a number of 65 bits": (
        wrapped(NODE, b"\0" + varint(2**64)),
        "it has a number of more than 64 bits",
    ),
    "keys in no order": (wrapped(NODE, leaf(b"b", b"a")), "its keys are not in order"),
    "a key twice": (wrapped(NODE, leaf(b"a", b"a")), "its keys are not in order"),
    "a key of what is not there": (
        wrapped(NODE, b"\0\0" + varint(2, 9, 1, 1) + b"ab" + bytes(4)),
        "a key or a path shares more than there is",
    ),
    "a long key": (
        wrapped(NODE, b"\0\0" + varint(1, 2**50) + bytes(9)),
        "a key or a path is longer than 65535 bytes",
    ),
    "a key longer than the node": (
        wrapped(NODE, b"\0\0" + varint(1, 60_000) + bytes(9)),
        "it ends too soon",
    ),
    "a value longer than the node": (
        wrapped(NODE, leaf(b"a", values=varint(2**40) + b"\0")),
        "it ends too soon",
    ),
    "a kind of values": (
        wrapped(NODE, leaf(b"a", values=b"\0\2")),
        "a value is of kind 2, which is not supported",
    ),
    "a file that is not in the table": (
        wrapped(NODE, leaf(b"a", files=table(b"d/1"), values=b"\0\1\1\0")),
        "it names file 1 of 1",
    ),
    "a place beyond all files": (
        wrapped(NODE, leaf(b"a", files=table(b"d/1"), values=varint(2, 1, 0, 2**63 - 1))),
        "it refers to bytes beyond the end of any file",
    ),
    "a base longer than its path": (
        wrapped(NODE, leaf(b"a", files=table(b"d/1", base_bytes=4))),
        "a path is shorter than its base",
    ),
}


@pytest.mark.parametrize("name", NODES)
def test_a_crafted_node_is_refused(name):
    encoded, message = NODES[name]
    with pytest.raises(ValueError) as caught:
        decode_node(encoded, FILE, 0, 10_000)
    assert str(caught.value) == message


def test_keys_that_take_much_more_than_their_node_are_refused_before_they_are_made():
    count = 20_000
    keys = varint(*[65_000] * (count - 1), 65_000, *[1] * (count - 1))
    body = b"\0\0" + varint(count) + keys + bytes(65_000 + count)
    with pytest.raises(ValueError, match=rf"^its keys or paths have more than {MAX_NODE_BYTES} "):
        decode_node(wrapped(NODE, body), FILE, 0, MAX_NODE_BYTES)


MANIFESTS = {
    "numbered": (
        manifest(b"\0", 0, 0, kind=1),
        "its manifests are numbered, which is not supported",
    ),
    "of a kind": (manifest(b"\0", 0, 0, kind=7), "its kind is 7, which is not supported"),
    "without a table": (manifest(b"\0", 0, 30), "it names file 0 of 0"),
    "of an arity": (
        wrapped(MANIFEST, bytes(17) + varint(100, 1000) + b"\x20\0" + bytes(9)),
        "its arity is 2**32, not 2**1 to 2**16",
    ),
    "without a version": (
        wrapped(MANIFEST, bytes(17) + varint(100, 1000) + b"\4\0" + bytes(9)),
        "its versions are not numbered in order",
    ),
    "of many versions": (
        wrapped(MANIFEST, bytes(17) + varint(100, 1000) + b"\4\0\0" + varint(2**60) + bytes(99)),
        f"it cannot have {2**60} entries",
    ),
    "a bomb": (wrapped(MANIFEST, BOMB, 1), f"it is larger than {MAX_MANIFEST_BYTES} bytes"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_crafted_manifest_is_refused(name, tmp_path):
    encoded, message = MANIFESTS[name]
    (tmp_path / "manifest.ocdbt").write_bytes(encoded)
    assert refusal(tmp_path) == f"`manifest.ocdbt`: {message}"


def test_numbered_manifests_of_tensorstore_are_refused(tmp_path):
    commit(database(tmp_path, manifest_kind="numbered"), {"a": b"1"})
    assert refusal(tmp_path) == (
        "`manifest.ocdbt`: its manifests are numbered, which is not supported"
    )


LEAF = wrapped(NODE, leaf(b"a", b"b"))


def to_leaves(height: int, *children: tuple[bytes, int, int]) -> bytes:
    return wrapped(NODE, interior(height, table(b"d/1"), *children))


TREES = {
    "damaged": ((1, 0, b"12345", LEAF[:-1] + b"!"), "`d/1` at 5: the checksum differs"),
    "of another height": ((0, 3, LEAF), "`d/1` at 0: its height is 0, not 3"),
    "higher than any": ((0, 255, LEAF), "`d/1` at 0: its height is 0, not 255"),
    "that has itself": (
        (0, 1, to_leaves(1, (b"a", 0, len(to_leaves(1, (b"a", 0, 50)))))),
        "`d/1` at 0: this node stands twice in the tree",
    ),
    "with a node twice": (
        (1, 1, LEAF, to_leaves(1, (b"a", 0, len(LEAF)), (b"b", 0, len(LEAF)))),
        "`d/1` at 0: this node stands twice in the tree",
    ),
    "with a key twice": (
        (2, 1, LEAF, LEAF, to_leaves(1, (b"a", 0, len(LEAF)), (b"b", len(LEAF), len(LEAF)))),
        "`a` comes after `b`",
    ),
    "that goes on after its file": (
        (1, 1, LEAF, to_leaves(1, (b"a", 500, 2**20))),
        f"`d/1` ends before {500 + 2**20}",
    ),
    "of a large node": (
        (1, 1, LEAF, to_leaves(1, (b"a", 0, 2**40))),
        f"`d/1` at 0: a node of {2**40} bytes is too large",
    ),
    "of a bomb": (
        (0, 0, wrapped(NODE, BOMB, 1)),
        f"`d/1` at 0: it is larger than {10_000 + 2**22} bytes",
    ),
    "without its file": ((0, 0, LEAF, b"d/2"), "`d/2` is missing"),
    "out of the checkpoint": (
        (0, 0, LEAF, b"../d/1"),
        "it refers to `../d/1`, which is outside of the checkpoint",
    ),
    "at the root of the disk": (
        (0, 0, LEAF, b"/d/1"),
        "it refers to `/d/1`, which is outside of the checkpoint",
    ),
    "in no file": ((0, 0, LEAF, b""), "it refers to '', which is no name of a file"),
    "in an odd file": ((0, 0, LEAF, b"d\0"), "it refers to 'd\\x00', which is no name of a file"),
    "in a file of bytes": ((0, 0, LEAF, b"\xff"), "b'\\xff' is not UTF-8"),
    "with a key of bytes": ((0, 0, wrapped(NODE, leaf(b"\xff"))), "b'\\xff' is not UTF-8"),
}


@pytest.mark.parametrize("name", TREES)
def test_a_crafted_tree_is_refused_with_its_place(name, tmp_path):
    (root, height, *nodes), message = TREES[name]
    named = {"file": nodes.pop()} if len(nodes[-1]) < 16 else {}
    assert refusal(crafted(tmp_path, root, height, *nodes, **named)) == message


def test_a_value_outside_of_the_checkpoint_is_refused(tmp_path):
    node = wrapped(NODE, leaf(b"a", files=table(b"x/../../secret"), values=b"\5\1\0\0"))
    assert refusal(crafted(tmp_path, 0, 0, node)) == (
        "it refers to `x/../../secret`, which is outside of the checkpoint"
    )


# Memory


GROWTH = """
import sys
from pathlib import Path
from etils import epath
from nnxconv.storage.ocdbt import read_contents

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024

path = epath.Path(sys.argv[1])
for number in range(2200):
    read_contents(path)
    if number == 200:
        before = resident()
print(resident() - before)
"""


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_many_times_keeps_nothing(tmp_path):
    commit(database(tmp_path), {f"layers_{n}": bytes(n) for n in range(40)})
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(tmp_path)], capture_output=True, text=True, check=True
    )
    kept_by_dump = 2000 * 40 * 570
    assert int(done.stdout) < kept_by_dump / 10


def test_a_bomb_takes_no_time_and_no_memory():
    encoded = wrapped(NODE, BOMB, 1)
    assert len(encoded) < 2**15
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"^it is larger than 10000 bytes$"):
        decode_node(encoded, FILE, 0, 10_000)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.monotonic() - start < 5
    assert peak_bytes < 2**27
