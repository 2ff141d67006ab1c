"""One process among several: it tells the others that it is there, and hears how they are.

```
beat/2       how often process 2 has told that it is there, and how far it is
failed       why the first process that failed did
said/5/2     what process 2 says when all are asked for the fifth time
heard/5      what all have said then, once process 0 has heard everybody
left/2       process 2 writes no more
```
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import astuple
from typing import Any

from nnxconv.running import Event, Watcher
from nnxconv.running.cluster.failure import Failure, failure_of, lost
from nnxconv.running.cluster.store import ContactLost, Store
from nnxconv.running.cluster.team import Fold, go_on, total

BEAT_SECONDS = 1.0
LOST_SECONDS = 20.0
"""A process of which nothing is heard for so long is given up."""

START_SECONDS = 300.0
"""The same before anything is heard: processes do not all start at once."""

PATIENCE_SECONDS = 30.0
"""How long process 0 waits until the others have stopped."""

POLL_SECONDS = 0.25


class Member:
    """A team whose processes talk through a store."""

    def __init__(self, number: int, count: int, store: Store) -> None:
        self.number = number
        self.count = count
        self._store = store
        self._round = 0
        self._failure: Failure | None = None
        self._watch: Watcher | None = None
        self._events = {other: Event(0, 0, 0, 0) for other in range(count)}
        self._beats = dict.fromkeys(range(count), 0)
        self._silent_at = dict.fromkeys(range(count), time.monotonic() + START_SECONDS)
        self._is_settled = False
        self._is_over = threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def gather(self, what: str, value: Any = None, check: Callable[[], None] = go_on) -> list[Any]:
        """What every process says, in the order of their numbers; all wait for all.

        Raises:
          TeamError: another process has failed, or is lost.
        """
        return self.combine(what, value, list, check)

    def combine(self, what: str, value: Any, fold: Fold, check: Callable[[], None] = go_on) -> Any:
        """The same, made into one JSON value by process 0, which takes them one after the other."""
        self._round += 1
        said, heard = f"said/{self._round}", f"heard/{self._round}"
        try:
            self._store.put(f"{said}/{self.number}", [what, value, self._progress()])
            if self.number:
                return self._await(heard, check)
            combined = fold(self._answers(said, what, check))
            self._store.put(heard, combined)
        except ContactLost as error:
            raise lost(0).error() from error
        return combined

    def ask_first(self, value: Any = None, check: Callable[[], None] = go_on) -> Any:
        """What process 0 says, which does not wait for the others."""
        self._round += 1
        heard = f"heard/{self._round}"
        try:
            if self.number:
                [value] = self._await(heard, check)
            else:
                self._store.put(heard, [value])
        except ContactLost as error:
            raise lost(0).error() from error
        return value

    def settle(self) -> None:
        """From now on nobody is given up: process 0 does not need the others any more."""
        self._is_settled = True

    def _answers(self, said: str, what: str, check: Callable[[], None]) -> Iterator[Any]:
        """What each process says, as soon as it does."""
        for other in range(self.count):
            asked, answer, event = self._await(f"{said}/{other}", check)
            assert asked == what, f"process {other} is asked for {asked}, not {what}"
            self._events[other] = Event(*event)
            self._tell()
            yield answer

    def check(self) -> None:
        """Goes on, unless another process has failed or is lost."""
        if self._failure is None and self._is_silent(0):
            self._failure = lost(0)
        if self._failure is not None:
            raise self._failure.error()

    def fail(self, error: BaseException) -> None:
        """Tells the others why this process cannot go on; process 0 waits until they have stopped.

        When several fail, what the first one said is true for all of them.
        """
        with suppress(ContactLost):
            if self._failure is None:
                self._store.put_first("failed", failure_of(error, self.number).to_json())
                self._failure = Failure.from_json(self._store.get("failed"))
            self._await_others()

    def first_failure(self, error: BaseException) -> BaseException:
        """What all processes fail of: the error itself, where it says what the first one said."""
        first = self._failure
        if first is None or failure_of(error, first.process) == first:
            return error
        return first.error()

    def leave(self) -> None:
        """Tells the others that this process writes no more, and then nothing."""
        with suppress(ContactLost):
            self._store.put(f"left/{self.number}", True)
        self._is_over.set()
        self._listener.join()

    def silent(self) -> set[int]:
        """The processes that are given up."""
        return {other for other in range(self.count) if self._is_silent(other)}

    def watching(self, watch: Watcher) -> Watcher:
        """Keeps how far this process is; that of all is told to the watcher of process 0."""
        if self.number == 0:
            self._watch = watch

        def keep(event: Event) -> None:
            self._events[self.number] = event
            self._tell()

        return keep

    def _tell(self) -> None:
        if self._watch is not None:
            self._watch(total([self._events[other] for other in range(self.count)]))

    def _progress(self) -> tuple[int, ...]:
        return astuple(self._events[self.number])

    def _await(self, key: str, check: Callable[[], None]) -> Any:
        """A value that another process will keep, unless one fails before."""
        while (value := self._store.wait(key, POLL_SECONDS)) is None:
            check()
            self.check()
            self._tell()
        return value

    def _await_others(self) -> None:
        """Waits, on process 0, until all others have left or are lost."""
        until = time.monotonic() + PATIENCE_SECONDS
        for other in range(1, self.count) if self.number == 0 else ():
            while not self._is_silent(other) and time.monotonic() < until:
                if self._store.wait(f"left/{other}", POLL_SECONDS):
                    break

    def _is_silent(self, other: int) -> bool:
        return time.monotonic() > self._silent_at[other]

    def _listen(self) -> None:
        """Tells that this process is there, and hears of the others, until the end."""
        beats = 0
        while True:
            beats += 1
            with suppress(ContactLost):
                self._store.put(f"beat/{self.number}", [beats, self._progress()])
                self._hear()
            if self._is_over.wait(BEAT_SECONDS):
                return

    def _hear(self) -> None:
        told = self._store.below("beat") if self.number == 0 else {"0": self._store.get("beat/0")}
        for name, beat in told.items():
            other = int(name)
            if beat is not None and beat[0] != self._beats[other]:
                self._beats[other] = beat[0]
                self._silent_at[other] = time.monotonic() + LOST_SECONDS
                if other != self.number:
                    self._events[other] = Event(*beat[1])
        silent = self.silent() - {0}
        if self.number == 0 and silent and self._failure is None and not self._is_settled:
            gone = self._store.below("left")
            for other in sorted(silent):
                if str(other) not in gone:
                    self._store.put_first("failed", lost(other).to_json())
        if self._failure is None:
            told_failure = self._store.get("failed")
            if told_failure is not None:
                self._failure = Failure.from_json(told_failure)
