"""A lock in a bucket: an object that its holder writes anew again and again.

Each write is on condition that the object is still the one that was written before, so that of
several runs one has it. A run that was killed writes no more: when the object has not been renewed
for as long as the holder promised to, by the server's clock, another run may take it.
"""

import math
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from etils import epath

from nnxconv.errors import BadInput, StorageError
from nnxconv.storage import last_resort
from nnxconv.storage.gcs.objects import object_at, remove_generation, write_generation
from nnxconv.storage.gcs.retries import lease_seconds
from nnxconv.tree import counted

_RENEWALS = 4
"""How often it is renewed before it would be stale."""

_LEAVING_SECONDS = 5.0


class LeaseLost(StorageError):
    """Another run has the lock by now: what lies in the bucket may be that run's."""


@dataclass(frozen=True)
class _Seen:
    """The lock as it stands in the bucket.

    Attributes:
      run: who holds it.
      generation: changes with every renewal.
      age_seconds: how long ago it was renewed, by the server's clock.
      stale_seconds: when its holder is to be taken for dead.
    """

    run: str
    generation: str
    age_seconds: float
    stale_seconds: int


class Lease:
    """The lock at a path, for one run that writes a target; messages call such runs `what`."""

    def __init__(self, path: epath.Path, target: epath.Path, what: str) -> None:
        self._path, self._target, self._what = path, target, what
        self._seconds = lease_seconds()
        self.run = uuid.uuid4().hex
        self._generation = ""
        self._renewed_at = 0.0
        self._is_lost = False
        self._is_over = threading.Event()
        self._renewing = threading.Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Has the lock; it is gone at the end, however that comes about.

        Raises:
          BadInput: another run has it, or was killed a moment ago.
        """
        renewing = threading.Thread(target=self._renew_always, daemon=True)

        def leave() -> None:
            self._is_over.set()
            if renewing.is_alive():
                renewing.join(_LEAVING_SECONDS)
            if self._generation and not self._is_lost:
                with suppress(Exception):  # it will be stale in a minute
                    if not self._is_old() or self._look().run == self.run:
                        remove_generation(self._path, self._generation)

        try:
            with last_resort(leave):
                self._take()
                renewing.start()
                yield
        finally:
            leave()

    def check(self, *, surely: bool = False) -> None:
        """Makes sure that this run still has the lock; asks the server if it has not of late.

        Raises:
          LeaseLost: it has not.
        """
        if not self._is_lost and (surely or self._is_old()):
            self._renew()
        self._refuse_lost()

    def _is_old(self) -> bool:
        """False where the lock was renewed of late, so that nobody else can have taken it."""
        return time.monotonic() > self._renewed_at + self._seconds / 2

    def _refuse_lost(self) -> None:
        if self._is_lost:
            raise LeaseLost(
                f"another {self._what} has taken over `{self._target}`",
                where=str(self._path),
                details=[
                    f"nothing was heard of this one for {counted(self._seconds, 'second')},"
                    " or its lock was removed"
                ],
                hint="wait until the other one has ended; if there is none,"
                f" `gcloud storage rm -r {self._target}` removes what this one has written",
            )

    def confirm(self) -> None:
        """Asks the server, without writing anything, whether this run still has the lock.

        Raises:
          LeaseLost: it has not.
        """
        self._is_lost = self._is_lost or self._look().run != self.run
        self._refuse_lost()

    def _take(self) -> None:
        seen = self._written_over("0")
        if seen is not None and seen.age_seconds > seen.stale_seconds:
            seen = self._written_over(seen.generation)
        if seen is not None:
            left = math.ceil(seen.stale_seconds - max(0, seen.age_seconds)) + 1  # of whole seconds
            raise BadInput(
                f"another {self._what} is writing `{self._target}`, or was killed less than"
                f" {counted(seen.stale_seconds, 'second')} ago",
                where=str(self._path),
                hint="wait until it has ended, or choose another target;"
                f" if it was killed, run the command again in {counted(left, 'second')}",
            )

    def _renew_always(self) -> None:
        while not self._is_lost and not self._is_over.wait(self._seconds / _RENEWALS):
            with suppress(Exception):  # `check` says what, if it lasts
                self._renew()

    def _renew(self) -> None:
        with self._renewing:
            if not self._is_over.is_set() and self._written_over(self._generation) is not None:
                self._is_lost = True

    def _written_over(self, generation: str) -> _Seen | None:
        """Writes the lock if it is still of this generation; else says what is there instead."""
        asked_at = time.monotonic()
        told = {"run": self.run, "seconds": str(self._seconds)}
        try:
            self._generation = write_generation(self._path, generation, told)
        except FileExistsError:
            seen = self._look()
            if seen.run != self.run:
                return seen
            self._generation = seen.generation  # ours: the answer to an earlier try was lost
        self._renewed_at = asked_at
        return None

    def _look(self) -> _Seen:
        """What is there; a lock that has just been removed was renewed just now."""
        found = object_at(self._path)
        if found is None:
            return _Seen("", "0", 0, self._seconds)
        told: dict[str, Any] = found.entry.get("metadata") or {}
        seconds = int(told.get("seconds", self._seconds))
        return _Seen(told.get("run", ""), found.generation, found.age_seconds, seconds)
