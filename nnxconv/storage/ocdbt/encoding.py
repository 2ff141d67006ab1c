"""What OCDBT's manifest and nodes are wrapped in, and the numbers that they consist of.

```
magic  length  version  compression  body                          CRC-32C
4      8       varint   varint       as it is, or one zstd frame   4 bytes
```

Integers of a fixed size have their least significant byte first. The layout is that of
TensorStore's documentation, "OCDBT storage format"
(https://google.github.io/tensorstore/kvstore/ocdbt/index.html#storage-format).
"""

import google_crc32c
import numpy as np
import zstandard

MAX_NUMBER = 2**64 - 1
_MAX_NUMBER_BYTES = 10
_TOO_LARGE = "it has a number of more than 64 bits"
_PIECE_BYTES = 2**10
"""Of a zstd frame; each decompresses to 32 MiB at most."""


class Body:
    """Bytes that are read from their start to their end; too few of them are a ValueError."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    @property
    def left(self) -> int:
        """How many bytes there still are."""
        return len(self._content) - self._position

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > self.left:
            raise ValueError("it ends too soon")
        start, self._position = self._position, self._position + count
        return self._content[start : self._position]

    def byte(self) -> int:
        """The next byte, as a number."""
        return self.take(1)[0]

    def varint(self) -> int:
        """The next number of up to 64 bits."""
        return self.varints(1)[0]

    def varints(self, count: int) -> list[int]:
        """The next numbers: each has seven bits a byte, and an eighth where it goes on."""
        if count > self.left:
            raise ValueError("it ends too soon")
        column = self._content[self._position : self._position + count]
        if column.isascii():  # each number has one byte, as in most columns
            self._position += count
            return list(column)
        at_most = min(count * _MAX_NUMBER_BYTES, self.left)
        window = np.frombuffer(self._content, np.uint8, at_most, self._position)
        ends = np.flatnonzero(window < 0x80)[:count] + 1
        if len(ends) < count:
            long = at_most == count * _MAX_NUMBER_BYTES
            raise ValueError(_TOO_LARGE if long else "it ends too soon")
        self._position += int(ends[-1])
        return _numbers(window[: ends[-1]], ends)

    def count(self, limit: int) -> int:
        """A number of entries, of which each takes a byte or more."""
        count = self.varint()
        if count > min(limit, self.left):
            raise ValueError(f"it cannot have {count} entries")
        return count

    def end(self) -> None:
        """Refuses bytes that are left."""
        if self.left:
            raise ValueError(f"it has {self.left} bytes too many")


def _numbers(content: np.ndarray, ends: np.ndarray) -> list[int]:
    """The numbers that end before each of `ends`; the first byte has the lowest bits."""
    starts = np.concatenate(([0], ends[:-1]))
    nbytes = ends - starts
    is_longest = nbytes == _MAX_NUMBER_BYTES
    if nbytes.max() > _MAX_NUMBER_BYTES or (content[ends[is_longest] - 1] > 1).any():
        raise ValueError(_TOO_LARGE)
    shifts = 7 * (np.arange(len(content)) - np.repeat(starts, nbytes))
    bits = (content & 0x7F).astype(np.uint64) << shifts.astype(np.uint64)
    return np.bitwise_or.reduceat(bits, starts).tolist()


def unwrap(encoded: bytes, magic: bytes, max_bytes: int) -> Body:
    """The body, decompressed.

    Raises:
      ValueError: it begins with other bytes, is damaged, or has more than `max_bytes`.
    """
    if len(encoded) < 16:
        raise ValueError(f"it has only {len(encoded)} bytes")
    if encoded[:4] != magic:
        raise ValueError(f"it begins with `{encoded[:4].hex()}`, not `{magic.hex()}`")
    length = int.from_bytes(encoded[4:12], "little")
    if length != len(encoded):
        raise ValueError(f"it has {len(encoded)} bytes, but says {length}")
    if google_crc32c.value(encoded[:-4]) != int.from_bytes(encoded[-4:], "little"):
        raise ValueError("the checksum differs")
    outer = Body(encoded[12:-4])
    if (version := outer.varint()) != 0:
        raise ValueError(f"its version is {version}, which is not supported")
    if (compression := outer.varint()) > 1:
        raise ValueError(f"its compression is {compression}, which is not supported")
    content = outer.take(outer.left)
    if compression:
        return Body(_decompress(content, max_bytes))
    _refuse_more(content, max_bytes)
    return Body(content)


def _decompress(compressed: bytes, max_bytes: int) -> bytes:
    """One zstd frame, and nothing after it."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    content = bytearray()
    try:
        for start in range(0, len(compressed), _PIECE_BYTES):
            if frame.eof:
                raise ValueError("it has bytes after its compressed body")
            content += frame.decompress(compressed[start : start + _PIECE_BYTES])
            _refuse_more(content, max_bytes)
    except zstandard.ZstdError as error:
        raise ValueError("it cannot be decompressed") from error
    if not frame.eof:
        raise ValueError("its compressed body ends too soon")
    if frame.unused_data:
        raise ValueError("it has bytes after its compressed body")
    return bytes(content)


def _refuse_more(content: bytes | bytearray, max_bytes: int) -> None:
    if len(content) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes} bytes")
