"""How much of `inspect` is finding out what the names mean.

`python -m tests.benchmarks.recognition CHECKPOINT` prints, as JSON, what processors took for both.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from importlib import import_module

from tests.benchmarks.measuring import Bench, Row, Timed

COUNTS = (25_000, 50_000, 100_000)
SHARE, GROWTH = 0.1, 2.2


def rows(bench: Bench) -> Iterator[Row]:
    found: dict[int, Timed] = {}
    for count in COUNTS:
        path = bench.made("leaves", count)
        [found[count]] = bench.best([sys.executable, "-m", "tests.benchmarks.recognition", path])
    for count, timed in found.items():
        share = timed.told["meaning"] / timed.told["inspect"]
        yield Row(
            f"recognition, {count:,} leaves",
            f"{timed.told['meaning']:.2f} s: {share:.0%}",
            f"all of `inspect` {timed.told['inspect']:.2f} s",
            f"{SHARE:.0%}",
            share <= SHARE,
        )
    first, last = found[COUNTS[0]], found[COUNTS[-1]]
    growth = (last.cpu / first.cpu) ** (1 / math.log2(COUNTS[-1] / COUNTS[0]))
    yield Row(
        f"`inspect`, {COUNTS[-1]:,} leaves",
        f"{last}; {growth:.2f} x a doubling",
        f"{COUNTS[0]:,} leaves {first}",
        f"{GROWTH} x a doubling",
        growth <= GROWTH,
    )


def main() -> None:
    """Inspects a checkpoint, and measures what `meaning` takes of it."""
    module = import_module("nnxconv.commands.inspect")
    meaning, seconds = module.meaning, 0.0

    def timed(*arguments: object) -> object:
        nonlocal seconds
        started = time.process_time()
        try:
            return meaning(*arguments)
        finally:
            seconds += time.process_time() - started

    module.meaning = timed  # type: ignore[attr-defined]
    started = time.process_time()
    module.inspect(sys.argv[1])
    print(json.dumps({"inspect": time.process_time() - started, "meaning": seconds}))


if __name__ == "__main__":
    main()
