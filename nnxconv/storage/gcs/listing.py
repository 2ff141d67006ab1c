"""What stands below a path in a bucket: a page of 1,000 names to a request."""

from dataclasses import dataclass, field
from typing import Any

from etils import epath

from nnxconv.storage.gcs.client import filesystem
from nnxconv.storage.gcs.paths import bucket_and_name


@dataclass
class Listing:
    """What is below the path that was asked for.

    Attributes:
      objects: bytes and generation of each, by its path below that one.
      folders: what else there is, where only the first level was asked for.
      is_there: there is anything, be it an object that only stands for the directory.
      is_whole: False where there are more pages than were asked for.
    """

    objects: dict[str, tuple[int, str]] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    is_there: bool = False
    is_whole: bool = True


def list_below(path: epath.Path, *, delimiter: str = "", one_page: bool = False) -> Listing:
    """All objects below a path, or with the delimiter `/` only what stands directly in it.

    Raises:
      FileNotFoundError: there is no such bucket.
    """
    bucket, name = bucket_and_name(path)
    prefix = f"{name}/" if name else ""
    query: dict[str, Any] = {"prefix": prefix, "delimiter": delimiter, "maxResults": 1000}
    found = Listing()
    while True:
        page = filesystem().call("GET", "b/{}/o", bucket, json_out=True, **query)
        for one in page.get("items", []):
            found.objects[one["name"][len(prefix) :]] = int(one["size"]), str(one["generation"])
        found.folders |= {one[len(prefix) :].rstrip("/") for one in page.get("prefixes", [])}
        found.is_there |= bool(found.objects or found.folders)
        found.objects.pop("", None)
        query["pageToken"] = page.get("nextPageToken")
        if one_page or not query["pageToken"]:
            found.is_whole = not query["pageToken"]
            return found
