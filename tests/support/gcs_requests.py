"""What the requests of storage clients ask for, told from their URLs.

```
GET    /storage/v1/b/data/o?prefix=run/                          list     data/run/
GET    /storage/v1/b/data/o/run%2F_METADATA                      stat     data/run/_METADATA
GET    /storage/v1/b/data/o/run%2F_METADATA?alt=media            read     data/run/_METADATA
POST   /upload/storage/v1/b/data/o?uploadType=media&name=run/_   upload   data/run/_
POST   /storage/v1/b/data/o/a/rewriteTo/b/data/o/b               copy     data/b, source data/a
```
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal as OneOf
from urllib.parse import parse_qs, unquote, urlsplit

Kind = OneOf[
    "list",
    "stat",
    "read",
    "upload",
    "copy",
    "move",
    "compose",
    "delete",
    "batch",
    "bucket",
    "other",
]


@dataclass
class Request:
    """One request and what became of it.

    Attributes:
      kind: what it asks for; a resumable upload is several requests.
      name: `bucket/object`; of a copy, the new object; of a list, `bucket/prefix`.
      source: of a copy or move, the old object.
      status: what the client was told; 0 while there is no answer, and after a reset.
      is_faulty: a fault was injected.
      started, ended: `time.monotonic()`; 0 for what has not happened.
    """

    method: str
    target: str
    kind: Kind
    name: str
    source: str = ""
    status: int = 0
    uploaded_bytes: int = 0
    downloaded_bytes: int = 0
    is_faulty: bool = False
    started: float = 0.0
    ended: float = 0.0


@dataclass
class Traffic:
    """Requests in the order in which they came."""

    requests: list[Request] = field(default_factory=list)

    def of(self, *kinds: Kind) -> list[Request]:
        return [request for request in self.requests if request.kind in kinds]

    def counts(self) -> Counter[Kind]:
        return Counter(request.kind for request in self.requests)

    def rounds(self) -> int:
        """How many of the requests were made one after the other: each when the last had ended."""
        count, until = 0, 0.0
        for request in sorted(self.requests, key=lambda request: request.ended):
            if request.started >= until:
                count, until = count + 1, request.ended
        return count

    def most_at_once(self, *kinds: Kind) -> int:
        """How many of these requests were under way at the same time."""
        chosen = self.of(*kinds)
        return max(
            (sum(b.started <= a.started < b.ended for b in chosen) for a in chosen), default=0
        )

    def seconds_of(self, *kinds: Kind) -> float:
        """For how long at least one of these requests was under way."""
        total, until = 0.0, 0.0
        for request in sorted(self.of(*kinds), key=lambda request: request.started):
            total += max(0.0, request.ended - max(request.started, until))
            until = max(until, request.ended)
        return total

    @property
    def uploaded_bytes(self) -> int:
        return sum(request.uploaded_bytes for request in self.requests)

    @property
    def downloaded_bytes(self) -> int:
        return sum(request.downloaded_bytes for request in self.requests)

    @property
    def client_bytes(self) -> int:
        """Bytes of all bodies that the client sent or received."""
        return self.uploaded_bytes + self.downloaded_bytes


_PATH = re.compile(r"(/[a-z]+)?/storage/v1/b(?:/([^/]*)(/o(?:/(.+))?)?)?")
_COPIES = re.compile(r"([^/]+)/(?:(rewriteTo|copyTo)/b/([^/]+)|(moveTo))/o/([^/]+)")


def describe(method: str, target: str, preview: bytes = b"") -> Request:
    """What a request asks for; `preview` is the start of its body.

    >>> describe("GET", "/storage/v1/b/data/o/run%2F_METADATA?alt=media").kind
    'read'
    """
    split = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(split.query).items()}
    found = _PATH.fullmatch(split.path)
    service, bucket, in_bucket, rest = found.groups("") if found else ("",) * 4
    bucket = unquote(bucket)
    if split.path.startswith("/batch/"):
        kind, name = "batch", ""
    elif found is None:
        kind, name = "other", split.path
    elif service == "/upload":
        kind, name = "upload", f"{bucket}/{query.get('name') or _name_in(preview)}"
    elif not in_bucket:
        kind, name = "bucket", bucket
    elif not rest:
        kind, name = "list", f"{bucket}/{query.get('prefix', '')}"
    else:
        is_media = service == "/download" or query.get("alt") == "media"
        return _about_object(method, target, bucket, rest, is_media)
    return Request(method, target, kind, name)


def _about_object(method: str, target: str, bucket: str, rest: str, is_media: bool) -> Request:
    """What a request about one object asks for; `rest` is what follows the bucket's `/o/`."""
    if copied := _COPIES.fullmatch(rest):
        old, _, into, move, new = copied.groups()
        name = f"{unquote(into or bucket)}/{unquote(new)}"
        kind = "move" if move else "copy"
        return Request(method, target, kind, name, f"{bucket}/{unquote(old)}")
    if rest.endswith("/compose"):
        return Request(method, target, "compose", f"{bucket}/{unquote(rest[: -len('/compose')])}")
    kinds: dict[str, Kind] = {"GET": "read" if is_media else "stat", "DELETE": "delete"}
    return Request(method, target, kinds.get(method, "other"), f"{bucket}/{unquote(rest)}")


def _name_in(preview: bytes) -> str:
    """The object's name in the JSON at the start of a multipart or resumable upload."""
    found = re.search(rb'"name"\s*:\s*("(?:[^"\\]|\\.)*")', preview)
    return json.loads(found[1]) if found else ""
