"""The proxy that gs:// tests look through counts right, and its faults are what they say."""

import http.client
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from tests.support.gcs_proxy import Delay, Proxy, Reset, Status, Truncate, in_its_own_process
from tests.support.gcs_requests import Request, Traffic, describe

BODY = bytes(range(256)) * 4000
READ = "/storage/v1/b/data/o/run%2Fa?alt=media"
UPLOAD = "/upload/storage/v1/b/data/o?uploadType=media&name=run/a"


class Server(BaseHTTPRequestHandler):
    """Answers as a storage server does, and keeps what was uploaded."""

    protocol_version = "HTTP/1.1"
    uploads: list[bytes]

    def do_GET(self) -> None:
        if "chunked" in self.path:
            self._answer(
                b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", ("Transfer-Encoding", "chunked")
            )
        elif "alt=media" in self.path:
            self._answer(BODY, ("Content-Length", str(len(BODY))))
        else:
            text = json.dumps({"mediaLink": f"{self._url}/download/x"}).encode()
            headers = [("Content-Type", "application/json"), ("Content-Length", str(len(text)))]
            self._answer(text, *headers)

    def do_POST(self) -> None:
        self.uploads.append(self._body())
        location = ("Location", f"{self._url}/upload/storage/v1/b/data/o?upload_id=7")
        self._answer(b"", location, ("Content-Length", "0"))

    def do_DELETE(self) -> None:
        self.send_response(204)
        self.end_headers()

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(200)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    @property
    def _url(self) -> str:
        return f"http://{self.headers['Host']}"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server():
    """A server's URL, and the list of what is uploaded to it."""
    handler = type("Recorder", (Server,), {"uploads": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{serving.server_address[1]}", handler.uploads
        serving.shutdown()
        thread.join()


@pytest.fixture
def proxy(server):
    with Proxy(server[0]) as proxy:
        yield proxy


def ask(url: str, target: str = READ, *, method: str = "GET", body=None, headers=None):
    """Status, headers and body of an answer, over a connection of its own."""
    split = urlsplit(url)
    connection = http.client.HTTPConnection(split.hostname or "", split.port, timeout=10)
    try:
        connection.request(method, target, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("method", "target", "kind", "name"),
    [
        # gcsfs
        ("GET", "/storage/v1/b", "bucket", ""),
        ("GET", "/storage/v1/b/data", "bucket", "data"),
        ("GET", "/storage/v1/b/data/o?delimiter=/&prefix=run/", "list", "data/run/"),
        ("GET", "/storage/v1/b/data/o/run%2F1%2F_METADATA", "stat", "data/run/1/_METADATA"),
        ("GET", "/download/storage/v1/b/data/o/run%2Fa?alt=media", "read", "data/run/a"),
        ("POST", "/upload/storage/v1/b/b/o?uploadType=resumable&name=run%2Fa", "upload", "b/run/a"),
        ("POST", "/storage/v1/b/data/o/a%2Fb/rewriteTo/b/other/o/c%2Fd", "copy", "other/c/d"),
        ("POST", "/storage/v1/b/data/o/a%2Fb/moveTo/o/c%2Fd", "move", "data/c/d"),
        ("POST", "/storage/v1/b/data/o/a%2Fb/compose", "compose", "data/a/b"),
        ("DELETE", "/storage/v1/b/data/o/a%2Fb", "delete", "data/a/b"),
        ("POST", "/batch/storage/v1", "batch", ""),
        # TensorStore
        ("GET", "/storage/v1/b/data/o/run%2Fd%2F1?alt=media&tensorstore=1", "read", "data/run/d/1"),
        ("POST", "/upload/storage/v1/b/b/o?uploadType=media&name=d%2F1", "upload", "b/d/1"),
        ("GET", "/", "other", "/"),
    ],
)  # fmt: skip
def test_requests_are_told_apart(method, target, kind, name):
    request = describe(method, target)
    assert (request.kind, request.name) == (kind, name)


def test_the_name_of_an_upload_may_stand_in_its_body():
    body = b'--==0==\nContent-Type: application/json\n\n{"name": "run/\\"a\\""}\n--==0==\n'
    target = "/upload/storage/v1/b/data/o?uploadType=multipart"
    assert describe("POST", target, body).name == 'data/run/"a"'


def test_a_copy_knows_where_it_comes_from():
    assert describe("POST", "/storage/v1/b/data/o/a%2Fb/rewriteTo/b/o/o/c").source == "data/a/b"


def test_answers_arrive_as_they_are(proxy):
    assert ask(proxy.url)[2] == BODY
    assert ask(proxy.url, "/chunked")[2] == b"hello world"
    assert ask(proxy.url, "/storage/v1/b/data/o/a", method="DELETE")[0] == 204


def test_uploads_arrive_as_they_are(proxy, server):
    def blocks():
        yield b"hello"
        yield b" world"

    ask(proxy.url, UPLOAD, method="POST", body=BODY)
    ask(proxy.url, UPLOAD, method="POST", body=blocks())
    assert server[1] == [BODY, b"hello world"]


def test_a_client_that_waits_for_leave_to_upload_gets_it(proxy, server):
    ask(proxy.url, UPLOAD, method="POST", body=BODY, headers={"Expect": "100-continue"})
    assert server[1] == [BODY]


def test_one_connection_serves_many_requests(proxy):
    split = urlsplit(proxy.url)
    connection = http.client.HTTPConnection(split.hostname or "", split.port)
    for _ in range(3):
        connection.request("GET", READ)
        assert connection.getresponse().read() == BODY
    connection.close()


def test_no_answer_leads_past_the_proxy(proxy, server):
    _, headers, _ = ask(proxy.url, UPLOAD, method="POST", body=b"")
    assert headers["Location"].startswith(proxy.url)
    _, _, body = ask(proxy.url, "/storage/v1/b/data/o/a")
    assert json.loads(body) == {"mediaLink": f"{proxy.url}/download/x"}


def test_requests_and_bytes_are_counted(proxy):
    with proxy.recording() as traffic:
        ask(proxy.url)
        ask(proxy.url, UPLOAD, method="POST", body=b"1234")
    ask(proxy.url)
    assert traffic.counts() == {"read": 1, "upload": 1}
    assert (traffic.uploaded_bytes, traffic.downloaded_bytes) == (4, len(BODY))
    assert [request.status for request in traffic.requests] == [200, 200]
    assert [request.name for request in traffic.of("upload")] == ["data/run/a"]


def test_an_error_takes_the_place_of_the_answer(proxy, server):
    with proxy.inject(Status(403, "no"), kind="upload") as injected:
        status, _, body = ask(proxy.url, UPLOAD, method="POST", body=BODY)
        assert ask(proxy.url)[0] == 200
    assert (status, json.loads(body)["error"]["message"]) == (403, "no")
    assert len(injected.hits) == 1
    assert server[1] == []


def test_some_requests_can_be_left_alone(proxy):
    with proxy.inject(Status(503), name="data/run/*", skip=1, times=2):
        assert [ask(proxy.url)[0] for _ in range(4)] == [200, 503, 503, 200]
    with proxy.inject(Status(503), where=lambda request: request.method == "POST"):
        assert ask(proxy.url)[0] == 200


@pytest.mark.parametrize("is_answered", [False, True])
def test_a_reset_comes_before_or_after_the_server(is_answered, proxy, server):
    with proxy.inject(Reset(is_answered)), pytest.raises(ConnectionResetError):
        ask(proxy.url, UPLOAD, method="POST", body=b"1234")
    assert server[1] == ([b"1234"] if is_answered else [])


@pytest.mark.parametrize("target", [READ, "/chunked"])
def test_a_truncated_answer_ends_early(target, proxy):
    with proxy.inject(Truncate()), pytest.raises(http.client.IncompleteRead):
        ask(proxy.url, target)


def test_a_delay_comes_before_the_server(proxy):
    with proxy.inject(Delay(0.2)), proxy.recording() as traffic:
        ask(proxy.url)
    [request] = traffic.requests
    assert request.ended - request.started >= 0.2


def test_requests_at_the_same_time_are_counted(proxy):
    threads = [threading.Thread(target=ask, args=(proxy.url,)) for _ in range(3)]
    with proxy.inject(Delay(0.1)), proxy.recording() as traffic:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ask(proxy.url)
    assert traffic.most_at_once("read") == 3
    assert traffic.most_at_once("upload") == 0


def test_seconds_at_the_same_time_count_once():
    spans = [(1.0, 3.0), (2.0, 2.5), (2.0, 4.0), (6.0, 7.0)]
    traffic = Traffic(
        [Request("POST", "", "copy", "", started=start, ended=end) for start, end in spans]
    )
    assert traffic.seconds_of("copy") == 4.0


def test_requests_at_the_same_time_are_one_round():
    spans = [(1.0, 3.0), (2.0, 2.5), (3.0, 4.0), (3.5, 3.8), (6.0, 7.0)]
    requests = [Request("GET", "", "read", "", started=start, ended=end) for start, end in spans]
    assert Traffic(requests).rounds() == 3
    assert Traffic(requests[:2]).rounds() == 1


def test_requests_can_be_watched(proxy):
    seen = []
    with proxy.watching(lambda request: seen.append(request.name)):
        ask(proxy.url)
    assert seen == ["data/run/a"]


def test_the_link_can_be_slow(server):
    with Proxy(server[0], bytes_per_second=4 * len(BODY), latency=0.05) as proxy:
        started = time.monotonic()
        ask(proxy.url)
        assert 0.3 <= time.monotonic() - started < 1


def test_a_proxy_in_its_own_process_says_what_went_through_it(server):
    with in_its_own_process(server[0]) as proxy:
        ask(proxy.url)
        ask(proxy.url, UPLOAD, method="POST", body=b"1234")
        assert proxy.traffic() == {
            "requests": {"read": 1, "upload": 1},
            "rounds": 2,
            "copy_seconds": 0,
            "uploaded_bytes": 4,
            "downloaded_bytes": len(BODY),
        }
        assert proxy.traffic()["requests"] == {}
