"""TensorStore specs that open stored arrays."""

import asyncio
from collections.abc import Sequence
from functools import cache
from typing import Any

import tensorstore as ts
from etils import epath

from nnxconv.errors import DamagedCheckpoint
from nnxconv.storage.gcs import SCHEME, first_sentence, for_tensorstore, is_remote, prepare
from nnxconv.storage.zarr.formats import ArrayFormat


@cache
def context() -> ts.Context:
    """The TensorStore context of this process for all that is read once."""
    return new_context()


def new_context() -> ts.Context:
    """A TensorStore context: few threads, so that memory stays bounded.

    Stores of one path that are opened with one context share what they know of it, for as long as
    any of them lives, which may be longer than the run that failed: each run has its own.

    Files are mapped, not read into buffers: a third less time for what is decoded. OCDBT's data
    files are never changed or cut in place, so that what is mapped stays there.
    """
    return ts.Context(
        {
            "cache_pool": {"total_bytes_limit": 0},
            "data_copy_concurrency": {"limit": 2},
            "file_io_concurrency": {"limit": 4},
            "file_io_mode": {"mode": "memmap"},
            "gcs_request_retries": for_tensorstore(),
        }
    )


def directory_spec(path: epath.Path) -> dict[str, Any]:
    """The key-value store of a plain directory, local or gs://."""
    text = path.as_posix().rstrip("/") + "/"
    if is_remote(text):
        prepare()
        bucket, _, prefix = text.removeprefix(SCHEME).partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": prefix}
    return {"driver": "file", "path": text}


def kvstore_spec(path: epath.Path, use_ocdbt: bool) -> dict[str, Any]:
    """The key-value store of an item: an OCDBT database, or a directory per array."""
    base = directory_spec(path)
    return {"driver": "ocdbt", "base": base} if use_ocdbt else base


OCDBT_CONFIG = {"max_inline_value_bytes": 1024, "max_decoded_node_bytes": 100_000_000}
"""What Orbax gives its merged databases; it refuses to merge into one that has other values."""


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
    kvstore: dict[str, Any], name: str, zarr_format: int, metadata: dict[str, Any]
) -> dict[str, Any]:
    """A TensorStore spec that opens a new array for writing, whose metadata need not be read.

    Every chunk is stored, whatever its values.
    """
    return {
        "driver": "zarr" if zarr_format == 2 else "zarr3",
        "kvstore": _within(kvstore, name),
        "metadata": {k: v for k, v in metadata.items() if k not in ("zarr_format", "node_type")},
        "store_data_equal_to_fill_value": True,
        "assume_metadata": True,
    }


def _within(kvstore: dict[str, Any], name: str) -> dict[str, Any]:
    return {**kvstore, "path": kvstore.get("path", "") + name + "/"}


async def all_done(futures: Sequence[ts.Future[Any]]) -> None:
    """Waits for many small operations in one thread, whether they fail or not.

    An event loop takes 0.1 ms for each future that it awaits.
    """
    await asyncio.to_thread(lambda: [future.exception() for future in futures])


def damaged(item: epath.Path, name: str, error: Exception) -> DamagedCheckpoint:
    """The error for an array that cannot be read; its cause in TensorStore's first sentence."""
    reason = first_sentence(error)
    return DamagedCheckpoint(f"array `{name}` cannot be read: {reason}", where=str(item))
