"""Errors of the system say which file they are about."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def placed(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of the system that name no file name this one, which the body writes."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
