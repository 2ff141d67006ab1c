"""Files as they are: those of a checkpoint, and manifests beside it."""

import xxhash
from etils import epath

from nnxconv.errors import BadInput
from nnxconv.storage.files.operations import files_below, read_if_there
from nnxconv.storage.gcs import is_remote, prepare

_BLOCK_BYTES = 2**22


def write_text(path: str, text: str) -> None:
    """Writes a file, local or gs://."""
    _place(path).write_text(text)


def read_text(path: str) -> str | None:
    """The text of a file, local or gs://; None when it is not there.

    Raises:
      BadInput: it is no text.
    """
    found = read_if_there(_place(path))
    try:
        return None if found is None else found.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"`{path}` is no text in UTF-8") from error


def _place(path: str) -> epath.Path:
    if is_remote(path):
        prepare()
    return epath.Path(path)


def digest_files(item: epath.Path) -> dict[str, str]:
    """XXH3-128 of every file under an item, by relative path; an item may be one file."""
    if not is_remote(item) and item.is_file():
        return {item.name: digest_file(item)}
    return {name: digest_file(item / name) for name in sorted(files_below(item))}


def digest_file(file: epath.Path) -> str:
    """XXH3-128 of a file."""
    hasher = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()
