"""The rule sets that come with nnxconv, and those in files."""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path

from nnxconv.errors import BadInput
from nnxconv.renaming.rule import Rules
from nnxconv.renaming.toml import parse_rules


@cache
def builtin_rules() -> Mapping[str, Rules]:
    """The sets that come with nnxconv, by name: the files `nnxconv/renaming/*.toml`."""
    files = [
        file
        for file in resources.files("nnxconv.renaming").iterdir()
        if file.name.endswith(".toml")
    ]
    texts = {file.name.removesuffix(".toml"): file.read_text() for file in files}
    return {name: parse_rules(texts[name], name) for name in sorted(texts)}


Read = Callable[[str], str | None]
"""Gives the text of a file; None when it is not there."""


def _read_local(name: str) -> str | None:
    path = Path(name)
    return path.read_text() if path.is_file() else None


def asked_rules(
    rename: str | Rules | None, rename_back: str | Rules | None, read: Read = _read_local
) -> Rules | None:
    """The rules that `--rename` names, or the inverse of those that `--rename_back` names.

    Raises:
      BadInput: both are given, the rules cannot be read, or one has no inverse.
    """
    if rename is not None and rename_back is not None:
        raise BadInput("`--rename` and `--rename_back` are both given: give one of them")
    if rename is not None:
        return read_rules(rename, read)
    return None if rename_back is None else read_rules(rename_back, read).inverse()


def read_rules(name: str | Rules, read: Read = _read_local) -> Rules:
    """The rule set in a file, or the one that comes with nnxconv under this name.

    Raises:
      BadInput: there is none, or it cannot be read.
    """
    if isinstance(name, Rules):
        return name
    text = read(name)
    if text is not None:
        return parse_rules(text, name)
    if name in builtin_rules():
        return builtin_rules()[name]
    known = ", ".join(builtin_rules())
    raise BadInput(
        f"`{name}` is no file of rules, and no rule set of nnxconv",
        hint=f"the rule sets of nnxconv are: {known}",
    )
