"""Memory of this process: how much it has taken, and how freed memory goes back."""

import ctypes
import resource
from functools import cache
from pathlib import Path

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_LARGE_BYTES = 2**22


@cache
def share_one_heap() -> None:
    """Keeps glibc from giving each thread a heap of its own, for the rest of this process.

    Blocks that TensorStore's threads have freed would stay in those heaps, hundreds of MiB of
    them. Large blocks are kept out of the heap altogether, and go back when they are freed. Does
    nothing where there is no glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


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
