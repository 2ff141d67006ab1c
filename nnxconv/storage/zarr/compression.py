"""What compresses new chunks, as `--compression` says it. Reads nothing."""

import copy
import re
from typing import Any

from nnxconv.errors import BadInput
from nnxconv.storage.zarr.formats import SHARDING, Compression

_LEVELS = range(1, 23)
"""Of zstd: the quickest is 1."""

_COMPRESSORS = ("zstd", "gzip", "blosc")


def parse_compression(text: str) -> Compression:
    """What `zstd:LEVEL` or `none` means.

    >>> parse_compression("zstd:3"), parse_compression("none")
    (Compression(level=3), Compression(level=None))

    Raises:
      BadInput: it is neither.
    """
    if text == "none":
        return Compression()
    told = re.fullmatch(r"zstd:([0-9]{1,2})", text)
    if told is None or int(told[1]) not in _LEVELS:
        raise BadInput(
            f"`{text}` is no compression",
            hint=f"`zstd:{_LEVELS[0]}` (quick) to `zstd:{_LEVELS[-1]}` (small), or `none`",
        )
    return Compression(int(told[1]))


def compressed(metadata: dict[str, Any], compression: Compression) -> dict[str, Any]:
    """The metadata of a new array, its chunks compressed in this way instead of its own."""
    metadata = copy.deepcopy(metadata)
    if metadata["zarr_format"] == 2:
        level = compression.level
        metadata["compressor"] = None if level is None else {"id": "zstd", "level": level}
        return metadata
    sharding = next((one for one in metadata["codecs"] if one["name"] == SHARDING), None)
    into = metadata if sharding is None else sharding["configuration"]
    into["codecs"] = _with(into["codecs"], compression)
    return metadata


def _with(codecs: list[dict[str, Any]], compression: Compression) -> list[dict[str, Any]]:
    """Codecs of which one compresses, right behind the one that makes bytes of elements."""
    others = [codec for codec in codecs if codec["name"] not in _COMPRESSORS]
    if compression.level is None:
        return others
    new = {"name": "zstd", "configuration": {"level": compression.level}}
    names = [codec["name"] for codec in others]
    place = names.index("bytes") + 1 if "bytes" in names else len(names)
    return [*others[:place], new, *others[place:]]
