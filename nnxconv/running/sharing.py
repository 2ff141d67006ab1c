"""Which process does what: work is shared by its bytes, the same on every process without talking.

A unit of work is a block of whole chunks, a data file, or a stored value. Blocks that write parts
of one chunk stay together, so that each chunk of the target is written by one process alone; the
blocks of a large array are shared by many.
"""

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nnxconv.planning import Plan, TargetArray, are_whole_chunks, chunk_grid, written
from nnxconv.storage.transfer import TransferPlan
from nnxconv.tree import Key, Region, Shape, dtype_of, item_bytes, size_bytes


def spread(sizes: Sequence[int], count: int) -> list[int]:
    """Which of `count` processes each unit goes to: the largest first, to whoever has least.

    >>> spread([5, 3, 3, 1], 2)
    [0, 1, 1, 0]
    """
    loads = [(0, number) for number in range(count)]
    owners = [0] * len(sizes)
    for unit in sorted(range(len(sizes)), key=lambda unit: -sizes[unit]):
        load, number = loads[0]
        owners[unit] = number
        heapq.heapreplace(loads, (load + sizes[unit], number))
    return owners


@dataclass(frozen=True)
class WorkShard:
    """What one process does of a plan.

    Attributes:
      transfers: the files and values that it takes over; process 0 has all references.
      elements: how many elements it writes of each array that is decoded and encoded.
      counted: the arrays that it counts as finished, as soon as its own part of them is.
      renamed_bytes: its part of the bytes of all arrays that are renamed.
      total_bytes: the same of all arrays.
      jobs: the numbers of its blocks; None for all.
    """

    transfers: TransferPlan
    elements: Mapping[Key, int]
    counted: Collection[Key]
    renamed_bytes: int
    total_bytes: int
    jobs: Collection[int] | None = None


def work_shard_of(plan: Plan, transfers: TransferPlan, number: int, count: int) -> WorkShard:
    """The work of one of `count` processes."""
    renamed_bytes = sum(size_bytes(array.view) for array in plan.renamed)
    if count == 1:
        elements = {array.key: math.prod(array.view.shape) for array in plan.rewritten}
        keys = [array.key for array in plan.arrays]
        return WorkShard(transfers, elements, keys, renamed_bytes, plan.total_bytes)
    split = split_up(plan, transfers, count)
    written_elements = Counter[Key]()
    written_bytes = 0
    counted_by = {array.key: 0 for array in plan.arrays}
    jobs: set[int] = set()
    for block, job in enumerate(plan.jobs()):
        owner = split.of_block[block]
        if owner == number:
            jobs.add(block)
        for array, region in written(job):
            counted_by[array.key] = owner  # in the end, who has the last block
            if owner == number:
                size = math.prod(part.stop - part.start for part in region)
                written_elements[array.key] += size
                written_bytes += size * item_bytes(dtype_of(array.view))
    files = {file for file, owner in split.of_file.items() if owner == number}
    values = {key for key, owner in split.of_value.items() if owner == number}
    mine = transfers.only(files, values)
    keys = [key for key, owner in counted_by.items() if owner == number]
    moved_bytes = transfers.moved_bytes or 1
    part_bytes = renamed_bytes * mine.moved_bytes // moved_bytes
    return WorkShard(mine, written_elements, keys, part_bytes, part_bytes + written_bytes, jobs)


@dataclass(frozen=True)
class Split:
    """Who does each block, file and value; and how many bytes that is for each."""

    of_block: Sequence[int]
    of_file: Mapping[str, int]
    of_value: Mapping[str, int]
    loads: Sequence[int]


def split_up(plan: Plan, transfers: TransferPlan, count: int) -> Split:
    """The whole work among `count` processes."""
    units, sizes = _units(plan)
    names = list(sizes)
    nbytes = [*sizes.values(), *transfers.file_sizes.values(), *transfers.value_bytes.values()]
    owners = spread(nbytes, count)
    loads = Counter(dict.fromkeys(range(count), 0))
    for owner, size in zip(owners, nbytes, strict=True):
        loads[owner] += size
    rest = iter(owners)
    of_unit = {unit: next(rest) for unit in names}
    of_file = {file: next(rest) for file in transfers.file_sizes}
    of_value = {key: next(rest) for key in transfers.value_bytes}
    return Split([of_unit[unit] for unit in units], of_file, of_value, list(loads.values()))


def _units(plan: Plan) -> tuple[list[int], dict[int, int]]:
    """For each block the first block that it must stay with; and the bytes of those together."""
    first: list[int] = []
    writers: dict[tuple[Key, Shape], int] = {}
    sizes: list[int] = []

    def root(block: int) -> int:
        while first[block] != block:
            first[block] = first[first[block]]
            block = first[block]
        return block

    for block, job in enumerate(plan.jobs()):
        first.append(block)
        sizes.append(job.block_bytes)
        for array, region in written(job):
            for chunk in _cut_chunks(array, region):
                other = root(writers.setdefault((array.key, chunk), block))
                mine = root(block)
                first[max(mine, other)] = min(mine, other)
    units = [root(block) for block in range(len(first))]
    together = Counter[int]()
    for unit, nbytes in zip(units, sizes, strict=True):
        together[unit] += nbytes
    return units, dict(together)


def _cut_chunks(array: TargetArray, region: Region) -> Iterator[Shape]:
    """The chunks that a region fills, if there is one that it fills only in part."""
    if are_whole_chunks(region, array.chunks, array.view.shape):
        return
    yield from itertools.product(*chunk_grid(region, array.chunks))
