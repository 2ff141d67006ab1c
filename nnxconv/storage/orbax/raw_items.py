"""Items whose arrays lie in files as they are: safetensors, npz, and msgpack of 2023."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from etils import epath

from nnxconv.errors import DamagedCheckpoint
from nnxconv.storage.files import Folder, open_folder
from nnxconv.storage.msgpack import Array, read_tree
from nnxconv.storage.npz import key_of, read_members
from nnxconv.storage.orbax.item import Item, array_name, read_formats
from nnxconv.storage.orbax.stability import Seen, look
from nnxconv.storage.orbax.tree_metadata import MOST_LEVELS, check_tree
from nnxconv.storage.safetensors import Tensor, chunks_of, find_tensors, home_of
from nnxconv.storage.zarr import RAW, ArrayFormat, check_array, encoding
from nnxconv.tree import Key, Leaf, Literal, Shape, Source, View, item_bytes, permuted


def open_tensors(folder: Folder, is_read: bool) -> Item:
    """An item of the arrays in safetensors: a folder, or a file that stands for one."""
    path, home = folder.path, home_of(folder.path)
    seen = look(path) if is_read else {}
    arrays = find_tensors(folder if home == path else open_folder(home), path)
    return tensors_item(path, home, arrays, seen)


def tensors_item(
    path: epath.Path, home: epath.Path, arrays: Mapping[str, Tensor], seen: Seen
) -> Item:
    """The item of arrays in the files of a folder; names are keys, taken apart at their dots.

    Raises:
      DamagedCheckpoint: there are names of too many parts, or sizes that no array has.
    """
    names = [name for name in arrays if name.count(".") >= MOST_LEVELS]
    if names:
        raise DamagedCheckpoint(
            f"`{path}` has {len(names):,} names of more than {MOST_LEVELS} parts",
            details=[names[0][:40]],
        )
    files = {file: (home / file).as_posix() for file in {one.file for one in arrays.values()}}
    formats = {
        name: _lying(files[one.file], ((one.start, one.nbytes),), one.shape, one.dtype)
        for name, one in arrays.items()
    }
    store = path.as_posix()
    tree: dict[Key, Leaf] = {
        tuple(name.split(".")): _source(store, name, one) for name, one in formats.items()
    }
    return _item(path, tree, formats, seen)


def open_npz(file: epath.Path, is_read: bool) -> Item:
    """The arrays of an npz file, whose names are keys."""
    seen = look(file) if is_read else {}
    members = read_members(file)
    have_slashes = any("/" in name for name in members)
    formats: dict[str, ArrayFormat] = {}
    tree: dict[Key, View] = {}
    for name, one in members.items():
        nbytes = math.prod(one.shape) * item_bytes(one.dtype)
        formats[name] = _lying(file.as_posix(), ((one.start, nbytes),), one.shape, one.dtype)
        source = _source(file.as_posix(), name, formats[name])
        turned = permuted(source, tuple(reversed(range(len(one.shape)))))
        tree[key_of(name, have_slashes)] = turned if one.is_turned else source
    try:
        check_tree(list(tree))
    except ValueError as error:
        raise DamagedCheckpoint(f"the names in `{file}` are no tree: {error}") from error
    return _item(file, tree, formats, seen)


_PLACEHOLDER = "PLACEHOLDER://"


def open_msgpack(file: epath.Path, folder: Folder | None, is_read: bool) -> Item:
    """A tree in msgpack: a file of Flax, or an item of the Orbax of 2023.

    That has arrays in the file itself, or says where in its folder they are. Sequences of a file
    of Flax are mappings keyed by digits; in the optimizer's state they are taken for sequences.
    """
    path = file if folder is None else folder.path
    seen = look(path) if is_read else {}
    values = read_tree(file)
    if folder is None:
        values = _with_sequences(values)
    elsewhere = {
        key: value.removeprefix(_PLACEHOLDER)
        for key, value in values.items()
        if isinstance(value, str) and value.startswith(_PLACEHOLDER)
    }
    formats = read_formats(path, None, False, elsewhere.values()) if elsewhere else {}
    tree: dict[Key, Leaf] = {}
    for key, value in values.items():
        name = elsewhere.get(key, array_name(key))
        if key not in elsewhere and (raw := _raw_format(value, file)) is not None:
            formats[name] = raw
        tree[key] = (
            _source(path.as_posix(), name, formats[name]) if name in formats else _literal(value)
        )
    return _item(path, tree, formats, seen)


def _item(
    path: epath.Path, tree: Mapping[Key, Leaf], formats: Mapping[str, ArrayFormat], seen: Seen
) -> Item:
    kinds = {
        key: leaf.kind if isinstance(leaf, Literal) else "np.ndarray" for key, leaf in tree.items()
    }
    return Item(path, tree, formats, use_ocdbt=False, use_zarr3=False, value_types=kinds, seen=seen)


def _source(store: str, name: str, one: ArrayFormat) -> Source:
    kind = "scalar" if "value" in one.metadata else "array"
    how = "" if one.zarr_format == RAW else encoding(one)
    return Source(name, one.shape, one.dtype, one.chunks, store, kind, encoding=how)


def _lying(file: str, parts: Sequence[tuple[int, int]], shape: Shape, dtype: str) -> ArrayFormat:
    """Of an array whose bytes are these parts of a file.

    Raises:
      DamagedCheckpoint: its shape or type is none that an array may have.
    """
    metadata = {"file": file, "parts": parts}
    try:
        chunks = _checked_chunks(shape, dtype)
    except ValueError as error:
        raise DamagedCheckpoint(f"`{file}` has an array that cannot be read: {error}") from error
    return ArrayFormat(RAW, metadata, shape, dtype, chunks)


@lru_cache(4096)
def _checked_chunks(shape: Shape, dtype: str) -> Shape:
    """The chunks that an array is read in; many arrays of a model have one shape.

    Raises:
      ValueError: no array has this shape or type.
    """
    check_array(shape, dtype)
    return chunks_of(shape, dtype)


def _raw_format(value: Any, file: epath.Path) -> ArrayFormat | None:
    """Of an array or number in a msgpack file; None for what else stands there."""
    match value:
        case Array(dtype, shape, parts):
            return _lying(file.as_posix(), parts, shape, dtype)
        case bool() | int() | float():
            dtype = {bool: "bool", int: "int64", float: "float64"}[type(value)]
            dtype = "uint64" if dtype == "int64" and value >= 2**63 else dtype
            return ArrayFormat(RAW, {"value": value}, (), dtype, ())
    return None


def _literal(value: Any) -> Literal:
    if value is None:
        return Literal("None")
    return Literal("string", value) if isinstance(value, str) else Literal(value.kind)


def _with_sequences(values: Mapping[Key, Any]) -> dict[Key, Any]:
    """The tree with ints for the digits that key sequences in the optimizer's state."""
    digits: dict[Key, set[str]] = {}
    for key in values:
        if "opt_state" in key:
            first = key.index("opt_state") + 1
            for size in range(first, len(key)):
                digits.setdefault(key[:size], set()).add(str(key[size]))
    counted = {
        parent for parent, names in digits.items() if names == {str(n) for n in range(len(names))}
    }

    def numbered(key: Key) -> Key:
        return tuple(
            int(part) if key[:place] in counted else part for place, part in enumerate(key)
        )

    return {numbered(key): value for key, value in values.items()}
