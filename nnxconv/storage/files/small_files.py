"""Small files that are needed one after the other, and come from a bucket together."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from etils import epath

from nnxconv.storage.files.listing import Folder
from nnxconv.storage.files.operations import read_if_there
from nnxconv.storage.gcs import REQUESTS_AT_ONCE, is_remote


class SmallFiles:
    """Reads small files of a checkpoint; in a bucket those that will be needed come together.

    Args:
      folders: directories that have been listed: what they do not name is not asked for.
      ahead: what will be needed; each has been read once when `read` is called for it.
    """

    def __init__(self, folders: Sequence[Folder] = (), ahead: Iterable[epath.Path] = ()) -> None:
        self._files = {one.path.as_posix(): one.files for one in folders if is_remote(one.path)}
        wanted = [path for path in ahead if is_remote(path) and self._may_be_there(path)]
        self._asked: dict[str, Future[bytes | None]] = {}
        if wanted:
            with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
                self._asked = {path.as_posix(): pool.submit(read_if_there, path) for path in wanted}

    def read(self, path: epath.Path) -> bytes | None:
        """A small file; None when there is none."""
        found = self._asked.pop(path.as_posix(), None)
        if found is not None:
            return found.result()
        return read_if_there(path) if self._may_be_there(path) else None

    def _may_be_there(self, path: epath.Path) -> bool:
        files = self._files.get(path.parent.as_posix())
        return files is None or path.name in files
