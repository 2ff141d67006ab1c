"""Files on a local disk or in a bucket: listed, read, copied, removed."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from etils import epath

from nnxconv.errors import StorageError
from nnxconv.storage import ADAPTER_FILE, COMMITTED, TENSORS_FILE, TENSORS_INDEX
from nnxconv.storage.files.naming import placed
from nnxconv.storage.gcs import (
    REQUESTS_AT_ONCE,
    count_repetition,
    file_crc32c,
    filesystem,
    is_remote,
    list_below,
    object_at,
    pauses,
    write_object,
)

_UPLOAD_BYTES, _DOWNLOAD_BYTES = 2**24, 2**22
"""How much of a file one request carries; each waits for the one before it when files go up."""


def read_if_there(path: epath.Path) -> bytes | None:
    """A small file; None when there is none. One request in a bucket."""
    try:
        return filesystem().cat_file(path.as_posix()) if is_remote(path) else path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return None


def files_below(path: epath.Path) -> dict[str, int]:
    """Every file below a directory by relative path, with its bytes; one listing in a bucket."""
    if is_remote(path):
        return {name: nbytes for name, (nbytes, _) in list_below(path).objects.items()}
    return {name: status.st_size for name, status in _local_files_below(os.fspath(path))}


def generations_below(path: epath.Path) -> dict[str, tuple[int, str]]:
    """Every object below a path by relative path, with its bytes and generation; one listing."""
    return list_below(path).objects


def generation_of(path: epath.Path) -> dict[str, tuple[int, str]]:
    """The bytes and generation of an object, under the empty name; nothing where there is none."""
    found = object_at(path)
    return {} if found is None else {"": (found.nbytes, found.generation)}


def stamps_below(path: epath.Path) -> dict[str, str]:
    """What changes when a file below a directory does: size and time, or a bucket's generation.

    A file counts as a directory with nothing but itself.
    """
    if is_remote(path):
        found = generations_below(path) or generation_of(path)
        return {name: generation for name, (_, generation) in found.items()}
    here = Path(os.fspath(path))
    files = [(here.name, here.stat())] if here.is_file() else _local_files_below(str(here))
    return {name: f"{status.st_size} {status.st_mtime_ns}" for name, status in files}


def _local_files_below(folder: str, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """What the system says of each file, by relative path.

    `epath` fails where the owner of a file has no name, as in most containers.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _local_files_below(entry.path, f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name, entry.stat()


def copy_file(source: epath.Path, target: epath.Path) -> None:
    """Copies a file from or to a bucket; between buckets the server does it."""
    if is_remote(source) and is_remote(target):
        filesystem().cp_file(source.as_posix(), target.as_posix())
    elif is_remote(target):
        filesystem().put_file(os.fspath(source), target.as_posix(), chunksize=_UPLOAD_BYTES)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(source, target)
        with open(target, "rb+") as copied:  # noqa: PTH123
            os.fsync(copied.fileno())


def upload(source: Path, target: epath.Path) -> None:
    """Writes a large file to a bucket, in pieces; again where it was damaged on the way.

    Raises:
      StorageError: it was damaged each time.
    """

    def is_up() -> bool:
        filesystem().put_file(os.fspath(source), target.as_posix(), chunksize=_UPLOAD_BYTES)
        found = object_at(target)
        told = None if found is None else found.entry.get("crc32c")
        return found is not None and (told is None or told == file_crc32c(source))

    _until_whole(is_up, target, "its checksum is another one than that of the file")


def _download(source: epath.Path, target: epath.Path) -> None:
    """Brings an object here, again where its bytes were damaged on the way.

    Raises:
      StorageError: they were damaged each time.
    """

    def is_here() -> bool:
        filesystem().get_file(
            source.as_posix(),
            os.fspath(target),
            chunk_size=_DOWNLOAD_BYTES,
            max_prefetch_size=2 * _DOWNLOAD_BYTES,
        )
        told = filesystem().info(source.as_posix()).get("crc32c")
        return told is None or told == file_crc32c(Path(target))

    _until_whole(is_here, source, "its checksum is another one than the server tells")


def _until_whole(move: Callable[[], bool], place: epath.Path, otherwise: str) -> None:
    """Moves an object until its bytes are there as they were.

    Raises:
      StorageError: they were damaged each time.
    """
    for pause in [*pauses(), None]:
        if move():
            return
        if pause is not None:
            count_repetition()
            time.sleep(pause)
    raise StorageError(
        "the object was damaged on the way, again and again",
        where=place.as_posix(),
        details=[otherwise],
        hint="try again later",
    )


def copy_files(pairs: Iterable[tuple[epath.Path, epath.Path]]) -> None:
    """Copies files from or to a bucket, many at once."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        for copied in [pool.submit(copy_file, source, target) for source, target in pairs]:
            copied.result()


def write_files(contents: Mapping[epath.Path, str | bytes]) -> None:
    """Writes small files, and the directories that they need; many at once in a bucket.

    One that is there already is replaced, but its other names, if it has any, keep what it was.
    """
    encoded = {p: c.encode() if isinstance(c, str) else c for p, c in contents.items()}
    remote = [path for path in encoded if is_remote(path)]
    for path in encoded.keys() - set(remote):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with placed(path):
            path.write_bytes(encoded[path])
    if remote:
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            list(pool.map(lambda path: write_object(path, encoded[path]), remote))


def is_mark(name: str) -> bool:
    """True for the relative path of an object that says that what it lies in is complete.

    Of safetensors that is the index, or the only file of weights: it is written last.
    """
    file = name.rpartition("/")[2]
    return file == COMMITTED or (file == name and _is_tensors_mark(file))


def _is_tensors_mark(name: str) -> bool:
    """True for the name of the file by which readers of safetensors find a complete folder."""
    return name.endswith(TENSORS_INDEX) or name in (TENSORS_FILE, ADAPTER_FILE)


def is_complete(names: Iterable[str]) -> bool:
    """True for the relative paths of the objects of a complete checkpoint, of any kind."""
    return any("/" not in name and is_mark(name) for name in names)


def remove_files(files: Sequence[epath.Path]) -> None:
    """Removes files, local or on gs://."""
    if not any(map(is_remote, files)):
        for file in files:
            file.unlink()
        return
    with suppress(FileNotFoundError):  # the answer to an earlier try was lost
        filesystem().rm([file.as_posix() for file in files])


def remove_tree(path: epath.Path, *, but: Sequence[str] = ()) -> bool:
    """Removes every object below a path but those of some names, the marks of completeness first.

    Returns whether there were any.
    """
    files = files_below(path).keys() - set(but)
    for are_marks in (True, False):
        remove_files([path / name for name in files if is_mark(name) == are_marks])
    return bool(files)


def read_objects(paths: Sequence[epath.Path]) -> list[bytes]:
    """Small objects, many at once."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(lambda path: filesystem().cat_file(path.as_posix()), paths))


def copy_tree(source: epath.Path, target: epath.Path) -> None:
    """Copies a checkpoint; what is below `target` is complete only when its last mark is there."""
    files = files_below(source)
    marks = sorted(filter(is_mark, files), key=lambda name: -name.count("/"))
    copy_files((source / name, target / name) for name in files if not is_mark(name))
    for name in marks:  # inner ones first
        copy_file(source / name, target / name)
