"""`nnxconv convert`."""

import json
from typing import Any

import click

from nnxconv.cli.arguments import (
    Layout,
    allow_uncommitted_option,
    distributed_options,
    dry_run_option,
    dtype_option,
    max_memory_option,
    one_of,
    overwrite_option,
    params_only_option,
    rename_back_option,
    rename_option,
    resume_option,
    verify_option,
)
from nnxconv.cli.output import say


@click.command(no_args_is_help=True)
@click.argument("source", required=False, metavar="SRC")
@click.argument("target", required=False, metavar="DST")
@click.option("--source_path", help="The same as SRC.", metavar="SRC")
@click.option("--target_path", help="The same as DST.", metavar="DST")
@click.option(
    "--direction",
    type=click.Choice(["auto", "linen_to_nnx", "nnx_to_linen"]),
    default="auto",
    show_default=True,
    help="`auto` recognises the source and goes to the other family.",
)
@click.option("--to", type=Layout(), help="The target's layout.")
@click.option("--from", "from_", type=Layout(), help="The source's layout.")
@click.option(
    "--scan_layers/--no-scan_layers",
    default=None,
    help="Stack the layers, or unstack them. Default: stack towards NNX, unstack towards Linen,"
    " leave as they are with `--to` or `--like`.",
)
@click.option(
    "--layer_axis",
    type=click.IntRange(0, 1),
    help="Where stacked arrays have their layers. Default: 1, or where they have them already.",
)
@click.option(
    "--layer_group",
    multiple=True,
    metavar="NAME",
    help="A further name of layers, besides layers, dense_layers and moe_layers.",
)
@click.option(
    "--without",
    multiple=True,
    metavar="PART",
    help="Leave out `aux`, `aux.rngs`, `opt_state` or `step`.",
)
@click.option("--like", metavar="PATH", help="Follow the conventions of this checkpoint.")
@rename_option
@rename_back_option
@click.option("--strict", is_flag=True, help="Leaving out RNG state is an error.")
@params_only_option
@dtype_option
@click.option("--step", type=int, help="Which step of a root of steps.")
@max_memory_option
@click.option(
    "--transfer",
    type=click.Choice(["copy", "link"]),
    default="copy",
    show_default=True,
    help="How data that stays as it is gets to DST; `link`: by hard links to SRC's data files.",
)
@overwrite_option
@dry_run_option
@verify_option
@resume_option
@allow_uncommitted_option
@distributed_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def convert(
    source: str | None,
    target: str | None,
    source_path: str | None,
    target_path: str | None,
    as_json: bool,
    **options: Any,
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
    with one_screen(options["distributed"]), progress() as watch:
        result = run(source, target, watch=watch, **options)
    if result.process == 0:
        done = conversion_json(result)
        say(json.dumps(done, indent=2) if as_json else conversion_text(result))
