"""What the process's cgroup and those around it allow: memory, and processors."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_OWN_GROUP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def memory_limit() -> int | None:
    """The lowest `memory.max`, in bytes; None without one."""
    return min((int(text) for text in _told("memory.max") if text.isdigit()), default=None)


def processors() -> int:
    """How many processors this process may use: by its affinity mask, and by `cpu.max`."""
    least = len(os.sched_getaffinity(0))
    for text in _told("cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdigit():
            least = min(least, math.ceil(int(quota) / int(period)))
    return max(1, least)


def _told(file: str) -> Iterator[str]:
    """What a file of this name says in the process's cgroup, and in those around it."""
    try:
        lines = _OWN_GROUP.read_text().splitlines()
        own = next(line[3:] for line in lines if line.startswith("0::"))
    except (OSError, StopIteration):
        return
    group = _GROUPS / own.lstrip("/")
    for folder in (group, *group.parents):
        if folder == _GROUPS or _GROUPS in folder.parents:
            try:
                yield (folder / file).read_text().strip()
            except OSError:
                continue
