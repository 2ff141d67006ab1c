"""`nnxconv compare`."""

import json
from typing import Any

import click

from nnxconv.cli.arguments import (
    allow_uncommitted_option,
    distributed_options,
    max_memory_option,
    one_of,
    rename_back_option,
    rename_option,
)
from nnxconv.cli.output import say


@click.command(no_args_is_help=True)
@click.argument("a", required=False, metavar="A")
@click.argument("b", required=False, metavar="B")
@click.option("--ckpt_path_1", help="The same as A.", metavar="A")
@click.option("--ckpt_path_2", help="The same as B.", metavar="B")
@rename_option
@rename_back_option
@click.option("--compare_values", is_flag=True, help="Read the arrays, not only their metadata.")
@click.option("--atol", type=float, default=1e-5, show_default=True, help="Absolute tolerance.")
@click.option("--rtol", type=float, default=1e-5, show_default=True, help="Relative tolerance.")
@click.option("--equal_nan/--no-equal_nan", default=True, show_default=True, help="NaN equals NaN.")
@click.option(
    "--compare_only",
    type=click.Choice(["params", "all"]),
    default="params",
    show_default=True,
    help="`all`: optimizer, step and other variables as well.",
)
@click.option(
    "--ignore_rngs/--no-ignore_rngs",
    default=True,
    show_default=True,
    help="Leave RNG state aside, which Linen does not keep.",
)
@click.option("--ignore_dtype", is_flag=True, help="Compare values in the wider type.")
@click.option("--filter", multiple=True, metavar="GLOB", help="Compare only these keys.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these keys aside.")
@max_memory_option
@click.option("--verbose", is_flag=True, help="List every leaf: = equal, - + * different.")
@allow_uncommitted_option
@distributed_options
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option(
    "--report",
    "reports",
    multiple=True,
    metavar="FILE",
    help="Write the report to FILE.json or FILE.html as well.",
)
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
    transpose_nnx_layers: bool,
    **options: Any,
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
    check_report_files(reports)
    with one_screen(options["distributed"]), progress() as watch:
        report = run(first, second, watch=watch, **options)
    if report.process == 0:
        write_reports(report, reports)
        found = comparison_json(report)
        say(json.dumps(found, indent=2) if as_json else report.render(verbose=verbose))
    context.exit(report.exit_code)
