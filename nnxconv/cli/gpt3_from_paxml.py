"""`nnxconv gpt3-from-paxml`."""

import json
from typing import Any

import click

from nnxconv.cli.arguments import DISTRIBUTED, GroupedCommand, one_of, options
from nnxconv.cli.output import say


@click.command(
    "gpt3-from-paxml",
    cls=GroupedCommand,
    no_args_is_help=True,
    short_help="Imports a GPT-3 that Pax saved.",
)
@click.argument("source", required=False, metavar="SRC")
@click.argument("target", required=False, metavar="DST")
@click.option("--paxml_ckpt_path", help="The same as SRC.", metavar="SRC")
@click.option("--output_path", help="The same as DST.", metavar="DST")
@options(
    "gpt3_from_paxml",
    *("to", "fused_qkv", "optimizer", "b1", "b2", "vocab_size", "model"),
    *("scan_layers", "layer_axis", "step", "params_only", "dtype", "max_memory", "compression"),
    *("dry_run", "verify", "overwrite", "resume", *DISTRIBUTED),
    to={"default": "linen", "show_default": True},
    scan_layers={"default": True, "show_default": True},
    layer_axis={"default": 1, "show_default": True},
    step={"type": int, "metavar": None},
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def gpt3_from_paxml(
    source: str | None,
    target: str | None,
    paxml_ckpt_path: str | None,
    output_path: str | None,
    as_json: bool,
    **arguments: Any,
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
    with one_screen(arguments["distributed"]), progress() as watch:
        result = run(source, target, watch=watch, **arguments)
    if result.process == 0:
        done = conversion_json(result)
        say(json.dumps(done, indent=2) if as_json else conversion_text(result))
