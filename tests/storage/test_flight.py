"""Work in flight: as much at once as there is room for, and the first error of all."""

import asyncio
from functools import partial

import pytest

from nnxconv.storage import Flight


def flown(sizes, most, most_bytes, failing=()):
    """The most pieces and bytes that were under way at once, and which pieces ended."""
    under_way, seen, ended = {}, [], []

    async def piece(number, nbytes):
        under_way[number] = nbytes
        seen.append((len(under_way), sum(under_way.values())))
        for _ in range(len(sizes) - number):
            await asyncio.sleep(0)
        del under_way[number]
        ended.append(number)
        if number in failing:
            raise ValueError(number)

    async def all_of_them():
        async with Flight(most, most_bytes) as flight:
            for number, nbytes in enumerate(sizes):
                await flight.begin(nbytes, partial(piece, number, nbytes))

    try:
        asyncio.run(all_of_them())
    except ValueError as error:
        return error.args[0], ended, under_way
    return max(map(max, zip(*seen, strict=True))), seen, ended


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("most_bytes", [1, 4, 100])
def test_there_is_never_more_than_there_is_room_for(most, most_bytes):
    sizes = [3, 1, 2, 9, 1, 1, 4]
    _, seen, ended = flown(sizes, most, most_bytes)
    assert sorted(ended) == list(range(len(sizes)))
    assert max(count for count, _ in seen) <= most
    assert all(nbytes <= most_bytes or count == 1 for count, nbytes in seen)


def test_the_first_error_is_raised_when_all_that_was_begun_has_ended():
    error, ended, under_way = flown([1] * 8, 4, 100, failing=(1, 2, 3))
    assert error == 1
    assert not under_way and {0, 1, 2, 3} <= set(ended)
    assert 7 not in ended
