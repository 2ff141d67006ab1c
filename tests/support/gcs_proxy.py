"""A proxy between a storage client and its server: it counts requests and injects faults.

```python
with Proxy(server_url) as proxy, proxy.recording() as traffic:
    with proxy.inject(Status(503), kind="upload", name="*/_METADATA", times=2):
        ...  # a client that was told `proxy.url`
    traffic.counts()  # Counter({"upload": 12, "list": 3})
```

In the tests' own process it takes a core's time from the client. For benchmarks there is
`in_its_own_process`, or
`python -m tests.support.gcs_proxy URL --bytes_per_second 2e8 --latency 0.02`, which prints its URL,
and then for each line on stdin the traffic since the last one.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.support.gcs_requests import Kind, Request, Traffic, describe
from tests.support.http1 import BLOCK_BYTES, Head, Stream


@dataclass(frozen=True)
class Status:
    """An error instead of the answer; the server never sees the request."""

    code: int
    message: str = "injected"


@dataclass(frozen=True)
class Reset:
    """The connection breaks: before the server sees the request, or instead of its answer."""

    is_answered: bool = False


@dataclass(frozen=True)
class Truncate:
    """The connection ends after a part of the answer's body."""

    part: float = 0.5


@dataclass(frozen=True)
class Delay:
    """The server sees the request later."""

    seconds: float


@dataclass(frozen=True)
class Flip:
    """One bit of the answer's body is another one; what the server says of it stays."""

    place: float = 0.5


@dataclass(frozen=True)
class Shorten:
    """The answer ends early, and says that it is complete."""

    part: float = 0.5


Fault = Status | Reset | Truncate | Delay | Flip | Shorten


@dataclass
class Injection:
    """A fault for chosen requests.

    Attributes:
      skip: how many of them are still left alone.
      times: how many of them fail after that; None for all.
      hits: those that failed.
    """

    fault: Fault
    fits: Callable[[Request], bool]
    skip: int
    times: int | None
    hits: list[Request] = field(default_factory=list)

    def takes(self, request: Request) -> bool:
        """True when this request shall fail."""
        if not self.fits(request) or len(self.hits) == self.times:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.hits.append(request)
        return True


class Proxy:
    """Serves on loopback in a thread of its own, from `with` on.

    Args:
      server_url: where requests go, such as `http://127.0.0.1:4443`.
      bytes_per_second: what all bodies together may take, in each direction.
      latency: seconds that every request waits before the server sees it.
    """

    def __init__(self, server_url: str, *, bytes_per_second: float = 0, latency: float = 0) -> None:
        self._server_url = server_url.rstrip("/")
        self._latency = latency
        self._up, self._down = _Link(bytes_per_second), _Link(bytes_per_second)
        self._injections: list[Injection] = []
        self._recordings: list[Traffic] = []
        self._watchers: list[Callable[[Request], object]] = []
        self._serving: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0, limit=BLOCK_BYTES)
        self._listener = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        self.url = f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._listener.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    @contextmanager
    def recording(self) -> Iterator[Traffic]:
        """The requests that arrive in the block."""
        traffic = Traffic()
        self._recordings.append(traffic)
        try:
            yield traffic
        finally:
            self._recordings = [other for other in self._recordings if other is not traffic]

    @contextmanager
    def watching(self, look: Callable[[Request], object]) -> Iterator[None]:
        """Calls `look` for each request before the server sees it; the others wait meanwhile."""
        self._watchers.append(look)
        try:
            yield
        finally:
            self._watchers.remove(look)

    @contextmanager
    def inject(
        self,
        fault: Fault,
        *,
        kind: Kind | tuple[Kind, ...] = (),
        name: str = "*",
        where: Callable[[Request], bool] = lambda _: True,
        skip: int = 0,
        times: int | None = None,
    ) -> Iterator[Injection]:
        """Lets requests fail in the block; of several that fit, the first counts.

        Args:
          fault: what happens to them.
          kind: only to those of these kinds.
          name: only to those whose `bucket/object` this glob fits.
          where: only to those for which this is true.
          skip: how many of them are left alone first.
          times: to how many of them after that; None for all.
        """
        kinds = (kind,) if isinstance(kind, str) else kind

        def fits(request: Request) -> bool:
            is_kind = not kinds or request.kind in kinds
            return is_kind and fnmatchcase(request.name, name) and where(request)

        injection = Injection(fault, fits, skip, times)
        self._injections.append(injection)
        try:
            yield injection
        finally:
            self._injections.remove(injection)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client, and one to the server for it."""
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)  # the loop itself would let go of it
        task.add_done_callback(self._serving.discard)
        client, server = Stream(reader, writer), await Stream.open(self._server_url)
        try:
            while head := await client.read_head():
                await self._answer(head, client, server)
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # either side is gone
        finally:
            await client.close()
            await server.close()

    async def _answer(self, head: Head, client: Stream, server: Stream) -> None:
        """Takes one request to the server, and its answer back."""
        method, target, _ = head.first.split(" ", 2)
        if head.headers.pop("expect", "").lower() == "100-continue":
            client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = client.body_of_request(head)
        first_block = await anext(body, b"")
        request = describe(method, target, first_block)
        request.started = time.monotonic()
        fault = self._fault_for(request)
        if seconds := self._latency + (fault.seconds if isinstance(fault, Delay) else 0):
            await asyncio.sleep(seconds)
        if fault == Reset():
            client.reset()
            raise EOFError
        sent = self._uploaded(request, first_block, body)
        if isinstance(fault, Status):
            async for _ in sent:
                pass
            request.status, request.ended = fault.code, time.monotonic()
            client.write(_error(fault))
        else:
            await self._forward(head, sent, server)
            await self._bring_back(request, fault, client, server)

    def _fault_for(self, request: Request) -> Fault | None:
        """Records and shows the request, and says whether it shall fail."""
        for traffic in self._recordings:
            traffic.requests.append(request)
        for look in self._watchers:
            look(request)
        taken = next((each for each in self._injections if each.takes(request)), None)
        request.is_faulty = taken is not None
        return taken.fault if taken else None

    async def _uploaded(
        self, request: Request, first_block: bytes, body: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        """A request's body, as fast as the link takes it."""
        block = first_block
        while block:
            await self._up.take(len(block))
            request.uploaded_bytes += len(block)
            yield block
            block = await anext(body, b"")

    async def _forward(self, head: Head, body: AsyncIterator[bytes], server: Stream) -> None:
        head.headers["host"] = self._server_url.partition("://")[2]
        server.write(head.encode())
        async for block in body:
            await server.write_block(head, block)
        server.end_body(head)

    async def _bring_back(
        self, request: Request, fault: Fault | None, client: Stream, server: Stream
    ) -> None:
        """The server's answer, with our URL in place of the server's."""
        head = await server.read_head()
        if head is None:
            raise EOFError
        body = server.body_of_answer(head, request.method)
        if request.kind != "read" and "json" in head.headers.get("content-type", ""):
            text = b"".join([block async for block in body])
            body = _whole(text.replace(self._server_url.encode(), self.url.encode()), head)
        if "location" in head.headers:
            location = head.headers["location"].replace(self._server_url, self.url)
            head.headers["location"] = location
        if fault == Reset(is_answered=True):
            async for _ in body:
                pass
            client.reset()
            raise EOFError
        if isinstance(fault, Flip | Shorten):
            content = b"".join([block async for block in body])
            body = _whole(_changed(content, fault), head)
        request.status, request.ended = head.status, time.monotonic()
        client.write(head.encode())
        end = int(_length(head) * fault.part) if isinstance(fault, Truncate) else None
        async for block in body:
            part = block if end is None else block[: end - request.downloaded_bytes]
            await self._down.take(len(part))
            request.downloaded_bytes += len(part)
            request.ended = time.monotonic()
            await client.write_block(head, part)
            if request.downloaded_bytes == end:
                raise EOFError
        client.end_body(head)


