"""What is moved without being decoded, and how: files as they are, references, single values.

An OCDBT database refers to its data files by paths relative to itself. A target that has a
source's data files at the same relative paths can take over references to parts of them. A data
file of which too little is needed is left, and its values are copied one by one; unless one of
them is so large that it would not fit in the memory.
"""

import math
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from etils import epath

from nnxconv.errors import DamagedCheckpoint
from nnxconv.planning import (
    Plan,
    TargetArray,
    Transfer,
    held_bytes,
    renamed_chunks,
    window_bytes,
)
from nnxconv.storage.files import files_below
from nnxconv.storage.gcs import is_remote
from nnxconv.storage.ocdbt import Values
from nnxconv.storage.orbax import Item
from nnxconv.storage.zarr import chunk_key, chunk_keys
from nnxconv.tree import Source, dtype_of, first_source, item_bytes, pieces, size_bytes

WORTH_A_FILE = 0.5
"""A data file is taken over whole when at least this part of it is needed."""


@dataclass(frozen=True)
class TransferPlan:
    """What is moved without being decoded.

    Attributes:
      files: files of the source that are copied or linked, and their new paths.
      references: keys of values in those files, or in the database's nodes, and their new keys; one
        that ends with a slash stands for all chunks of an array, which are called below it as they
        were.
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
    is_linked = transfer == "link" and can_link(item.path, target)
    if item.contents is None:
        keys = renamed_keys(plan.renamed, item)
        lengths = _lengths(item) if keys else {}
        _refuse_missing(item, keys, lengths)
        return TransferPlan(
            keys, file_sizes={key: lengths[key] for key in keys}, is_linked=is_linked
        )
    stored = item.contents.values
    moves = [_move(array, item, stored) for array in plan.renamed]
    lengths = _lengths(item) if moves else {}
    _refuse_short_files(item, moves, stored, lengths)
    whole = _whole_files(moves, stored, lengths, is_linked, window_bytes(max_memory))
    references: dict[str, str] = {}
    values: dict[str, str] = {}
    for move in moves:
        there, apart = move.divided(stored, whole)
        references |= there
        values |= apart
    return TransferPlan(
        {file: file for file in sorted(whole)},
        references,
        values,
        {file: lengths[file] for file in sorted(whole)},
        {old: stored[old].nbytes for old in values},
        is_linked,
        max_memory,
    )


def _lengths(item: Item) -> Mapping[str, int]:
    """The bytes of each file, as they were when the item was opened."""
    return {name: seen[1] for name, seen in item.seen.items()} or files_below(item.path)


@dataclass(frozen=True)
class _Move:
    """The chunks that a renamed array takes over.

    Attributes:
      old, new: the folders of all its chunks, where it takes over a whole array.
      places: of the chunks among all stored keys.
      keys: the new key of each chunk, in the order of the places; none where it is a whole array.
    """

    old: str
    new: str
    places: np.ndarray
    keys: Sequence[str] = ()

    def divided(
        self, stored: Values, whole: Collection[str]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Old and new keys of what can be referred to, and of what has to be copied."""
        are_whole = np.array([file in whole for file in stored.data_files] + [True])
        is_there = are_whole[stored.file_numbers[self.places]]  # -1, in a node, is the last
        if not self.keys and is_there.all():
            return {self.old: self.new}, {}
        places = self.places.tolist()
        names = [stored.names[place] for place in places]
        keys = self.keys or [self.new + name[len(self.old) :] for name in names]
        pairs = list(zip(names, keys, is_there.tolist(), strict=True))
        return {a: b for a, b, there in pairs if there}, {
            a: b for a, b, there in pairs if not there
        }


def _move(array: TargetArray, item: Item, stored: Values) -> _Move:
    """What a renamed array takes over.

    Raises:
      DamagedCheckpoint: a chunk is missing.
    """
    parts = pieces(array.view)
    if len(parts) == 1 and parts[0].is_whole_source:
        source = parts[0].source
        places = chunk_places(item, source.name, stored)
        return _Move(f"{source.name}/", f"{array.name}/", places)
    keys = renamed_keys([array], item)
    _refuse_missing(item, keys, stored)
    found = [stored.place(key) for key in keys]
    return _Move("", "", np.array(found, np.int64), list(keys.values()))


