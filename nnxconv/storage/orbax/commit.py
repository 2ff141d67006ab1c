"""The target appears whole or not at all: temporary names, the last rename, the clean-up."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from etils import epath

from nnxconv.errors import StorageError
from nnxconv.storage import COMMITTED, UNFINISHED, last_resort
from nnxconv.storage.files import exchange, locked, parents_made, write_files
from nnxconv.storage.gcs import is_remote
from nnxconv.storage.orbax.commit_in_bucket import staged_in_bucket
from nnxconv.storage.orbax.documents import mark
from nnxconv.storage.orbax.staging import Staging, refuse_replacing


@contextmanager
def nothing_left_on_failure(
    path: epath.Path,
    *,
    may_replace: bool,
    is_marked: bool = True,
    file: str = "",
    last: Callable[[epath.Path], None] | None = None,
) -> Iterator[Staging]:
    """Removes the temporary directory, and the parents made for it, unless all goes well.

    Args:
      path: of the target.
      may_replace: whether what is there is replaced.
      is_marked: a complete one says so by a file in it, as Orbax's do.
      file: the only file in the directory that becomes the target, instead of all of it.
      last: writes into the directory, in a bucket, by what readers know that it is complete,
        instead of Orbax's mark.

    Raises:
      BadInput: another conversion is writing the target, or has just written it.
    """
    staged = (
        staged_in_bucket(path, may_replace, is_object=bool(file), last=last)
        if is_remote(path)
        else _staged_on_disk(path, may_replace, is_marked=is_marked, file=file)
    )
    with staged as staging:
        yield staging


@contextmanager
def _staged_on_disk(
    path: epath.Path, may_replace: bool, *, is_marked: bool, file: str
) -> Iterator[Staging]:
    """A directory of a temporary name, beside the target."""
    with parents_made(path), locked(path):
        _undo(path)  # what a killed run left
        refuse_replacing(path, may_replace)
        try:
            with last_resort(partial(_undo, path)):
                made = _made(_temporary(path))
                commit = partial(_rename, made, path, may_replace, is_marked=is_marked, file=file)
                yield Staging(made.directory, commit)
        except BaseException:
            _undo(path)
            raise


def _undo(path: epath.Path) -> None:
    """Removes what an unfinished save left; a target that was set aside comes back."""
    temporary, aside = _temporary(path), _aside(path)
    if aside.exists() and not path.exists():
        aside.rename(path)
    for leftover in (temporary, aside):
        if os.path.islink(leftover):  # noqa: PTH114
            os.unlink(leftover)  # noqa: PTH108
        elif leftover.exists():
            _remove(leftover)


def _remove(path: epath.Path) -> None:
    """Removes a directory into which writes that were under way may still fall."""
    quiet = 0
    for _ in range(200):
        if path.exists():
            quiet = 0
            with suppress(OSError):
                path.rmtree()
        else:
            quiet += 1
            if quiet == 5:
                return
        time.sleep(0.01)


def _aside(path: epath.Path) -> epath.Path:
    """Where the new target stands before it takes the old one's place, and the old one after."""
    return path.parent / f"{path.name}{UNFINISHED}-replaced"


def _temporary(path: epath.Path) -> epath.Path:
    """Where a target is written; Orbax takes such names for unfinished saves."""
    return path.parent / (path.name + UNFINISHED)


@dataclass(frozen=True)
class _Made:
    """A directory that we have made, and how the system knows it."""

    directory: epath.Path
    status: os.stat_result

    def confirm(self) -> None:
        """Makes sure that it is still there, and is not a link, or another one of that name.

        Raises:
          StorageError: it is not.
        """
        with suppress(OSError):
            if os.path.samestat(self.status, os.lstat(self.directory)):
                return
        raise StorageError(
            "the unfinished target was moved or replaced while it was written",
            where=os.fspath(self.directory),
            hint="let no other program change it, and try again",
        )


def _made(directory: epath.Path) -> _Made:
    directory.mkdir()
    return _Made(directory, os.lstat(directory))


def _rename(
    made: _Made, path: epath.Path, may_replace: bool, *, is_marked: bool, file: str
) -> None:
    """Gives the target its name; an existing one, which may be replaced, is swapped for it."""
    made.confirm()
    refuse_replacing(path, may_replace)
    temporary = made.directory
    if file:
        (temporary / file).replace(path)
        temporary.rmtree()
        return
    if is_marked:
        write_files({temporary / COMMITTED: mark(path)})
    if not path.exists():
        temporary.rename(path)
        return
    aside = _aside(path)
    temporary.rename(aside)
    exchange(aside, path)
    aside.rmtree()
