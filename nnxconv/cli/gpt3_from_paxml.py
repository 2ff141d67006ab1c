"""`nnxconv gpt3-from-paxml`."""

import json
from typing import Any

import click

from nnxconv.cli.arguments import (
    Layout,
    distributed_options,
    dry_run_option,
    dtype_option,
    max_memory_option,
    one_of,
    overwrite_option,
    params_only_option,
    resume_option,
    verify_option,
)
from nnxconv.cli.output import say


@click.command("gpt3-from-paxml", no_args_is_help=True)
@click.argument("source", required=False, metavar="SRC")
@click.argument("target", required=False, metavar="DST")
@click.option("--paxml_ckpt_path", help="The same as SRC.", metavar="SRC")
@click.option("--output_path", help="The same as DST.", metavar="DST")
@click.option(
    "--to",
    type=Layout(),
    default="linen",
    show_default=True,
    help="The target's layout.",
)
@click.option(
    "--fused_qkv/--split_qkv",
    default=True,
    show_default=True,
    help="One array for query, key and value, or three.",
)
@click.option(
    "--scan_layers/--no-scan_layers",
    default=True,
    show_default=True,
    help="Stack the layers, or write them apart.",
)
@click.option(
    "--layer_axis",
    type=click.IntRange(0, 1),
    default=1,
    show_default=True,
    help="Where stacked arrays have their layers.",
)
@click.option(
    "--optimizer",
    type=click.Choice(["adam_pax", "adamw"]),
    default="adam_pax",
    show_default=True,
    help="MaxText's adam_pax takes the moments as they are; for optax's adamw their correction"
    " of bias is undone.",
)
@click.option("--b1", type=float, default=0.9, show_default=True, help="Decay of the 1st moment.")
@click.option("--b2", type=float, default=0.95, show_default=True, help="Decay of the 2nd moment.")
@params_only_option
@dtype_option
@click.option(
    "--vocab_size",
    type=int,
    metavar="N",
    help="Where the metadata do not give it: cut padding off, or pad with zeros.",
)
@click.option(
    "--model",
    type=click.Choice(["gpt3-175b", "gpt3-52k"]),
    help="Check that the sizes are those of this model.",
)
@click.option("--step", type=int, help="Which step of a root of steps.")
@max_memory_option
@overwrite_option
@dry_run_option
@verify_option
@resume_option
@distributed_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def gpt3_from_paxml(
    source: str | None,
    target: str | None,
    paxml_ckpt_path: str | None,
    output_path: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Imports the Pax GPT-3 checkpoint SRC, and writes DST/<step>/items.

    SRC is the directory of the leaves, a step such as checkpoint_00000005, or a root of steps.
    The default is what MaxText's gpt3 configuration loads.

    \b
    nnxconv gpt3-from-paxml checkpoints/checkpoint_00004000 out
    nnxconv gpt3-from-paxml --to nnx --split_qkv --params_only --dtype bfloat16 checkpoints out
    """
    from nnxconv.cli.progress import progress
    from nnxconv.cli.screen import one_screen
    from nnxconv.commands.gpt3_from_paxml import gpt3_from_paxml as run
    from nnxconv.render import conversion_json, conversion_text

    source = one_of("SRC", "--paxml_ckpt_path", source, paxml_ckpt_path)
    target = one_of("DST", "--output_path", target, output_path)
    with one_screen(options["distributed"]), progress() as watch:
        result = run(source, target, watch=watch, **options)
    if result.process == 0:
        done = conversion_json(result)
        say(json.dumps(done, indent=2) if as_json else conversion_text(result))
