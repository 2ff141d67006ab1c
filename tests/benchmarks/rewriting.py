"""Arrays that are decoded and encoded anew: against the eager way, and against the codecs alone."""

import sys
from collections.abc import Iterator

from tests.benchmarks.measuring import EAGER, NNXCONV, Bench, Row, Timed
from tests.benchmarks.moving import AXIS

FLOOR = [sys.executable, "-m", "tests.benchmarks.floor"]
FASTER = 3.0


def rows(bench: Bench) -> Iterator[Row]:
    stacked, apart = (bench.made(kind, bench.gigabytes) for kind in ("stacked", "apart"))
    convert = [*NNXCONV, "convert"]
    unstack = [*convert, stacked, bench.out(), *AXIS, "--no-scan_layers"]
    bf16 = ["--params_only", "--dtype", "bfloat16"]
    yield _against_eager(bench, "unstack layers", unstack, "unstack", stacked)
    yield _against_eager(
        bench,
        "parameters to bfloat16",
        [*convert, stacked, bench.out(), *AXIS, *bf16],
        "bf16",
        stacked,
    )
    stack = [*convert, apart, bench.out(), *AXIS, "--scan_layers", *bf16]
    yield _against_eager(bench, "stack layers, to bfloat16", stack, "stack_bf16", apart)
    pax = bench.made("pax", bench.gigabytes)
    imported = [*NNXCONV, "gpt3-from-paxml", pax, bench.out()]
    yield _against_eager(bench, "`gpt3-from-paxml`", imported, "pax", pax)
    yield from _processors(bench, stacked, unstack)
    yield _more_memory(bench, unstack)


def _against_eager(bench: Bench, case: str, command: list[str], how: str, source: str) -> Row:
    ours, eager = bench.best(command, [*EAGER, "convert", source, bench.out("other"), how])
    factor = eager.wall / ours.wall
    return Row(
        case,
        f"{ours}: {factor:.1f} x faster",
        f"eager {eager}",
        f"{FASTER:g} x faster",
        factor >= FASTER,
    )


def _processors(bench: Bench, stacked: str, unstack: list[str]) -> Iterator[Row]:
    """Processor time of the work against that of the codecs, and what a second core brings."""
    start = [*unstack, "--dry_run"]
    ours, planned, floor = bench.best(unstack, start, [*FLOOR, stacked])
    cpu, least = ours.cpu - planned.cpu, floor.told["seconds"]
    yield Row(
        "unstack layers, processor time of the work",
        f"{cpu:.2f} s: {cpu / least:.2f} x",
        f"decode, gather and encode on one thread {least:.2f} s",
        "1.3 x",
        cpu <= 1.3 * least,
    )
    [one] = bench.best([*unstack, "--json"], cores=1)
    [two] = bench.best([*unstack, "--json"], cores=2)
    yield Row(
        "unstack layers, work alone, 2 cores",
        f"{two.work:.2f} s: {one.work / two.work:.2f} x faster",
        f"1 core {one.work:.2f} s",
    )


def _more_memory(bench: Bench, unstack: list[str]) -> Row:
    sizes = ("256MiB", "2GiB", "8GiB")
    little, usual, much = bench.best(*([*unstack, "--max_memory", size] for size in sizes))
    least: Timed = min(little, usual, key=lambda one: one.wall)
    return Row(
        "unstack layers, `--max_memory 8GiB`",
        f"{much}: {much.wall / least.wall:.2f} x",
        f"256 MiB {little.wall:.2f} s, 2 GiB {usual.wall:.2f} s",
        "1.05 x",
        much.wall <= 1.05 * least.wall,
    )
