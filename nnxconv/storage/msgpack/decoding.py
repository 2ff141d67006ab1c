"""Decode msgpack as flax.serialization writes it, without running or copying anything.

```
mapping, list, text, number, bool, nil      as msgpack has them
ext 1                                       an array: msgpack of [shape, name of the type, bytes]
ext 3                                       a numpy scalar: the same
{"__msgpack_chunked_array__": true,         an array of more than 1 GiB: flat parts, in order
 "shape": {"0": n, ...}, "chunks": {"0": part, ...}}
```

Sources: https://github.com/msgpack/msgpack/blob/master/spec.md; flax/serialization.py.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np
from etils import epath

from nnxconv.errors import DamagedCheckpoint
from nnxconv.tree import Key, Shape, item_bytes, spell

_DEEPEST = 64
_MOST_NODES = 10_000_000
_CHUNKED = "__msgpack_chunked_array__"


@dataclass(frozen=True)
class Array:
    """An array in the file.

    Attributes:
      dtype: numpy or ml_dtypes name.
      shape: of the array.
      parts: offset and length of each run of its bytes, in C order.
    """

    dtype: str
    shape: Shape
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Empty:
    """A mapping or sequence of nothing."""

    kind: str


Value = Array | Empty | str | int | float | bool | None


def read_tree(file: epath.Path) -> dict[Key, Value]:
    """The leaves of a file's tree by key; elements of lists have ints in it.

    Raises:
      DamagedCheckpoint: it is no msgpack tree of arrays.
    """
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as m:
            decoder = _Decoder(m)
            tree = decoder.value(0)
            if decoder.at != len(m):
                raise ValueError(f"it goes on after {decoder.at:,} of {len(m):,} bytes")
            if not isinstance(tree, dict):
                raise ValueError("it holds no mapping")
            if not tree:
                raise ValueError("it holds nothing")
            found: dict[Key, Value] = {}
            _flatten(tree, (), found)
            return found
    except (ValueError, TypeError, LookupError, struct.error, UnicodeDecodeError) as error:
        raise DamagedCheckpoint(
            f"`{file}` is not a msgpack tree of Flax: {error}", hint="copy or write it again"
        ) from error


def _flatten(value: Any, key: Key, found: dict[Key, Value]) -> None:
    if isinstance(value, dict) and _CHUNKED in value:
        found[key] = _joined(value)
    elif isinstance(value, dict) and value:
        for name, inner in value.items():
            _flatten(inner, (*key, name), found)
    elif isinstance(value, list) and value:
        for place, inner in enumerate(value):
            _flatten(inner, (*key, place), found)
    elif isinstance(value, dict | list):
        found[key] = Empty("Dict" if isinstance(value, dict) else "List")
    elif isinstance(value, range):
        raise ValueError(f"`{spell(key)}` is bytes, and no array")
    else:
        found[key] = value


def _joined(value: Mapping[str, Any]) -> Array:
    """A large array of its flat parts."""
    if not all(isinstance(value.get(name), dict) for name in ("shape", "chunks")):
        raise ValueError("a large array has no parts")
    shape = tuple(value["shape"][str(axis)] for axis in range(len(value["shape"])))
    chunks = [value["chunks"][str(number)] for number in range(len(value["chunks"]))]
    if not chunks or not all(isinstance(chunk, Array) for chunk in chunks):
        raise ValueError("a large array has no parts")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("a large array has no shape")
    parts = tuple(part for chunk in chunks for part in chunk.parts)
    _check(chunks[0].dtype, shape, sum(length for _, length in parts))
    if len({chunk.dtype for chunk in chunks}) > 1:
        raise ValueError("the parts of a large array differ in their type")
    return Array(chunks[0].dtype, shape, parts)


def _check(dtype: str, shape: Shape, nbytes: int) -> None:
    wanted = math.prod(shape) * item_bytes(dtype)
    if wanted != nbytes:
        raise ValueError(f"{nbytes:,} bytes for {dtype}{list(shape)}, which has {wanted:,}")


_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_LENGTHS = {
    0xC4: ("bin", 1),
    0xC5: ("bin", 2),
    0xC6: ("bin", 4),
    0xC7: ("ext", 1),
    0xC8: ("ext", 2),
    0xC9: ("ext", 4),
    0xD9: ("str", 1),
    0xDA: ("str", 2),
    0xDB: ("str", 4),
    0xDC: ("list", 2),
    0xDD: ("list", 4),
    0xDE: ("map", 2),
    0xDF: ("map", 4),
}


class _Decoder:
    """Values of a buffer, one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.at = 0
        self._nodes = 0

    def value(self, depth: int) -> Any:
        """The value that begins at `at`, which is then behind it."""
        self._nodes += 1
        if depth > _DEEPEST or self._nodes > _MOST_NODES:
            raise ValueError("it is nested too deeply, or holds too much")
        first = self._byte()
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 0x100
        if first < 0x90:
            return self._map(first & 0x0F, depth)
        if first < 0xA0:
            return self._list(first & 0x0F, depth)
        if first < 0xC0:
            return self._text(first & 0x1F)
        if first in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[first]
        if first in _NUMBERS:
            return self._number(_NUMBERS[first])
        if 0xD4 <= first <= 0xD8:
            return self._extension(1 << (first - 0xD4), depth)
        if first not in _LENGTHS:
            raise ValueError(f"the byte {first:#x} at {self.at - 1:,} begins no value")
        kind, width = _LENGTHS[first]
        length = self._number({1: ">B", 2: ">H", 4: ">I"}[width])
        match kind:
            case "map":
                return self._map(length, depth)
            case "list":
                return self._list(length, depth)
            case "str":
                return self._text(length)
            case "ext":
                return self._extension(length, depth)
        start = self._skip(length)
        return range(start, start + length)

    def _byte(self) -> int:
        return self._data[self._skip(1)]

    def _skip(self, length: int) -> int:
        """Where the next bytes begin, which are then behind."""
        start = self.at
        if start + length > len(self._data):
            raise ValueError(f"it ends within a value at {start:,}")
        self.at = start + length
        return start

    def _number(self, code: str) -> Any:
        start = self._skip(struct.calcsize(code))
        return struct.unpack_from(code, self._data, start)[0]

    def _text(self, length: int) -> str:
        start = self._skip(length)
        return self._data[start : start + length].decode()

    def _map(self, count: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(count):
            name = self.value(depth + 1)
            if isinstance(name, int) and not isinstance(name, bool):
                name = str(name)
            if not isinstance(name, str) or name in found:
                raise ValueError(f"a mapping has {'a name twice' if name in found else 'no names'}")
            found[name] = self.value(depth + 1)
        return found

    def _list(self, count: int, depth: int) -> list[Any]:
        return [self.value(depth + 1) for _ in range(count)]

    def _extension(self, length: int, depth: int) -> Array:
        kind = self._number(">b")
        end = self.at + length
        if kind not in (1, 3):
            raise ValueError(f"extension {kind} at {self.at:,} is no array")
        inner = self.value(depth + 1)
        if self.at != end or not isinstance(inner, list) or len(inner) != 3:
            raise ValueError(f"the array that ends at {end:,} is not described as Flax does")
        shape, name, data = inner
        dtype = _dtype(name)
        if not isinstance(shape, list) or not isinstance(data, range):
            raise ValueError(f"the array that ends at {end:,} has no shape or no bytes")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"the array that ends at {end:,} has a shape of no sizes")
        _check(dtype, tuple(shape), len(data))
        return Array(dtype, tuple(shape), ((data.start, len(data)),))


def _dtype(name: Any) -> str:
    """A type by its name, of numbers only."""
    if not isinstance(name, str):
        raise ValueError("the type of an array is no name")
    if name == "V2":  # what older numpy calls bfloat16
        return "bfloat16"
    try:
        found = np.dtype(name)
    except (TypeError, ValueError, SyntaxError) as error:
        raise ValueError(f"the type `{name[:40]}` is not known") from error
    if found.kind in "OSUmM":
        raise ValueError(f"the type `{name}` is not one of numbers")
    if not found.isnative:
        raise ValueError(f"the type `{name}` has its bytes in another order")
    return found.name
