"""A checkpoint item, opened without reading its arrays."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import tensorstore as ts
from etils import epath

from nnxconv.errors import DamagedCheckpoint, NotACheckpoint
from nnxconv.state import Tree
from nnxconv.storage import ARRAY_METADATAS, MANIFEST, STRINGS, TREE_METADATA
from nnxconv.storage.files import (
    Folder,
    SmallFiles,
    files_below,
    free_metadata,
    is_flat,
    parse_json,
    read_json,
)
from nnxconv.storage.gcs import first_sentence
from nnxconv.storage.ocdbt import Contents, Values, read_contents
from nnxconv.storage.orbax.stability import Seen, look_at
from nnxconv.storage.orbax.tree_metadata import tree_entries
from nnxconv.storage.zarr import (
    ORBAX,
    RAW,
    ZARR2_FILE,
    ZARR3_FILE,
    ArrayFormat,
    Container,
    context,
    encoding,
    kvstore_spec,
    parse_format,
)
from nnxconv.tree import Key, Leaf, Literal, Source

_EMPTY_TYPES = {
    "None": "None",
    "NamedTuple": "None",
    "Dict": "Dict",
    "List": "List",
    "Tuple": "Tuple",
}
_ARRAY_TYPES = ("jax.Array", "np.ndarray", "scalar")


@dataclass(frozen=True)
class Item:
    """An Orbax item: its tree, with every array as a `Source`, and how the arrays are stored.

    `contents` says where the values of an OCDBT database are; None where each has its own file.
    `seen` is what its files were when it was opened.
    `parts` are the items that this one is joined from, by the first name in its keys.
    """

    path: epath.Path
    tree: Tree
    formats: Mapping[str, ArrayFormat]
    use_ocdbt: bool
    use_zarr3: bool
    custom_metadata: Mapping[str, Any] = field(default_factory=dict)
    value_types: Mapping[Key, str] = field(default_factory=dict)
    contents: Contents | None = None
    seen: Seen = field(default_factory=dict)
    parts: Mapping[str, "Item"] = field(default_factory=dict)

    @property
    def stores(self) -> dict[str, "Item"]:
        """The items that hold the arrays, by path: its parts, or the item itself."""
        return {item.path.as_posix(): item for item in self.parts.values() or (self,)}

    @property
    def container(self) -> Container:
        """How a target of Orbax keeps its arrays that is written as this item is."""
        if self.is_raw:
            return ORBAX
        model = next(iter(self.formats.values()), ORBAX.model)
        return Container(self.use_ocdbt, self.use_zarr3, model, self.path.as_posix())

    @cached_property
    def is_raw(self) -> bool:
        """True for arrays that lie uncompressed in files, as in safetensors."""
        return any(one.zarr_format == RAW for one in self.formats.values())

    @cached_property
    def kvstore(self) -> ts.KvStore:
        """The key-value store that holds the arrays."""
        return _open_kvstore(self.path, self.use_ocdbt)


def joined_items(path: epath.Path, parts: Mapping[str, Item]) -> Item:
    """The items of one step as one: each one's keys start with its name."""
    first = next(iter(parts.values()))
    return Item(
        path,
        {(name, *key): leaf for name, item in parts.items() for key, leaf in item.tree.items()},
        {f"{name}.{array}": f for name, item in parts.items() for array, f in item.formats.items()},
        first.use_ocdbt,
        first.use_zarr3,
        first.custom_metadata,
        {(name, *k): kind for name, item in parts.items() for k, kind in item.value_types.items()},
        parts=parts,
    )


def orbax_item(folder: Folder, is_read: bool, small: SmallFiles) -> Item:
    """Reads an item's metadata: tree, shapes, types and chunks of all arrays.

    Raises:
      NotACheckpoint: `_METADATA` is not what Orbax writes.
      DamagedCheckpoint: an array that the tree names is not there.
    """
    path = folder.path
    seen = look_at(folder) if is_read else {}
    metadata = read_json(path / TREE_METADATA, read=small.read)
    try:
        entries = tree_entries(metadata["tree_metadata"])
    except ValueError as error:
        raise NotACheckpoint(
            f"`{path / TREE_METADATA}` is not the metadata of an Orbax tree: {error}"
        ) from error
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise NotACheckpoint(
            f"`{path / TREE_METADATA}` is not the metadata of an Orbax tree"
        ) from error
    use_ocdbt = metadata.get("use_ocdbt")
    if use_ocdbt is None:
        use_ocdbt = MANIFEST in folder.files
    use_zarr3 = bool(metadata.get("use_zarr3"))
    names = {key: array_name(key) for key, kind in entries if kind in _ARRAY_TYPES}
    contents = read_contents(path, small.read(path / MANIFEST)) if use_ocdbt else None
    formats = read_formats(path, contents, use_zarr3, names.values())
    impls = _prng_impls(folder, small)
    strings = read_json(path / STRINGS, read=small.read) if _has_strings(entries) else {}
    store = path.as_posix()
    encodings = {number: encoding(one) for number, one in _each_once(formats.values()).items()}
    tree: dict[Key, Leaf] = {}
    for key, kind in entries:
        name = names.get(key) or array_name(key)
        if kind in _EMPTY_TYPES:
            tree[key] = Literal(_EMPTY_TYPES[kind])
        elif kind == "string":
            tree[key] = Literal("string", _string(strings, name, path))
        elif kind in _ARRAY_TYPES:
            array = formats[name]
            tree[key] = Source(
                name,
                array.shape,
                array.dtype,
                array.chunks,
                store=store,
                kind="scalar" if kind == "scalar" else "array",
                prng_impl=impls.get(name),
                encoding=encodings[id(array)],
            )
        else:
            raise NotACheckpoint(
                f"`{name}` has the value type `{kind}`, which nnxconv cannot carry"
            )
    return Item(
        path,
        tree,
        formats,
        use_ocdbt,
        use_zarr3,
        free_metadata(metadata, "custom_metadata", path / TREE_METADATA),
        dict(entries),
        contents,
        seen,
    )


