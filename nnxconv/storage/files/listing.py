"""What is directly in a directory, found by one listing."""

from dataclasses import dataclass

from etils import epath

from nnxconv.storage.gcs import SCHEME, filesystem, is_remote


@dataclass(frozen=True)
class Folder:
    """A directory, and the names of the files and folders directly in it."""

    path: epath.Path
    files: frozenset[str]
    folders: frozenset[str]

    @property
    def names(self) -> frozenset[str]:
        """All names in it."""
        return self.files | self.folders


def open_folder(path: epath.Path) -> Folder:
    """Lists a directory; in a bucket that is one request, and one more for each 1,000 names.

    Raises:
      FileNotFoundError: there is nothing of this name.
      NotADirectoryError: it is a file.
    """
    if is_remote(path):
        return _in_bucket(path)
    children = list(path.iterdir())
    folders = frozenset(child.name for child in children if child.is_dir())
    return Folder(path, frozenset(child.name for child in children) - folders, folders)


def _in_bucket(path: epath.Path) -> Folder:
    root = path.as_posix().removeprefix(SCHEME).rstrip("/")
    files: set[str] = set()
    folders: set[str] = set()
    for entry in filesystem().ls(root, detail=True):
        name = entry["name"].rstrip("/")
        if name == root:
            if entry["type"] == "file" and not entry["name"].endswith("/"):
                raise NotADirectoryError(f"`{path}` is an object")
        else:
            (folders if entry["type"] == "directory" else files).add(name.rpartition("/")[2])
    return Folder(path, frozenset(files), frozenset(folders))
