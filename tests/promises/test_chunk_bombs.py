"""Chunks that say, or turn out, to be far larger than their array: one message, and no memory."""

import gzip
import json
import struct

import numpy as np
import pytest

from nnxconv.running import peak_memory_bytes
from tests.support import checkpoints
from tests.support.command import run
from tests.support.safety import CANNOT, snapshot

pytestmark = pytest.mark.trust

GIB = 2**30
BLOCK = 2**17
"""What a block of zstd may hold."""


def zstd(nbytes: int, declared: int | None = None) -> bytes:
    """A frame of zeros, 4 bytes for 128 KiB each (RFC 8878); the header may say another size."""
    size = b"\x00\x38" if declared is None else b"\xc0\x38" + struct.pack("<Q", declared)
    blocks = [struct.pack("<I", BLOCK << 3 | 2 | last)[:3] + b"\0" for last in (0, 1)]
    return b"\x28\xb5\x2f\xfd" + size + blocks[0] * (nbytes // BLOCK - 1) + blocks[1]


def blosc(declared: int) -> bytes:
    """A header of Blosc that declares a size, and nothing that holds as much."""
    return struct.pack("<BBBBIII", 2, 1, 0x21, 4, declared, declared, 80) + bytes(64)


ARRAY_BYTES = 8 * 16 * 4
# compressor, the chunk
BOMBS = {
    "zstd": ({"id": "zstd", "level": 1}, zstd(4 * GIB)),
    "zstd that declares 1 TB": ({"id": "zstd", "level": 1}, zstd(GIB, 10**12)),
    "zstd that declares the right size": ({"id": "zstd", "level": 1}, zstd(GIB, ARRAY_BYTES)),
    "gzip": ({"id": "gzip", "level": 1}, gzip.compress(bytes(GIB // 4), 1)),
    "blosc": (
        {"id": "blosc", "cname": "lz4", "clevel": 1, "shuffle": 1, "blocksize": 0},
        blosc(2**31 - 1),
    ),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", BOMBS)
def test_a_chunk_that_is_a_bomb_takes_no_memory(name, tmp_path):
    compressor, chunk = BOMBS[name]
    tree = {"params": {"params": {"w": {"kernel": np.ones((8, 16), "float32")}}}}
    item = checkpoints.save_item(tmp_path / "in", tree, use_ocdbt=False)
    array = item / "params.params.w.kernel"
    told = json.loads((array / ".zarray").read_text())
    (array / ".zarray").write_text(json.dumps({**told, "compressor": compressor}))
    (array / "0.0").write_bytes(chunk)
    before, memory = snapshot(tmp_path), peak_memory_bytes()
    for words in (("checksum", item), ("convert", item, tmp_path / "out", "--dtype", "bfloat16")):
        outcome = run(*words)
        assert (outcome.exit_code, outcome.stdout) == (2, "")
        assert outcome.stderr.startswith(CANNOT.format("params.params.w.kernel"))
        assert str(array / "0.0") in outcome.stderr
    assert snapshot(tmp_path) == before
    assert peak_memory_bytes() - memory < GIB // 8
