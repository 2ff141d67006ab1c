"""What the errors of servers mean, and what to do about them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nnxconv.errors import DamagedCheckpoint, NnxconvError, StorageError
from nnxconv.storage.gcs.paths import SCHEME


class ServerError(Exception):
    """A server's last answer to a request, or that there was none.

    Attributes:
      code: the status of HTTP; None when there was no answer.
      said: the server's own words, or what became of the connection.
      place: the gs:// path that was asked for.
    """

    def __init__(self, code: int | None, said: str, place: str) -> None:
        self.code, self.said, self.place = code, said, place
        super().__init__(f"{said}: {place}")


class Forbidden(ServerError, OSError):
    """Answer 403; gcsfs knows it by its kind and its first word, and then tries a listing."""

    def __str__(self) -> str:
        return f"Forbidden: {self.place}\n{self.said}"


LOG_IN = "`gcloud auth application-default login` makes new ones"
_ADVICE = {
    401: ("the server did not accept the credentials", LOG_IN),
    403: (
        "the server refused access",
        "ask for `storage.objects.get`, `list`, `create` and `delete` on the bucket",
    ),
    404: ("there is no such bucket or object", "`gcloud storage ls {bucket}` lists what is there"),
    412: ("somebody else wrote the object at the same time", "run the command again"),
    429: ("the server asked to slow down, again and again", "try later, or with fewer processes"),
}
_NO_CREDENTIALS = "no credentials were found, or they have expired"
_UNREACHABLE = ("the server could not be reached, or did not answer", "try again later")
_CODES = {
    "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 412,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 503,
    "ABORTED": 503,
    "INTERNAL": 503,
}


@dataclass(frozen=True)
class _Told:
    message: str
    hint: str
    said: str = ""
    place: str = ""
    code: int | None = None


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turns the errors of servers and of the libraries that ask them into one of ours.

    Raises:
      StorageError: which object it is about, what the server said, and what to do.
    """
    try:
        yield
    except NnxconvError as error:
        cause = error.__cause__
        told = None if cause is None else _told(cause)
        if told is None or error.hint:
            raise
        if isinstance(error, DamagedCheckpoint) and told.code != 404:
            place, said = told.place, told.said
            if not place:  # TensorStore did not say what it was reading
                place, said = error.where, (*error.details, error.message)[0]
            raise StorageError(told.message, where=place, details=[said], hint=told.hint) from cause
        error.hint = told.hint
        error.args = (error.render(prefix=""),)
        raise
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        details = [told.said] if told.said else []
        raise StorageError(
            told.message, where=told.place, details=details, hint=told.hint
        ) from error


def plain_reason(error: BaseException) -> str:
    """What an error of a server means, and what the server said, in one line."""
    told = _told(error)
    if told is None:
        return _first_line(error)
    return f"{told.message}: {told.said}" if told.said else told.message


def _told(error: BaseException) -> _Told | None:
    """What an error of a server means; None for errors of other kinds.

    Where a program has used gs:// paths of etils before, errors are those of gcsfs itself.
    """
    if isinstance(error, ServerError):
        return _answer(error.code, error.said, error.place)
    if isinstance(error, (FileNotFoundError, FileExistsError)):
        place = str(error.filename)
        code = 404 if isinstance(error, FileNotFoundError) else 412
        return _answer(code, "", place) if place.startswith(SCHEME) else None
    if str(error).startswith("Forbidden: "):
        return _answer(403, str(error).splitlines()[-1], "")
    module = type(error).__module__
    if module.startswith("google.auth"):
        return _Told(_NO_CREDENTIALS, LOG_IN, _first_line(error))
    if module.startswith("gcsfs") and getattr(error, "code", None) is not None:
        return _answer(int(getattr(error, "code", 0)), _first_line(error), "")
    if module.partition(".")[0] in ("gcsfs", "aiohttp", "requests", "urllib3"):
        return _Told(*_UNREACHABLE, _first_line(error))
    return _of_tensorstore(str(error)) if isinstance(error, (ValueError, OSError)) else None


def _of_tensorstore(text: str) -> _Told | None:
    """What TensorStore says: `STATUS: Error reading gs://...: words [key='value'] ...`."""
    sentence = first_sentence(text)
    status = sentence.partition(":")[0]
    http = re.search(r"\[http_response_code='(\d+)'\]", text)
    is_of_server = http is not None or "[curl_code=" in text or SCHEME in sentence
    if status not in _CODES or not is_of_server:
        return None
    places = re.findall(r"gs://\S+?(?=:? |:?$)", sentence)  # the last is what was asked for
    said = sentence.rpartition(f"{places[-1]}: ")[2] if places else sentence.partition(": ")[2]
    code = int(http[1]) if http else _CODES[status]
    if code == 412 and http is None:  # what was read is none of what is expected
        return None
    return _answer(code, said, places[-1] if places else "")


def _answer(code: int | None, said: str, place: str) -> _Told:
    message, hint = _ADVICE.get(code or 0, _UNREACHABLE)
    if code == 401 and "nonymous" in said:
        message = _NO_CREDENTIALS
    bucket = SCHEME + place.removeprefix(SCHEME).partition("/")[0]
    return _Told(message, hint.format(bucket=bucket), said, place, code)


def first_sentence(error: Exception | str) -> str:
    """TensorStore's message without what it appends in brackets, and no longer than a few lines.

    >>> first_sentence("NOT_FOUND: Error reading local file [error_code='1'] [trace='x']")
    'NOT_FOUND: Error reading local file'
    """
    lines = str(error).split(" [")[0].splitlines()
    return lines[0][:_LONGEST] if lines else type(error).__name__


_LONGEST = 500
"""Characters; a message may quote what stands in a damaged file."""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
