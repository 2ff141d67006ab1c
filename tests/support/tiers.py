"""Tiers: which cases of a test run every day, and which in the full run alone.

`@pytest.mark.full` leaves a whole test to the full run. Of a test that is marked
`@pytest.mark.sample(N)`, N cases run every day: chosen so that each value of each parameter occurs,
and as many pairs of values as N cases can show.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

import pytest

Case = Mapping[str, object]
Pair = frozenset[tuple[str, str]]


def choose(cases: Sequence[Case], most: int) -> list[int]:
    """The places of at most so many cases that show the most pairs of values, the first one first.

    >>> matrix = [{"a": a, "b": b} for a in "xyz" for b in "12"]
    >>> choose(matrix, 3)
    [0, 2, 5]
    """
    shown = [_pairs(case) for case in cases]
    left: set[Pair] = set().union(*shown)
    chosen: list[int] = []
    while len(chosen) < min(most, len(cases)):
        others = [place for place in range(len(cases)) if place not in chosen]
        best = max(others, key=lambda place: (len(shown[place] & left), _apart(place, chosen)))
        chosen.append(best)
        left -= shown[best]
    return sorted(chosen)


def campaign(values: Sequence[object], most: int) -> list[object]:
    """Parameters: so many for the full run; those after them wait for `-m trust`."""
    later = [pytest.param(value, marks=pytest.mark.trust(only=True)) for value in values[most:]]
    return [*values[:most], *later]


def _pairs(case: Case) -> set[Pair]:
    """The values of a case, and each two of them."""
    values = [(name, repr(value)) for name, value in sorted(case.items())]
    return {frozenset(some) for size in (1, 2) for some in itertools.combinations(values, size)}


def _apart(place: int, chosen: Sequence[int]) -> int:
    """How far a case stands from those that are chosen: a table is shown in all its parts."""
    return min((abs(place - other) for other in chosen), default=-place)


def assign(items: Sequence[pytest.Item]) -> None:
    """Marks every test `everyday` that is not left to the full run, and says so of the others."""
    tests: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    for cases in tests.values():
        sample = cases[0].get_closest_marker("sample")
        most = sample.args[0] if sample else len(cases)
        chosen = choose([_case(item) for item in cases], most) if sample else range(len(cases))
        for place, item in enumerate(cases):
            if place not in chosen:
                item.add_marker(pytest.mark.full)
            elif item.get_closest_marker("full") is None:
                item.add_marker(pytest.mark.everyday)


def _case(item: pytest.Item) -> Case:
    """The parameters of a case."""
    call = getattr(item, "callspec", None)
    return {} if call is None else call.params
