"""Checksums as the server tells them: CRC32C, big-endian, in base64."""

from base64 import b64encode
from pathlib import Path

import google_crc32c

_BLOCK_BYTES = 2**22


def crc32c_of(content: bytes) -> str:
    """The checksum of bytes.

    >>> crc32c_of(b"123456789")
    '4waSgw=='
    """
    return _told(google_crc32c.value(content))


def file_crc32c(file: Path) -> str:
    """The checksum of a local file."""
    found = 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            found = google_crc32c.extend(found, block)
    return _told(found)


def _told(checksum: int) -> str:
    return b64encode(checksum.to_bytes(4, "big")).decode()
