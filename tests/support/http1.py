"""HTTP/1.1 messages over one connection, their bodies in blocks; enough for a proxy."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

BLOCK_BYTES = 2**18


@dataclass
class Head:
    """The first line of a message, and its headers in lower case."""

    first: str
    headers: dict[str, str]

    @property
    def is_chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "")

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.first.split(" ")[1])

    def encode(self) -> bytes:
        lines = [self.first, *(f"{name}: {value}" for name, value in self.headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Stream:
    """One connection, of either side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, url: str) -> "Stream":
        split = urlsplit(url)
        return cls(*await asyncio.open_connection(split.hostname, split.port, limit=BLOCK_BYTES))

    async def read_head(self) -> Head | None:
        """None when the other side is done."""
        try:
            text = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = text.decode("latin-1").split("\r\n")[:-2]
        pairs = (line.partition(":") for line in lines)
        return Head(first, {name.lower(): value.strip() for name, _, value in pairs})

    async def body_of_request(self, head: Head) -> AsyncIterator[bytes]:
        """The blocks of a body, without the framing of chunks."""
        if head.is_chunked:
            async for block in self._chunks():
                yield block
        else:
            async for block in self._exactly(int(head.headers.get("content-length", "0"))):
                yield block

    async def body_of_answer(self, head: Head, method: str) -> AsyncIterator[bytes]:
        if method == "HEAD" or head.status in (204, 304):
            return
        if head.is_chunked or "content-length" in head.headers:
            async for block in self.body_of_request(head):
                yield block
        else:
            while block := await self._reader.read(BLOCK_BYTES):
                yield block

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int((await self._reader.readline()).split(b";")[0], 16):
            async for block in self._exactly(size):
                yield block
            await self._reader.readline()
        while (await self._reader.readline()).strip():
            pass  # trailers

    async def _exactly(self, size: int) -> AsyncIterator[bytes]:
        while size:
            block = await self._reader.read(min(size, BLOCK_BYTES))
            if not block:
                raise EOFError
            size -= len(block)
            yield block

    def write(self, content: bytes) -> None:
        """Sends something small."""
        self._writer.write(content)

    async def write_block(self, head: Head, block: bytes) -> None:
        """Sends a block of the body that `head` announced, when the other side takes it."""
        if head.is_chunked and block:
            block = f"{len(block):x}\r\n".encode() + block + b"\r\n"
        self.write(block)
        await self._writer.drain()

    def end_body(self, head: Head) -> None:
        if head.is_chunked:
            self.write(b"0\r\n\r\n")

    def reset(self) -> None:
        """Breaks the connection, so that the other side gets an error and not an end."""
        at_once = struct.pack("ii", 1, 0)
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError, asyncio.CancelledError):
            await self._writer.wait_closed()
