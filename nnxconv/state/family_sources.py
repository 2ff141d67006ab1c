"""The families that are known: those that come with nnxconv, and those that others describe.

`families.toml` has ours; `--family FILE` and entry points of the group `nnxconv.families` (a text
of that form each) add others.
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path

from nnxconv.errors import BadInput
from nnxconv.state.families import Family
from nnxconv.state.family_toml import parse_families
from nnxconv.state.plugins import announced_points, load_point

GROUP = "nnxconv.families"
"""The entry points by which other packages announce families."""

Read = Callable[[str], str | None]
"""Gives the text of a file; None when it is not there."""


def _read_local(name: str) -> str | None:
    path = Path(name)
    return path.read_text() if path.is_file() else None


@cache
def known_families() -> Mapping[str, Family]:
    """The families that come with nnxconv, and those that other packages announce, by name.

    Raises:
      BadInput: a package's description cannot be loaded, or has a name that is taken.
    """
    text = resources.files("nnxconv.state").joinpath("families.toml").read_text()
    found = parse_families(text, "families.toml")
    for point in announced_points(GROUP):
        text = str(load_point(point, f"the families `{point.name}`"))
        added = parse_families(text, point.value)
        taken = sorted(added.keys() & found.keys())
        if taken:
            raise BadInput(f"the family `{taken[0]}` is described twice", where=point.value)
        found |= added
    return found


def families_with(asked: Family | None) -> tuple[Family, ...] | None:
    """The one that is asked for before all that are known; None, for those, where none is."""
    return None if asked is None else (asked, *known_families().values())


def asked_family(name: "str | Family | None", read: Read = _read_local) -> Family | None:
    """The family that a file describes, or the known one of this name.

    Raises:
      BadInput: there is none, or the file describes more than one.
    """
    if name is None or isinstance(name, Family):
        return name
    text = read(name)
    if text is None and name in known_families():
        return known_families()[name]
    if text is None:
        known = ", ".join(known_families())
        raise BadInput(
            f"`{name}` is no file that describes a family of models, and no family that is known",
            hint=f"known are: {known}",
        )
    found = list(parse_families(text, name).values())
    if len(found) > 1:
        told = ", ".join(family.name for family in found)
        raise BadInput("this describes more than one family of models", where=name, details=[told])
    return found[0]