class _Link:
    """Lets so many bytes through in a second, whoever sends them."""

    def __init__(self, bytes_per_second: float) -> None:
        self._bytes_per_second = bytes_per_second
        self._free_at = 0.0

    async def take(self, nbytes: int) -> None:
        if self._bytes_per_second:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + nbytes / self._bytes_per_second
            await asyncio.sleep(self._free_at - now)


def _length(head: Head) -> int:
    """The length of an answer; 2 where it is sent in chunks, so that there is a half of it."""
    return int(head.headers.get("content-length", "2"))


def _changed(content: bytes, fault: Flip | Shorten) -> bytes:
    """A body with one other bit, or the first part of it."""
    if isinstance(fault, Shorten):
        return content[: int(len(content) * fault.part)]
    place = int(len(content) * fault.place)
    return (
        content[:place] + bytes([b ^ 1 for b in content[place : place + 1]]) + content[place + 1 :]
    )


def _whole(content: bytes, head: Head) -> AsyncIterator[bytes]:
    """A body in one block; its head says so."""
    head.headers.pop("transfer-encoding", None)
    head.headers["content-length"] = str(len(content))

    async def blocks() -> AsyncIterator[bytes]:
        yield content

    return blocks()


def _error(fault: Status) -> bytes:
    """An answer as Google Cloud Storage words its errors."""
    reasons = {401: "authError", 403: "forbidden", 404: "notFound", 429: "rateLimitExceeded"}
    reason = reasons.get(fault.code, "backendError")
    problem = {"domain": "global", "reason": reason, "message": fault.message}
    error = {"code": fault.code, "message": fault.message, "errors": [problem]}
    body = json.dumps({"error": error}).encode()
    headers = {"content-type": "application/json; charset=UTF-8", "content-length": str(len(body))}
    return Head(f"HTTP/1.1 {fault.code} Injected", headers).encode() + body


class Elsewhere:
    """A proxy in another process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.url = self._answer()

    def traffic(self) -> dict[str, Any]:
        """Requests by kind, and bytes, since the last call."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return json.loads(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def in_its_own_process(
    server_url: str, *, bytes_per_second: float = 0, latency: float = 0
) -> Iterator[Elsewhere]:
    """A proxy that takes no time from this process; options are those of `Proxy`."""
    options = ["--bytes_per_second", str(bytes_per_second), "--latency", str(latency)]
    command = [sys.executable, "-m", "tests.support.gcs_proxy", server_url, *options]
    pipe = subprocess.PIPE
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root) as process:
        yield Elsewhere(process)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serves until stdin ends.")
    parser.add_argument("server_url")
    parser.add_argument("--bytes_per_second", type=float, default=0)
    parser.add_argument("--latency", type=float, default=0)
    arguments = vars(parser.parse_args())
    with Proxy(**arguments) as proxy, proxy.recording() as traffic:
        print(proxy.url, flush=True)
        for _ in sys.stdin:
            requests, traffic.requests = traffic.requests, []
            print(json.dumps(_summary(Traffic(requests))), flush=True)


def _summary(traffic: Traffic) -> dict[str, Any]:
    return {
        "requests": traffic.counts(),
        "rounds": traffic.rounds(),
        "copy_seconds": traffic.seconds_of("copy"),
        "uploaded_bytes": traffic.uploaded_bytes,
        "downloaded_bytes": traffic.downloaded_bytes,
    }


if __name__ == "__main__":
    main()