def chunk_places(item: Item, name: str, stored: Values) -> np.ndarray:
    """Where the chunks of an array stand among all stored keys.

    Raises:
      DamagedCheckpoint: one is missing.
    """
    start = len(name) + 1
    there = {stored.names[place][start:]: place for place in stored.below(name)}
    expected = chunk_keys(item.formats[name])
    missing = next((key for key in expected if key not in there), None)
    if missing is not None:
        raise DamagedCheckpoint(f"`{name}/{missing}` is missing", where=str(item.path))
    return np.fromiter(map(there.__getitem__, expected), np.int64, len(expected))


def renamed_keys(arrays: Iterable[TargetArray], item: Item) -> dict[str, str]:
    """The key of every encoded chunk that is taken over, and its new key."""
    keys: dict[str, str] = {}
    for array in arrays:
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
    item: Item, moves: Sequence[_Move], stored: Values, lengths: Mapping[str, int]
) -> None:
    """Refuses data files that end before a value that they should hold."""
    ends = _by_file(moves, stored, stored.offsets + stored.nbytes, np.maximum)
    for file, end in ends.items():
        length = lengths.get(file)
        if length is None or length < end:
            told = "is missing" if length is None else f"ends after {length:,} of {end:,} bytes"
            raise DamagedCheckpoint(f"data file `{file}` {told}", where=str(item.path))


def _whole_files(
    moves: Sequence[_Move],
    stored: Values,
    lengths: Mapping[str, int],
    is_linked: bool,
    largest_bytes: int,
) -> set[str]:
    """The data files of which enough is needed; with links, every one that is needed."""
    needed = _by_file(moves, stored, stored.nbytes, np.add)
    largest = _by_file(moves, stored, stored.nbytes, np.maximum)
    return {
        file
        for file, nbytes in needed.items()
        if is_linked or nbytes >= WORTH_A_FILE * lengths[file] or largest[file] > largest_bytes
    }


def _by_file(
    moves: Sequence[_Move], stored: Values, numbers: np.ndarray, together: np.ufunc
) -> dict[str, int]:
    """For each data file that is needed, what numbers of the chunks in it are together."""
    totals = np.zeros(len(stored.data_files), np.int64)
    is_needed = np.zeros(len(stored.data_files), bool)
    places = np.concatenate([np.empty(0, np.int64), *(move.places for move in moves)])
    files = stored.file_numbers[places]
    is_elsewhere = files >= 0
    together.at(totals, files[is_elsewhere], numbers[places][is_elsewhere])
    is_needed[files[is_elsewhere]] = True
    found = np.flatnonzero(is_needed).tolist()
    return {stored.data_files[number]: int(totals[number]) for number in found}


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


def uncompressed_bytes(plan: Plan) -> int:
    """How many bytes the chunks of the rewritten arrays take, at the edges in full as well."""
    return sum(
        item_bytes(dtype_of(array.view))
        * math.prod(
            -(-size // max(1, chunk)) * chunk
            for size, chunk in zip(array.view.shape, array.chunks, strict=True)
        )
        for array in plan.rewritten
    )


def _encoded_bytes(item: Item) -> dict[str, int]:
    """Bytes of each array as it is stored."""
    if item.is_raw:
        raw = (one for one in item.tree.values() if isinstance(one, Source))
        return {source.name: size_bytes(source) for source in raw}
    if item.contents is None:
        sizes = _lengths(item)
    else:
        stored = item.contents.values
        sizes = dict(zip(stored.names, stored.nbytes.tolist(), strict=True))
    names = {leaf.name for leaf in item.tree.values() if isinstance(leaf, Source)}
    found: dict[str, int] = defaultdict(int)
    for key, nbytes in sizes.items():
        name = key
        while name and name not in names:
            name = name.rpartition("/")[0]
        found[name] += nbytes
    return found
