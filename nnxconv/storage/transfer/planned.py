"""What is moved without being decoded, and how: files as they are, references, single values.

An OCDBT database refers to its data files by paths relative to itself. A target that has a
source's data files at the same relative paths can take over references to parts of them. A data
file of which too little is needed is left, and its values are copied one by one; unless one of
them is so large that it would not fit in the memory.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from etils import epath

from nnxconv.errors import DamagedCheckpoint
from nnxconv.planning import Plan, Transfer, held_bytes, renamed_chunks, window_bytes
from nnxconv.storage.files import files_below
from nnxconv.storage.gcs import is_remote
from nnxconv.storage.ocdbt import Contents
from nnxconv.storage.orbax import Item
from nnxconv.storage.zarr import chunk_key
from nnxconv.tree import Source, first_source, size_bytes

WORTH_A_FILE = 0.5
"""A data file is taken over whole when at least this part of it is needed."""


@dataclass(frozen=True)
class TransferPlan:
    """What is moved without being decoded.

    Attributes:
      files: files of the source that are copied or linked, and their new paths.
      references: keys of values in those files, or in the database's nodes, and their new keys.
      values: keys of values that are copied one by one, and their new keys.
      file_sizes: bytes of each of those files, by its old path.
      value_bytes: of each of those values, by its old key.
      is_linked: files are linked, not copied.
      max_memory: how many bytes values may take that are copied.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    file_sizes: Mapping[str, int] = field(default_factory=dict)
    value_bytes: Mapping[str, int] = field(default_factory=dict)
    is_linked: bool = False
    max_memory: int = 0

    @property
    def file_bytes(self) -> int:
        """Bytes of all those files."""
        return sum(self.file_sizes.values())

    @property
    def moved_bytes(self) -> int:
        """Bytes of all those files and values."""
        return self.file_bytes + sum(self.value_bytes.values())

    @property
    def copied_bytes(self) -> int:
        """Bytes that the target has of its own."""
        own = 0 if self.is_linked else self.file_bytes
        return own + sum(self.value_bytes.values())

    @property
    def peak_bytes(self) -> int:
        """The most memory that values take at once."""
        largest = max(self.value_bytes.values(), default=0)
        return held_bytes(sum(self.value_bytes.values()), largest, self.max_memory)

    @property
    def window_bytes(self) -> int:
        """How many bytes of values are copied at once."""
        return window_bytes(self.max_memory)

    def only(self, files: Collection[str], values: Collection[str]) -> "TransferPlan":
        """The part of it that these files and values are."""
        return replace(
            self,
            files={old: new for old, new in self.files.items() if old in files},
            references={},
            values={old: new for old, new in self.values.items() if old in values},
            file_sizes={old: size for old, size in self.file_sizes.items() if old in files},
            value_bytes={old: size for old, size in self.value_bytes.items() if old in values},
        )


def plan_transfers(
    plan: Plan, item: Item, target: epath.Path, transfer: Transfer, max_memory: int
) -> TransferPlan:
    """How the renamed arrays of a plan get from an item to a target.

    Raises:
      DamagedCheckpoint: a value is missing, or a data file ends before it.
    """
    keys = renamed_keys(plan, item)
    lengths = files_below(item.path) if keys else {}
    is_linked = transfer == "link" and can_link(item.path, target)
    if item.contents is None:
        _refuse_missing(item, keys, lengths)
        return TransferPlan(
            keys, file_sizes={key: lengths[key] for key in keys}, is_linked=is_linked
        )
    contents = item.contents
    _refuse_missing(item, keys, contents.values)
    _refuse_short_files(item, keys, contents, lengths)
    whole = _whole_files(keys, contents, lengths, is_linked, window_bytes(max_memory))
    references: dict[str, str] = {}
    values: dict[str, str] = {}
    for old, new in keys.items():
        file = contents.values[old].file
        (references if not file or file in whole else values)[old] = new
    return TransferPlan(
        {file: file for file in sorted(whole)},
        references,
        values,
        {file: lengths[file] for file in sorted(whole)},
        {old: contents.values[old].nbytes for old in values},
        is_linked,
        max_memory,
    )


def renamed_keys(plan: Plan, item: Item) -> dict[str, str]:
    """The key of every encoded chunk that is taken over, and its new key."""
    keys: dict[str, str] = {}
    for array in plan.renamed:
        model = item.formats[first_source(array.view).name]
        for source, index, new_index in renamed_chunks(array.view):
            old = item.formats[source.name]
            old_key = f"{source.name}/{chunk_key(old.zarr_format, old.metadata, index)}"
            new_key = f"{array.name}/{chunk_key(model.zarr_format, model.metadata, new_index)}"
            keys[old_key] = new_key
    return keys


def can_link(source: epath.Path, target: epath.Path) -> bool:
    """False where source and target are known not to share a file system."""
    if is_remote(source) or is_remote(target):
        return False
    parent = next(path for path in (target, *target.parents) if path.exists())
    return os.stat(source).st_dev == os.stat(parent).st_dev  # noqa: PTH116


def _refuse_missing(item: Item, keys: Mapping[str, str], found: Mapping[str, object]) -> None:
    missing = next((key for key in keys if key not in found), None)
    if missing is not None:
        raise DamagedCheckpoint(f"`{missing}` is missing", where=str(item.path))


def _refuse_short_files(
    item: Item, keys: Mapping[str, str], contents: Contents, lengths: Mapping[str, int]
) -> None:
    """Refuses data files that end before a value that they should hold."""
    ends: Counter[str] = Counter()
    for key in keys:
        value = contents.values[key]
        if value.file:
            ends[value.file] = max(ends[value.file], value.offset + value.nbytes)
    for file, end in ends.items():
        length = lengths.get(file)
        if length is None or length < end:
            told = "is missing" if length is None else f"ends after {length:,} of {end:,} bytes"
            raise DamagedCheckpoint(f"data file `{file}` {told}", where=str(item.path))


def _whole_files(
    keys: Mapping[str, str],
    contents: Contents,
    lengths: Mapping[str, int],
    is_linked: bool,
    largest_bytes: int,
) -> set[str]:
    """The data files of which enough is needed; with links, every one that is needed."""
    needed: Counter[str] = Counter()
    largest: Counter[str] = Counter()
    for key in keys:
        value = contents.values[key]
        if value.file:
            needed[value.file] += value.nbytes
            largest[value.file] = max(largest[value.file], value.nbytes)
    return {
        file
        for file, nbytes in needed.items()
        if is_linked or nbytes >= WORTH_A_FILE * lengths[file] or largest[file] > largest_bytes
    }


def rewritten_bytes(plan: Plan, item: Item) -> int:
    """About how many bytes the rewritten arrays take: as compressible as what they are made of."""
    encoded = _encoded_bytes(item)
    total = 0
    for array in plan.rewritten:
        source = first_source(array.view)
        size = size_bytes(array.view)
        stored = encoded.get(source.name) if source.store == item.path.as_posix() else None
        whole = size_bytes(source)
        total += size if stored is None or not whole else max(1, size * stored // whole)
    return total


def _encoded_bytes(item: Item) -> dict[str, int]:
    """Bytes of each array as it is stored."""
    if item.contents is None:
        sizes = files_below(item.path)
    else:
        sizes = {key: value.nbytes for key, value in item.contents.values.items()}
    names = {leaf.name for leaf in item.tree.values() if isinstance(leaf, Source)}
    found: dict[str, int] = defaultdict(int)
    for key, nbytes in sizes.items():
        name = key
        while name and name not in names:
            name = name.rpartition("/")[0]
        found[name] += nbytes
    return found
