"""Commands that compute, against a rewrite of the same bytes: each element times a number."""

from collections.abc import Iterator

from tests.benchmarks.measuring import NNXCONV, Bench, Row

MOST = 1.5


def rows(bench: Bench) -> Iterator[Row]:
    base, adapter = bench.made("lora_base", bench.gigabytes), bench.made("lora", bench.gigabytes)
    other = bench.made("lora_base", bench.gigabytes, 1)
    attention = bench.made("attention", bench.gigabytes)
    out = bench.out()
    merge = [*NNXCONV, "merge-lora", base, adapter, out, "--alpha", "8"]
    average = [*NNXCONV, "average", base, other, out]
    clip = [*NNXCONV, "qk-clip", attention, out, "--threshold", "100", "--qk_nope_head_dim", "128"]
    yield _row(bench, "`merge-lora`, rank 8", base, merge)
    yield _row(bench, "`average` of two", base, average)
    yield _row(bench, "`qk-clip`", attention, [*clip, "--max_logits", f"{attention}.npz"])


def _row(bench: Bench, case: str, source: str, command: list[str]) -> Row:
    rules = ["--rename", f"{source}.toml", "--to", "linen"]
    ours, rewrite = bench.best(command, [*NNXCONV, "convert", source, bench.out(), *rules])
    return Row(
        case,
        f"{ours}: {ours.wall / rewrite.wall:.2f} x",
        f"rewrite {rewrite}",
        f"{MOST} x",
        ours.wall <= MOST * rewrite.wall,
    )
