"""One conversion at a time writes to a target."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from etils import epath

from nnxconv.errors import BadInput
from nnxconv.storage import UNFINISHED, last_resort
from nnxconv.storage.files.containment import refuse_links


@contextmanager
def locked(path: epath.Path) -> Iterator[None]:
    """Holds a lock beside a local target, whose directory is there, while the body runs.

    The kernel lets it go with the process, however that ends; the empty file is then left.

    Raises:
      BadInput: another process, or thread, holds it; it is a link.
    """
    lock = path.parent / f"{path.name}{UNFINISHED}-lock"
    refuse_links(lock, {lock.name})
    held = _take(os.fspath(lock), path)
    try:
        with last_resort(partial(lock.unlink, missing_ok=True)):
            yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(held)


def _lock(file: int) -> None:
    """Raises BlockingIOError where it is locked; some file systems have no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EBADF):
            raise


def _take(lock: str, path: epath.Path) -> int:
    """An open file that is locked, and still the one of that name."""
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            _lock(file)
            if os.path.exists(lock) and os.path.samestat(os.fstat(file), os.stat(lock)):  # noqa: PTH110, PTH116
                return file
        except BlockingIOError:
            os.close(file)
            raise BadInput(
                f"another conversion is writing `{path}`",
                hint="wait until it is done, or choose another target",
            ) from None
        except BaseException:
            os.close(file)
            raise
        os.close(file)
