"""Why a process cannot go on, as the others are told."""

from dataclasses import asdict, dataclass
from typing import Any

from nnxconv.errors import NnxconvError, TeamError
from nnxconv.storage import Terminated

INTERRUPTED, TERMINATED, DEFECT = 130, 143, 70


@dataclass(frozen=True)
class Failure:
    """What ended the work of one process, and so of all.

    Attributes:
      process: its number.
      exit_code: of every process.
      message, where, details, hint: as in `NnxconvError`.
      is_lost: the others found out, it did not say it itself.
    """

    process: int
    exit_code: int
    message: str
    where: str = ""
    details: tuple[str, ...] = ()
    hint: str = ""
    is_lost: bool = False

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(told: dict[str, Any]) -> "Failure":
        """The failure that `to_json` gave."""
        return Failure(**{**told, "details": tuple(told["details"])})

    def error(self) -> BaseException:
        """What every other process raises: the same message, and whose it is."""
        if self.exit_code == TERMINATED:
            return Terminated()
        if self.exit_code == INTERRUPTED:
            return KeyboardInterrupt()
        return self.as_error()

    def as_error(self) -> TeamError:
        """The same, but for signals."""
        whose = () if self.is_lost else (f"in process {self.process}",)
        details = (*self.details, *whose)
        error = TeamError(self.message, where=self.where, details=details, hint=self.hint)
        error.exit_code = self.exit_code
        return error


def failure_of(error: BaseException, process: int) -> Failure:
    """What the other processes are told of an error."""
    match error:
        case NnxconvError():
            return Failure(
                process, error.exit_code, error.message, error.where, error.details, error.hint
            )
        case Terminated():
            return Failure(process, TERMINATED, "terminated")
        case KeyboardInterrupt():
            return Failure(process, INTERRUPTED, "interrupted")
        case OSError():
            return Failure(process, 2, error.strerror or str(error), str(error.filename or ""))
        case _:
            said = f"a defect of nnxconv: {type(error).__name__}: {error}"
            return Failure(process, DEFECT, said)


def lost(process: int) -> Failure:
    """A process that no longer tells that it is there."""
    return Failure(
        process,
        2,
        f"process {process} is lost: it was killed, or its machine cannot be reached",
        hint="look into its own output; when the reason is gone, run the command again",
        is_lost=True,
    )
