"""Run several pieces of work at once to their end."""

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
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
