"""Where the library ends: errors of servers become errors of ours, options become arguments."""

import os
import re
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from nnxconv.commands.values import checked
from nnxconv.errors import NnxconvError

P = ParamSpec("P")
T = TypeVar("T")


def plainly(function: Callable[P, T]) -> Callable[P, T]:
    """The function, its named arguments checked; what a server does wrong is one message."""
    check = checked(function)
    call: Callable[..., T] = function

    @wraps(function)
    def told(*args: P.args, **kwargs: P.kwargs) -> T:
        from nnxconv.storage.gcs import told_plainly

        with told_plainly():
            return call(*map(_as_text, args), **check(_texts(kwargs)))

    return told


def _texts(given: dict[str, Any]) -> dict[str, Any]:
    return {name: _as_text(value) for name, value in given.items()}


def _as_text(value: Any) -> Any:
    """A path, or each path of a list, as its text; anything else as it is."""
    if isinstance(value, os.PathLike):
        return os.fspath(cast("os.PathLike[str]", value))
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        several = cast("list[Any]", value)
        return [_as_text(one) for one in several] if _has_paths(several) else several
    return value


def _has_paths(several: Iterable[Any]) -> bool:
    return any(isinstance(one, os.PathLike) for one in several)


def in_python(function: Callable[P, T]) -> Callable[P, T]:
    """The same for a function that is no command: its messages name arguments, and no options."""
    plain = plainly(function)

    @wraps(function)
    def told(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return plain(*args, **kwargs)
        except NnxconvError as error:
            raise error.reworded(as_arguments) from error.__cause__

    return told


_OPTION = re.compile(r"`--([a-z_]+)(?: ([^`]+))?`")
_BARE = re.compile(r"(?<=\s)--(?=[a-z])")
_FLAGS = ("allow_uncommitted", "resume")


def as_arguments(text: str) -> str:
    """A text with options of commands as arguments of functions.

    >>> as_arguments("`--step N`, `--max_memory 7MiB`, `--from LAYOUT`, `--allow_uncommitted`")
    '`step=N`, `max_memory="7MiB"`, `from_="LAYOUT"`, `allow_uncommitted=True`'
    """

    def argument(found: re.Match[str]) -> str:
        name = "from_" if found[1] == "from" else found[1]
        value = found[2] or ("True" if name in _FLAGS else "")
        if value and not value.isdigit() and value not in ("N", "True"):
            value = f'"{value}"'
        return f"`{name}={value}`" if value else f"`{name}`"

    return _BARE.sub("", _OPTION.sub(argument, text))
