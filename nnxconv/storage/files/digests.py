"""Digests of files as they are."""

import xxhash
from etils import epath

from nnxconv.storage.files.operations import files_below
from nnxconv.storage.gcs import is_remote

_BLOCK_BYTES = 2**22


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
