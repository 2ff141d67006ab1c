"""Memory of this process: how much it may have and has taken, and how freed memory goes back."""

import ctypes
import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from nnxconv.errors import PlanError
from nnxconv.running.cgroup import memory_limit
from nnxconv.tree import format_bytes

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
    group = memory_limit()
    if group is not None:
        yield "the limit of the cgroup", group, RESIDENT_BYTES


def _address_limit() -> int | None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_LARGE_BYTES = 2**22
_UNLIMITED = 2**31 - 1
_DEFAULT_TRIM_BYTES, _DEFAULT_MAPPINGS = 2**17, 2**16


@cache
def share_one_heap() -> None:
    """Keeps glibc from giving each thread a heap of its own, for the rest of this process.

    Blocks that TensorStore's threads have freed would stay in those heaps, hundreds of MiB of
    them. Large blocks are kept out of the heap altogether, and go back when they are freed. Does
    nothing where there is no glibc.
    """
    _mallopt(_M_ARENA_MAX, 1)
    _mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


@contextmanager
def without_collecting() -> Iterator[None]:
    """Lets nobody look for cycles among objects while the body runs, which makes many that stay.

    Python would look again and again: for trees of 100,000 leaves a fifth of all time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def kept_blocks() -> Iterator[None]:
    """Keeps large blocks that are freed, for the next ones, while the body runs.

    Otherwise most of the time that large blocks take is the kernel's, which clears fresh pages for
    each. Blocks of many sizes leave gaps: up to half as much memory again is taken.
    """
    _mallopt(_M_MMAP_MAX, 0)
    _mallopt(_M_TRIM_THRESHOLD, _UNLIMITED)
    try:
        yield
    finally:
        _mallopt(_M_MMAP_MAX, _DEFAULT_MAPPINGS)
        _mallopt(_M_TRIM_THRESHOLD, _DEFAULT_TRIM_BYTES)
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _mallopt(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)


def peak_memory_bytes() -> int:
    """The largest resident size that this process has had, in bytes.

    A process inherits `ru_maxrss` from the one that started it, so that is the second choice.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