def _each_once(formats: Iterable[ArrayFormat]) -> dict[int, ArrayFormat]:
    """The formats by identity, which arrays of one shape share."""
    return {id(one): one for one in formats}


def array_name(key: Key) -> str:
    """The name under which Orbax stores the leaf at `key`."""
    return ".".join(map(str, key))


def _has_strings(entries: Iterable[tuple[Key, str]]) -> bool:
    return any(kind == "string" for _, kind in entries)


def _string(strings: Any, name: str, path: epath.Path) -> str:
    """The text to which a name points, as a JSON pointer does (RFC 6901): slashes lead inwards.

    Raises:
      DamagedCheckpoint: there is none.
    """
    for part in name.split("/"):
        inner = part.replace("~1", "/").replace("~0", "~")
        strings = strings.get(inner) if isinstance(strings, dict) else None
    if not isinstance(strings, str):
        raise DamagedCheckpoint(f"`{path / STRINGS}` has no text `{name}`")
    return strings


def _open_kvstore(path: epath.Path, use_ocdbt: bool) -> ts.KvStore:
    try:
        return ts.KvStore.open(kvstore_spec(path, use_ocdbt), context=context()).result()
    except (ValueError, OSError) as error:
        raise DamagedCheckpoint(
            f"the array store cannot be opened: {first_sentence(error)}", where=str(path)
        ) from error


def read_formats(
    path: epath.Path, contents: Contents | None, use_zarr3: bool, names: Iterable[str]
) -> dict[str, ArrayFormat]:
    """The format of every named array, read in parallel where a database has not told it already.

    Raises:
      DamagedCheckpoint: some cannot be read; all of them are named.
    """
    store = _open_kvstore(path, contents is not None)
    file = ZARR3_FILE if use_zarr3 else ZARR2_FILE
    keys = {name: f"{name}/{file}" for name in names}
    inline = {} if contents is None else _in_nodes(contents.values, keys)
    futures = {
        name: store.read(key)
        for name, key in keys.items()
        if contents is None or (name not in inline and key in contents.values)
    }
    formats: dict[str, ArrayFormat] = {}
    problems: list[str] = []
    cause: Exception | None = None
    for name in keys:
        try:
            text = inline.get(name)
            if text is None and name in futures:
                text = futures[name].result().value
            if not text:
                problems.append(f"{name}: `{file}` is missing")
                continue
            formats[name] = _parsed(3 if use_zarr3 else 2, text)
            _check_count(path, name, formats[name], contents)
        except KeyError as error:
            problems.append(f"{name}: `{file}` has no `{error.args[0]}`")
            cause = error
        except (ValueError, TypeError, AttributeError, OSError) as error:
            problems.append(f"{name}: {first_sentence(error)}")
            cause = error
    if problems:
        raise DamagedCheckpoint(
            f"{len(problems):,} of {len(keys):,} arrays cannot be read",
            where=str(path),
            details=problems,
        ) from cause
    return formats


def _in_nodes(values: Values, keys: Mapping[str, str]) -> dict[str, bytes]:
    """What a database's nodes hold themselves under these keys, by name."""
    found = ((name, values.inline_at(key)) for name, key in keys.items())
    return {name: text for name, text in found if text is not None}


_MANY_CHUNKS = 10_000


def _check_count(
    path: epath.Path, name: str, array: ArrayFormat, contents: Contents | None
) -> None:
    """Refuses an array of many more chunks than are stored, before anybody lists them."""
    count = array.chunk_count
    if count > _MANY_CHUNKS:
        stored = len(files_below(path / name)) if contents is None else len(contents.values)
        if count > stored:
            raise ValueError(f"{count:,} chunks, but at most {stored:,} are stored")


@lru_cache(maxsize=4096)
def _parsed(zarr_format: int, text: bytes) -> ArrayFormat:
    """The format that a text describes; arrays of one shape share it, and must not change it."""
    metadata = parse_json(text)
    if not is_flat(metadata):
        raise ValueError("it is nested too deeply")
    return parse_format(zarr_format, metadata)


def _prng_impls(item: Folder, small: SmallFiles) -> dict[str, str]:
    """The implementation of each typed PRNG key; Orbax keeps it nowhere else."""
    impls: dict[str, str] = {}
    if ARRAY_METADATAS not in item.folders:
        return impls
    folder = item.inner(ARRAY_METADATAS)
    for file in (folder.path / name for name in sorted(folder.files)):
        try:
            for entry in read_json(file, read=small.read).get(ARRAY_METADATAS, []):
                metadata = entry["array_metadata"]
                extra = metadata.get("ext_metadata")
                if isinstance(extra, dict) and extra.get("random_key_impl"):
                    impls[metadata["param_name"]] = extra["random_key_impl"]
        except (KeyError, TypeError, AttributeError) as error:
            raise DamagedCheckpoint(f"`{file}` is not what Orbax writes") from error
    return impls
