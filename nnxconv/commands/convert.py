"""`convert`: a checkpoint in another layout."""

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from nnxconv.commands.boundary import plainly
from nnxconv.commands.opening import open_checkpoint
from nnxconv.commands.options import documented
from nnxconv.commands.result import Places, Result, Way, carry_out
from nnxconv.layouts import ITEMS, Direction, Options, convert_tree
from nnxconv.planning import Transfer
from nnxconv.renaming import Rules, asked_rules, follow
from nnxconv.running import Watcher, ignore, share_one_heap


@plainly
@documented
def convert(
    source_path: str,
    target_path: str,
    *,
    direction: Direction = "auto",
    to: str | None = None,
    from_: str | None = None,
    scan_layers: bool | None = None,
    layer_axis: int | None = None,
    layer_group: Iterable[str] = (),
    without: Iterable[str] = (),
    like: str | None = None,
    rename: str | Rules | None = None,
    rename_back: str | Rules | None = None,
    strict: bool = False,
    params_only: bool = False,
    dtype: str | None = None,
    step: int | None = None,
    max_memory: int | str = "2GiB",
    overwrite: bool = False,
    dry_run: bool = False,
    verify: bool = False,
    transfer: Transfer = "copy",
    resume: bool = False,
    allow_uncommitted: bool = False,
    distributed: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    watch: Watcher = ignore,
) -> Result:
    """Converts a checkpoint from one layout to another.

    Raises:
      NnxconvError: the input cannot be converted as asked; source and target are as they were.
    """
    from nnxconv.running.cluster import joined
    from nnxconv.storage.files import read_text
    from nnxconv.storage.orbax import target_for

    started = time.monotonic()
    share_one_heap()
    options = Options(
        direction,
        to,
        from_,
        scan_layers,
        layer_axis,
        tuple(layer_group),
        tuple(without),
        strict,
        params_only,
        dtype,
    )
    with joined(distributed, coordinator_address, num_processes, process_id) as team:
        rules = asked_rules(rename, rename_back, read_text)
        location, item, source = open_checkpoint(
            source_path, step, options, allow_uncommitted=allow_uncommitted, is_read=True
        )
        items = item.stores
        template = None
        if like is not None:
            _, like_item, template = open_checkpoint(
                like, None, Options(layer_group=options.layer_group), is_read=True
            )
            items |= like_item.stores
        source, template = follow(source, rules, template, options)
        conversion = convert_tree(source, options, template)
        custom = location.custom_metadata
        if conversion.scan_layers is not None:
            custom["scan_layers"] = conversion.scan_layers
        target = target_for(target_path, location, custom, is_split=conversion.layout in ITEMS)
        return carry_out(
            conversion,
            Places(
                source_path,
                location,
                items,
                target_path,
                target,
                item.container,
                len(item.stores),
            ),
            Way(max_memory, overwrite, dry_run, verify, transfer, resume, watch, team),
            custom_metadata=item.custom_metadata,
            options=_told(
                options,
                like=like,
                rename=rename,
                rename_back=rename_back,
                step=step,
                max_memory=max_memory,
                transfer=transfer,
            ),
            started=started,
        )


def _told(options: Options, **others: Any) -> dict[str, Any]:
    """Options by the names that they have on the command; rules that are no file are called so."""
    told = {name.rstrip("_"): value for name, value in asdict(options).items()} | others
    return {n: "rules" if isinstance(value, Rules) else value for n, value in told.items()}
