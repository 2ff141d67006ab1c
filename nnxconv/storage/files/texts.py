"""Texts that a user named: manifests, rules, reports. Each is written whole, or not at all."""

import os
from pathlib import Path

from etils import epath

from nnxconv.errors import BadInput
from nnxconv.storage.files.naming import placed
from nnxconv.storage.files.operations import read_if_there
from nnxconv.storage.gcs import is_remote, prepare


def refuse_file(path: str | None, overwrite: bool) -> None:
    """Refuses to replace a file, before the work whose result would be written to it.

    Raises:
      BadInput: it is there, and may not be replaced.
    """
    if path is None or overwrite:
        return
    place = _place(path)
    if place.exists() if is_remote(path) else Path(path).is_file():
        raise BadInput(f"`{path}` exists", hint="add `--overwrite` to replace it")


def write_text(path: str, text: str) -> None:
    """Writes a file, local or gs://; one that is there stays as it was until the new one is whole.

    Its other names, if it has any, keep what it was. A device or a pipe is written to.
    """
    if is_remote(path):
        _place(path).write_text(text)
        return
    place = Path(path).resolve()
    if place.exists() and not place.is_file():
        place.write_text(text, encoding="utf-8")
        return
    new = place.with_name(f"{place.name}.nnxconv-new")
    try:
        with placed(place), new.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(place)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


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
