"""Measures nnxconv against its goals: one run, one table.

    python -m tests.benchmarks [--only GROUP ...] [--gigabytes 0.5] [--runs 3] [--folder DIR]
                               [--linked 2] [--chunks 62500 250000]

Of each command the quickest of so many runs counts; those of a case take turns, so that a machine
that others use as well treats all alike. The page cache is warm, and seconds are those of whole
processes unless the case says "work alone". Exit code 1 when a goal is missed.
"""

import argparse
import os
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from tests.benchmarks.measuring import Bench

GROUPS = (
    *("moving", "rewriting", "chunks", "containers", "arithmetic", "recognition"),
    "buckets",  # the last one, because it makes this process large
)


def main() -> None:
    """Measures, and prints each row as soon as it is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--gigabytes", type=float, default=0.5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--linked", type=float, nargs="*", default=[2])
    parser.add_argument("--chunks", type=int, nargs="+", default=[62_500, 250_000])
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    started = time.monotonic()
    print(f"{_machine()}; checkpoints of {options.gigabytes:g} GiB, best of {options.runs} runs\n")
    print("| case | measured | against | goal | |\n|---|---|---|---|---|")
    missed = 0
    for name in options.only:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            bench = Bench(
                Path(folder), options.gigabytes, options.runs, options.linked, options.chunks
            )
            for row in import_module(f"tests.benchmarks.{name}").rows(bench):
                verdict = {None: "", True: "met", False: "missed"}[row.is_met]
                missed += row.is_met is False
                cells = (row.case, row.measured, row.against, row.goal, verdict)
                print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\n{missed} goals missed; {time.monotonic() - started:,.0f} s in all")
    sys.exit(bool(missed))


def _machine() -> str:
    """Cores that this process may use, and the memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB of memory"


if __name__ == "__main__":
    main()
