"""Times nnxconv on gs:// against "restore with Orbax, convert, save", over one slow link.

    python -m tests.benchmarks.gcs [--gigabytes 2] [--runs 3] [--megabytes_per_second 200]
                                   [--milliseconds 20] [--no-leaves]

The server is a fake-gcs-server in memory, the link a proxy in a process of its own: all bodies
together get so many bytes a second in each direction, and every request waits so long before the
server sees it. Times are those of whole processes; "copies" are those of the seconds in which the
server copied objects, which this one does byte by byte, on the same cores. The two sides of a case
take turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import generate
from tests.support import gcs
from tests.support.gcs_proxy import Elsewhere, in_its_own_process

os.environ["JAX_PLATFORMS"] = "cpu"
NNXCONV = [sys.executable, "-c", "from nnxconv.cli import main; main()"]
EAGER = [sys.executable, "-m", "tests.benchmarks.eager"]
LAYERS = 8
LEAVES = (100, 1_000, 10_000)


@dataclass(frozen=True)
class Timed:
    """One run of a command.

    Attributes:
      seconds: of the whole process.
      copy_seconds: of these, those in which the server was copying objects.
      requests: how many there were.
      nbytes: what the client sent and received.
      peak: the most memory that nnxconv says it took, in bytes; 0 for other commands.
    """

    seconds: float
    copy_seconds: float
    requests: int
    nbytes: int
    peak: int


def main() -> None:
    """Runs every case and prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--megabytes_per_second", type=float, default=200)
    parser.add_argument("--milliseconds", type=float, default=20)
    parser.add_argument("--no-leaves", action="store_true", help="leave out the growth with leaves")
    options = parser.parse_args()
    rate, latency = options.megabytes_per_second * 1e6, options.milliseconds / 1000
    with (
        gcs.server() as url,
        in_its_own_process(url, bytes_per_second=rate, latency=latency) as link,
    ):
        storage = gcs.Storage(link, url)
        storage.create_bucket()
        bench = Bench(storage, link, options.runs)
        print(f"{os.cpu_count()} cores; {rate / 1e6:g} MB/s, {options.milliseconds:g} ms a request")
        bench.large(options.gigabytes)
        if not options.no_leaves:
            bench.leaves()


class Bench:
    """The cases, in one bucket behind one link."""

    def __init__(self, storage: gcs.Storage, link: Elsewhere, runs: int) -> None:
        self._storage, self._link, self._runs = storage, link, runs
        self._environment = {**os.environ, **gcs.environment(link.url)}

    def large(self, gigabytes: float) -> None:
        """Conversions and comparisons of one checkpoint, against the eager way."""
        with tempfile.TemporaryDirectory() as folder:
            tree = generate.linen(gigabytes, LAYERS, is_stacked=True)
            path = generate.save(Path(folder) / "stacked", tree)
            source, twin = (self._storage.put(path, name) for name in ("stacked", "twin"))
        out = self._storage.path("out")
        stored = sum(self._storage.sizes("stacked").values())
        print(f"one checkpoint of {stored / 2**30:.2f} GiB; median of {self._runs} paired runs\n")
        print(
            f"{'case':<28} {'nnxconv':>9} {'eager':>9} {'ratio':>7} {'copies':>8}"
            f" {'requests':>9} {'MB':>9} {'peak MiB':>9}"
        )
        convert = [*NNXCONV, "convert", source, out, "--layer_axis", "1", "--json"]
        eager = [*EAGER, "convert", source, out]
        self._case("names only", convert, [*eager, "names"])
        self._case("names only, link", [*convert, "--transfer", "link"], [*eager, "names"])
        self._case("unstack layers", [*convert, "--no-scan_layers"], [*eager, "unstack"])
        compare = ["compare", source, twin]
        options = ["--compare_values", "--compare_only", "all"]
        self._case("compare equal checkpoints", [*NNXCONV, *compare, *options], [*EAGER, *compare])
        for name in ("stacked", "twin", "out"):
            self._storage.clear(name)

    def _case(self, name: str, command: Sequence[str], other: Sequence[str]) -> None:
        """One row of the table; targets are removed between runs."""
        ours, theirs = [], []
        for _ in range(self._runs):
            ours.append(self._run(command))
            theirs.append(self._run(other))
        ratio = statistics.median(a.seconds / b.seconds for a, b in zip(ours, theirs, strict=True))
        a, b = _median(ours), _median(theirs)
        print(
            f"{name:<28} {a.seconds:8.2f}s {b.seconds:8.2f}s {ratio:7.2f}"
            f" {a.copy_seconds:7.2f}s {a.requests:9,} {a.nbytes / 1e6:9,.1f}"
            f" {a.peak / 2**20:9,.0f}",
            flush=True,
        )

    def leaves(self) -> None:
        """How the time and the requests grow with the number of arrays of 1 KiB."""
        print(f"\n{'leaves':>8}  {'':<12} {'seconds':>9} {'requests':>9} {'MB':>9}")
        for count in LEAVES:
            with tempfile.TemporaryDirectory() as folder:
                path = generate.save(Path(folder) / "leaves", generate.many_leaves(count))
                source = self._storage.put(path, "leaves")
            out = self._storage.path("out")
            for name, words in (
                ("inspect", ["inspect", source]),
                ("compare", ["compare", source, source]),
                ("convert", ["convert", source, out, "--to", "nnx-pure"]),
            ):
                timed = _median([self._run([*NNXCONV, *words]) for _ in range(self._runs)])
                print(
                    f"{count:>8,}  {name:<12} {timed.seconds:8.2f}s {timed.requests:9,}"
                    f" {timed.nbytes / 1e6:9,.1f}",
                    flush=True,
                )
            self._storage.clear("leaves")

    def _run(self, command: Sequence[str]) -> Timed:
        self._storage.clear("out")
        self._link.traffic()
        started = time.monotonic()
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True)
        seconds = time.monotonic() - started
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        traffic = self._link.traffic()
        nbytes = traffic["uploaded_bytes"] + traffic["downloaded_bytes"]
        is_json = done.stdout.startswith("{")
        peak = json.loads(done.stdout).get("peak_memory_bytes", 0) if is_json else 0
        return Timed(
            seconds, traffic["copy_seconds"], sum(traffic["requests"].values()), nbytes, peak
        )


def _median(runs: Sequence[Timed]) -> Timed:
    return sorted(runs, key=lambda timed: timed.seconds)[len(runs) // 2]


if __name__ == "__main__":
    main()
