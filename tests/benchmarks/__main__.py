"""Times nnxconv against copying files and against the eager way, in one run, and prints ratios.

    python -m tests.benchmarks [--gigabytes 1] [--runs 3] [--folder DIR]

The two sides of a case take turns, so that a machine whose speed drifts treats both alike; the
page cache is warm. "aside" subtracts the time that starting Python and importing Orbax takes.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import generate

os.environ["JAX_PLATFORMS"] = "cpu"
NNXCONV = [sys.executable, "-c", "from nnxconv.cli import main; main()"]
MOST_IN_MEMORY = 4.0
"""GiB that the eager way is tried on: it takes several times as much memory."""
EAGER = [sys.executable, "-m", "tests.benchmarks.eager"]


@dataclass(frozen=True)
class Timed:
    """One run of a command: wall seconds, those of the work alone, and peak memory in MiB.

    The peak is what nnxconv reports of itself, 0 for other commands: the kernel's account of a
    child starts from the size of the process that started it.
    """

    wall: float
    work: float
    peak: float


def main() -> None:
    """Runs every case and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--linked", type=float, nargs="*", default=[], help="GiB to link")
    parser.add_argument("--no-leaves", action="store_true", help="leave out the many small leaves")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        bench = Bench(Path(folder), options.gigabytes, options.layers, options.runs)
        bench.run(with_leaves=not options.no_leaves)
        for gigabytes in options.linked:
            bench.linked(gigabytes)


