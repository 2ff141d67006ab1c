"""What other packages announce to nnxconv: the entry points of a group, and what they refer to."""

from typing import TYPE_CHECKING

from nnxconv.errors import BadInput

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def announced_points(group: str) -> "tuple[EntryPoint, ...]":
    """The entry points of a group in order of their names, each once.

    A directory may be on the path twice: what it announces is then found twice.
    """
    from importlib import metadata

    points = dict.fromkeys(metadata.entry_points(group=group))
    return tuple(sorted(points, key=lambda point: point.name))


def package_of(point: "EntryPoint") -> str:
    """The name of the package that announces it."""
    return point.dist.name if point.dist is not None else point.module


def load_point(point: "EntryPoint", what: str) -> object:
    """What an entry point refers to; `what` says in an error what it announces.

    Raises:
      BadInput: its package cannot be imported, or has no such name.
    """
    try:
        return point.load()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BadInput(
            f"{what} of `{package_of(point)}` cannot be loaded",
            where=point.value,
            details=[reason],
            hint=repair_of(point),
        ) from error


def repair_of(point: "EntryPoint") -> str:
    """What to do about a package whose entry point is of no use."""
    package = package_of(point)
    return f"repair `{package}`, or remove it: `pip uninstall {package}`"
