"""Where the library ends: errors of servers become errors of ours."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def plainly(function: Callable[P, T]) -> Callable[P, T]:
    """The function, with what a server or a network does wrong told in one message."""

    @wraps(function)
    def told(*args: P.args, **kwargs: P.kwargs) -> T:
        from nnxconv.storage.server_errors import told_plainly

        with told_plainly():
            return function(*args, **kwargs)

    return told
