"""`compare`: do two checkpoints, of whatever layouts, hold the same model?"""

import time
from collections.abc import Iterable
from functools import partial

from nnxconv.commands.boundary import plainly
from nnxconv.commands.opening import open_checkpoint
from nnxconv.commands.options import documented
from nnxconv.comparing import (
    Report,
    Scope,
    Selection,
    Side,
    Tolerance,
    agree_on_layers,
    join_layers,
    line_up,
    select,
    value_findings,
)
from nnxconv.errors import BadInput
from nnxconv.layouts import Options
from nnxconv.renaming import Rules, asked_rules, follow
from nnxconv.running import Watcher, ignore, share_one_heap
from nnxconv.tree import parse_bytes


@plainly
@documented
def compare(
    ckpt_path_1: str,
    ckpt_path_2: str,
    *,
    rename: str | Rules | None = None,
    rename_back: str | Rules | None = None,
    compare_values: bool = False,
    atol: float = 1e-5,
    rtol: float = 1e-5,
    equal_nan: bool = True,
    compare_only: Scope = "params",
    ignore_rngs: bool = True,
    ignore_dtype: bool = False,
    filter: Iterable[str] = (),  # noqa: A002
    exclude: Iterable[str] = (),
    max_memory: int | str = "2GiB",
    allow_uncommitted: bool = False,
    distributed: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    watch: Watcher = ignore,
) -> Report:
    """Says whether two checkpoints, of whatever layouts, hold the same model.

    Returns:
      A report that counts, renders itself and owns the exit code.

    Raises:
      NnxconvError: one of the two cannot be read, or they cannot be compared.
    """
    from nnxconv.comparing import compare_values as read_both
    from nnxconv.running.cluster import joined
    from nnxconv.storage.files import read_text
    from nnxconv.storage.orbax import refuse_changed

    started = time.monotonic()
    share_one_heap()
    with joined(distributed, coordinator_address, num_processes, process_id) as team:
        rules = asked_rules(rename, rename_back, read_text)
        open_side = partial(
            open_checkpoint,
            step=None,
            options=Options(),
            has_step=False,
            allow_uncommitted=allow_uncommitted,
            is_read=compare_values,
        )
        _, item_a, a = open_side(ckpt_path_1)
        a, _ = follow(a, rules, None, Options())
        _, item_b, b = open_side(ckpt_path_2)
        a, b = agree_on_layers(a, b)
        selection = Selection(
            compare_only, ignore_rngs, ignore_dtype, tuple(filter), tuple(exclude)
        )
        leaves_a, ignored_a = select(a.state, selection)
        leaves_b, ignored_b = select(b.state, selection)
        if not leaves_a and not leaves_b:
            raise BadInput(
                "there is nothing to compare: no key is selected",
                details=[f"{count:,} left aside by {why}" for why, count in ignored_a.items()],
                hint="`nnxconv inspect PATH --tree` lists the keys",
            )
        findings, common = line_up(leaves_a, leaves_b, ignore_dtype=ignore_dtype)
        tolerance = Tolerance(atol, rtol, equal_nan)
        values = None
        if compare_values:
            items = item_a.stores | item_b.stores
            pairs = join_layers(common, (*a.groups, *b.groups))
            values = read_both(pairs, items, tolerance, parse_bytes(max_memory), team, watch)
            refuse_changed(items.values())
            findings += value_findings(common, values.statistics, values.scalars)
        return Report(
            Side(str(item_a.path), a.codec.name),
            Side(str(item_b.path), b.codec.name),
            findings,
            {**leaves_b, **leaves_a},
            tolerance,
            compare_values,
            ignores_dtype=ignore_dtype,
            layer_groups=tuple(dict.fromkeys(group.key for group in (*a.groups, *b.groups))),
            statistics={} if values is None else values.statistics,
            ignored=ignored_a | ignored_b,
            read_bytes=0 if values is None else values.read_bytes,
            equal_chunk_bytes=0 if values is None else values.equal_chunk_bytes,
            seconds=time.monotonic() - started,
            process=team.number,
        )
