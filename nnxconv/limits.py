"""How much memory this process may still have: `ulimit -v`, and the limit of its cgroup."""

import resource
from collections.abc import Iterator
from pathlib import Path

from nnxconv.errors import PlanError
from nnxconv.sizes import format_bytes

PROGRAM_BYTES = 2**30
"""Addresses that the program takes: its libraries, and the stacks of its threads."""

RESIDENT_BYTES = 300 * 2**20
"""Memory that the program takes besides blocks of arrays."""


def check_memory(needed_bytes: int) -> None:
    """Refuses a plan whose blocks do not fit within a limit; past it, the process would be killed.

    Raises:
      PlanError: the plan needs more than a limit leaves.
    """
    for name, limit, program in _limits():
        if needed_bytes > limit - program:
            raise PlanError(
                f"the plan needs {format_bytes(needed_bytes)} of memory besides the program's"
                f" {format_bytes(program)}, but {name} is {format_bytes(limit)}",
                hint="raise that limit, or plan with a smaller `--max_memory`",
            )


def check_program() -> None:
    """Refuses to begin where not even the libraries can be loaded.

    Raises:
      PlanError: `ulimit -v` is too low.
    """
    limit = _address_limit()
    if limit is not None and limit < PROGRAM_BYTES:
        raise PlanError(
            f"the program needs {format_bytes(PROGRAM_BYTES)} of addresses, but `ulimit -v` is"
            f" {format_bytes(limit)}",
            hint="raise that limit",
        )


def _limits() -> Iterator[tuple[str, int, int]]:
    """Each limit: its name, its bytes, and how many of them the program itself takes."""
    addresses = _address_limit()
    if addresses is not None:
        yield "`ulimit -v`", addresses, PROGRAM_BYTES
    group = _group_limit()
    if group is not None:
        yield "the limit of the cgroup", group, RESIDENT_BYTES


def _address_limit() -> int | None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


_OWN_GROUP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def _group_limit() -> int | None:
    """The lowest `memory.max` of the process's cgroup and those around it; None without one."""
    try:
        lines = _OWN_GROUP.read_text().splitlines()
        own = next(line[3:] for line in lines if line.startswith("0::"))
        group = _GROUPS / own.lstrip("/")
        folders = [f for f in (group, *group.parents) if f == _GROUPS or _GROUPS in f.parents]
        files = [folder / "memory.max" for folder in folders]
        told = [file.read_text().strip() for file in files if file.exists()]
        return min((int(text) for text in told if text != "max"), default=None)
    except (OSError, StopIteration, ValueError):
        return None
