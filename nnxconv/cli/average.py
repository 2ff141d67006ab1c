"""`nnxconv average`."""

import json
from typing import Any

import click

from nnxconv.cli.arguments import GroupedCommand, options
from nnxconv.cli.output import say


@click.command(
    cls=GroupedCommand,
    no_args_is_help=True,
    short_help="Averages checkpoints of one model.",
)
@click.argument("paths", nargs=-1, required=True, metavar="A [B ...] DST")
@options(
    "average",
    *("weights", "last", "ema", "precision", "at", "max_memory", "compression"),
    *("dry_run", "verify", "overwrite", "resume", "allow_uncommitted"),
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def average(paths: tuple[str, ...], as_json: bool, weights: str | None, **arguments: Any) -> None:
    """Averages the checkpoints A, B, ..., and writes the result at DST.

    A gives the layout and all that is not averaged: optimizer state, step, RNG state.

    \b
    nnxconv average run_1 run_2 run_3 soup --weights 0.5,0.3,0.2
    nnxconv average run/checkpoints averaged --last 5 --ema 0.9
    """
    from nnxconv.cli.progress import progress
    from nnxconv.commands.average import average as run
    from nnxconv.render import conversion_json, conversion_text

    if len(paths) < 2:
        raise click.UsageError("DST is missing")
    numbers = None if weights is None else [_number(text) for text in weights.split(",")]
    with progress() as watch:
        result = run(paths[:-1], paths[-1], weights=numbers, watch=watch, **arguments)
    say(json.dumps(conversion_json(result), indent=2) if as_json else conversion_text(result))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.UsageError(f"`{text}` in --weights is not a number") from None
