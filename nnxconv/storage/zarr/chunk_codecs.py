"""Chunks decoded and encoded here, where their codecs are the usual ones: zstd, or none.

TensorStore copies each chunk between a cache of its own and the caller's array, into memory that is
fresh each time. What is not usual is left to it: other compressors, filters, other byte orders.
"""

import math
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import zstandard

from nnxconv.storage.zarr.formats import SHARDING, ArrayFormat
from nnxconv.tree import Shape, contiguous, fill

_KINDS = "biufc"
_TYPES = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
_INDEX = struct.Struct("<QQ")
_CHECKSUM = struct.Struct("<I")


class Undecodable(ValueError):
    """An encoded chunk is not what is expected here."""


@dataclass(frozen=True)
class ChunkCodec:
    """How the chunks of one array are encoded.

    Attributes:
      dtype: of the elements.
      shape: of a chunk, also at the edges of the array.
      level: of zstd; None where chunks are not compressed.
      has_checksum: zstd's own, behind each chunk.
      is_shard: a chunk is the only one of a shard, which ends with its index.
    """

    dtype: np.dtype
    shape: Shape
    level: int | None
    has_checksum: bool = False
    is_shard: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of a decoded chunk."""
        return math.prod(self.shape) * self.dtype.itemsize

    def decode(self, encoded: memoryview) -> np.ndarray:
        """The values of a chunk, which cannot be written to.

        Raises:
          Undecodable: it does not hold just one chunk of this shape.
        """
        body = self._in_shard(encoded) if self.is_shard else encoded
        try:
            if self.level is None:
                decoded = bytes(body) if len(body) == self.nbytes else b""
            elif zstandard.frame_content_size(body) != self.nbytes:
                raise Undecodable("it does not say that it is one chunk")
            else:
                decoded = _decompressor().decompress(body, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Undecodable(str(error)) from error
        if len(decoded) != self.nbytes:
            raise Undecodable(f"it has {len(decoded):,} of {self.nbytes:,} bytes")
        return np.frombuffer(decoded, self.dtype).reshape(self.shape)

    def encode(self, values: np.ndarray) -> list[bytes | memoryview]:
        """A chunk as it is stored, in parts; at the edges of an array it is padded with zeros."""
        whole = contiguous(values)
        if values.shape != self.shape:
            whole = np.zeros(self.shape, self.dtype)
            fill(whole[tuple(slice(size) for size in values.shape)], values)
        body: bytes | memoryview = whole.reshape(-1).view(np.uint8).data
        if self.level is not None:
            body = _compressor(self.level, self.has_checksum).compress(body)
        if not self.is_shard:
            return [body]
        index = _INDEX.pack(0, len(body))
        return [body, index, _CHECKSUM.pack(google_crc32c.value(index))]

    def _in_shard(self, encoded: memoryview) -> memoryview:
        end = len(encoded) - _INDEX.size - _CHECKSUM.size
        index = bytes(encoded[end : end + _INDEX.size]) if end >= 0 else b""
        if not index or _CHECKSUM.pack(google_crc32c.value(index)) != encoded[-_CHECKSUM.size :]:
            raise Undecodable("the index of its shard is damaged")
        start, nbytes = _INDEX.unpack(index)
        if start + nbytes > end:
            raise Undecodable("its shard ends before it")
        return encoded[start : start + nbytes]


def codec_of(array: ArrayFormat) -> ChunkCodec | None:
    """How the chunks of an array are encoded; None where TensorStore has to do it."""
    dtype = np.dtype(array.dtype)
    if dtype.kind not in _KINDS and dtype.name not in _TYPES:
        return None
    found = _in_zarr2 if array.zarr_format == 2 else _in_zarr3 if array.zarr_format == 3 else None
    return None if found is None or _pads(array) else found(array, dtype)


def _pads(array: ArrayFormat) -> bool:
    """True where chunks at the edges are padded with something else than zeros."""
    value = array.metadata.get("fill_value")
    values = value if isinstance(value, list) else [value]
    return not all(one is None or (isinstance(one, int | float) and one == 0) for one in values)


def _in_zarr2(array: ArrayFormat, dtype: np.dtype) -> ChunkCodec | None:
    told = array.metadata
    is_native = told["dtype"] in (dtype.name, dtype.str, dtype.str.replace("|", "<"))
    if not is_native or told.get("filters") or told.get("order", "C") != "C":
        return None
    match told.get("compressor"):
        case None:
            return ChunkCodec(dtype, array.chunks, None)
        case {"id": "zstd", "level": int(level), **others} if not others:
            return ChunkCodec(dtype, array.chunks, level)
    return None


def _in_zarr3(array: ArrayFormat, dtype: np.dtype) -> ChunkCodec | None:
    told = array.metadata
    codecs: Sequence[Any] = told["codecs"]
    if tuple(told["chunk_grid"]["configuration"]["chunk_shape"]) != array.chunks:
        return None
    is_shard = [one["name"] for one in codecs] == [SHARDING]
    if is_shard:
        inner = codecs[0]["configuration"]
        if inner.get("index_location", "end") != "end" or not _is_usual(inner["index_codecs"]):
            return None
        codecs = inner["codecs"]
    match codecs:
        case [{"name": "bytes", **order}] if _is_little(order, dtype):
            return ChunkCodec(dtype, array.chunks, None, is_shard=is_shard)
        case [
            {"name": "bytes", **order},
            {"name": "zstd", "configuration": {"level": int(level), **others}},
        ] if _is_little(order, dtype) and others in ({}, {"checksum": False}, {"checksum": True}):
            has_checksum = bool(others.get("checksum"))
            return ChunkCodec(dtype, array.chunks, level, has_checksum, is_shard)
    return None


def _is_little(told: Mapping[str, Any], dtype: np.dtype) -> bool:
    order = told.get("configuration", {}).get("endian")
    return order == "little" or (order is None and dtype.itemsize == 1)


def _is_usual(index_codecs: Sequence[Any]) -> bool:
    return [one["name"] for one in index_codecs] == ["bytes", "crc32c"] and _is_little(
        index_codecs[0], np.dtype(np.uint64)
    )


_OWN = threading.local()
"""What each thread compresses with: making it anew takes longer than a small chunk does."""


def _decompressor() -> zstandard.ZstdDecompressor:
    found = getattr(_OWN, "decompressor", None)
    if found is None:
        found = _OWN.decompressor = zstandard.ZstdDecompressor()
    return found


def _compressor(level: int, has_checksum: bool) -> zstandard.ZstdCompressor:
    kept, found = getattr(_OWN, "compressor", (None, None))
    if found is None or kept != (level, has_checksum):
        found = zstandard.ZstdCompressor(level=level, write_checksum=has_checksum)
        _OWN.compressor = (level, has_checksum), found
    return found
