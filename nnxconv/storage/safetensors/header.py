"""The header of a safetensors file, checked as the format's specification demands.

```
8 bytes      n, little-endian
n bytes      JSON: {"NAME": {"dtype": "F32", "shape": [16, 32], "data_offsets": [0, 2048]}, ...,
             "__metadata__": {"format": "pt"}}
the rest     the arrays' bytes, C order, little-endian, end to end, without holes
```

Source: https://github.com/huggingface/safetensors, README, "Format".
"""

import errno
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from nnxconv.errors import DamagedCheckpoint
from nnxconv.storage.files import refuse_halves
from nnxconv.storage.gcs import is_remote, object_at, read_part
from nnxconv.tree import Shape, item_bytes

METADATA = "__metadata__"
MAX_HEADER_BYTES = 100_000_000
"""More is no safetensors file."""

DTYPES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
NAMES: Mapping[str, str] = {ours: theirs for theirs, ours in DTYPES.items()}
"""What the format calls our types."""

_ITEM_BYTES = {ours: item_bytes(ours) for ours in NAMES}

CHUNK_BYTES = 16 * 2**20
"""About how much of an array is read at once."""


class Tensor(NamedTuple):
    """Where an array's bytes are.

    Attributes:
      dtype: numpy or ml_dtypes name.
      shape: of the array.
      file: name of the file in its folder.
      start: offset of its first byte in the file.
    """

    dtype: str
    shape: Shape
    file: str
    start: int

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


def read_header(path: epath.Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The arrays of a file, by name, and its free metadata.

    Raises:
      DamagedCheckpoint: it is not what the specification says.
    """
    try:
        size, text = _text_in_bucket(path) if is_remote(path) else _text(path)
        return _parsed(text, path.name, 8 + len(text), size)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedCheckpoint(
            f"`{path}` is not a safetensors file: {_reason(error)}",
            hint="download or write it again",
        ) from error


def _text(path: epath.Path) -> tuple[int, bytes]:
    """The bytes of a file, and its header."""
    with path.open("rb") as stream:
        size = path.stat().length
        return size, stream.read(_header_bytes(stream.read(8), size))


_FIRST_BYTES = 2**18
"""How much of an object is asked for at first: the header of most is in it."""


def _text_in_bucket(path: epath.Path) -> tuple[int, bytes]:
    """The same of an object, in two requests, or three where its header is long."""
    found = object_at(path)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "there is no such object", path.as_posix())
    size = found.nbytes
    first = read_part(path, 0, min(_FIRST_BYTES, size)) if size else b""
    length = _header_bytes(first, size)
    text = first[8 : 8 + length]
    if len(text) < length:
        text += read_part(path, 8 + len(text), length - len(text))
    return size, text


def _header_bytes(first: bytes, size: int) -> int:
    """How many bytes the header has of a file that begins so.

    Raises:
      ValueError: more than it may have.
    """
    length = int.from_bytes(first[:8], "little")
    if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise ValueError(f"its header would have {length:,} of {size:,} bytes")
    return length


def _reason(error: Exception) -> str:
    match error:
        case RecursionError():
            return "its header is nested too deeply"
        case json.JSONDecodeError():
            return f"its header is not JSON: {error.msg}"
        case UnicodeDecodeError():
            return "its header is not UTF-8"
        case KeyError():
            return f"its header has no {error}"
    return str(error)


_LARGE_HEADER = 8 * 2**20
_COMMAS_PER_TENSOR = 48


def _parsed(
    text: bytes, file: str, begin: int, size: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    most = _COMMAS_PER_TENSOR * text.count(b'"data_offsets"')
    if len(text) > _LARGE_HEADER and text.count(b",") > most:  # lists take many times their text
        raise ValueError("its header holds more than arrays")
    header = json.loads(text.decode(), object_pairs_hook=_without_doubles)
    if b"\\ud" in text.lower():
        refuse_halves(header)
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"`{METADATA}` holds more than texts")
    tensors = {name: _tensor(name, entry, file, begin) for name, entry in header.items()}
    _refuse_holes(tensors, header, size - begin)
    return tensors, metadata


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _tensor(name: str, entry: Any, file: str, begin: int) -> Tensor:
    if not isinstance(entry, dict):
        raise ValueError(f"`{name}` is described by no mapping")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"`{name}` has the type `{dtype}`, which is not known")
    for field, sizes in (("shape", shape), ("data_offsets", offsets)):
        if not _are_sizes(sizes):
            raise ValueError(f"`{field}` of `{name}` is no list of sizes")
    start, stop = offsets
    found = Tensor(DTYPES[dtype], tuple(shape), file, begin + start)
    if stop - start != found.nbytes:
        raise ValueError(f"`{name}` has {stop - start:,} bytes instead of {found.nbytes:,}")
    return found


def _are_sizes(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return not value or (set(map(type, value)) == {int} and 0 <= min(value) <= max(value) < 2**63)


def _refuse_holes(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], data_bytes: int
) -> None:
    """Refuses arrays that overlap, holes between them, and a file that ends before or after."""
    at = 0
    for start, stop, name in sorted((*header[name]["data_offsets"], name) for name in tensors):
        if start != at:
            told = "overlaps with another array" if start < at else "has a hole before it"
            raise ValueError(f"`{name}` {told}")
        at = stop
    if at != data_bytes:
        told = "is cut off" if at > data_bytes else "goes on after its arrays"
        raise ValueError(f"it {told}: {data_bytes:,} bytes of data instead of {at:,}")


def chunks_of(shape: Shape, dtype: str) -> Shape:
    """A grid of runs of bytes that are read at once: equal parts of the first axes.

    >>> chunks_of((8, 1024, 4096), "float32"), chunks_of((), "float32")
    ((1, 1024, 4096), ())
    """
    chunks = [1] * len(shape)
    if 0 in shape:
        return tuple(chunks)
    inner = item_bytes(dtype)
    for axis in reversed(range(len(shape))):
        size = shape[axis]
        chunks[axis] = _largest_part(size, CHUNK_BYTES // inner)
        if chunks[axis] < size:
            break
        inner *= max(1, size)
    return tuple(chunks)


def _largest_part(size: int, most: int) -> int:
    """The largest divisor of a size that is at most this number, and at least 1."""
    if size <= max(most, 1):
        return max(size, 1)
    return max(
        d
        for n in range(1, math.isqrt(size) + 1)
        for d in (n, size // n)
        if size % n == 0 and d <= max(most, 1)
    )
