"""`nnxconv match`."""

import json
from typing import Any

import click

from nnxconv.cli.arguments import GroupedCommand, options
from nnxconv.cli.output import say


@click.command(
    cls=GroupedCommand,
    no_args_is_help=True,
    short_help="Proposes rename rules that lead to another model.",
)
@click.argument("source", metavar="SRC")
@click.argument("template", metavar="TEMPLATE")
@options(
    "match",
    *("output", "overwrite", "layer_group", "family", "step", "at", "at_template"),
    *("by_values", "max_memory"),
)
@click.option("--html", "page", metavar="FILE", help="Draw both trees and their pairs in FILE.")
@click.option("--interactive", is_flag=True, help="Ask on the terminal what is not certain.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def match(
    context: click.Context,
    source: str,
    template: str,
    output: str | None,
    page: str | None,
    interactive: bool,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Proposes rename rules: which leaf of SRC is which leaf of TEMPLATE.

    TEMPLATE is another checkpoint, or `module:function`, a function that returns a model's
    variables: an nnx.Module, an nnx.State, Linen variables or a TrainState, abstract or not.
    What is not certain is listed, and stands in RULES as comments; nothing is guessed.
    Exit codes: 0 all leaves are certain, 1 some are not, 2 not done.

    \b
    nnxconv match linen_ckpt nnx_ckpt --output rules.toml
    nnxconv match linen_ckpt train.model:abstract_state --output rules.toml
    nnxconv match linen_ckpt nnx_ckpt --output rules.toml --interactive --html pairs.html
    nnxconv convert linen_ckpt out --to nnx-state --rename rules.toml
    """
    from nnxconv.cli.progress import progress
    from nnxconv.commands.match import match as run
    from nnxconv.commands.match import write_rules
    from nnxconv.render import check_page, proposal_json, proposal_text, write_page
    from nnxconv.storage.files import refuse_file

    if page is not None:
        check_page(page)
    if interactive:
        from nnxconv.cli.deciding import check_terminal

        check_terminal(output)
    for file in (output, page):
        refuse_file(file, arguments["overwrite"])
    with progress() as watch:
        found = run(source, template, watch=watch, **arguments)
    if interactive:
        from nnxconv.cli.deciding import decide

        found = found.decided(decide(found.questions()))
    if output is not None:
        write_rules(found, output)
    if page is not None:
        write_page(found, page)
    if as_json:
        say(json.dumps(proposal_json(found), indent=2))
    else:
        say(proposal_text(found, output))
    context.exit(found.exit_code)
