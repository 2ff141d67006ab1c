"""SIGINT and SIGTERM, wherever they come: one line, an exit code, and nothing left behind.

No handler raises anything, because an exception that comes out of one can be lost: in a destructor,
in a callback of a library, during an import. The request is noted, and acted upon in two places:

- by `check`, which running work calls between two steps and which raises, so that what was begun
  is undone on the way out;
- by a thread that waits for signals, when the main thread is somewhere where nothing is to be
  undone, or is held up in a library for longer than an answer may take. It undoes what was begun,
  and ends the process.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

ANSWER_SECONDS = 1.0
"""How long the main thread has until the other one acts."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which launchers and `kill` send."""


ENDS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}
"""The signals that are answered, each with its exit code and its word."""


Undo = Callable[[], str | None]
"""Undoes what was begun; returns what is to be said of it."""


class _Answers:
    """What is known of signals in this process.

    Attributes:
      is_watched: the thread is there.
      asked: the first signal that came.
      undoing: what is to be undone should the process end, the last begun first to go.
      pauses: how many pieces of work are under way that call `check`.
      is_unwinding: the main thread undoes what was begun.
      is_ending: the other thread does, and ends the process.
      is_committed: there is nothing to undo any more.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.is_watched = False
        self.asked: int | None = None
        self.undoing: list[Undo] = []
        self.pauses = 0
        self.is_unwinding = False
        self.is_ending = False
        self.is_committed = False

    @property
    def is_left_to_main(self) -> bool:
        """True when the main thread will end the process by itself."""
        return self.is_unwinding or self.is_committed


_answers = _Answers()


def answer_signals() -> None:
    """From now on signals end this process as they should; the command calls it first of all."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in ENDS:
        signal.signal(number, _noticed)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _answers.is_watched = True
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def ignore_signals() -> None:
    """From now on they come too late: the process ends by itself."""
    for number in ENDS:
        signal.signal(number, signal.SIG_IGN)
    leave_to_main()


def leave_to_main() -> None:
    """Goes on, unless the process is being ended already."""
    with _answers.lock:
        _answers.is_unwinding = not _answers.is_ending
    if _answers.is_ending:
        _wait_for_the_end()


def _wait_for_the_end() -> NoReturn:
    while True:
        time.sleep(60)


def _noticed(signum: int, frame: FrameType | None) -> None:
    """Python's own handler does nothing: the interpreter has told the thread by then."""


def _watch(reader: int) -> None:
    while True:
        for number in os.read(reader, 64):
            if number in tuple(ENDS):
                _answer(number)


def _answer(number: int) -> None:
    """Lets the main thread answer, if it does so in time, or ends the process."""
    if _answers.asked is not None:
        return
    _answers.asked = number
    until = time.monotonic() + (ANSWER_SECONDS if _answers.pauses else 0)
    while time.monotonic() < until and not _answers.is_left_to_main:
        time.sleep(0.01)
    with _answers.lock:
        if _answers.is_left_to_main:
            return
        _answers.is_ending = True
    notes = [_undone(undo) for undo in reversed(_answers.undoing)]
    _end(number, [note for note in notes if note])


def _undone(undo: Undo) -> str | None:
    try:
        return undo()
    except Exception as error:
        return str(error)


def _end(number: int, notes: list[str]) -> NoReturn:
    """Ends the process with one line, and with what else is to be said."""
    code, word = ENDS[signal.Signals(number)]
    text = "\n\n".join([f"\n{word}: nothing was committed", *notes]) + "\n"
    if sys.stderr.isatty():
        text = "\r\x1b[K\x1b[?25h" + text  # a progress bar hides the cursor
    with suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), text.encode())
    os._exit(code)


def interrupt() -> KeyboardInterrupt:
    """What the signal that came is as an exception."""
    return Terminated() if _answers.asked == signal.SIGTERM else KeyboardInterrupt()


@contextmanager
def last_resort(undo: Undo) -> Iterator[None]:
    """Has something undone where a signal ends the process; after errors the caller undoes it.

    Where the main thread gets here with an error in time, whatever it is, the process is its own to
    end.
    """
    _answers.undoing.append(undo)
    try:
        yield
    except BaseException:
        leave_to_main()
        raise
    finally:
        _answers.undoing.remove(undo)


@contextmanager
def to_the_end() -> Iterator[None]:
    """What is done within is not undone: signals that come from here on come too late.

    Raises:
      KeyboardInterrupt: one has come before.
    """
    with _answers.lock:
        is_late = _answers.is_watched and _answers.asked is not None
        _answers.is_committed = _answers.is_watched and not is_late
    if is_late:
        _refuse()
    try:
        yield
    except BaseException:
        _answers.is_committed = False
        raise


def _refuse() -> None:
    if _answers.is_ending:
        _wait_for_the_end()
    raise interrupt()


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Lets signals wait for the next call of the function that is yielded, which then raises.

    Work that is under way ends cleanly, and what it wrote can be removed. In the command they wait
    for a second at most. In a program that uses the library a second Ctrl-C does not wait, SIGTERM
    is treated alike where the program handles it, and outside of the main thread nothing changes.
    """
    if not _answers.is_watched:
        with _deferred_by_handlers() as check:
            yield check
        return

    def check_asked() -> None:
        if _answers.asked is not None and not _answers.is_committed:
            _refuse()

    _answers.pauses += 1
    try:
        yield check_asked
    finally:
        _answers.pauses -= 1


@contextmanager
def _deferred_by_handlers() -> Iterator[Callable[[], None]]:
    asked: list[type[KeyboardInterrupt]] = []

    def ask(signum: int, frame: FrameType | None) -> None:
        kind = Terminated if signum == signal.SIGTERM else KeyboardInterrupt
        if asked:
            raise kind
        asked.append(kind)

    def check() -> None:
        if asked:
            raise asked[0]

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    is_handled = signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)
    numbers = [signal.SIGINT, *([signal.SIGTERM] if is_handled else [])]
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
