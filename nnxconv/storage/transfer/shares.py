"""What each item of the target holds, and how it is made: most targets are one item."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from etils import epath

from nnxconv.planning import Plan, Transfer, make_plan
from nnxconv.state import Tree, below, children
from nnxconv.storage.orbax import Item
from nnxconv.storage.transfer.planned import TransferPlan, plan_transfers
from nnxconv.storage.zarr import Container
from nnxconv.tree import Literal, first_source, size_bytes


@dataclass(frozen=True)
class Share:
    """One item of the target.

    Attributes:
      name: of the item where there are several, and the first name in the target's keys; else "".
      plan: its arrays and how they move, by keys within the item.
      transfers: the files, references and values by which renamed arrays move.
      source: the item whose encoded chunks may be taken over.
      container: how it keeps its arrays.
    """

    name: str
    plan: Plan
    transfers: TransferPlan
    source: Item
    container: Container


def divide(
    tree: Tree,
    sources: Sequence[Item],
    target: epath.Path,
    *,
    is_split: bool,
    container: Container,
    transfer: Transfer,
    max_memory: int,
) -> list[Share]:
    """A target's tree, one share for each item that it is written to.

    Args:
      tree: of the target.
      sources: the items that the source consists of.
      target: where it is written.
      is_split: the names at the tree's root are items.
      container: as which a target is written whose source is one item; otherwise each item is
        written as the one that most of it comes from.
      transfer: how encoded chunks get there.
      max_memory: bytes that blocks in flight may take.
    """
    names = [str(name) for name in children(tree)] if is_split else [""]
    shares = []
    for name in names:
        own = below(tree, (name,)) if is_split else tree
        source = _main_source(own, sources)
        kept = container if len(sources) == 1 else source.container
        kept = replace(kept, compression=container.compression)
        plan = make_plan(own.items(), max_memory, kept.store)
        transfers = plan_transfers(plan, source, target / name, transfer, max_memory)
        shares.append(Share(name, plan, transfers, source, kept))
    return shares


def _main_source(tree: Tree, sources: Sequence[Item]) -> Item:
    """The item that most bytes of a tree come from."""
    found: Counter[str] = Counter()
    if len(sources) > 1:
        for leaf in tree.values():
            if not isinstance(leaf, Literal):
                found[first_source(leaf).store] += size_bytes(leaf)
    return max(sources, key=lambda item: found[item.path.as_posix()])


def whole_plan(shares: Sequence[Share]) -> Plan:
    """The plans of all shares as one, by the target's keys."""
    first = shares[0].plan
    if not shares[0].name:
        return first
    return replace(
        first,
        arrays=tuple(replace(a, key=(s.name, *a.key)) for s in shares for a in s.plan.arrays),
        literals=tuple(((s.name, *key), leaf) for s in shares for key, leaf in s.plan.literals),
        largest_block_bytes=max(share.plan.largest_block_bytes for share in shares),
    )


def whole_transfers(shares: Sequence[Share]) -> TransferPlan:
    """What all shares move without decoding it."""
    first = shares[0].transfers
    if not shares[0].name:
        return first
    return TransferPlan(
        _named({share.name: share.transfers.files for share in shares}),
        _named({share.name: share.transfers.references for share in shares}),
        _named({share.name: share.transfers.values for share in shares}),
        _sizes({share.name: share.transfers.file_sizes for share in shares}),
        _sizes({share.name: share.transfers.value_bytes for share in shares}),
        all(share.transfers.is_linked for share in shares),
        first.max_memory,
    )


def _named(by_share: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {f"{name}/{old}": new for name, moves in by_share.items() for old, new in moves.items()}


def _sizes(by_share: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Bytes of every share's files or values, by their paths below the step."""
    return {
        f"{share}/{name}": size for share, sizes in by_share.items() for name, size in sizes.items()
    }
