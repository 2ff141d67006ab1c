"""The processes that do one piece of work together, as each of them sees it; or one alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from nnxconv.running import Event, Watcher

Fold = Callable[[Iterator[Any]], Any]


def go_on() -> None:
    """Lets whoever waits wait on."""


class Team(Protocol):
    """The processes of one run, numbered from 0, and what they tell each other."""

    @property
    def number(self) -> int:
        """Of this process."""
        ...

    @property
    def count(self) -> int:
        """How many processes there are."""
        ...

    def gather(self, what: str, value: Any = None, check: Callable[[], None] = go_on) -> list[Any]:
        """What every process says of `what`, as JSON values in the order of their numbers.

        Everybody waits for everybody. `check` is called while waiting, and may raise.

        Raises:
          TeamError: another process has failed, or is lost.
        """
        ...

    def combine(self, what: str, value: Any, fold: Fold, check: Callable[[], None] = go_on) -> Any:
        """The same, made into one JSON value by process 0, which takes them one after the other."""
        ...

    def ask_first(self, value: Any = None, check: Callable[[], None] = go_on) -> Any:
        """What process 0 says, which does not wait for the others."""
        ...

    def settle(self) -> None:
        """From now on process 0 does not need the others: none of them can fail any more."""
        ...

    def check(self) -> None:
        """Goes on, unless another process has failed.

        Raises:
          TeamError: one has, or is lost.
        """
        ...

    def fail(self, error: BaseException) -> None:
        """Tells the others why this process cannot go on; returns when they have stopped."""
        ...

    def watching(self, watch: Watcher) -> Watcher:
        """What this process reports its own progress to; `watch` is told that of all, by one."""
        ...


@dataclass(frozen=True)
class SingleProcess:
    """One process that shares its work with nobody."""

    number: int = 0
    count: int = 1

    def gather(self, what: str, value: Any = None, check: Callable[[], None] = go_on) -> list[Any]:
        """What this process says."""
        del what, check
        return [value]

    def combine(self, what: str, value: Any, fold: Fold, check: Callable[[], None] = go_on) -> Any:
        """What this process says, made into one value."""
        del what, check
        return fold(iter([value]))

    def ask_first(self, value: Any = None, check: Callable[[], None] = go_on) -> Any:
        """What this process says."""
        del check
        return value

    def settle(self) -> None:
        """Needs nobody."""

    def check(self) -> None:
        """Goes on."""

    def fail(self, error: BaseException) -> None:
        """Tells nobody."""

    def watching(self, watch: Watcher) -> Watcher:
        """The watcher itself."""
        return watch


SINGLE_PROCESS = SingleProcess()


def total(events: list[Event]) -> Event:
    """How far all processes have come together.

    >>> total([Event(1, 3, 10, 30), Event(0, 2, 5, 20)])
    Event(arrays=1, total_arrays=5, done_bytes=15, total_bytes=50)
    """
    return Event(
        sum(event.arrays for event in events),
        sum(event.total_arrays for event in events),
        sum(event.done_bytes for event in events),
        sum(event.total_bytes for event in events),
    )
