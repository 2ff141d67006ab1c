"""Arguments that several commands have, or that can be given in two ways."""

import click

max_memory_option = click.option(
    "--max_memory",
    default="2GiB",
    show_default=True,
    metavar="SIZE",
    help="What blocks in flight may take, besides about 300 MiB for the program.",
)


def one_of(position: str, option: str, a: str | None, b: str | None) -> str:
    """A path that was given once, as a position or as an option."""
    if a is not None and b is not None:
        raise click.UsageError(f"{position} and {option} mean the same: give one of them")
    found = a if a is not None else b
    if found is None:
        raise click.UsageError(f"{position} is missing")
    return found
