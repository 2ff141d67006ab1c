"""Memory of this process: how much it has taken, and how freed memory goes back."""

import ctypes
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

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
