"""What became of each stored leaf of a source: converted, kept as it is, or left out."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from nnxconv.layouts.choosing import Chosen
from nnxconv.layouts.joining import Whole
from nnxconv.state import Tree, is_stored
from nnxconv.tree import Key


@dataclass(frozen=True)
class Account:
    """Every stored leaf once, by its key in the source; the sum is Orbax's own count.

    Attributes:
      converted: what the states of the target are made of.
      kept: what is around them as it was.
      left_out: what the target does not have, with the reason.
      elsewhere: what of it is a part of no state that is converted.
    """

    converted: tuple[Key, ...] = ()
    kept: tuple[Key, ...] = ()
    left_out: Mapping[Key, str] | None = None
    elsewhere: Collection[Key] = ()

    @property
    def total(self) -> int:
        """How many leaves the source has."""
        return len(self.converted) + len(self.kept) + len(self.left_out or {})


def account(tree: Tree, chosen: Chosen, whole: Whole) -> Account:
    """What became of the leaves of a tree of which a part was chosen and converted."""
    left_out = dict(chosen.left_out)
    left_out |= {chosen.stored[key]: reason for key, reason in whole.left_out.items()}
    kept = {chosen.stored[key] for key in whole.kept}
    stored = [key for key, leaf in tree.items() if is_stored(leaf)]
    rest = [key for key in stored if key not in left_out]
    gone = {key: left_out[key] for key in stored if key in left_out}
    own = {chosen.stored.get(key) for part in whole.parts for key in part.located.stored.values()}
    return Account(
        tuple(key for key in rest if key not in kept),
        tuple(key for key in rest if key in kept),
        gone,
        gone.keys() - own,
    )
