"""The files of a checkpoint as they are on disk."""

import xxhash
from etils import epath

_BLOCK_BYTES = 2**22


def digest_files(item: epath.Path) -> dict[str, str]:
    """XXH3-128 of every file under an item, by relative path."""
    return {
        file.relative_to(item).as_posix(): _digest(file)
        for file in sorted(_files(item), key=lambda path: path.as_posix())
    }


def _files(path: epath.Path) -> list[epath.Path]:
    found: list[epath.Path] = []
    for child in path.iterdir():
        found += _files(child) if child.is_dir() else [child]
    return found


def _digest(file: epath.Path) -> str:
    hasher = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()
