"""Files as they are: those of a checkpoint, and manifests beside it."""

import xxhash
from etils import epath

from nnxconv.storage.remote import files_below, is_remote, prepare, read_if_there

_BLOCK_BYTES = 2**22


def write_text(path: str, text: str) -> None:
    """Writes a file, local or gs://."""
    _place(path).write_text(text)


def read_text(path: str) -> str | None:
    """The text of a file, local or gs://; None when it is not there."""
    found = read_if_there(_place(path))
    return None if found is None else found.decode()


def _place(path: str) -> epath.Path:
    if is_remote(path):
        prepare()
    return epath.Path(path)


def digest_files(item: epath.Path) -> dict[str, str]:
    """XXH3-128 of every file under an item, by relative path."""
    return {name: _digest(item / name) for name in sorted(files_below(item))}


def _digest(file: epath.Path) -> str:
    hasher = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()
