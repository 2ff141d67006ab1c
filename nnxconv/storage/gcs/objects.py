"""One object in a bucket: what the server says of it, and writes on condition of its generation."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from etils import epath

from nnxconv.storage.gcs.client import filesystem
from nnxconv.storage.gcs.paths import bucket_and_name
from nnxconv.storage.gcs.retries import count_repetition, pauses


@dataclass(frozen=True)
class Object:
    """What the server says of an object, and how old it was then, by the server's own clock."""

    entry: Mapping[str, Any]
    age_seconds: float

    @property
    def nbytes(self) -> int:
        return int(self.entry["size"])

    @property
    def generation(self) -> str:
        return str(self.entry["generation"])


def object_at(path: epath.Path) -> Object | None:
    """The object at a path; None when there is none. One request."""
    try:
        headers, text = filesystem().call("GET", "b/{}/o/{}", *bucket_and_name(path))
    except FileNotFoundError:
        return None
    entry = json.loads(text)
    updated = datetime.fromisoformat(entry["updated"])
    return Object(entry, (parsedate_to_datetime(headers["Date"]) - updated).total_seconds())


def read_part(path: epath.Path, start: int, nbytes: int) -> bytes:
    """Bytes of an object that has them. One request, and others where answers end too early.

    Raises:
      FileNotFoundError: there is no such object.
      ValueError: every answer ends too early.
    """
    for pause in [*pauses(), None]:
        content = filesystem().cat_file(path.as_posix(), start=start, end=start + nbytes)
        if len(content) == nbytes:
            return content
        if pause is not None:
            count_repetition()
            time.sleep(pause)
    raise ValueError("the file ends before its arrays")


def write_generation(path: epath.Path, generation: str, told: Mapping[str, str]) -> str:
    """Writes an empty object with metadata, if it is still of a generation; `0`: if there is none.

    Returns its new generation.

    Raises:
      FileExistsError: it is of another one.
    """
    bucket, name = bucket_and_name(path)
    entry = json.dumps({"name": name, "metadata": told})
    head = "Content-Type: application/json; charset=UTF-8"
    body = f"--==0==\n{head}\n\n{entry}\n--==0==\nContent-Type: text/plain\n\n\n--==0==--"
    server = filesystem()
    written = server.call(
        "POST",
        f"{server._location}/upload/storage/v1/b/{bucket}/o",
        uploadType="multipart",
        ifGenerationMatch=generation,
        headers={"Content-Type": 'multipart/related; boundary="==0=="'},
        data=body.encode(),
        json_out=True,
    )
    return str(written["generation"])


def write_object(path: epath.Path, content: bytes) -> None:
    """Writes an object, whatever is there. One request."""
    bucket, name = bucket_and_name(path)
    server = filesystem()
    server.call(
        "POST",
        f"{server._location}/upload/storage/v1/b/{bucket}/o",
        uploadType="media",
        name=name,
        data=content,
    )


def remove_generation(path: epath.Path, generation: str) -> None:
    """Removes an object, if it is still of a generation.

    Raises:
      OSError: it is of another one, or not there.
    """
    names = bucket_and_name(path)
    filesystem().call("DELETE", "b/{}/o/{}", *names, ifGenerationMatch=generation)
