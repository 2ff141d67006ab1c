"""What a running plan tells whoever watches it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """How far a plan has come: arrays finished and bytes written, of how many."""

    arrays: int
    total_arrays: int
    done_bytes: int
    total_bytes: int


Watcher = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Watches nothing."""
    del event
