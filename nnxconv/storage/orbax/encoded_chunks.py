"""Stored chunks as they are, without decoding: equal bytes under equal codecs are equal values."""

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import tensorstore as ts

from nnxconv.planning import chunk_grid
from nnxconv.storage.orbax.extents import Extent, Extents, have_same_bytes
from nnxconv.storage.orbax.item import Item
from nnxconv.storage.zarr import chunk_key, damaged
from nnxconv.tree import Piece, Region, Shape, Source

Cell = tuple[tuple[int, int], ...]
"""Where a chunk lies in a view: start and stop on every axis."""

_Read = tuple[str, str, "ts.Future[ts.KvStore.ReadResult]"]
"""A store, a key, and the value that is on its way."""


class EncodedChunks:
    """The encoded chunks of one or more opened items; several threads may ask at once."""

    def __init__(self, items: Mapping[str, Item]) -> None:
        self._items = items
        self._extents = {store: Extents(item) for store, item in items.items()}

    def are_equal(self, a: Sequence[Piece], b: Sequence[Piece], region: Region) -> bool:
        """True when both views' chunks in a region have the same bytes and mean the same.

        False says nothing: the chunk grids or codecs may differ, or a chunk may be missing.
        """
        left, right = self._cells(a, region), self._cells(b, region)
        if left is None or right is None or left.keys() != right.keys():
            return False
        for cell, (piece, _) in left.items():
            if not self._mean_the_same(piece, right[cell][0]):
                return False
        under_way = [self._start_comparing(left[cell], right[cell]) for cell in left]
        return all(is_equal() for is_equal in under_way)

    def _cells(
        self, parts: Sequence[Piece], region: Region
    ) -> dict[Cell, tuple[Piece, Shape]] | None:
        """The chunks that lie in a region, by place; None unless they are whole chunks."""
        cells: dict[Cell, tuple[Piece, Shape]] = {}
        for piece in parts:
            wanted = piece.source_region(region)
            if wanted is None:
                continue
            if not piece.source.encoding or None in piece.axes:
                return None
            for index, inside in _chunks_in(piece.source, wanted):
                if inside is None:
                    return None
                where = piece.target_region(inside)
                assert where is not None
                cells[tuple((part.start, part.stop) for part in where)] = (piece, index)
        return cells

    @staticmethod
    def _mean_the_same(a: Piece, b: Piece) -> bool:
        """True when equal bytes of a chunk of each are equal values in the view."""
        return a.chunk_order() == b.chunk_order() and a.source.encoding == b.source.encoding

    def _start_comparing(
        self, a: tuple[Piece, Shape], b: tuple[Piece, Shape]
    ) -> Callable[[], bool]:
        """Compares two chunks where they lie on disk, or else as their stores give them.

        Stores are asked now, and waited for when the result is asked for.
        """
        (store_a, key_a), (store_b, key_b) = (
            (piece.source.store, self._key(piece, index)) for piece, index in (a, b)
        )
        first, second = self._extents[store_a].of(key_a), self._extents[store_b].of(key_b)
        if isinstance(first, Extent) and isinstance(second, Extent):
            return partial(have_same_bytes, first, second)
        if isinstance(first, bytes) and isinstance(second, bytes):
            return partial(operator.eq, first, second)
        reads = [
            (store, key, self._items[store].kvstore.read(key))
            for store, key in ((store_a, key_a), (store_b, key_b))
        ]
        return partial(self._are_equal_values, *reads)

    def _key(self, piece: Piece, index: Shape) -> str:
        array = self._items[piece.source.store].formats[piece.source.name]
        return f"{piece.source.name}/{chunk_key(array.zarr_format, array.metadata, index)}"

    def _are_equal_values(self, a: _Read, b: _Read) -> bool:
        left, right = self._value(a), self._value(b)
        return left is not None and left == right

    def _value(self, read: _Read) -> bytes | None:
        store, key, future = read
        try:
            found = future.result()
        except (ValueError, OSError) as error:
            raise damaged(self._items[store].path, key, error) from error
        return found.value if found.state == "value" else None


def _chunks_in(source: Source, region: Region) -> Iterator[tuple[Shape, Region | None]]:
    """Index and extent of every chunk that a region touches; no extent where it is cut."""
    for index in itertools.product(*chunk_grid(region, source.chunks)):
        extent = tuple(
            slice(i * chunk, min((i + 1) * chunk, size))
            for i, chunk, size in zip(index, source.chunks, source.shape, strict=True)
        )
        is_whole = all(
            part.start <= inner.start and inner.stop <= part.stop
            for part, inner in zip(region, extent, strict=True)
        )
        yield index, extent if is_whole else None
