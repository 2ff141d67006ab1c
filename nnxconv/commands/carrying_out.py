"""From a converted tree to a committed checkpoint: plan, check, execute, and say what was done."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nnxconv.commands.places import Places
from nnxconv.commands.result import Result
from nnxconv.errors import BadInput
from nnxconv.layouts import RECORD, Account, Whole, nothing_lost
from nnxconv.planning import Transfer
from nnxconv.running import Watcher, check_memory, ignore, peak_memory_bytes
from nnxconv.running.cluster import SINGLE_PROCESS, Team
from nnxconv.tree import parse_bytes

if TYPE_CHECKING:
    from nnxconv.storage.orbax import Item, Target
    from nnxconv.storage.resume import Journal
    from nnxconv.storage.transfer import Moved, Share
    from nnxconv.storage.zarr import Compression


@dataclass(frozen=True)
class Way:
    """How a conversion is run; names and defaults are those of the command."""

    max_memory: int | str = "2GiB"
    overwrite: bool = False
    dry_run: bool = False
    verify: bool = False
    transfer: Transfer = "copy"
    resume: bool = False
    shard_size: int | str = "5GB"
    watch: Watcher = ignore
    team: Team = SINGLE_PROCESS
    compression: str | None = None


def carry_out(
    whole: Whole,
    places: Places,
    way: Way,
    *,
    account: Account,
    custom_metadata: Mapping[str, Any],
    options: Mapping[str, Any],
    started: float,
) -> Result:
    """Writes a converted tree, or only plans it.

    Args:
      whole: what is written.
      places: from where to where.
      way: how.
      account: what became of every leaf of the source.
      custom_metadata: of the new item, besides the record of the conversion.
      options: what was asked for, by the names of the command; a run that goes on has the same.
      started: when the call began, on the monotonic clock, in seconds.

    Raises:
      NnxconvError: it cannot be written as asked; source and target are as they were.
    """
    from nnxconv.storage.orbax import ExtraFiles, files_beside
    from nnxconv.storage.transfer import whole_plan, whole_transfers

    nothing_lost(whole)
    _refuse_unfit(way, places.target)
    shares = _planned(whole, places, way)
    beside = ExtraFiles(places.target.files)
    if not places.target.tensors:
        beside = files_beside(places.location, places.target)
    beside.refuse_others(way.overwrite)
    target = replace(places.target, files=beside.inside, may_replace=way.overwrite)
    _agree(way.team, shares)
    moved = None
    if not way.dry_run:
        record = {name: told for name, told in custom_metadata.items() if name != RECORD}
        if whole.record is not None:
            record[RECORD] = whole.record
        moved = _written(whole, replace(places, target=target), way, shares, record, options)
        if way.team.number == 0:
            beside.write_beside()
    plan, transfers = whole_plan(shares), whole_transfers(shares)
    return Result(
        source_path=places.source_name,
        target_path=str(target.item_path),
        whole=whole,
        account=account,
        plan=plan,
        transfers=transfers,
        seconds=time.monotonic() - started,
        peak_memory_bytes=0 if way.dry_run else peak_memory_bytes(),
        is_dry_run=way.dry_run,
        is_verified=way.verify and not way.dry_run,
        moved=moved,
        extra_files=tuple(beside.names),
        process=way.team.number,
        processes=way.team.count,
        source_choice=places.location.choice,
        compression=way.compression,
    )


def _planned(whole: Whole, places: Places, way: Way) -> Sequence["Share"]:
    """How the arrays of each item of the target move, once it is known that they may."""
    from nnxconv.storage.resume import has_remains
    from nnxconv.storage.transfer import check_names, check_places, check_tensors_place, divide

    target = places.target
    shares = divide(
        whole.tree,
        list(places.items.values())[: places.source_items],
        target.item_path,
        is_split=target.is_split,
        container=replace(places.container, compression=_asked_compression(way)),
        transfer=way.transfer,
        max_memory=parse_bytes(way.max_memory),
    )
    check_names(shares, bool(target.tensors))
    is_ours = way.resume and has_remains(target.path)
    if target.tensors:
        check_tensors_place(
            places.source_path, places.location, target, way.overwrite, is_ours=is_ours
        )
        return shares
    is_step = target.is_split and places.location.given_as == "item"
    check_places(
        places.source_path,
        replace(places.location, given_as="step") if is_step else places.location,
        places.target_path,
        target,
        way.overwrite,
        is_ours=is_ours,
    )
    return shares


def _asked_compression(way: Way) -> "Compression | None":
    from nnxconv.storage.zarr import parse_compression

    return None if way.compression is None else parse_compression(way.compression)


def _written(
    whole: Whole,
    places: Places,
    way: Way,
    shares: Sequence["Share"],
    record: dict[str, Any],
    options: Mapping[str, Any],
) -> "Moved":
    """Writes what was planned where disk and memory have room for it, and proves it if asked."""
    from nnxconv.comparing import verifier
    from nnxconv.running import execute, execute_tensors
    from nnxconv.storage.transfer import check_space, failures_told, needed_bytes

    target, items = places.target, places.items
    needed = sum(needed_bytes(share) for share in shares)
    proof = None
    if way.verify:
        proof = verifier(whole, items, parse_bytes(way.max_memory), way.team)
    with _journals(way, target, shares, items, record, options) as journals:
        needed -= sum(journal.nbytes for journal in journals.values())
        check_space(needed, target)
        check_memory(max(max(s.plan.peak_bytes, s.transfers.peak_bytes) for s in shares))
        with failures_told(needed, target):
            if target.tensors:
                shard_bytes = parse_bytes(way.shard_size)
                return execute_tensors(
                    shares[0],
                    items,
                    target,
                    shard_bytes=shard_bytes,
                    proof=proof,
                    journal=journals.get(shares[0].name),
                    watch=way.watch,
                )
            return execute(
                shares,
                items,
                target,
                custom_metadata=record,
                transfer=way.transfer,
                proof=proof,
                journals=journals,
                team=way.team,
                watch=way.watch,
            )


def _agree(team: Team, shares: Sequence["Share"]) -> None:
    """Makes sure that all processes have made the same plan, before any of them writes.

    Raises:
      BadInput: they have not.
    """
    if team.count == 1:
        return
    every = team.gather("plan", _digest(shares))
    others = [number for number, other in enumerate(every) if other != every[0]]
    if others:
        raise BadInput(
            f"processes 0 and {others[0]} see different checkpoints, or were started differently",
            hint="every process needs the same command, the same version, and SRC where all see it",
        )


def _digest(shares: Sequence["Share"], *others: object) -> str:
    """What tells a plan from all others."""
    plans = [(share.name, share.plan, share.transfers, share.container) for share in shares]
    return hashlib.sha256(repr((plans, *others)).encode()).hexdigest()


def _refuse_unfit(way: Way, target: "Target") -> None:
    """Refuses a way that does not fit the target.

    Raises:
      BadInput: several processes go on with what was begun; or safetensors are written, which one
        process writes, and uncompressed.
    """
    if target.tensors and way.compression is not None:
        raise BadInput("safetensors are not compressed", hint="leave out `--compression`")
    if target.tensors and way.team.count > 1:
        raise BadInput(
            "safetensors are written without `--distributed`", hint="leave out `--distributed`"
        )
    if way.resume and way.team.count > 1:
        raise BadInput(
            "`--resume` does not go on with what several processes have begun",
            hint="leave out `--resume` or `--distributed`",
        )


@contextmanager
def _journals(
    way: Way,
    target: "Target",
    shares: Sequence["Share"],
    items: Mapping[str, "Item"],
    record: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Iterator[Mapping[str, "Journal"]]:
    """The journals of what is kept for another run, by the shares' names; none unless asked for."""
    from nnxconv.storage.resume import begun, resumable_work

    if not way.resume:
        yield {}
        return
    source = [item.path for item in items.values()]
    shards = [parse_bytes(way.shard_size)] if target.tensors else []
    asked = begun(_digest(shares, record, *shards), source, options)
    with resumable_work(
        target.path,
        asked,
        [share.name for share in shares],
        may_replace=target.may_replace,
        has_ranges=target.tensors,
    ) as journals:
        yield journals
