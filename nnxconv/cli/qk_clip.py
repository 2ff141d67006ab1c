"""`nnxconv qk-clip`."""

import json
from typing import Any

import click

from nnxconv.cli.arguments import GroupedCommand, options
from nnxconv.cli.output import say


@click.command(
    "qk-clip",
    cls=GroupedCommand,
    no_args_is_help=True,
    short_help="Clips attention weights where logits grew too large.",
)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@options(
    "qk_clip_checkpoint",
    *("max_logits", "threshold", "qk_nope_head_dim", "missing", "precision", "step", "at"),
    *("max_memory", "compression", "dry_run", "verify", "overwrite", "resume", "allow_uncommitted"),
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def qk_clip(source: str, target: str, as_json: bool, **arguments: Any) -> None:
    """Clips queries and keys of the checkpoint SRC, and writes the result at DST.

    For multi-head latent attention (DeepSeek): each head whose largest recorded logit exceeds the
    threshold is scaled so that it would not have. FILE is an .npz, a .json or an Orbax item of what
    the run recorded as `max_logits`.

    \b
    nnxconv qk-clip run/1000 clipped --max_logits logits.npz --threshold 100 --qk_nope_head_dim 128
    """
    from nnxconv.cli.progress import progress
    from nnxconv.commands.qk_clip import qk_clip_checkpoint as run
    from nnxconv.render import conversion_json, conversion_text

    with progress() as watch:
        result = run(source, target, watch=watch, **arguments)
    say(json.dumps(conversion_json(result), indent=2) if as_json else conversion_text(result))
