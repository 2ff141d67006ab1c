"""Damage for checkpoints, drawn from a seed: what is damaged, and how.

A place is a file of a checkpoint, or a value in its OCDBT database. `KINDS` names every pair of a
place and a damage, such as `("manifest", "a flipped bit")`.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorstore as ts

FORMAT_FILES = (".zarray", "zarr.json")


@dataclass(frozen=True)
class Place:
    """Bytes that can be read, replaced, and removed: a file, or a value in a database."""

    name: str
    file: Path
    key: str = ""

    def read(self) -> bytes:
        if not self.key:
            return self.file.read_bytes()
        return _database(self.file).read(self.key).result().value

    def write(self, content: bytes | None) -> None:
        """Replaces the bytes; None removes the place."""
        if self.key:
            _database(self.file).write(self.key, content).result()
        elif content is None:
            self.file.unlink()
        else:
            self.file.write_bytes(content)


def _database(item: Path) -> ts.KvStore:
    """An item's OCDBT database; each with its own context, so that nothing is cached."""
    base = {"driver": "file", "path": f"{item}/"}
    return ts.KvStore.open({"driver": "ocdbt", "base": base}, context=ts.Context()).result()


def _values(root: Path) -> list[Place]:
    """The values of every database that is the merged one of its item."""
    found = []
    for manifest in sorted(root.rglob("manifest.ocdbt")):
        item = manifest.parent
        if not item.name.startswith("ocdbt.process_"):
            keys = [key.decode() for key in _database(item).list().result()]
            found += [Place(f"{item}/{key}", item, key) for key in sorted(keys)]
    return found


def _files(root: Path) -> list[Place]:
    return [Place(str(file), file) for file in sorted(root.rglob("*")) if file.is_file()]


def _is_format(place: Place) -> bool:
    return place.name.endswith(FORMAT_FILES)


def _named(*names: str) -> Callable[[Path], list[Place]]:
    return lambda root: [place for place in _files(root) if place.file.name in names]


def _arrays(root: Path) -> list[Place]:
    """Files and values that stand below a directory, or a prefix, with an array's format."""
    files = _files(root)
    folders = {place.file.parent for place in files if _is_format(place)}
    inside = [p for p in files if any(folder in p.file.parents for folder in folders)]
    return inside + _values(root)


def _chunks(root: Path) -> list[Place]:
    return [place for place in _arrays(root) if not _is_format(place)]


def _formats(root: Path) -> list[Place]:
    return [place for place in _arrays(root) if _is_format(place)]


def _data_files(root: Path) -> list[Place]:
    return [place for place in _files(root) if place.file.parent.name == "d"]


PLACES: dict[str, Callable[[Path], list[Place]]] = {
    "data file": _data_files,
    "manifest": _named("manifest.ocdbt"),
    "chunk": _chunks,
    "array format": _formats,
    "_METADATA": _named("_METADATA"),
    "_sharding": _named("_sharding"),
    "array_metadatas": _named("process_0"),
    "_CHECKPOINT_METADATA": _named("_CHECKPOINT_METADATA"),
    "Pax metadata": lambda root: [
        p for p in _files(root) if p.file.parts[-2:] == ("metadata",) * 2
    ],
}
JSON_PLACES = [name for name in PLACES if name not in ("data file", "manifest", "chunk")]


# Bytes


def _truncated(content: bytes, drawn: random.Random) -> bytes:
    return content[: drawn.randrange(max(1, len(content)))]


def _flipped(content: bytes, drawn: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(drawn.choice((1, 1, 1, 3)) if content else 0):
        changed[drawn.randrange(len(changed))] ^= 1 << drawn.randrange(8)
    return bytes(changed)


def _overwritten(filling: Callable[[int, random.Random], bytes]) -> Any:
    def overwrite(content: bytes, drawn: random.Random) -> bytes:
        start = drawn.randrange(max(1, len(content)))
        length = min(len(content) - start, drawn.choice((1, 16, 512, 4096)))
        return content[:start] + filling(length, drawn) + content[start + length :]

    return overwrite


BYTES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "truncated": _truncated,
    "emptied": lambda content, drawn: b"",
    "missing": lambda content, drawn: None,
    "a flipped bit": _flipped,
    "noise within": _overwritten(lambda length, drawn: drawn.randbytes(length)),
    "zeros within": _overwritten(lambda length, drawn: bytes(length)),
    "noise after": lambda content, drawn: content + drawn.randbytes(drawn.randrange(1, 64)),
    "noise throughout": lambda content, drawn: drawn.randbytes(len(content)),
}


