"""`nnxconv compare`."""

import json
from typing import Any

import click

from nnxconv.cli.arguments import DISTRIBUTED, GroupedCommand, one_of, options
from nnxconv.cli.output import say


@click.command(
    cls=GroupedCommand,
    no_args_is_help=True,
    short_help="Says whether two checkpoints hold the same model.",
)
@click.argument("a", required=False, metavar="A")
@click.argument("b", required=False, metavar="B")
@click.option("--ckpt_path_1", help="The same as A.", metavar="A")
@click.option("--ckpt_path_2", help="The same as B.", metavar="B")
@options(
    "compare",
    *(
        "rename",
        "rename_back",
        "layer_group",
        "family",
        "at",
        "at_b",
        "compare_only",
        "filter",
        "exclude",
        "ignore_rngs",
    ),
    *("compare_values", "atol", "rtol", "equal_nan", "ignore_dtype", "dequantize", "max_memory"),
    *("allow_uncommitted", *DISTRIBUTED),
)
@click.option("--verbose", is_flag=True, help="List every leaf: = equal, - + * different.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option(
    "--report",
    "reports",
    multiple=True,
    metavar="FILE",
    help="Write the report to FILE.json or FILE.html as well.",
)
@click.option("--overwrite", is_flag=True, help="Replace reports that are there.")
@click.option("--transpose_nnx_layers", is_flag=True, hidden=True)
@click.pass_context
def compare(
    context: click.Context,
    a: str | None,
    b: str | None,
    ckpt_path_1: str | None,
    ckpt_path_2: str | None,
    verbose: bool,
    as_json: bool,
    reports: tuple[str, ...],
    overwrite: bool,
    transpose_nnx_layers: bool,
    **arguments: Any,
) -> None:
    """Says whether the checkpoints A and B hold the same model.

    Layouts do not matter: Linen against NNX, stacked against unstacked, axis 0 against 1.
    Exit codes: 0 match, 1 differ, 2 could not compare.

    \b
    nnxconv compare linen_ckpt nnx_ckpt --compare_values
    nnxconv compare before after --compare_only all --filter '*.mlp.*'
    """
    from nnxconv.cli.progress import progress
    from nnxconv.cli.screen import one_screen
    from nnxconv.commands.compare import compare as run
    from nnxconv.render import check_report_files, comparison_json, write_reports

    first = one_of("A", "--ckpt_path_1", a, ckpt_path_1)
    second = one_of("B", "--ckpt_path_2", b, ckpt_path_2)
    if transpose_nnx_layers:
        say("`--transpose_nnx_layers` is not needed: layer axes are found", err=True)
    check_report_files(reports, overwrite=overwrite)
    with one_screen(arguments["distributed"]), progress() as watch:
        report = run(first, second, watch=watch, **arguments)
    if report.process == 0:
        write_reports(report, reports, overwrite=overwrite)
        found = comparison_json(report)
        say(json.dumps(found, indent=2) if as_json else report.render(verbose=verbose))
    context.exit(report.exit_code)
