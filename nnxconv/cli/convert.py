"""`nnxconv convert`."""

import json
from typing import Any

import click

from nnxconv.cli.arguments import DISTRIBUTED, GroupedCommand, one_of, options
from nnxconv.cli.output import say


@click.command(
    cls=GroupedCommand,
    no_args_is_help=True,
    short_help="Converts a checkpoint to another layout.",
)
@click.argument("source", required=False, metavar="SRC")
@click.argument("target", required=False, metavar="DST")
@click.option("--source_path", help="The same as SRC.", metavar="SRC")
@click.option("--target_path", help="The same as DST.", metavar="DST")
@options(
    "convert",
    *("direction", "to", "from_", "like", "rename", "rename_back", "config"),
    *("scan_layers", "layer_axis", "layer_group", "family"),
    *("step", "at", "drop", "params_from", "replica"),
    *(
        "params_only",
        "without",
        "strict",
        "dtype",
        "dequantize",
        "max_memory",
        "transfer",
        "shard_size",
        "compression",
    ),
    *("dry_run", "verify", "overwrite", "resume", "allow_uncommitted", *DISTRIBUTED),
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def convert(
    source: str | None,
    target: str | None,
    source_path: str | None,
    target_path: str | None,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Converts the checkpoint SRC to another layout, at DST.

    SRC is an item directory, a step, or a root of steps; DST gets the same structure.

    \b
    nnxconv convert linen_ckpt nnx_ckpt
    nnxconv convert --to maxtext --no-scan_layers run/checkpoints out
    """
    from nnxconv.cli.progress import progress
    from nnxconv.cli.screen import one_screen
    from nnxconv.commands.convert import convert as run
    from nnxconv.render import conversion_json, conversion_text

    source = one_of("SRC", "--source_path", source, source_path)
    target = one_of("DST", "--target_path", target, target_path)
    with one_screen(arguments["distributed"]), progress() as watch:
        result = run(source, target, watch=watch, **arguments)
    if result.process == 0:
        done = conversion_json(result)
        say(json.dumps(done, indent=2) if as_json else conversion_text(result))
