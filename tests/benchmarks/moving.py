"""Arrays that only change their names: links and copies, and comparisons of what was copied."""

from collections.abc import Iterator

from tests.benchmarks.measuring import EAGER, NNXCONV, Bench, Row, run

AXIS = ["--layer_axis", "1"]


def rows(bench: Bench) -> Iterator[Row]:
    stacked, apart = (bench.made(kind, bench.gigabytes) for kind in ("stacked", "apart"))
    yield from _links(bench, stacked)
    yield _copy(bench, "names only, copy", stacked)
    yield _copy(bench, "stack layers by renaming, copy", apart, "--scan_layers")
    yield from _comparisons(bench, stacked)


def _links(bench: Bench, stacked: str) -> Iterator[Row]:
    sources = {bench.gigabytes: stacked} | {g: bench.made("weights", g) for g in bench.linked}
    for gigabytes, source in sources.items():
        command = [*NNXCONV, "convert", source, bench.out(), *AXIS, "--transfer", "link"]
        commands = [command]
        if gigabytes == bench.gigabytes:
            commands.append([*EAGER, "convert", source, bench.out("other"), "names"])
        ours, *eager = bench.best(*commands)
        yield Row(
            f"names only, link, {gigabytes:g} GiB",
            f"{ours}",
            "".join(f"eager {one}" for one in eager),
            "0.5 s, 110 MiB",
            ours.wall <= 0.5 and ours.peak <= 110,
        )


def _copy(bench: Bench, case: str, source: str, *options: str) -> Row:
    command = [*NNXCONV, "convert", source, bench.out(), *AXIS, *options]
    ours, copy = bench.best(command, f"cp -r {source} {bench.out('other')} && sync")
    return Row(
        case,
        f"{ours}",
        f"`cp -r` and `sync` {copy.wall:.2f} s",
        "1.2 x + 0.4 s",
        ours.wall <= 1.2 * copy.wall + 0.4,
    )


def _comparisons(bench: Bench, stacked: str) -> Iterator[Row]:
    twin = f"{stacked}_twin"
    run(f"cp -r {stacked} {twin}")
    compare = [*NNXCONV, "compare", stacked, twin, "--compare_values", "--compare_only"]
    ours, diff = bench.best([*compare, "all"], f"diff -r {stacked} {twin}")
    yield Row("compare equal checkpoints", f"{ours}", f"`diff -r` {diff.wall:.2f} s")
    ours, eager = bench.best([*compare, "params"], [*EAGER, "compare", stacked, twin])
    yield Row("compare their parameters", f"{ours}", f"eager {eager}")
