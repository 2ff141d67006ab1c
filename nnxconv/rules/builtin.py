"""The rule sets that come with nnxconv, and those in files."""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path

from nnxconv.errors import BadInput
from nnxconv.rules.rule import Rules
from nnxconv.rules.toml import parse_rules


@cache
def builtin_rules() -> Mapping[str, Rules]:
    """The sets that come with nnxconv, by name: the files `nnxconv/rules/*.toml`."""
    files = [file for file in resources.files("nnxconv.rules").iterdir() if ".toml" in file.name]
    texts = {file.name.removesuffix(".toml"): file.read_text() for file in files}
    return {name: parse_rules(texts[name], name) for name in sorted(texts)}


def asked_rules(rename: str | Rules | None, rename_back: str | Rules | None) -> Rules | None:
    """The rules that `--rename` names, or the inverse of those that `--rename_back` names.

    Raises:
      BadInput: both are given, the rules cannot be read, or one has no inverse.
    """
    if rename is not None and rename_back is not None:
        raise BadInput("`--rename` and `--rename_back` are both given: give one of them")
    if rename is not None:
        return read_rules(rename)
    return None if rename_back is None else read_rules(rename_back).inverse()


def read_rules(name: str | Rules) -> Rules:
    """The rule set in a file, or the one that comes with nnxconv under this name.

    Raises:
      BadInput: there is none, or it cannot be read.
    """
    if isinstance(name, Rules):
        return name
    path = Path(name)
    if path.is_file():
        return parse_rules(path.read_text(), name)
    if name in builtin_rules():
        return builtin_rules()[name]
    known = ", ".join(builtin_rules())
    raise BadInput(
        f"`{name}` is no file of rules, and no rule set of nnxconv",
        hint=f"the rule sets of nnxconv are: {known}",
    )
