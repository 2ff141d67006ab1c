"""What the errors of servers mean, and what to do about them."""

from collections.abc import Iterator
from contextlib import contextmanager

from nnxconv.errors import NnxconvError, StorageError
from nnxconv.storage.remote import SCHEME

_ADVICE = {
    401: (
        "the server did not accept the credentials",
        "`gcloud auth application-default login` makes new ones",
    ),
    403: (
        "the server refused access",
        "ask for `storage.objects.get`, `list`, `create` and `delete` on the bucket",
    ),
    404: (
        "there is no such bucket or object",
        "`gcloud storage ls gs://BUCKET` lists what is there",
    ),
    412: ("somebody else wrote the object at the same time", "run the command again"),
    429: ("the server asked to slow down, again and again", "try later, or with fewer processes"),
}
_UNREACHABLE = ("the server could not be reached, or did not answer", "try again later")
_CODES = {
    "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 412,
}

_OF_GCSFS = {
    PermissionError: _ADVICE[403],
    FileNotFoundError: _ADVICE[404],
    FileExistsError: _ADVICE[412],
}
"""gcsfs raises errors of the system for answers of the server, without number and file."""


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turns the errors of servers and of the libraries that ask them into one of ours.

    Raises:
      StorageError: what the server said, and what to do.
    """
    try:
        yield
    except NnxconvError as error:
        cause = error.__cause__
        advice = _advice(cause) if isinstance(cause, Exception) else None
        if advice is not None and not error.hint:
            error.hint = advice[1]
            error.args = (error.render(prefix=""),)
        raise
    except Exception as error:
        advice = _advice(error)
        if advice is None:
            raise
        message, hint = advice
        raise StorageError(message, details=[_first_line(error)], hint=hint) from error


def _advice(error: Exception) -> tuple[str, str] | None:
    """What an error of a server means and what to do; None for errors of other kinds."""
    module = type(error).__module__.partition(".")[0]
    text = str(error)
    if module == "google" and "auth" in type(error).__module__:
        return "no credentials were found, or they have expired", _ADVICE[401][1]
    code = getattr(error, "code", None) or getattr(error, "status", None)
    if module in ("gcsfs", "aiohttp") and code is not None:
        return _ADVICE.get(int(code), _UNREACHABLE)
    if module in ("gcsfs", "aiohttp", "requests", "urllib3"):
        return _UNREACHABLE
    if text.startswith("Forbidden"):
        return _ADVICE[403]
    if isinstance(error, OSError) and error.errno is None and error.filename is None:
        return _OF_GCSFS.get(type(error), _UNREACHABLE)
    if SCHEME not in text and "storage.googleapis" not in text and "HTTP" not in text:
        return None
    if isinstance(error, PermissionError):
        return _ADVICE[403]
    if isinstance(error, FileNotFoundError):
        return _ADVICE[404]
    if isinstance(error, (ConnectionError, TimeoutError)):
        return _UNREACHABLE
    status = text.partition(":")[0]
    if status in _CODES:
        return _ADVICE[_CODES[status]]
    if status in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL"):
        return _UNREACHABLE
    return _UNREACHABLE if isinstance(error, OSError) else None


def _first_line(error: Exception) -> str:
    return (str(error).split(" [")[0].splitlines() or [type(error).__name__])[0]
