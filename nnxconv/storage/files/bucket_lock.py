"""One conversion at a time writes to a target in a bucket."""

from collections.abc import Iterator
from contextlib import contextmanager

from etils import epath

from nnxconv.storage import UNFINISHED
from nnxconv.storage.gcs import Lease

_leases: dict[str, Lease] = {}
"""Of the targets in buckets that this process is writing."""


def check_lock(path: epath.Path) -> None:
    """Makes sure that no other conversion has taken over a target that is being written.

    Raises:
      LeaseLost: one has.
    """
    if path.as_posix() in _leases:
        _leases[path.as_posix()].check()


@contextmanager
def locked_in_bucket(path: epath.Path) -> Iterator[Lease]:
    """Lets one conversion at a time write to a target in a bucket.

    Raises:
      BadInput: another one does, or was killed a moment ago.
    """
    lease = Lease(path.parent / f"{path.name}{UNFINISHED}-lock", path, "conversion")
    with lease.held():
        _leases[path.as_posix()] = lease
        try:
            yield lease
        finally:
            del _leases[path.as_posix()]
