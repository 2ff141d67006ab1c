"""Keys and the places of their values, in columns: a database may have millions of them."""

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, slots=True)
class Value:
    """A stored value: the data file that holds it, relative to the database, and where in it.

    Small values stand in the database's nodes: `inline` has their bytes, and `file` is empty.
    """

    file: str
    offset: int
    nbytes: int
    inline: bytes = b""


class Values(Mapping[str, Value]):
    """Values by their keys, which are in order.

    Attributes:
      names: the keys.
      data_files: the files that hold values, each once.
      file_numbers: of each value's file among them; -1 where it stands in a node.
      offsets: of the values in their files.
      nbytes: of the values.
      inline: values that stand in nodes, by their place among the keys.
    """

    def __init__(
        self,
        names: list[str],
        data_files: list[str],
        file_numbers: np.ndarray,
        offsets: np.ndarray,
        nbytes: np.ndarray,
        inline: dict[int, bytes],
    ) -> None:
        self.names = names
        self.data_files = data_files
        self.file_numbers = file_numbers
        self.offsets = offsets
        self.nbytes = nbytes
        self.inline = inline

    def __getitem__(self, key: str) -> Value:
        place = self.place(key)
        if place is None:
            raise KeyError(key)
        return self.at(place)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.place(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def place(self, key: str) -> int | None:
        """Where a key stands among all; None where it does not."""
        names = self.names
        place = bisect_left(names, key)
        return place if place < len(names) and names[place] == key else None

    def below(self, folder: str) -> range:
        """The places of the keys that begin with a name and a slash."""
        first = bisect_left(self.names, f"{folder}/")
        return range(first, bisect_left(self.names, f"{folder}0", first))  # 0 comes after the slash

    def at(self, place: int) -> Value:
        """The value that stands at a place."""
        number, nbytes = int(self.file_numbers[place]), int(self.nbytes[place])
        if number < 0:
            return Value("", 0, nbytes, self.inline[place])
        return Value(self.data_files[number], int(self.offsets[place]), nbytes)

    def inline_at(self, key: str) -> bytes | None:
        """The value of a key, where a node has it; None where it stands in a file, or nowhere."""
        place = self.place(key)
        return None if place is None else self.inline.get(place)

    def used_files(self) -> set[str]:
        """The files that hold values."""
        return set(self.data_files)


class Columns:
    """Values that are gathered one group after the other, in the order of their keys."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._files: dict[str, int] = {"": -1}
        self._numbers, self._offsets, self._nbytes = array("i"), array("q"), array("q")
        self._inline: dict[int, bytes] = {}

    def extend(
        self,
        names: Sequence[str],
        files: Sequence[str],
        offsets: Sequence[int],
        nbytes: Sequence[int],
        inline: Sequence[bytes],
    ) -> None:
        """Adds values: their files are empty where `inline` has them."""
        start = len(self._names)
        for place, (file, value) in enumerate(zip(files, inline, strict=True), start):
            if not file:
                self._inline[place] = value
            elif file not in self._files:
                self._files[file] = len(self._files) - 1
        self._names += names
        self._numbers.extend(map(self._files.__getitem__, files))
        self._offsets.extend(offsets)
        self._nbytes.extend(nbytes)

    def take(
        self,
        values: Values,
        places: Sequence[int] | np.ndarray,
        names: Sequence[str],
        folder: str = "",
    ) -> None:
        """Adds values of another database, under other names; its files lie in a folder here."""
        start, rows = len(self._names), np.asarray(places, np.int64)
        numbers = values.file_numbers[rows]
        for place in np.flatnonzero(numbers < 0).tolist():
            self._inline[start + place] = values.inline[int(rows[place])]
        own = np.full(len(values.data_files) + 1, -1, np.int32)  # the last is for those inline
        for number in np.unique(numbers[numbers >= 0]).tolist():
            file = folder + values.data_files[number]
            own[number] = self._files.setdefault(file, len(self._files) - 1)
        self._names += names
        self._numbers.frombytes(own[numbers].tobytes())
        self._offsets.frombytes(values.offsets[rows].tobytes())
        self._nbytes.frombytes(values.nbytes[rows].tobytes())

    def in_order(self) -> Values:
        """All of them, in the order of their keys, whatever the order that they were added in.

        Raises:
          ValueError: two values have one key.
        """
        values = self.values()
        names = values.names
        order = sorted(range(len(names)), key=names.__getitem__)
        places = {old: new for new, old in enumerate(order) if old in values.inline}
        ordered = [names[place] for place in order]
        for one, other in pairwise(ordered):
            if one == other:
                raise ValueError(f"two values have the key `{one}`")
        return Values(
            ordered,
            values.data_files,
            values.file_numbers[order],
            values.offsets[order],
            values.nbytes[order],
            {places[old]: value for old, value in values.inline.items()},
        )

    def values(self) -> Values:
        """All of them, which were added in the order of their keys."""
        return Values(
            self._names,
            list(self._files)[1:],
            np.frombuffer(self._numbers, np.int32) if self._numbers else np.empty(0, np.int32),
            np.frombuffer(self._offsets, np.int64) if self._offsets else np.empty(0, np.int64),
            np.frombuffer(self._nbytes, np.int64) if self._nbytes else np.empty(0, np.int64),
            self._inline,
        )


NO_VALUES = Columns().values()
