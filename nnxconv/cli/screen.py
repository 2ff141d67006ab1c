"""One screen for several processes: nothing but our own messages is written to it."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_screen(distributed: bool) -> Iterator[None]:
    """Keeps what libraries write to stderr off the screen, and has the last word.

    When the process that keeps the coordinator is gone, JAX's C++ code writes where that was
    noticed, and aborts this process at once. The message that stands here instead says what
    happened, and the exit code is that of every other failure.
    """
    if not distributed:
        yield
        return
    from nnxconv.running.cluster import part

    shown = os.dup(2)
    before = sys.stderr
    nowhere = os.open(os.devnull, os.O_WRONLY)
    sys.stderr.flush()
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        with open(shown, "w", buffering=1, closefd=False) as stream, _abort_told(shown):
            sys.stderr = stream
            try:
                yield
            finally:
                part()
    finally:
        sys.stderr = before
        os.dup2(shown, 2)
        os.close(shown)


@contextmanager
def _abort_told(shown: int) -> Iterator[None]:
    """Ends an aborted process with our message; Python's own handlers would come too late."""
    from nnxconv.running.cluster import why_aborted

    def end(signum: int) -> None:
        reason = why_aborted()
        os.write(shown, (reason.render() + "\n").encode())
        os._exit(reason.exit_code)

    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes = [ctypes.c_int, ctypes.c_void_p]
    set_handler.restype = ctypes.c_void_p
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    before = set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        set_handler(signal.SIGABRT, before)