# JSON

HOSTILE = {
    "10^18": str(10**18),
    "2^63": str(2**63),
    "2^31": str(2**31),
    "5,000 digits": "9" * 5000,
    "negative": "-1",
    "zero": "0",
    "fraction": "1.5",
    "NaN": "NaN",
    "infinite": "1e999",
    "null": "null",
    "true": "true",
    "empty": '""',
    "lone surrogate": '"\\ud800"',
    "control characters": '"a\\u001b[31mb\\u0000\\u202ec"',
    "upwards": '"../../outside/secret"',
    "absolute": '"/etc/passwd"',
    "long": json.dumps("long " * 20_000),
    "list": "[]",
    "mapping": "{}",
    "nested lists": "[" * 100_000 + "]" * 100_000,
    "nested mappings": '{"a":' * 900 + "1" + "}" * 900,
}
"""JSON that no checkpoint has where it is put."""

_MARK = "nnxconv-marks-this-place"
_SIZES = ("shape", "chunks", "chunk_shape", "write_shape", "unpadded_shape")


def _nodes(tree: Any, path: tuple = ()) -> list[tuple]:
    """The path of every node below the root."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for name, node in inner:
        found.append((*path, name))
        if isinstance(node, dict | list):
            found += _nodes(node, (*path, name))
    return found


def _parent(tree: Any, path: tuple) -> Any:
    for name in path[:-1]:
        tree = tree[name]
    return tree


def _with_mark(content: bytes, drawn: random.Random, wanted: Callable[[tuple], bool]) -> str | None:
    tree = json.loads(content)
    paths = [path for path in _nodes(tree) if wanted(path)] if isinstance(tree, dict | list) else []
    if not paths:
        return None
    path = drawn.choice(paths)
    _parent(tree, path)[path[-1]] = _MARK
    return json.dumps(tree)


def _hostile(wanted: Callable[[tuple], bool]) -> Any:
    def put(content: bytes, drawn: random.Random) -> bytes | None:
        text = _with_mark(content, drawn, wanted)
        value = HOSTILE[drawn.choice(list(HOSTILE))]
        return None if text is None else text.replace(f'"{_MARK}"', value).encode()

    return put


def _without(content: bytes, drawn: random.Random) -> bytes | None:
    tree = json.loads(content)
    paths = _nodes(tree)
    if not paths:
        return None
    path = drawn.choice(paths)
    del _parent(tree, path)[path[-1]]
    return json.dumps(tree).encode()


def _renamed(content: bytes, drawn: random.Random) -> bytes | None:
    """A key, or a text, becomes another one of the same file, or a hostile one."""
    tree = json.loads(content)
    paths = [path for path in _nodes(tree) if isinstance(path[-1], str)]
    if not paths:
        return None
    path = drawn.choice(paths)
    texts = [json.loads(value) for value in HOSTILE.values() if value.startswith('"')]
    parent = _parent(tree, path)
    value = parent.pop(path[-1])
    parent[drawn.choice([*texts, drawn.choice(paths)[-1]])] = value
    return json.dumps(tree).encode()


def _doubled(content: bytes, drawn: random.Random) -> bytes | None:
    """A key stands there twice, the second time with another value."""
    text = _with_mark(content, drawn, lambda path: isinstance(path[-1], str))
    if text is None:
        return None
    end = text.index(f'"{_MARK}"')
    key = text[: end - 2].rpartition(' "')[2] if ' "' in text[:end] else None
    value = HOSTILE[drawn.choice(list(HOSTILE))]
    twice = f'1, "{key.rstrip(chr(34))}": {value}' if key else value
    return text.replace(f'"{_MARK}"', twice).encode()


def _swapped_within(content: bytes, drawn: random.Random) -> bytes | None:
    """Two entries of the file change places."""
    tree = json.loads(content)
    by_depth: dict[int, list[tuple]] = {}
    for path in _nodes(tree):
        by_depth.setdefault(len(path), []).append(path)
    several = [paths for paths in by_depth.values() if len(paths) > 1]
    if not several:
        return None
    first, second = drawn.sample(drawn.choice(several), 2)
    a, b = _parent(tree, first), _parent(tree, second)
    a[first[-1]], b[second[-1]] = b[second[-1]], a[first[-1]]
    return json.dumps(tree).encode()


JSON = {
    "a hostile value": _hostile(lambda path: True),
    "a hostile size": _hostile(lambda path: len(path) > 1 and path[-2] in _SIZES),
    "an entry less": _without,
    "a hostile or doubled name": _renamed,
    "a key twice": _doubled,
    "entries swapped": _swapped_within,
}


# Files


def _linked_outside(root: Path, outside: Path, drawn: random.Random) -> str:
    """A file or directory is moved out of the checkpoint, and a link to it takes its place."""
    path = drawn.choice(sorted(root.rglob("*")))
    moved = outside / "secret"
    shutil.move(path, moved)
    path.symlink_to(moved if drawn.random() < 0.5 else os.path.relpath(moved, path.parent))
    return path.relative_to(root).as_posix()


def _replaced(make: Callable[[Path], None]) -> Callable[[Path, Path, random.Random], str]:
    def replace(root: Path, outside: Path, drawn: random.Random) -> str:
        path = drawn.choice(sorted(root.rglob("*")))
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        make(path)
        return path.relative_to(root).as_posix()

    return replace


def _added_loop(root: Path, outside: Path, drawn: random.Random) -> str:
    folder = drawn.choice([root, *(path for path in sorted(root.rglob("*")) if path.is_dir())])
    (folder / "loop").symlink_to(drawn.choice((folder, root, folder.parent)))
    return (folder / "loop").relative_to(root).as_posix()


FILES: dict[str, Callable[[Path, Path, random.Random], str]] = {
    "a link out of the checkpoint": _linked_outside,
    "a link to nothing": _replaced(lambda path: path.symlink_to("nothing")),
    "a link to itself": _replaced(lambda path: path.symlink_to(path.name)),
    "a link to /dev/zero": _replaced(lambda path: path.symlink_to("/dev/zero")),
    "a named pipe": _replaced(os.mkfifo),
    "a directory": _replaced(Path.mkdir),
    "a file": _replaced(lambda path: path.write_bytes(b"{}")),
    "a link to a parent": _added_loop,
}


SEVERAL = ("data file", "manifest", "chunk", "array format")
"""Places of which a checkpoint may have several."""

SIZED = ("array format", "_METADATA", "array_metadatas", "Pax metadata")
"""Places that tell sizes."""

KINDS: list[tuple[str, str]] = [
    *((place, damage) for place in PLACES for damage in BYTES),
    *((place, "swapped") for place in SEVERAL),
    *(
        (place, damage)
        for place in JSON_PLACES
        for damage in JSON
        if damage != "a hostile size" or place in SIZED
    ),
    *(("any file", damage) for damage in FILES),
]


def mutate(root: Path, outside: Path, kind: tuple[str, str], drawn: random.Random) -> str | None:
    """Damages the checkpoint at `root`; says where, or None where it has no such place."""
    place_name, damage = kind
    if place_name == "any file":
        return FILES[damage](root, outside, drawn)
    places = PLACES[place_name](root)
    if not places or (damage == "swapped" and len(places) < 2):
        return None
    if damage == "swapped":
        first, second = drawn.sample(places, 2)
        a, b = first.read(), second.read()
        if a == b:
            return None
        first.write(b)
        second.write(a)
        return f"{first.name} and {second.name}"
    place = drawn.choice(places)
    content = place.read()
    changed = (BYTES | JSON)[damage](content, drawn)
    if changed == content or (changed is None and damage != "missing"):
        return None
    place.write(changed)
    return place.name