class Bench:
    """The cases, on checkpoints in one folder."""

    def __init__(self, folder: Path, gigabytes: float, layers: int, runs: int) -> None:
        self.folder = folder
        self.runs = runs
        self.stacked = folder / "stacked"
        self.apart = folder / "apart"
        for path, is_stacked in ((self.stacked, True), (self.apart, False)):
            generate.save(path, generate.linen(gigabytes, layers, is_stacked=is_stacked))
        size = sum(f.stat().st_size for f in self.stacked.rglob("*") if f.is_file()) / 2**30
        print(f"{os.cpu_count()} cores, checkpoints of {size:.2f} GiB, {layers} layers")
        print(f"median of {runs} paired runs, warm page cache")
        print()
        print(f"{'case':<44} {'nnxconv':>9} {'other':>9} {'ratio':>7} {'peak MiB':>9}  against")

    def run(self, *, with_leaves: bool) -> None:
        """All cases, the quick ones last."""
        out, other = self.folder / "out", self.folder / "other"
        stacked, apart = str(self.stacked), str(self.apart)
        axis = ["--layer_axis", "1"]

        def convert(source: str, *options: str) -> list[str]:
            return [*NNXCONV, "convert", source, str(out), *axis, *options, "--json"]

        copied = f"cp -r {stacked} {other} && sync"
        eager_names = [*EAGER, "convert", stacked, str(other), "names"]
        eager_unstack = [*EAGER, "convert", stacked, str(other), "unstack"]
        names, link = convert(stacked), convert(stacked, "--transfer", "link")
        self.case("names only, copy (work alone)", names, copied, "cp -r && sync", work=True)
        self.case("names only, link", link, eager_names, "eager")
        self.case(
            "stack layers, copy (work alone)",
            convert(apart, "--scan_layers"),
            f"cp -r {apart} {other} && sync",
            "cp -r && sync",
            work=True,
        )
        unstack = convert(stacked, "--no-scan_layers", "--max_memory", "1GiB")
        self.case("unstack layers, within 1 GiB", unstack, eager_unstack, "eager")
        cast = convert(stacked, "--params_only", "--dtype", "bfloat16")
        eager_cast = [*EAGER, "convert", stacked, str(other), "bf16"]
        self.case("params only, cast to bf16", cast, eager_cast, "eager")
        twin, nnx = self.folder / "twin", self.folder / "nnx"
        shutil.copytree(self.stacked, twin)
        self._run([*NNXCONV, "convert", stacked, str(nnx), "--no-scan_layers", *axis])
        self.compare("compare equal copies (work alone)", stacked, str(twin), "diff -r")
        self.compare("compare equal copies", stacked, str(twin), "eager")
        self.compare("compare Linen with NNX, unstacked", stacked, str(nnx), "eager")
        if with_leaves:
            self.leaves()
        self.starts()

    def case(
        self, name: str, command: list[str], other: list[str] | str, against: str, *, work=False
    ) -> None:
        """One row of the table; outputs are removed between runs."""
        ours, theirs = [], []
        for _ in range(self.runs):
            for timings, one in ((ours, command), (theirs, other)):
                for path in ("out", "other"):
                    shutil.rmtree(self.folder / path, ignore_errors=True)
                os.sync()
                timings.append(self._run(one))
        self._row(name, ours, theirs, against, work)

    def linked(self, gigabytes: float) -> None:
        """Hard links to parameters of any size: against the eager way where that has the memory."""
        source = str(generate.save_weights(self.folder / "weights", gigabytes))
        command = [*NNXCONV, "convert", source, str(self.folder / "out"), "--layer_axis", "1"]
        other, against = [sys.executable, "-c", "import orbax.checkpoint"], "import of Orbax"
        if gigabytes <= MOST_IN_MEMORY:
            other = [*EAGER, "convert", source, str(self.folder / "other"), "names"]
            against = "eager"
        name = f"names only, link, {gigabytes:g} GiB"
        self.case(name, [*command, "--transfer", "link", "--json"], other, against)
        shutil.rmtree(source)

    def compare(self, name: str, a: str, b: str, against: str) -> None:
        """A comparison of everything, against `diff -r` or the eager way."""
        scope = "params" if against == "eager" else "all"
        command = [*NNXCONV, "compare", a, b, "--compare_values", "--compare_only", scope, "--json"]
        other = f"diff -r {a} {b}" if against == "diff -r" else [*EAGER, "compare", a, b]
        self.case(name, command, other, against, work=against == "diff -r")

    def leaves(self) -> None:
        """Many small leaves, and how the time grows with their number."""
        for count in (5_000, 20_000):
            source = str(
                generate.save(self.folder / f"leaves_{count}", generate.many_leaves(count))
            )
            other = [*EAGER, "convert", source, str(self.folder / "other"), "names"]
            command = [*NNXCONV, "convert", source, str(self.folder / "out"), "--json"]
            self.case(f"{count:,} leaves of 1 KiB", command, other, "eager")

    def starts(self) -> None:
        """Start-up times, against the interpreter's own."""
        python = [sys.executable, "-c", "pass"]
        self.case("--help", [*NNXCONV, "--help"], python, "python -c pass")
        self.case("inspect", [*NNXCONV, "inspect", str(self.stacked)], python, "python -c pass")

    def _row(
        self, name: str, ours: list[Timed], theirs: list[Timed], against: str, work: bool
    ) -> None:
        time_of: Callable[[Timed], float] = lambda t: t.work if work else t.wall  # noqa: E731
        a, b = [time_of(t) for t in ours], [t.wall for t in theirs]
        ratio = statistics.median(x / y for x, y in zip(a, b, strict=True))
        peak = max(t.peak for t in ours)
        print(
            f"{name:<44} {statistics.median(a):>8.2f}s {statistics.median(b):>8.2f}s"
            f" {ratio:>6.2f}x {f'{peak:.0f}' if peak else '':>9}  {against}",
            flush=True,
        )

    @staticmethod
    def _run(command: list[str] | str) -> Timed:
        """Runs a command to its end, with what the kernel says of its memory."""
        started = time.monotonic()
        process = subprocess.Popen(
            command, shell=isinstance(command, str), stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        output = process.stdout.read()
        process.wait()
        process.stdout.close()
        wall = time.monotonic() - started
        if process.returncode != 0:
            raise RuntimeError(f"{command} ended with {process.returncode}")
        result = json.loads(output) if output.startswith("{") else {}
        return Timed(wall, result.get("seconds", wall), result.get("peak_memory_bytes", 0) / 2**20)


if __name__ == "__main__":
    main()
