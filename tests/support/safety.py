"""What holds before and after: snapshots of files, and the text of refusals.

A snapshot is every file's bytes and time of change.
"""

import asyncio
from pathlib import Path

import tensorstore as ts

import nnxconv
from nnxconv.errors import NnxconvError
from tests.support import checkpoints

UNFINISHED = ".orbax-checkpoint-tmp"
KERNEL = "params.params.decoder.layers_1.mlp.wi.kernel"


def snapshot(path: Path) -> dict[str, tuple]:
    """Everything under a path: kinds, times of change, and the bytes of files."""
    found = {}
    for child in sorted(path.rglob("*")):
        status = child.lstat()
        content = child.read_bytes() if child.is_file() and not child.is_symlink() else b""
        found[child.relative_to(path).as_posix()] = (status.st_mode, status.st_mtime_ns, content)
    return found


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of every file under a path."""
    files = [child for child in path.rglob("*") if child.is_file()]
    return {child.relative_to(path).as_posix(): child.read_bytes() for child in files}


def refusal(error: NnxconvError, root: Path) -> str:
    """The whole text of an error, with `$` for the test's own directory."""
    return error.render().replace(str(root), "$")


def convert(source: Path, target: Path, **options) -> None:
    nnxconv.convert(str(source), str(target), **options)


def step_of(item: Path) -> int:
    return int(checkpoints.restore(item)["optimizer"]["step"])


def at_call(function, number: int, failure: BaseException):
    """The function, failing at the given call."""
    calls = iter(range(number + 1))

    def count() -> None:
        if next(calls, number) == number:
            raise failure

    if asyncio.iscoroutinefunction(function):

        async def failing(*args, **options):
            count()
            return await function(*args, **options)

    else:

        def failing(*args, **options):
            count()
            return function(*args, **options)

    return failing


def leftovers(root: Path) -> list[str]:
    """Directories that an unfinished or replaced save left."""
    names = [path.relative_to(root).as_posix() for path in root.rglob("*")]
    return [name for name in names if UNFINISHED in name]


def database(item: Path) -> ts.KvStore:
    """An item's OCDBT database; each with its own context, so that nothing is cached."""
    base = {"driver": "file", "path": f"{item}/"}
    return ts.KvStore.open({"driver": "ocdbt", "base": base}, context=ts.Context()).result()


def delete_keys(item: Path, prefix: str) -> None:
    """Deletes keys from an item's OCDBT database."""
    store = database(item)
    keys = [key for key in store.list().result() if key.decode().startswith(prefix)]
    assert keys
    for key in keys:
        store.write(key, None).result()


CANNOT = "error: array `{}` cannot be read: "
