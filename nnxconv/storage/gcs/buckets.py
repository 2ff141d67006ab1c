"""gcsfs, made as patient as TensorStore, and plain about what failed.

By itself gcsfs repeats for half a minute whatever it was told, waits for a silent server for ever,
and words its errors by the addresses of requests.
"""

import asyncio
import errno
import random
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import aiohttp
from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError, is_retriable

from nnxconv.storage.gcs.checksums import crc32c_of
from nnxconv.storage.gcs.retries import count_repetition, pauses, timeout_seconds
from nnxconv.storage.gcs.server_errors import Forbidden, ServerError

_request_once: Any = GCSFileSystem._request.__wrapped__  # type: ignore[attr-defined]


class Buckets(GCSFileSystem):
    """The file system of gs:// paths."""

    def __init__(self, *args: Any, **options: Any) -> None:
        seconds = timeout_seconds()
        limits = aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
        super().__init__(*args, **{"requests_timeout": limits, **options})

    async def _request(self, method: str, path: str, *args: Any, **options: Any) -> Any:
        """One request, repeated where that helps.

        Raises:
          FileNotFoundError: there is no such bucket or object; its `filename` says which.
          FileExistsError: somebody else wrote the object at the same time.
          ServerError: what else the server said, or that the answer was damaged each time.
        """
        place = place_of(self._format_path(path, args), options)
        for pause in [*pauses(), None]:
            try:
                answer = await _request_once(self, method, path, *args, **options)
                _check_hash(answer)
                return answer
            except FileNotFoundError as error:
                raise FileNotFoundError(errno.ENOENT, "there is no such object", place) from error
            except FileExistsError as error:
                raise FileExistsError(errno.EEXIST, "it was written meanwhile", place) from error
            except OSError as error:
                if str(error).startswith("Forbidden"):
                    raise Forbidden(403, _last_line(error), place) from error
                await _wait_or_raise(error, pause, place)
            except Exception as error:
                await _wait_or_raise(error, pause, place)
        raise AssertionError


class _DamagedAnswer(Exception):
    """What came is not what the server says it has."""


def _check_hash(answer: tuple[int, Mapping[str, str], Any, bytes]) -> None:
    """Refuses a whole object whose bytes do not have the checksum that the server tells.

    Parts of objects have none, and what is decompressed on the way has that of the compressed.
    """
    status, headers, _, content = answer
    told = re.search(r"crc32c=([A-Za-z0-9+/=]+)", headers.get("X-Goog-Hash", ""))
    is_whole = status == 200 and headers.get("X-Goog-Stored-Content-Encoding", "identity") in (
        "identity",
        "",
    )
    if told is not None and is_whole and told[1] != crc32c_of(content):
        raise _DamagedAnswer("the answer was damaged on the way: its checksum is another one")


async def _wait_or_raise(error: Exception, pause: float | None, place: str) -> None:
    is_transient = is_retriable(error) or isinstance(error, TimeoutError | _DamagedAnswer)
    if not is_transient or pause is None:
        code, said = None, str(error) or "no answer came in time"
        if isinstance(error, aiohttp.ClientPayloadError):
            said = "the answer ended before it was complete"
        if isinstance(error, HttpError) and error.code is not None:
            code, said = int(error.code), said.removesuffix(f", {error.code}")
        raise ServerError(code, said, place) from error
    count_repetition()
    await asyncio.sleep(pause * random.uniform(0.5, 1))


def _last_line(error: Exception) -> str:
    """What the server said; gcsfs puts the address before it."""
    return (str(error).splitlines() or [""])[-1]


_OBJECT = re.compile(r"/b/([^/?]+)(?:/o(?:/([^/?]+))?)?")
_COPY = re.compile(r"/rewriteTo/b/([^/?]+)/o/([^/?]+)")


def place_of(url: str, options: Mapping[str, Any]) -> str:
    """The gs:// path that a request is about; of a copy, the new object.

    >>> place_of("http://127.0.0.1:1/storage/v1/b/data/o/run%2F1%2F_METADATA", {})
    'gs://data/run/1/_METADATA'
    """
    found = _COPY.search(url) or _OBJECT.search(url)
    if found is None:
        return url.partition("?")[0]
    named = re.search(r"[?&]name=([^&]+)", url)
    begun = (options.get("json") or {}).get("name")  # of an upload in several requests
    name = found[2] or (named and named[1]) or options.get("name") or begun
    name = name or options.get("prefix") or ""
    return f"gs://{unquote(found[1])}/{unquote(str(name))}".rstrip("/")
