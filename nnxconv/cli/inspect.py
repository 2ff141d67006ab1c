"""`nnxconv inspect`."""

import json

import click

from nnxconv.cli.arguments import GroupedCommand, options
from nnxconv.cli.output import say


@click.command(
    cls=GroupedCommand,
    no_args_is_help=True,
    short_help="Shows what a checkpoint is.",
)
@click.argument("path", metavar="PATH")
@options("inspect", "step", "at", "layer_group", "family", "allow_uncommitted")
@click.option("--tree", is_flag=True, help="List every leaf.")
@click.option("--depth", type=click.IntRange(1), help="List the tree down to this depth.")
@click.option("--filter", "filters", multiple=True, metavar="GLOB", help="List these keys only.")
@click.option("--shardings", is_flag=True, help="Mesh and partition spec of every array.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(
    path: str,
    step: str | None,
    at: str | None,
    layer_group: tuple[str, ...],
    family: str | None,
    tree: bool,
    depth: int | None,
    filters: tuple[str, ...],
    shardings: bool,
    allow_uncommitted: bool,
    as_json: bool,
) -> None:
    """Shows what the checkpoint at PATH is: layout, layers, optimizer, sizes, container.

    Reads metadata only, besides the step.

    \b
    nnxconv inspect run/checkpoints --step 1000
    nnxconv inspect run/checkpoints/1000 --tree --filter '*.mlp.*'
    """
    from nnxconv.commands.inspect import inspect as run
    from nnxconv.render import inspection_json, inspection_text

    found = run(
        path,
        step=step,
        at=at,
        layer_group=layer_group,
        family=family,
        allow_uncommitted=allow_uncommitted,
    )
    if as_json:
        say(json.dumps(inspection_json(found), indent=2))
    else:
        say(inspection_text(found, tree=tree, depth=depth, filters=filters, shardings=shardings))
