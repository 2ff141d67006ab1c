"""A target while it is filled, and what it must not replace."""

from collections.abc import Callable
from dataclasses import dataclass

from etils import epath

from nnxconv.errors import BadInput


@dataclass(frozen=True)
class Staging:
    """A directory that is filled, and what makes it the target when it is complete.

    Attributes:
      commit: gives the target its name, or the mark that it is complete.
      confirm: makes sure, shortly before, that no other run has taken the target over.
    """

    directory: epath.Path
    commit: Callable[[], None]
    confirm: Callable[[], None] = lambda: None


def refuse_replacing(path: epath.Path, may_replace: bool) -> None:
    """Raises BadInput for a target that has come to be there since that was checked."""
    if path.exists():
        refuse_unless(may_replace, path)


def refuse_unless(may_replace: bool, path: epath.Path) -> None:
    if not may_replace:
        raise BadInput(
            f"`{path}` exists: another program has just written it",
            hint="add `--overwrite` to replace it",
        )
