"""Descriptions of families as TOML: one table for each (what it holds: top of `families.toml`)."""

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from nnxconv.errors import BadInput
from nnxconv.state.families import Family, Member

_TEXTS = (
    *("models", "stack", "apart", "remainder", "mark", "mark_of", "alike", "beside"),
    "never_stacked",
)
_NUMBERS = ("period", "prefix", "vocabulary")


def parse_families(text: str, where: str) -> dict[str, Family]:
    """The families that a TOML document describes, one in each table.

    Raises:
      BadInput: it is no TOML, or no description; all faults are listed.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput(f"this describes no family of models: {error}", where=where) from error
    problems: list[str] = []
    found: dict[str, Family] = {}
    for name, table in document.items():
        try:
            found[name] = _family(name, table)
        except BadInput as error:
            problems.append(f"{name}: {error.message}")
    if problems or not found:
        details = problems or ["there is no table in it"]
        raise BadInput("this describes no family of models", where=where, details=details)
    return found


def _family(name: str, table: Any) -> Family:
    if not isinstance(table, dict):
        raise BadInput("this is no table")
    unknown = sorted(table.keys() - {*_TEXTS, *_NUMBERS, "members"})
    if unknown:
        raise BadInput(f"`{unknown[0]}` is not known")
    texts = {key: table[key] for key in _TEXTS if key in table}
    numbers = {key: table[key] for key in _NUMBERS if key in table}
    members = table.get("members")
    wrong = [key for key, value in texts.items() if not isinstance(value, str) or not value]
    wrong += [key for key, value in numbers.items() if type(value) is not int or value < 0]
    if wrong:
        raise BadInput(f"`{wrong[0]}` is {table[wrong[0]]!r}")
    if "stack" not in texts or not isinstance(members, list) or not members:
        raise BadInput("it has no `stack`, or no list of `members`")
    return _checked(name, texts, numbers, tuple(map(_member, members)))


def _checked(
    name: str,
    texts: Mapping[str, str],
    numbers: Mapping[str, int],
    members: tuple[Member, ...],
) -> Family:
    if sum(member.is_open for member in members) > 1:
        raise BadInput("more than one member has the `{i}`")
    *above, last = texts.get("remainder", "").split(".")
    rest = _member(last) if last else None
    if rest is not None and not rest.is_open:
        raise BadInput("`remainder` has no `{i}`")
    period = numbers.get("period")
    if period is not None and period < max(1, sum(not member.is_open for member in members)):
        raise BadInput(f"`period` is {period}, with {len(members)} members")
    rest_of = {k: v for k, v in texts.items() if k not in ("stack", "remainder")}
    return Family(
        *(name, texts["stack"], members),
        remainder=tuple(above),
        rest=rest,
        period=period,
        prefix=numbers.get("prefix", 0),
        vocabulary=numbers.get("vocabulary", 0),
        **rest_of,
    )


_PLACE = re.compile(r"(?P<name>[^\[\]]+?)(?P<open>\[\{i\}\]|\{i\})?")


def _member(text: object) -> Member:
    found = _PLACE.fullmatch(text) if isinstance(text, str) else None
    if found is None or "{i}" in found["name"]:
        raise BadInput(f"{text!r} is no member: `layers_{{i}}`, `local_layers[{{i}}]` or a name")
    return Member(found["name"], found["open"] == "{i}", found["open"] == "[{i}]")
