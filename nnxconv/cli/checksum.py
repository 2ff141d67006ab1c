"""`nnxconv checksum`."""

import json
from typing import Any

import click

from nnxconv.cli.arguments import GroupedCommand, options
from nnxconv.cli.output import say


@click.command(
    cls=GroupedCommand,
    no_args_is_help=True,
    short_help="Writes digests of a checkpoint's values, or verifies them.",
)
@click.argument("path", metavar="PATH")
@options(
    "checksum",
    "check",
    "manifest",
    "family",
    "step",
    "at",
    "max_memory",
    "overwrite",
    "allow_uncommitted",
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@click.pass_context
def checksum(
    context: click.Context,
    path: str,
    is_check: bool,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Writes a manifest of digests for the checkpoint at PATH, or verifies it.

    Digests are of values in logical order, so the manifest of a Linen checkpoint checks its NNX
    conversion. Exit codes: 0 as recorded, 1 different, 2 could not check.

    \b
    nnxconv checksum ckpt/1000
    nnxconv checksum --check nnx_ckpt/1000 --manifest ckpt/1000.checksums.json
    """
    from nnxconv.cli.progress import progress
    from nnxconv.commands.checksum import check_checksums, write_checksums
    from nnxconv.render import check_json, check_text

    with progress() as watch:
        if not is_check:
            written = write_checksums(path, watch=watch, **arguments)
            summary = {"manifest": written.path, "leaves": written.leaves, "files": written.files}
            summary |= {"step": written.choice} if written.choice else {}
            of = f" of {written.choice}" if written.choice else ""
            text = f"{written.leaves:,} arrays and {written.files:,} files{of} -> {written.path}"
            say(json.dumps(summary, indent=2) if as_json else text)
            return
        if arguments.pop("overwrite"):
            raise click.UsageError("`--overwrite` replaces a manifest, and `--check` writes none")
        found = check_checksums(path, watch=watch, **arguments)
    say(json.dumps(check_json(found), indent=2) if as_json else check_text(found))
    context.exit(found.exit_code)
