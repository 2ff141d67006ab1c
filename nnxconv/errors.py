"""Every error that nnxconv raises on purpose.

```
NnxconvError               exit code 2
├── BadInput               an option or path that cannot be used as given
├── NotACheckpoint         a path that holds no readable Orbax checkpoint
├── UnknownLayout          no layout, or more than one, fits the tree
├── LayerError             layers that cannot be stacked or unstacked
├── RuleError              rename rules that do not fit the tree
├── CannotHold             the target layout has no place for some leaves
├── Mismatch               the converted tree is not the tree of `--like`
├── PlanError              a plan that would break a promise (memory, space)
├── DamagedCheckpoint      bytes that cannot be read as the array they claim to be
├── StorageError           a server or file system that does not do what it was asked
└── TeamError              another process of a run on many, which has failed or is lost
```

>>> print(BadInput("`b` exists", where="b", hint="add `--overwrite` to replace it").render())
error: `b` exists
  at b
<BLANKLINE>
hint: add `--overwrite` to replace it
"""

from collections.abc import Callable, Sequence

__all__ = [
    "BadInput",
    "CannotHold",
    "DamagedCheckpoint",
    "LayerError",
    "Mismatch",
    "NnxconvError",
    "NotACheckpoint",
    "PlanError",
    "RuleError",
    "StorageError",
    "TeamError",
    "UnknownLayout",
]

MAX_ROWS = 20
MAX_CHARACTERS = 1000


class NnxconvError(Exception):
    """One plain sentence, a place, details line by line, and a way out."""

    exit_code = 2

    def __init__(
        self, message: str, *, where: str = "", details: Sequence[str] = (), hint: str = ""
    ) -> None:
        self.message = message
        self.where = where
        self.details = tuple(details)
        self.hint = hint
        super().__init__(self.render(prefix=""))

    def render(self, prefix: str = "error: ") -> str:
        """The whole message as it stands on a terminal, with at most 20 detail lines."""
        lines = [prefix + _clipped(self.message)]
        if self.where:
            lines.append(f"  at {_clipped(self.where)}")
        lines += [f"  {_clipped(detail)}" for detail in self.details[:MAX_ROWS]]
        if len(self.details) > MAX_ROWS:
            lines.append(f"  and {len(self.details) - MAX_ROWS:,} more")
        if self.hint:
            lines += ["", f"hint: {self.hint}"]
        return "\n".join(lines)

    def reworded(self, say: Callable[[str], str]) -> "NnxconvError":
        """The same error in other words."""
        details = [say(detail) for detail in self.details]
        return type(self)(say(self.message), where=self.where, details=details, hint=say(self.hint))


def with_notes(message: str, error: BaseException) -> str:
    """A message, and what was noted of the error, or of its causes, on the way here."""
    notes: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        notes += getattr(cause, "__notes__", [])
        cause = cause.__cause__
    return "\n\n".join([message, *notes])


def _clipped(text: str) -> str:
    """The text, with its middle left out where names in a checkpoint make it far too long."""
    half = MAX_CHARACTERS // 2
    return text if len(text) <= MAX_CHARACTERS else f"{text[:half]} ... {text[-half:]}"


class BadInput(NnxconvError):
    """An option or a path that cannot be used as given."""


class NotACheckpoint(NnxconvError):
    """A path that holds no readable Orbax checkpoint."""


class UnknownLayout(NnxconvError):
    """No layout fits the tree, or more than one does."""


class LayerError(NnxconvError):
    """Layers that cannot be stacked or unstacked without guessing."""


class RuleError(NnxconvError):
    """Rename rules that do not fit the tree, or do not make the tree of `--like` of it."""


class CannotHold(NnxconvError):
    """The target layout has no place for some leaves."""


class Mismatch(NnxconvError):
    """The converted tree is not the tree that `--like` asks for."""


class PlanError(NnxconvError):
    """A plan that cannot keep its promise of memory or disk space."""


class DamagedCheckpoint(NnxconvError):
    """Bytes on disk that cannot be read as the array they claim to be."""


class StorageError(NnxconvError):
    """A server, or file system, that does not do what it was asked, after tries that may help."""


class TeamError(NnxconvError):
    """What another process of a run on many has failed of; or that it is lost."""
