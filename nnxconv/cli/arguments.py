"""Arguments that several commands have, or that can be given in two ways."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from nnxconv.layouts import layouts

Command = TypeVar("Command", bound=Callable[..., Any])


class Layout(click.ParamType):
    """The name of a layout; those of other packages are looked up when one is given or listed."""

    name = "layout"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The layout, spelled with dashes or underscores."""
        found = [name for name in layouts() if name.replace("-", "_") == value.replace("-", "_")]
        if not found:
            self.fail(f"{value!r} is not one of {', '.join(layouts())}.", param, ctx)
        return found[0]

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """All names, as click writes a choice."""
        return f"[{'|'.join(layouts())}]"


max_memory_option = click.option(
    "--max_memory",
    default="2GiB",
    show_default=True,
    metavar="SIZE",
    help="What blocks in flight may take, besides about 300 MiB for the program.",
)

overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace DST, once the new one is complete."
)
dry_run_option = click.option("--dry_run", is_flag=True, help="Show the plan; write nothing.")
verify_option = click.option(
    "--verify", is_flag=True, help="Compare DST with SRC before committing it."
)
allow_uncommitted_option = click.option(
    "--allow_uncommitted",
    is_flag=True,
    help="Read what has no commit_success.txt in a bucket.",
)
params_only_option = click.option(
    "--params_only",
    is_flag=True,
    help="Write what serving loads: no optimizer state, step or RNG state.",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32", "float64"]),
    help="Cast the floating-point parameters; moments stay as they are.",
)


rename_option = click.option(
    "--rename",
    metavar="RULES",
    help="Rename modules by the rules of this TOML file, or of this set that comes with nnxconv.",
)
rename_back_option = click.option(
    "--rename_back", metavar="RULES", help="The same, from right to left."
)


_DISTRIBUTED = (
    click.option(
        "--distributed",
        is_flag=True,
        help="Share the work with other processes; each is started with this command.",
    ),
    click.option(
        "--coordinator_address",
        metavar="HOST:PORT",
        help="Where process 0 is, unless the cluster or JAX_COORDINATOR_ADDRESS tells.",
    ),
    click.option(
        "--num_processes",
        type=int,
        metavar="N",
        help="How many processes, unless the cluster or JAX_NUM_PROCESSES tells.",
    ),
    click.option(
        "--process_id",
        type=int,
        metavar="I",
        help="Which one this is, from 0, unless the cluster or JAX_PROCESS_ID tells.",
    ),
)


def distributed_options(command: Command) -> Command:
    """Gives a command the options by which several processes find each other."""
    for option in reversed(_DISTRIBUTED):
        command = option(command)
    return command


def one_of(position: str, option: str, a: str | None, b: str | None) -> str:
    """A path that was given once, as a position or as an option."""
    if a is not None and b is not None:
        raise click.UsageError(f"{position} and {option} mean the same: give one of them")
    found = a if a is not None else b
    if found is None:
        raise click.UsageError(f"{position} is missing")
    return found
