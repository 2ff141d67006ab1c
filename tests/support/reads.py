"""Which stored chunks are read, and how often."""

import itertools
from collections import Counter
from collections.abc import Iterator

import pytest

from nnxconv.storage.orbax.reading import Reader
from nnxconv.tree.views import Source

Chunk = tuple[str, tuple[int, ...]]


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[Chunk]:
    """Counts from now on how often each chunk is decoded: array name and index of the chunk."""
    counts: Counter[Chunk] = Counter()
    read = Reader.read

    async def counted(self: Reader, source: Source, region: tuple[slice, ...]):
        counts.update((source.name, index) for index in chunks_in(source, region))
        return await read(self, source, region)

    monkeypatch.setattr(Reader, "read", counted)
    return counts


def chunks_in(source: Source, region: tuple[slice, ...]) -> Iterator[tuple[int, ...]]:
    """Indices of the chunks that a region touches.

    >>> list(chunks_in(Source("x", (9,), "float32", (2,)), (slice(3, 5),)))
    [(1,), (2,)]
    """
    return itertools.product(
        *(
            range(part.start // size, -(-part.stop // size))
            for part, size in zip(region, source.chunks, strict=True)
        )
    )
