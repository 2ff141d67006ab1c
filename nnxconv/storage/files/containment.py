"""No link leads out: of a checkpoint that is read, or of a place where unfinished work lies."""

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from stat import S_ISDIR, S_ISLNK, S_ISREG

from etils import epath

from nnxconv.errors import BadInput, DamagedCheckpoint
from nnxconv.storage.gcs import is_remote

_HINT = "copy what is linked into the checkpoint: nothing outside of it is read"


def refuse_strangers(root: epath.Path, *paths: epath.Path) -> None:
    """Refuses links out of `root`, links in a circle, pipes and devices, at and below the paths.

    Links within `root` are followed. There are none of these in a bucket.

    Raises:
      DamagedCheckpoint: there are some; all of them are named.
    """
    if is_remote(root):
        return
    top = os.path.realpath(root)
    problems = [problem for path in paths for problem in _strangers(os.fspath(path), top)]
    if problems:
        raise DamagedCheckpoint(
            f"the checkpoint has {len(problems):,} entries that are not read",
            where=str(root),
            details=problems,
            hint=_HINT,
        )


def _strangers(path: str, top: str) -> Iterator[str]:
    """What is wrong with a path and all that stands below it."""
    problem = _problem(path, top)
    if problem:
        yield f"`{path}` {problem}"
    elif os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False):
                    yield from _strangers(entry.path, top)


def _problem(path: str, top: str) -> str:
    try:
        kind = os.stat(path).st_mode  # noqa: PTH116
    except FileNotFoundError:
        is_link = os.path.islink(path)  # noqa: PTH114
        return "is a link to nothing" if is_link else ""
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    real = os.path.realpath(path)
    if os.path.commonpath([real, top]) != top:
        return f"is a link to `{real}`, which is outside of the checkpoint"
    if S_ISDIR(kind) and real != os.path.abspath(path) and _holds(real, path):  # noqa: PTH100
        return "is a link to a directory that it stands in"
    return "" if S_ISDIR(kind) or S_ISREG(kind) else "is neither a file nor a directory"


def _holds(directory: str, path: str) -> bool:
    return os.path.commonpath([directory, os.path.realpath(os.path.dirname(path))]) == directory  # noqa: PTH120


def refuse_links(place: str | os.PathLike[str], written: Collection[str]) -> None:
    """Refuses links in a place beside a target that is ours alone, before we write there.

    Args:
      place: a file or directory, which need not be there.
      written: names of files that are written in place, and have no other name therefore.

    Raises:
      BadInput: there are some; all of them are named.
    """
    problems = list(_links(os.fspath(place), written))
    if problems:
        raise BadInput(
            "nothing is written through links, and what nnxconv keeps has none",
            where=os.fspath(place),
            details=problems,
            hint="remove them, or choose another target",
        )


def _links(path: str, written: Collection[str]) -> Iterator[str]:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if S_ISLNK(status.st_mode):
        yield f"`{path}` is a link to `{os.path.realpath(path)}`"
    elif S_ISDIR(status.st_mode):
        with suppress(FileNotFoundError):  # the run whose it is has just removed it
            for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                yield from _links(entry.path, written)
    elif not S_ISREG(status.st_mode):
        yield f"`{path}` is neither a file nor a directory"
    elif status.st_nlink > 1 and path.rpartition("/")[2] in written:
        yield f"`{path}` has another name as well"
