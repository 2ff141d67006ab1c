"""The texts that processes leave for each other, in the key-value store of `jax.distributed`."""

import json
import zlib
from typing import Any, Protocol

_MISSING = "NOT_FOUND"
_THERE_ALREADY = "ALREADY_EXISTS"
_NOT_YET = "DEADLINE_EXCEEDED"


class ContactLost(Exception):
    """The process that keeps the store does not answer."""


class Store(Protocol):
    """JSON values by key, which all processes of a run see."""

    def put(self, key: str, value: Any) -> None:
        """Keeps a value, in place of an earlier one."""
        ...

    def put_first(self, key: str, value: Any) -> None:
        """Keeps a value unless there is one."""
        ...

    def get(self, key: str) -> Any:
        """The value; None where there is none."""
        ...

    def wait(self, key: str, seconds: float) -> Any:
        """The value as soon as it is there; None where it does not come in time."""
        ...

    def below(self, prefix: str) -> dict[str, Any]:
        """All values whose keys start with `prefix/`, by the rest of their keys."""
        ...


class ClientStore:
    """The store of a client of `jax.distributed`; keys of other programs are out of its way."""

    def __init__(self, client: Any, folder: str) -> None:
        self._client = client
        self._folder = folder

    def put(self, key: str, value: Any) -> None:
        """Keeps a value, in place of an earlier one."""
        self._ask("key_value_set_bytes", key, _packed(value), True)

    def put_first(self, key: str, value: Any) -> None:
        """Keeps a value unless there is one."""
        self._ask("key_value_set_bytes", key, _packed(value), silent=_THERE_ALREADY)

    def get(self, key: str) -> Any:
        """The value; None where there is none."""
        return _unpacked(self._ask("key_value_try_get_bytes", key, silent=_MISSING))

    def wait(self, key: str, seconds: float) -> Any:
        """The value as soon as it is there; None where it does not come in time."""
        milliseconds = round(1000 * seconds)
        return _unpacked(
            self._ask("blocking_key_value_get_bytes", key, milliseconds, silent=_NOT_YET)
        )

    def below(self, prefix: str) -> dict[str, Any]:
        """All values whose keys start with `prefix/`, by the rest of their keys."""
        found = self._ask("key_value_dir_get_bytes", prefix + "/") or []
        return {key.rpartition("/")[2]: _unpacked(value) for key, value in found}

    def _ask(self, call: str, key: str, *arguments: Any, silent: str = "") -> Any:
        """The answer; None where the store says what is expected of it.

        Raises:
          ContactLost: it does not answer.
        """
        try:
            return getattr(self._client, call)(f"{self._folder}/{key}", *arguments)
        except RuntimeError as error:  # which JaxRuntimeError is
            if silent and str(error).startswith(silent):
                return None
            raise ContactLost(str(error)) from error


def _packed(value: Any) -> bytes:
    return zlib.compress(json.dumps(value).encode(), 1)


def _unpacked(packed: bytes | None) -> Any:
    return None if packed is None else json.loads(zlib.decompress(packed))
