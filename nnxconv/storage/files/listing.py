"""What is directly in a directory, found by one listing."""

import errno
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from etils import epath

from nnxconv.storage.gcs import bucket_and_name, is_remote, list_below, object_at


@dataclass(frozen=True)
class Folder:
    """A directory, and the names of the files and folders directly in it.

    `objects` are all that are below it, in a bucket where one page of names told all: their bytes
    and generations.
    """

    path: epath.Path
    files: frozenset[str]
    folders: frozenset[str]
    objects: Mapping[str, tuple[int, str]] | None = field(default=None, repr=False, compare=False)

    @property
    def names(self) -> frozenset[str]:
        """All names in it."""
        return self.files | self.folders

    def inner(self, name: str) -> "Folder":
        """A folder in it, listed unless it is known already."""
        if self.objects is None:
            return open_folder(self.path / name)
        start = f"{name}/"
        below = {
            path.removeprefix(start): told
            for path, told in self.objects.items()
            if path.startswith(start)
        }
        return _of_objects(self.path / name, below)


def open_folder(path: epath.Path, *, is_expected: bool = True) -> Folder:
    """Lists a directory.

    In a bucket that is one request where there are at most 1,000 objects at and below it, else
    two, and one more for each further 1,000 names in it. One that is not expected to be there is
    asked for as a directory and as a file at once.

    Raises:
      FileNotFoundError: there is nothing of this name.
      NotADirectoryError: it is a file.
    """
    if is_remote(path):
        return _in_bucket(path, is_expected)
    children = list(path.iterdir())
    folders = frozenset(child.name for child in children if child.is_dir())
    return Folder(path, frozenset(child.name for child in children) - folders, folders)


def _in_bucket(path: epath.Path, is_expected: bool) -> Folder:
    with ThreadPoolExecutor(1) as pool:
        file = None if is_expected else pool.submit(object_at, path)
        found = list_below(path, one_page=True)
    if not found.is_whole:
        found = list_below(path, delimiter="/")
        return Folder(path, frozenset(found.objects), frozenset(found.folders))
    if not found.is_there and bucket_and_name(path)[1]:
        if (object_at(path) if file is None else file.result()) is not None:
            raise NotADirectoryError(f"`{path}` is an object")
        raise FileNotFoundError(errno.ENOENT, "there is no such object", path.as_posix())
    return _of_objects(path, found.objects)


def _of_objects(path: epath.Path, objects: Mapping[str, tuple[int, str]]) -> Folder:
    """A directory of which all objects are known."""
    first = [name.partition("/") for name in objects]
    files = frozenset(name for name, slash, _ in first if not slash)
    folders = frozenset(name for name, slash, _ in first if slash)
    return Folder(path, files, folders, objects)
