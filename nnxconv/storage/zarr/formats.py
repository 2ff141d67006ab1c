"""How one array is stored, as its `.zarray` or `zarr.json` says. Reads nothing."""

import copy
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from nnxconv.tree import Shape, item_bytes

ZARR2_FILE = ".zarray"
ZARR3_FILE = "zarr.json"
RAW = 0
"""In the place of zarr's version: the bytes of all elements in C order, in the middle of a file."""
SHARDING = "sharding_indexed"


@dataclass(frozen=True)
class ArrayFormat:
    """How one array is stored.

    Attributes:
      zarr_format: 2 or 3, or `RAW`.
      metadata: the contents of `.zarray` or `zarr.json`; of raw bytes the `file` and its `parts`
        that hold them, by offset and length, or the `value` of a number.
      shape: of the array.
      dtype: numpy or ml_dtypes name.
      chunks: shape of the piece that is decoded at once (the inner chunk of a sharded array).
    """

    zarr_format: int
    metadata: dict[str, Any]
    shape: Shape
    dtype: str
    chunks: Shape

    @cached_property
    def chunk_count(self) -> int:
        """How many chunks the array has."""
        pairs = zip(self.shape, self.chunks, strict=True)
        return math.prod(-(-size // max(1, chunk)) for size, chunk in pairs)


@dataclass(frozen=True)
class Compression:
    """zstd at a level; without one, chunks are stored as they are."""

    level: int | None = None


@dataclass(frozen=True)
class Container:
    """How a target keeps its arrays.

    Attributes:
      use_ocdbt: in one database, or in a directory each.
      use_zarr3: in zarr 3, or in zarr 2.
      model: arrays that come from elsewhere than `store` are compressed and packed as this one.
      store: path of the item whose container it is; its arrays keep their compressors.
      compression: of all chunks that are encoded, instead; chunks that are not stay as they are.
    """

    use_ocdbt: bool
    use_zarr3: bool
    model: ArrayFormat
    store: str = ""
    compression: Compression | None = None


def parse_format(zarr_format: int, metadata: dict[str, Any]) -> ArrayFormat:
    """The format that a `.zarray` or `zarr.json` describes.

    Raises:
      KeyError, TypeError, ValueError: it describes none.
    """
    shape = _sizes(metadata["shape"])
    if zarr_format == 2:
        chunks = metadata["chunks"]
        dtype = _dtype_name(metadata["dtype"])
    else:
        sharding = _sharding_codec(metadata)
        grid = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        chunks = sharding["configuration"]["chunk_shape"] if sharding else grid
        dtype = _dtype_name(metadata["data_type"])
    found = ArrayFormat(zarr_format, metadata, shape, dtype, _sizes(chunks))
    _check_chunks(found)
    compressor(found)  # raises where the codecs are not what zarr has
    encoding(found)
    return found


def _sizes(value: Any) -> Shape:
    """A list of sizes; JSON may hold anything."""
    if not isinstance(value, list) or len(value) > _MOST_AXES:
        raise ValueError(f"{_short(value)} is not a list of at most {_MOST_AXES} sizes")
    for size in value:
        if type(size) is not int or not 0 <= size <= _LONGEST_AXIS:
            raise ValueError(f"{_short(size)} is not the size of an axis")
    return tuple(value)


def _short(value: Any) -> str:
    text = str(value) if type(value) is not int or value.bit_length() < 128 else "a huge number"
    return f"`{text[:40]}`"


_MOST_AXES = 32
"""Of an array of TensorStore."""

_LONGEST_AXIS = 2**62 - 2
"""The same."""


def check_array(shape: Shape, dtype: str) -> None:
    """Refuses what is no shape or type of an array, wherever it stands.

    Raises:
      ValueError: why not.
    """
    _sizes(list(shape))
    if dtype in ("float128", "complex256"):
        raise ValueError(f"the element type `{dtype}` is not known")


_EMPTY_BYTES = 2**26
"""How much larger than its whole array a chunk may be: decoding one takes so much more memory."""


def _check_chunks(array: ArrayFormat) -> None:
    """Refuses chunks that no writer makes, and keys of chunks that lead elsewhere."""
    if len(array.chunks) != len(array.shape):
        raise ValueError(f"shape {array.shape} with chunks {array.chunks}")
    if any(size and not chunk for size, chunk in zip(array.shape, array.chunks, strict=True)):
        raise ValueError(f"chunks {array.chunks} have no elements")
    whole, chunk = (math.prod(s) * item_bytes(array.dtype) for s in (array.shape, array.chunks))
    if chunk > whole + _EMPTY_BYTES:
        raise ValueError(f"chunks {array.chunks} are larger than the shape {array.shape}")
    told = array.metadata.get("chunk_key_encoding", {})
    names = told.get("name", "default"), type(told.get("configuration", {}))
    if names not in (("default", dict), ("v2", dict)):
        raise ValueError("chunks are named in a way that is not known")
    separators = (
        array.metadata.get("dimension_separator", "."),
        told.get("configuration", {}).get("separator", "/"),
    )
    for separator in separators:
        if separator not in (".", "/"):
            raise ValueError(f"chunks are named with {_short(separator)} between numbers")


@cache
def _dtype_name(name: str) -> str:
    """`<f4` as `float32`; names such as `bfloat16` as they are."""
    try:
        dtype = np.dtype(name)
    except (TypeError, SyntaxError) as error:
        raise ValueError(f"the element type `{name}` is not known") from error
    if dtype.kind in "VOSUmM" and dtype.isbuiltin != 2:
        raise ValueError(f"the element type `{name}` is not one of numbers")
    return dtype.newbyteorder("=").name


def _sharding_codec(metadata: dict[str, Any]) -> dict[str, Any] | None:
    return next((codec for codec in metadata["codecs"] if codec["name"] == SHARDING), None)


_MEMBERS = {
    2: ("zarr_format", "compressor", "dimension_separator", "dtype", "fill_value", "filters"),
    3: (
        *("zarr_format", "node_type", "attributes", "chunk_grid", "chunk_key_encoding"),
        *("codecs", "data_type", "fill_value"),
    ),
}
"""What an array's metadata may have besides what is its own; all else says nothing of values."""


def target_metadata(model: ArrayFormat, shape: Shape, dtype: str, chunks: Shape) -> dict[str, Any]:
    """The metadata of a new array that is compressed and packed as `model` is."""
    members = _MEMBERS[model.zarr_format]
    metadata = copy.deepcopy({k: v for k, v in model.metadata.items() if k in members})
    metadata["shape"] = list(shape)
    if model.zarr_format == 2:
        metadata |= {"chunks": list(chunks), "order": "C"}
        if dtype != model.dtype:
            metadata |= {"dtype": _zarr2_name(dtype), "fill_value": None}
        return metadata
    metadata["chunk_grid"]["configuration"]["chunk_shape"] = list(chunks)
    metadata["codecs"] = [codec for codec in metadata["codecs"] if codec["name"] != "transpose"]
    sharding = _sharding_codec(metadata)
    if sharding:
        sharding["configuration"]["chunk_shape"] = list(chunks)
    if dtype != model.dtype:
        metadata |= {"data_type": dtype, "fill_value": _zero(dtype)}
    return metadata


def _zarr2_name(dtype: str) -> str:
    kind = np.dtype(dtype)
    return dtype if kind.kind == "V" or not kind.isbuiltin else kind.str


def _zero(dtype: str) -> Any:
    if dtype == "bool":
        return False
    return [0.0, 0.0] if dtype.startswith("complex") else 0


def compressor(array: ArrayFormat) -> str:
    """What compresses an array: `zstd level 1`, `gzip`, `none`."""
    if array.zarr_format == RAW:
        return "none"
    if array.zarr_format == 2:
        found = array.metadata.get("compressor")
        return "none" if not found else _with_level(found["id"], found.get("level"))
    codecs = array.metadata["codecs"]
    sharding = _sharding_codec(array.metadata)
    inner = sharding["configuration"]["codecs"] if sharding else codecs
    for codec in inner:
        if codec["name"] in ("zstd", "gzip", "blosc"):
            return _with_level(codec["name"], codec.get("configuration", {}).get("level"))
    return "none"


def _with_level(name: str, level: int | None) -> str:
    return name if level is None else f"{name} level {level}"


def encoding(array: ArrayFormat) -> str:
    """How the chunks are encoded, as text; empty where a stored object is not one C-order chunk."""
    metadata = array.metadata
    if array.zarr_format == 2:
        if metadata.get("order", "C") != "C":
            return ""
        return repr((2, metadata["dtype"], metadata.get("compressor"), metadata.get("filters")))
    grid = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    if tuple(grid) != array.chunks:
        return ""
    codecs = [_without_shape(codec) for codec in metadata["codecs"]]
    return json.dumps([3, metadata["data_type"], codecs], sort_keys=True)


def _without_shape(codec: Mapping[str, Any]) -> Any:
    if codec["name"] != SHARDING:
        return codec
    inner = {k: v for k, v in codec["configuration"].items() if k != "chunk_shape"}
    return {"name": SHARDING, "configuration": inner}


def chunk_key(zarr_format: int, metadata: Mapping[str, Any], index: Shape) -> str:
    """The key of a chunk below the array's name: `0.1` in zarr 2, `c/0/1` in zarr 3."""
    if zarr_format == 2:
        return metadata.get("dimension_separator", ".").join(map(str, index)) or "0"
    told = metadata.get("chunk_key_encoding", {})
    is_v2 = told.get("name", "default") == "v2"
    separator = told.get("configuration", {}).get("separator", "." if is_v2 else "/")
    if is_v2:
        return separator.join(map(str, index)) or "0"
    return separator.join(["c", *map(str, index)])


def chunk_keys(array: ArrayFormat) -> list[str]:
    """The keys of all chunks of an array, in C order."""
    metadata = array.metadata
    counts = [
        -(-size // max(1, chunk)) for size, chunk in zip(array.shape, array.chunks, strict=True)
    ]
    if not counts:
        return [chunk_key(array.zarr_format, metadata, ())]
    first = chunk_key(array.zarr_format, metadata, (0,) * len(counts))
    separator = "." if "." in first else "/"
    begin = "c" + separator if first.startswith("c") else ""
    numbers = [list(map(str, range(count))) for count in counts]
    return [begin + separator.join(index) for index in itertools.product(*numbers)]


def _orbax_zarr3() -> ArrayFormat:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    zstd = {"name": "zstd", "configuration": {"level": 1}}
    inner = {
        "chunk_shape": [],
        "codecs": [little, zstd],
        "index_codecs": [little, {"name": "crc32c"}],
    }
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": []}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0.0,
        "codecs": [{"name": SHARDING, "configuration": inner}],
    }
    return parse_format(3, metadata)


ORBAX = Container(True, True, _orbax_zarr3())
"""What Orbax writes for MaxText: OCDBT, zarr 3, each chunk a shard; zstd at its quickest level."""
