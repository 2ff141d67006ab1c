"""Run several pieces of work at once to their end."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


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


_WORTH_A_THREAD = 2**16


async def in_thread(nbytes: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of work on so many bytes, by another thread where that is worth it."""
    if nbytes < _WORTH_A_THREAD:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


class Flight:
    """Pieces of work at once, but not more than `most`, nor than `most_bytes` unless it is one.

    Where some fail, none is begun any more, all that were begun are awaited, and the error of the
    first of them is raised.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._held: dict[asyncio.Task[tuple[None, BaseException | None]], int] = {}

    async def begin(self, nbytes: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begins with work on so many bytes, when there is room for it."""
        while self._held and (
            len(self._held) >= self._most or sum(self._held.values()) + nbytes > self._most_bytes
        ):
            done, _ = await asyncio.wait(self._held, return_when=asyncio.FIRST_COMPLETED)
            if any(task.result()[1] is not None for task in done):
                await self._land()
            for task in done:
                del self._held[task]
        self._held[asyncio.create_task(_settled(work()))] = nbytes

    async def __aenter__(self) -> "Flight":
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            await self._land()
        else:
            await asyncio.gather(*self._held)

    async def _land(self) -> None:
        """Waits for all; raises the error of the one that was begun first, of those that failed."""
        for _, error in await asyncio.gather(*self._held):
            if error is not None:
                raise error


async def _settled(work: Awaitable[T]) -> tuple[T, BaseException | None]:
    try:
        return await work, None
    except BaseException as error:
        nothing: Any = None
        return nothing, error
