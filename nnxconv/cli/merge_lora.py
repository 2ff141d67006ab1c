"""`nnxconv merge-lora`."""

import json
from typing import Any

import click

from nnxconv.cli.arguments import GroupedCommand, options
from nnxconv.cli.output import say


@click.command(
    "merge-lora",
    cls=GroupedCommand,
    no_args_is_help=True,
    short_help="Adds LoRA adapters to the weights that they belong to.",
)
@click.argument("base", metavar="BASE")
@click.argument("adapter", metavar="ADAPTER")
@click.argument("target", metavar="DST")
@options(
    "merge_lora",
    *("alpha", "rslora", "unmerge", "dequantize", "layer_axis"),
    *("precision", "at", "adapter_at", "max_memory", "compression"),
    *("dry_run", "verify", "overwrite", "resume", "allow_uncommitted"),
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def merge_lora(base: str, adapter: str, target: str, as_json: bool, **arguments: Any) -> None:
    """Adds the LoRA adapters ADAPTER to the weights of BASE, and writes the result at DST.

    BASE gives the layout. A tree that holds both is given twice.

    \b
    nnxconv merge-lora base adapter merged
    nnxconv merge-lora merged adapter base_again --unmerge
    """
    from nnxconv.cli.progress import progress
    from nnxconv.commands.merge_lora import merge_lora as run
    from nnxconv.render import conversion_json, conversion_text

    with progress() as watch:
        result = run(base, adapter, target, watch=watch, **arguments)
    say(json.dumps(conversion_json(result), indent=2) if as_json else conversion_text(result))
