"""Times `gpt3-from-paxml` against copying files, in one run, and prints ratios and peaks.

    python -m tests.benchmarks.paxml [--gigabytes 8] [--max_memory 1GiB] [--runs 3] [--folder DIR]

The checkpoint has 96 layers and the chunks of the published one: 36 to 144 MiB, all 96 layers in
each. Its bits cannot be compressed. The two sides of a case take turns; the page cache is warm. The
copy is `cp -r && sync` of the uncompressed checkpoint, whichever one is imported. Needs room for
three checkpoints.
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
from dataclasses import dataclass
from pathlib import Path

from tests.support import pax

os.environ["JAX_PLATFORMS"] = "cpu"
IMPORT = [sys.executable, "-c", "from nnxconv.cli import main; main()", "gpt3-from-paxml"]

BLOCK_BYTES = 3 * 4 * 96 * 192 * (4 * 8 * 128 + 2 * 4096)
"""What every 192 of the embedding's size add: weights and two moments, of 96 layers."""

CASES = [
    ("fused", []),
    ("split", ["--split_qkv"]),
    ("fused, layers apart", ["--no-scan_layers"]),
    ("fused, adamw", ["--optimizer", "adamw"]),
]


@dataclass(frozen=True)
class Timed:
    """One import: wall seconds of the process, seconds of the work alone, peak memory in bytes."""

    wall: float
    work: float
    peak_bytes: int


def main() -> None:
    """Runs every case and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--max_memory", default="1GiB")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        sizes = sizes_for(options.gigabytes)
        raw = pax.write_noise(folder / "raw", sizes, chunks=pax.CHUNKS_175B)
        _heading(sizes, options.max_memory, options.runs)
        memory = ["--max_memory", options.max_memory]
        for case, words in CASES:
            _case(folder, case, raw, raw, [*words, *memory], options.runs)
        zstd = pax.write_noise(folder / "zstd", sizes, chunks=pax.CHUNKS_175B, compressor="zstd")
        for case, words in CASES:
            _case(folder, f"{case}, from zstd", zstd, raw, [*words, *memory], options.runs)


def sizes_for(gigabytes: float) -> pax.Sizes:
    """A model of 96 layers, at least so large, in whole chunks of the published one."""
    blocks = max(1, -(-int(gigabytes * 1e9) // BLOCK_BYTES))
    return pax.Sizes(D=192 * blocks, N=8, H=128, F=4096, V=2 * 2096, P=512, L=96)


def _heading(sizes: pax.Sizes, max_memory: str, runs: int) -> None:
    gigabytes = pax.state_bytes(sizes) / 1e9
    print(f"{os.cpu_count()} cores, {gigabytes:.2f} GB, 96 layers, --max_memory {max_memory}")
    print(f"median of {runs} paired runs, warm page cache; GB/s and ratio are of the work alone")
    print()
    names = ("wall", "work", "GB/s", "copy", "ratio", "peak MiB")
    print(f"{'case':<32}" + "".join(f" {name:>9}" for name in names))


def _case(
    folder: Path, name: str, source: Path, copied: Path, options: list[str], runs: int
) -> None:
    """One row of the table; outputs are removed before every run."""
    out, other = folder / "out", folder / "other"
    command = [*IMPORT, str(source), str(out), *options, "--json"]
    imports: list[Timed] = []
    copies: list[float] = []
    total_bytes = 0
    for _ in range(runs):
        _clear(out, other)
        wall, output = _run(command)
        told = json.loads(output)
        total_bytes = told["bytes"]
        imports.append(Timed(wall, told["seconds"], told["peak_memory_bytes"]))
        _clear(out, other)
        copies.append(
            _run(["sh", "-c", 'cp -r "$1" "$2" && sync', "sh", str(copied), str(other)])[0]
        )
    _clear(out, other)
    work = statistics.median(run.work for run in imports)
    cells = [
        f"{statistics.median(run.wall for run in imports):.2f}s",
        f"{work:.2f}s",
        f"{total_bytes / 1e9 / work:.2f}",
        f"{statistics.median(copies):.2f}s",
        f"{statistics.median(a.work / b for a, b in zip(imports, copies, strict=True)):.2f}x",
        f"{max(run.peak_bytes for run in imports) / 2**20:.0f}",
    ]
    print(f"{name:<32}" + "".join(f" {cell:>9}" for cell in cells), flush=True)


def _clear(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
    os.sync()


def _run(command: list[str]) -> tuple[float, str]:
    """Runs a command to its end: wall seconds, and what it printed."""
    started = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return time.monotonic() - started, done.stdout


if __name__ == "__main__":
    main()
