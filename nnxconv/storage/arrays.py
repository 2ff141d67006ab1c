"""Stored arrays: their format on disk, and TensorStore specs that open them."""

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath

from nnxconv.errors import DamagedCheckpoint
from nnxconv.views import Shape

ZARR2_FILE = ".zarray"
ZARR3_FILE = "zarr.json"
SHARDING = "sharding_indexed"


@dataclass(frozen=True)
class ArrayFormat:
    """How one array is stored.

    Attributes:
      zarr_format: 2 or 3.
      metadata: the contents of `.zarray` or `zarr.json`.
      shape: of the array.
      dtype: numpy or ml_dtypes name.
      chunks: shape of the piece that is decoded at once (the inner chunk of a sharded array).
    """

    zarr_format: int
    metadata: dict[str, Any]
    shape: Shape
    dtype: str
    chunks: Shape


def parse_format(zarr_format: int, metadata: dict[str, Any]) -> ArrayFormat:
    """The format that a `.zarray` or `zarr.json` describes.

    Raises:
      KeyError, TypeError, ValueError: it describes none.
    """
    shape = tuple(int(size) for size in metadata["shape"])
    if zarr_format == 2:
        chunks = metadata["chunks"]
        dtype = _zarr2_dtype(metadata["dtype"])
    else:
        sharding = _sharding_codec(metadata)
        grid = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        chunks = sharding["configuration"]["chunk_shape"] if sharding else grid
        dtype = np.dtype(metadata["data_type"]).name
    if len(chunks) != len(shape) or any(size < 0 for size in shape):
        raise ValueError(f"shape {shape} with chunks {chunks}")
    return ArrayFormat(zarr_format, metadata, shape, dtype, tuple(int(size) for size in chunks))


def _zarr2_dtype(name: str) -> str:
    """`<f4` as `float32`; names such as `bfloat16` as they are."""
    return np.dtype(name).newbyteorder("=").name


def _sharding_codec(metadata: dict[str, Any]) -> dict[str, Any] | None:
    return next((codec for codec in metadata["codecs"] if codec["name"] == SHARDING), None)


def target_metadata(model: ArrayFormat, shape: Shape, dtype: str, chunks: Shape) -> dict[str, Any]:
    """The metadata of a new array that is compressed and packed as `model` is."""
    metadata = copy.deepcopy(model.metadata)
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
    metadata.pop("dimension_names", None)
    return metadata


def _zarr2_name(dtype: str) -> str:
    kind = np.dtype(dtype)
    return dtype if kind.kind == "V" or not kind.isbuiltin else kind.str


def _zero(dtype: str) -> Any:
    if dtype == "bool":
        return False
    return [0.0, 0.0] if dtype.startswith("complex") else 0


@cache
def context() -> ts.Context:
    """The one TensorStore context of this process: few threads, so that memory stays bounded."""
    return ts.Context(
        {
            "cache_pool": {"total_bytes_limit": 0},
            "data_copy_concurrency": {"limit": 2},
            "file_io_concurrency": {"limit": 4},
        }
    )


def directory_spec(path: epath.Path) -> dict[str, Any]:
    """The key-value store of a plain directory, local or gs://."""
    text = path.as_posix().rstrip("/") + "/"
    if text.startswith("gs://"):
        bucket, _, prefix = text.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": prefix}
    return {"driver": "file", "path": text}


def kvstore_spec(path: epath.Path, use_ocdbt: bool) -> dict[str, Any]:
    """The key-value store of an item: an OCDBT database, or a directory per array."""
    base = directory_spec(path)
    return {"driver": "ocdbt", "base": base} if use_ocdbt else base


def array_spec(item: epath.Path, use_ocdbt: bool, name: str, array: ArrayFormat) -> dict[str, Any]:
    """A TensorStore spec that opens a stored array for reading; a missing chunk is an error."""
    return {
        "driver": "zarr" if array.zarr_format == 2 else "zarr3",
        "kvstore": _within(kvstore_spec(item, use_ocdbt), name),
        "recheck_cached_data": False,
        "recheck_cached_metadata": False,
        "fill_missing_data_reads": False,
    }


def new_array_spec(
    item: epath.Path, use_ocdbt: bool, name: str, zarr_format: int, metadata: dict[str, Any]
) -> dict[str, Any]:
    """A TensorStore spec that creates an array; every chunk is stored, whatever its values."""
    return {
        "driver": "zarr" if zarr_format == 2 else "zarr3",
        "kvstore": _within(kvstore_spec(item, use_ocdbt), name),
        "metadata": {k: v for k, v in metadata.items() if k not in ("zarr_format", "node_type")},
        "store_data_equal_to_fill_value": True,
    }


def _within(kvstore: dict[str, Any], name: str) -> dict[str, Any]:
    return {**kvstore, "path": kvstore.get("path", "") + name + "/"}


def damaged(item: epath.Path, name: str, error: Exception) -> DamagedCheckpoint:
    """The error for an array that cannot be read; its cause in TensorStore's first sentence."""
    reason = str(error).split(" [")[0].splitlines()[0]
    return DamagedCheckpoint(f"array `{name}` cannot be read: {reason}", where=str(item))
