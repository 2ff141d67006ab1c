"""Run several pieces of work at once to their end, and stop between two pieces."""

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, also where an event loop runs already, as it does in notebooks."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


async def together(work: Iterable[Awaitable[T]]) -> list[T]:
    """The results in order; when some fail, all are awaited, and the first error is raised.

    Unlike `asyncio.gather` it leaves nothing running behind an error or an interrupt.
    """
    results = await asyncio.gather(*(_settled(one) for one in work))
    for _, error in results:
        if error is not None:
            raise error
    return [result for result, _ in results]


async def _settled(work: Awaitable[T]) -> tuple[T, BaseException | None]:
    try:
        return await work, None
    except BaseException as error:
        nothing: Any = None
        return nothing, error


class Terminated(KeyboardInterrupt):
    """SIGTERM, which launchers and `kill` send."""


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Lets Ctrl-C wait for the next call of the function that is yielded, which then raises it.

    Work that is under way ends cleanly, and what it wrote can be removed. A second Ctrl-C does not
    wait. SIGTERM is treated alike where the program handles it. Outside of the main thread nothing
    changes.
    """
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
