"""Very many small chunks: seconds and memory at the largest count, and how both grow."""

import math
from collections.abc import Iterator, Mapping

from tests.benchmarks.measuring import NNXCONV, Bench, Row, Timed

GROWTH = 2.2
"""The most that a doubling may cost, in seconds of processors."""

LIMITS: Mapping[str, tuple[float, float]] = {
    "inspect": (2, 0),
    "dry run": (2, 0),
    "link": (4, 400),
    "stack layers by renaming": (10, 0),
}
"""Seconds, and MiB or 0, for 250,000 chunks."""


def rows(bench: Bench) -> Iterator[Row]:
    found: dict[str, dict[int, Timed]] = {}
    for count in bench.chunks:
        small, tiled = bench.made("chunks", count, 16), bench.made("chunks", count, 512)
        convert = [*NNXCONV, "convert", small, bench.out(), "--to", "nnx-pure"]
        commands = {
            "inspect": [*NNXCONV, "inspect", small],
            "dry run": [*convert, "--dry_run"],
            "link": [*convert, "--transfer", "link"],
            "stack layers by renaming": [
                *(*NNXCONV, "convert", tiled, bench.out(), "--scan_layers"),
                *("--layer_axis", "0", "--transfer", "link"),
            ],
            "compare values": [*NNXCONV, "compare", small, small, "--compare_values"],
            "checksum": [*NNXCONV, "checksum", small, "--overwrite"],
        }
        timed = bench.best(*commands.values())
        for name, one in zip(commands, timed, strict=True):
            found.setdefault(name, {})[count] = one
    for name, by_count in found.items():
        yield _row(name, by_count)


def _row(name: str, found: Mapping[int, Timed]) -> Row:
    counts = sorted(found)
    first, last = found[counts[0]], found[counts[-1]]
    doublings = math.log2(counts[-1] / counts[0])
    growth = (last.cpu / first.cpu) ** (1 / doublings) if doublings else 1.0
    seconds, mebibytes = LIMITS.get(name, (math.inf, 0))
    if counts[-1] > 250_000:
        seconds, mebibytes = math.inf, 0
    goals = [f"{seconds:g} s"] if seconds < math.inf else []
    goals += [f"{mebibytes:g} MiB"] if mebibytes else []
    return Row(
        f"{name}, {counts[-1]:,} chunks",
        f"{last}; {growth:.2f} x a doubling",
        f"{counts[0]:,} chunks {first}",
        ", ".join([*goals, f"{GROWTH} x a doubling"]),
        growth <= GROWTH and last.wall <= seconds and last.peak <= (mebibytes or math.inf),
    )
