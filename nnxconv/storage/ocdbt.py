"""Where an OCDBT database keeps each value: in its own nodes, or at a place in a data file."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

import tensorstore as ts
from etils import epath

from nnxconv.errors import DamagedCheckpoint
from nnxconv.storage.arrays import context, directory_spec


@dataclass(frozen=True)
class Value:
    """A stored value: the data file that holds it, relative to the database, and where in it.

    Small values stand in the database's nodes: `inline` has their bytes, and `file` is empty.
    """

    file: str
    offset: int
    nbytes: int
    inline: bytes = b""


@dataclass(frozen=True)
class Contents:
    """All keys of a database with their values' places, and the files that hold its nodes."""

    values: dict[str, Value]
    node_files: frozenset[str]

    def files(self) -> set[str]:
        """Every data file that the database refers to."""
        return {value.file for value in self.values.values() if value.file} | self.node_files


def read_contents(path: epath.Path) -> Contents:
    """Walks the newest version of the database at `path`, without reading its values.

    Raises:
      DamagedCheckpoint: it cannot be read, or refers to files outside of itself.
    """
    try:
        base = ts.KvStore.open(directory_spec(path), context=context()).result()
        manifest = ts.ocdbt.dump(base, context=context()).result()
        root = manifest["versions"][-1]["root"].get("location")
        values: dict[str, Value] = {}
        nodes: set[str] = set()
        if root is not None:
            values = dict(_walk(base, root, "", nodes))
        return Contents(values, frozenset(nodes))
    except (ValueError, KeyError, IndexError, OSError) as error:
        reason = str(error).split(" [")[0]
        message = f"the OCDBT database cannot be read: {reason}"
        if "Manifest not found" in reason:
            message = "the OCDBT database has no `manifest.ocdbt`"
        raise DamagedCheckpoint(message, where=str(path)) from error


def _walk(
    base: ts.KvStore, location: str, prefix: str, nodes: set[str]
) -> Iterator[tuple[str, Value]]:
    """Keys and values below one node, in order; the nodes' own files are added to `nodes`."""
    nodes.add(_place(location).file)
    node: dict[str, Any] = ts.ocdbt.dump(base, node=location, context=context()).result()
    for entry in node["entries"]:
        key = prefix + entry["key"].decode()
        if "location" in entry:
            common = entry.get("subtree_common_prefix", b"").decode()
            yield from _walk(base, entry["location"], prefix + common, nodes)
        elif "inline_value" in entry:
            inline = entry["inline_value"]
            yield key, Value("", 0, len(inline), inline)
        else:
            yield key, _place(entry["indirect_value"])


def _place(reference: str) -> Value:
    """`value:ocdbt.process_0/:d/1a27:0:4791` as the file and length it names."""
    _, base, relative, offset, length = reference.split(":")
    return Value(_file(base, relative), int(offset), int(length))


@lru_cache(maxsize=1024)
def _file(base: str, relative: str) -> str:
    """A data file's path relative to the database; many values are in each."""
    file = unquote(base) + unquote(relative)
    if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
        raise ValueError(f"it refers to `{file}`, which is outside of the checkpoint")
    return file
