"""What a command that writes a checkpoint did, or would do."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnxconv.errors import BadInput
from nnxconv.layouts import Account, Conversion, Whole
from nnxconv.planning import Plan

if TYPE_CHECKING:
    from nnxconv.storage.transfer import Moved, TransferPlan


@dataclass(frozen=True)
class Result:
    """What `convert` did, or with `dry_run` would do.

    Attributes:
      source_path: the item that was read.
      target_path: the item that was written.
      whole: each state as it was converted, and what stands around them.
      account: what became of every leaf of the source.
      plan: the arrays and how they move.
      transfers: the files, references and values by which renamed arrays move.
      seconds: wall time of the whole call.
      peak_memory_bytes: the most memory this process has had so far; 0 for a dry run.
      is_dry_run: True when nothing was written.
      is_verified: True when the target was read back and compared before it was committed.
      moved: the files and chunks that were taken over undecoded; None for a dry run.
      extra_files: names of files beside the source that travel with it.
      process: which of the processes that did it this one is.
      processes: how many there were.
      source_choice: how the source's step was chosen, where there were several.
      compression: what was asked for of new chunks.
      deed: what would be done, and what was, in words; None for a conversion.
    """

    source_path: str
    target_path: str
    whole: Whole
    account: Account
    plan: Plan
    transfers: "TransferPlan"
    seconds: float
    peak_memory_bytes: int
    is_dry_run: bool
    is_verified: bool
    moved: "Moved | None"
    extra_files: tuple[str, ...] = ()
    process: int = 0
    processes: int = 1
    source_choice: str = ""
    compression: str | None = None
    deed: tuple[str, str] | None = None

    @property
    def conversion(self) -> Conversion:
        """Layouts, layers, what was left out, assumed or taken from `like`: of the first state.

        Raises:
          BadInput: no state was converted.
        """
        if self.whole.conversion is None:
            raise BadInput("no state was converted: only the container changed")
        return self.whole.conversion

    @property
    def predicted_peak_bytes(self) -> int:
        """The most memory that blocks and values take at once."""
        return max(self.plan.peak_bytes, self.transfers.peak_bytes)
