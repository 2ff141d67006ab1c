"""gs:// paths: which server is asked, and copies by the server.

Listings and small files go through etils over gcsfs, arrays through TensorStore's `gcs` driver.
`STORAGE_EMULATOR_HOST` alone switches both to an emulator.
"""

import logging
import os
from contextlib import suppress
from functools import cache
from typing import Any

from etils import epath

SCHEME = "gs://"


def is_remote(path: object) -> bool:
    """True for a path in a bucket."""
    return str(path).startswith(SCHEME)


@cache
def prepare() -> None:
    """Settings that both libraries read when they are used for the first time."""
    from fsspec.config import conf

    for name in ("gcsfs", "fsspec"):  # they print the traceback of every failed request
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # What TensorStore writes would not show in a listing that gcsfs remembers.
    options: dict[str, Any] = {"use_listings_cache": False}
    # Hierarchical buckets are looked for with a call that many accounts may not make.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator:
        url = emulator if "://" in emulator else f"http://{emulator}"
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", url)
        os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "emulator")
        os.environ.setdefault("NO_GCE_CHECK", "true")
        options["token"] = "anon"
    for protocol in ("gcs", "gs"):
        conf[protocol] = {**options, **conf.get(protocol, {})}


def filesystem() -> Any:
    """gcsfs, as etils uses it."""
    import fsspec

    prepare()
    return fsspec.filesystem("gcs", finalize_on_close=True)


def files_below(path: epath.Path) -> dict[str, int]:
    """Every file below a directory by relative path, with its bytes; one listing in a bucket."""
    if is_remote(path):
        root = path.as_posix().removeprefix(SCHEME).rstrip("/") + "/"
        found = filesystem().find(root, detail=True)
        return {name.removeprefix(root): int(entry["size"]) for name, entry in found.items()}
    files: dict[str, int] = {}
    for child in path.iterdir():
        if child.is_dir():
            files |= {f"{child.name}/{name}": size for name, size in files_below(child).items()}
        else:
            files[child.name] = file_bytes(child)
    return files


def file_bytes(path: epath.Path) -> int:
    """The length of a file.

    On a local disk `epath` fails where the owner has no name, as in most containers.
    """
    return path.stat().length if is_remote(path) else os.stat(path).st_size  # noqa: PTH116


def copy_file(source: epath.Path, target: epath.Path) -> None:
    """Copies a file from or to a bucket; between buckets the server does it."""
    if is_remote(source) and is_remote(target):
        filesystem().cp_file(source.as_posix(), target.as_posix())
    elif is_remote(target):
        filesystem().put_file(os.fspath(source), target.as_posix(), chunksize=_UPLOAD_BYTES)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        filesystem().get_file(source.as_posix(), os.fspath(target))
        with open(target, "rb+") as copied:  # noqa: PTH123
            os.fsync(copied.fileno())


_UPLOAD_BYTES = 2**24


def remove_tree(path: epath.Path) -> None:
    """Removes every object below a path, the marks that it is complete first."""
    files = files_below(path)
    marks = [name for name in files if name.rpartition("/")[2] == COMMITTED]
    root = path.as_posix().rstrip("/")
    for names in (marks, [name for name in files if name not in marks]):
        if names:
            with suppress(FileNotFoundError):  # the answer to an earlier try was lost
                filesystem().rm([f"{root}/{name}" for name in names])


COMMITTED = "commit_success.txt"
"""The last object that Orbax writes into an item or a step on gs://."""


def move_tree(source: epath.Path, target: epath.Path) -> None:
    """Moves a checkpoint; what is below `target` is complete only when its last mark is there."""
    files = files_below(source)
    marks = [name for name in files if name.rpartition("/")[2] == COMMITTED]
    inner_first = sorted(marks, key=lambda name: -name.count("/"))
    for name in [*(name for name in files if name not in marks), *inner_first]:
        copy_file(source / name, target / name)
    remove_tree(source)
