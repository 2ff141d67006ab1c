"""Chunks that are decoded and encoded without TensorStore are what it makes of them."""

import json

import numpy as np
import pytest
import tensorstore as ts

from nnxconv.storage.zarr import ORBAX, codec_of, parse_format, target_metadata
from nnxconv.storage.zarr.chunk_codecs import Undecodable

TYPES = ("float32", "bfloat16", "int64", "uint8", "bool", "complex64", "float8_e4m3fn")
SHAPE, CHUNKS = (5, 7), (2, 4)
KEYS = {2: "1.1", 3: "c/1/1"}
EDGE_KEYS = {2: "2.1", 3: "c/2/1"}


def zarr2(dtype="float32", **told):
    name = dtype if dtype in ("bfloat16", "float8_e4m3fn") else np.dtype(dtype).str
    return {
        "zarr_format": 2,
        "shape": list(SHAPE),
        "chunks": list(CHUNKS),
        "dtype": name,
        "order": "C",
        "compressor": {"id": "zstd", "level": 1},
        "filters": None,
        "fill_value": None,
        **told,
    }


def zarr3(dtype="float32", codecs=None):
    metadata = target_metadata(ORBAX.model, SHAPE, dtype, CHUNKS)
    return metadata if codecs is None else {**metadata, "codecs": codecs}


LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
BIG = {"name": "bytes", "configuration": {"endian": "big"}}
ZSTD = {"name": "zstd", "configuration": {"level": 3}}
CHECKED = {"name": "zstd", "configuration": {"level": 3, "checksum": True}}
WAYS = {
    "zarr 2": lambda dtype: zarr2(dtype),
    "zarr 2, bare": lambda dtype: zarr2(dtype, compressor=None),
    "zarr 3, shards": lambda dtype: zarr3(dtype),
    "zarr 3": lambda dtype: zarr3(dtype, [LITTLE, ZSTD]),
    "zarr 3, checked": lambda dtype: zarr3(dtype, [LITTLE, CHECKED]),
    "zarr 3, bare": lambda dtype: zarr3(dtype, [LITTLE]),
}


def stored(metadata):
    """An array in memory, and its store."""
    version = metadata["zarr_format"]
    store = ts.KvStore.open({"driver": "memory"}).result()
    told = {k: v for k, v in metadata.items() if k not in ("zarr_format", "node_type")}
    spec = {
        "driver": "zarr" if version == 2 else "zarr3",
        "kvstore": store.spec().to_json(),
        "metadata": told,
        "create": True,
        "store_data_equal_to_fill_value": True,
    }
    context = store.spec().to_json() and ts.Context()
    array = ts.open(spec, context=context).result()
    return array, array.kvstore, parse_format(version, json.loads(json.dumps(metadata)))


def values_of(dtype):
    bits = np.random.default_rng(0).integers(0, 256, (*SHAPE, 16), np.uint8)
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return bits[..., 0] > 127
    return np.ascontiguousarray(bits[..., : kind.itemsize]).view(kind)[..., 0]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("way", WAYS)
def test_both_ways_are_those_of_tensorstore(way, dtype):
    array, store, told = stored(WAYS[way](dtype))
    codec, values = codec_of(told), values_of(dtype)
    assert codec is not None
    array.write(values).result()
    whole, edge = values[2:4, 4:7], values[4:5, 4:7]
    for key, part in ((KEYS, whole), (EDGE_KEYS, edge)):
        key = key[told.zarr_format]
        theirs = codec.decode(memoryview(store.read(key).result().value))
        assert theirs.dtype == np.dtype(dtype) and theirs.shape == CHUNKS
        there = tuple(map(slice, part.shape))
        assert theirs[there].tobytes() == part.tobytes()
        store.write(key, b"".join(codec.encode(part))).result()
    assert array.read().result().tobytes() == values.tobytes()


@pytest.mark.parametrize(
    "metadata",
    [
        {**zarr2(), "dtype": ">f4"},
        zarr2(order="F"),
        zarr2(fill_value=1.0),
        zarr2(filters=[{"id": "delta"}]),
        zarr2(compressor={"id": "gzip", "level": 1}),
        zarr2(compressor={"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}),
        zarr3(codecs=[BIG, ZSTD]),
        zarr3(codecs=[LITTLE, {"name": "gzip", "configuration": {"level": 1}}]),
        zarr3(codecs=[{"name": "transpose", "configuration": {"order": [1, 0]}}, LITTLE]),
        {**zarr3(), "fill_value": "NaN"},
        zarr3("int4"),
    ],
    ids=lambda metadata: str(metadata.get("compressor") or metadata["codecs"])[:60],
)
def test_what_is_not_usual_is_left_to_tensorstore(metadata):
    assert codec_of(parse_format(metadata["zarr_format"], metadata)) is None


@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_chunk_is_refused(way):
    codec = codec_of(stored(WAYS[way]("float32"))[2])
    chunk = b"".join(codec.encode(np.ones(CHUNKS, np.float32)))
    twice = [] if way == "zarr 3, shards" else [chunk * 2]  # a shard may have more than its index
    zeros = [] if way.endswith("bare") else [bytes(len(chunk))]  # which are values there
    for damaged in (b"", chunk[:-1], chunk[1:], chunk + b"\0", *twice, *zeros):
        with pytest.raises(Undecodable):
            codec.decode(memoryview(damaged))
