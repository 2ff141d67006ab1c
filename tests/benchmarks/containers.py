"""safetensors, both ways, against the eager way; and where nothing is decoded, against `cp`."""

from collections.abc import Iterator

from tests.benchmarks.measuring import EAGER, NNXCONV, Bench, Row
from tests.benchmarks.moving import AXIS

FASTER, MOST_MEBIBYTES = 4.0, 400.0


def rows(bench: Bench) -> Iterator[Row]:
    weights = bench.made("weights", bench.gigabytes, 8)
    folder = bench.made("safetensors", bench.gigabytes)
    out, other = bench.out(), bench.out("other")
    there = [*NNXCONV, "convert", weights, out, *AXIS, "--to", "safetensors"]
    back = [*NNXCONV, "convert", folder, out, "--to", "linen"]
    for case, ours, theirs in (
        ("Orbax to safetensors", there, [*EAGER, "convert", weights, other, "to_safetensors"]),
        ("safetensors to Orbax", back, [*EAGER, "from_safetensors", folder, other]),
    ):
        mine, eager = bench.best(ours, theirs)
        factor = eager.wall / mine.wall
        yield Row(
            case,
            f"{mine}: {factor:.1f} x faster",
            f"eager {eager}",
            f"{FASTER:g} x faster, {MOST_MEBIBYTES:g} MiB",
            factor >= FASTER and mine.peak <= MOST_MEBIBYTES,
        )
    same = [*NNXCONV, "convert", folder, out, "--to", "safetensors"]
    mine, copy = bench.best(same, f"cp -r {folder} {other} && sync")
    yield Row(
        "safetensors to safetensors",
        f"{mine}: {mine.wall / copy.wall:.2f} x",
        f"`cp -r` and `sync` {copy.wall:.2f} s",
        "1.3 x + 0.4 s",
        mine.wall <= 1.3 * copy.wall + 0.4,
    )
