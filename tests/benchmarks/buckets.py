"""Names only on gs://: requests, rounds and seconds, over a link without and with latency.

The server is a fake-gcs-server in memory, on the same cores; the link is a proxy in a process of
its own, which delays each request by so long. Seconds are those of the work alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.measuring import EAGER, NNXCONV, Bench, Row, Timed, run
from tests.support import gcs
from tests.support.gcs_proxy import Elsewhere, in_its_own_process

LATENCIES = (0.0, 0.02)
REQUESTS, ROUNDS, SECONDS = 25, 12, 1.5
GIGABYTES = 0.2


def rows(bench: Bench) -> Iterator[Row]:
    sources = {
        f"{GIGABYTES:g} GiB": bench.made("stacked", GIGABYTES),
        "10,000 leaves": bench.made("leaves", 10_000),
    }
    for latency in LATENCIES:
        with _bucket(latency) as (storage, link):
            for name, path in sources.items():
                storage.put(Path(path), "source")
                yield _names_only(bench, storage, link, name, latency)
                storage.clear()


@contextmanager
def _bucket(latency: float) -> Iterator[tuple[gcs.Storage, Elsewhere]]:
    with gcs.server() as url, in_its_own_process(url, latency=latency) as link:
        storage = gcs.Storage(link, url)
        storage.create_bucket()
        yield storage, link


def _names_only(
    bench: Bench, storage: gcs.Storage, link: Elsewhere, name: str, latency: float
) -> Row:
    source, out = storage.path("source"), storage.path("out")
    convert = [*NNXCONV, "convert", source, out, "--to", "nnx-pure", "--layer_axis", "1", "--json"]
    found: list[tuple[Timed, dict[str, Any]]] = []
    for _ in range(bench.runs):
        found.append(_run(storage, link, convert))
    ours, traffic = min(found, key=lambda one: one[0].work)
    eager, _ = _run(storage, link, [*EAGER, "convert", source, out, "names"])
    requests = sum(traffic["requests"].values())
    files = traffic["requests"].get("copy", 0)
    rounds = min(traffic["rounds"] for _, traffic in found)
    is_counted = requests <= REQUESTS + files and (not latency or rounds <= ROUNDS)
    return Row(
        f"gs:// names only, {name}, {latency * 1000:g} ms a request",
        f"{requests} requests, {rounds} rounds, {ours.work:.2f} s (processors {ours.cpu:.2f} s)",
        f"eager {eager.wall:.2f} s, with its start",
        f"{REQUESTS} + {files} requests" + (f", {ROUNDS} rounds, {SECONDS} s" if latency else ""),
        is_counted and (not latency or ours.work <= SECONDS),
    )


def _run(storage: gcs.Storage, link: Elsewhere, command: list[str]) -> tuple[Timed, dict[str, Any]]:
    storage.clear("out")
    link.traffic()
    timed = run(command, environment=gcs.environment(link.url))
    return timed, link.traffic()
