"""The JSON in a checkpoint, which anybody may have written."""

import json
from collections.abc import Callable
from typing import Any

from etils import epath

from nnxconv.errors import DamagedCheckpoint, NnxconvError
from nnxconv.storage.files.operations import read_if_there

_DEEPEST = 64
"""How many levels free metadata may have; those that runs keep have two or three."""


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text describes.

    Raises:
      ValueError: it is not JSON, is nested too deeply, or has halves of characters in it.
    """
    try:
        value = json.loads(text)
        if ("\\ud" if isinstance(text, str) else b"\\ud") in text.lower():  # type: ignore[operator]
            refuse_halves(value)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def refuse_halves(value: Any) -> None:
    """Refuses texts that are no Unicode.

    Raises:
      ValueError: there is one.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("it has a lone surrogate, which is half a character") from error


def read_json(
    path: epath.Path,
    kind: type[NnxconvError] = DamagedCheckpoint,
    read: Callable[[epath.Path], bytes | None] = read_if_there,
) -> dict[str, Any]:
    """The mapping that a JSON file describes.

    Raises:
      DamagedCheckpoint, or `kind`: the file is not there, or is none.
    """
    text = read(path)
    if text is None:
        raise kind(f"`{path}` is missing")
    return mapping_in(text, path, kind)


def mapping_in(text: bytes, path: epath.Path, kind: type[NnxconvError]) -> dict[str, Any]:
    """The mapping that the text of a JSON file describes.

    Raises:
      `kind`: it describes none.
    """
    try:
        value = parse_json(text)
    except ValueError as error:
        raise kind(f"`{path}` is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise kind(f"`{path}` is not what Orbax writes: it holds no mapping")
    return value


def free_metadata(document: dict[str, Any], name: str, path: epath.Path) -> dict[str, Any]:
    """What a program attached to a checkpoint under a name: any mapping, of few levels.

    Raises:
      DamagedCheckpoint: it is none, or has more levels than anybody writes.
    """
    value = document.get(name) or {}
    if not isinstance(value, dict):
        raise DamagedCheckpoint(f"`{path}` is not what Orbax writes: `{name}` is no mapping")
    if not is_flat(value):
        raise DamagedCheckpoint(f"`{path}` has more than {_DEEPEST} levels in `{name}`")
    return dict(value)


def is_flat(value: Any, levels: int = _DEEPEST) -> bool:
    """True when nothing stands more than so many levels deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(is_flat(one, levels - 1) for one in inner)
