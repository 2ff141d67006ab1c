"""The role of each stored leaf, and what they add up to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal as OneOf
from typing import TypeAlias, get_args

from nnxconv.state.train_state import Tree
from nnxconv.tree import EMPTY_KINDS, Key, Leaf, Literal, size_bytes

Role: TypeAlias = OneOf["parameters", "optimizer", "step", "variables", "rng", "other"]
"""What a leaf is: trained; the optimizer's; the number of steps done; what belongs to the model and
is not trained, second copies of the parameters too; RNG state; or part of no state."""

ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Amount:
    """How many leaves are stored, and their bytes in memory."""

    leaves: int = 0
    nbytes: int = 0


def is_stored(leaf: Leaf) -> bool:
    """True for what Orbax counts as a leaf: arrays, numbers and texts, but nothing empty."""
    return not (isinstance(leaf, Literal) and leaf.kind in EMPTY_KINDS)


def amount_of(leaves: Iterable[Leaf]) -> Amount:
    """What some leaves add up to; those that are empty do not count."""
    stored = [leaf for leaf in leaves if is_stored(leaf)]
    return Amount(
        len(stored), sum(size_bytes(leaf) for leaf in stored if not isinstance(leaf, Literal))
    )


def ledger_of(tree: Tree, roles: Mapping[Key, Role]) -> dict[Role, Amount]:
    """What the leaves of a tree add up to, by role; every role is there.

    >>> from nnxconv.tree import Source
    >>> tree = {("w",): Source("w", (2,), "float32", (2,)), ("name",): Literal("string", "x")}
    >>> ledger = ledger_of(tree, {("w",): "parameters", ("name",): "other"})
    >>> ledger["parameters"], ledger["other"]
    (Amount(leaves=1, nbytes=8), Amount(leaves=1, nbytes=0))
    """
    by_role: dict[Role, list[Leaf]] = {role: [] for role in ROLES}
    for key, leaf in tree.items():
        by_role[roles[key]].append(leaf)
    return {role: amount_of(leaves) for role, leaves in by_role.items()}
