"""The functions behind the commands: same names, same options, same defaults."""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from nnxconv.allocator import share_one_heap
from nnxconv.boundary import plainly
from nnxconv.codecs import ITEMS
from nnxconv.conversion import Direction, Options, convert_tree
from nnxconv.difference import Tolerance
from nnxconv.errors import BadInput, UnknownLayout
from nnxconv.events import Watcher, ignore
from nnxconv.inspection import (
    Inspection,
    chain_of,
    chunks_of,
    compressors_of,
    dtypes_of,
    sizes_of,
)
from nnxconv.layers import DEFAULT_NAMES, unstack
from nnxconv.matching import Proposal, propose
from nnxconv.opening import meaning, open_checkpoint
from nnxconv.outcome import Places, Result, Way, carry_out
from nnxconv.pairing import (
    Scope,
    Selection,
    agree_on_layers,
    join_layers,
    line_up,
    select,
    value_findings,
)
from nnxconv.plan import Transfer
from nnxconv.renames import follow
from nnxconv.report import Report, Side
from nnxconv.rules import Rules, asked_rules
from nnxconv.sizes import parse_bytes
from nnxconv.state import TrainState
from nnxconv.understanding import refuse_unknown, reread, with_layer_names


@plainly
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

    Args:
      source_path: an item directory, a step, or a root of steps; it is only read.
      target_path: is written in the same structure, and committed when it is complete.
      direction: `auto` goes to the other family; `linen_to_nnx` and `nnx_to_linen` state it.
      to: the target's layout: `linen`, `nnx`, `maxtext`, or another one of `nnxconv.layouts`.
      from_: the source's layout, where it cannot be recognised.
      scan_layers: True stacks layers, False unstacks them. By default they are stacked on the
        way from Linen to NNX, unstacked on the way back, and left as they are when `to` or
        `like` names the target.
      layer_axis: where stacked arrays have their layers: 1, unless they are stacked already.
      layer_group: further names of layers, besides `layers`, `dense_layers`, `moe_layers`.
      without: parts to leave out: `aux`, `aux.rngs`, `opt_state`, `step`.
      like: a checkpoint that the target program wrote, whose conventions are followed.
      rename: rules in a TOML file, or the name of a set that comes with nnxconv: what modules
        are called, and how their arrays are cut, in the target (see `nnxconv.rules.toml`).
      rename_back: the same, from right to left.
      strict: leaving out RNG state is an error.
      params_only: write what serving loads: no optimizer state, step or RNG state.
      dtype: cast the floating-point parameters, for example to `bfloat16`; moments stay.
      step: which step of a root.
      max_memory: bytes, or a text such as `2GiB`, that blocks in flight may take.
      overwrite: replace an existing checkpoint, once the new one is complete.
      dry_run: plan everything, write nothing.
      verify: before committing, read the target back and compare it with the source.
      transfer: how encoded chunks that stay as they are get to the target: `copy`, or `link` for
        hard links to the source's data files.
      resume: keep what is finished when the conversion is interrupted or fails, and go on with what
        such a call has kept before. Not for several processes.
      allow_uncommitted: read a checkpoint in a bucket that has no `commit_success.txt`.
      distributed: share the work with other processes, which are started alike: see
        `nnxconv.cluster`. Each of them returns the same.
      coordinator_address: `host:port` of process 0; where it is None, JAX_COORDINATOR_ADDRESS or
        the cluster that JAX detects tells.
      num_processes: how many there are; else JAX_NUM_PROCESSES or the cluster tells.
      process_id: of this process, from 0; else JAX_PROCESS_ID or the cluster tells.
      watch: is called with an `Event` after each block of work.

    Raises:
      NnxconvError: the input cannot be converted as asked; source and target are as they were.
    """
    from nnxconv.cluster import joined
    from nnxconv.storage.files import read_text
    from nnxconv.storage.save import target_for

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


@plainly
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

    Args:
      ckpt_path_1: side a: an item directory, a step, or a root with one step.
      ckpt_path_2: side b.
      rename: rules in a TOML file, or the name of a set that comes with nnxconv, for side a: what
        its modules are called, and how their arrays are cut, on side b.
      rename_back: the same, from right to left.
      compare_values: read the arrays too; without it only names, shapes and types are compared.
      atol: absolute tolerance; `|a - b| <= atol + rtol * |b|`, for floats only.
      rtol: relative tolerance.
      equal_nan: NaN equals NaN.
      compare_only: `params`, or `all`: optimizer, step and other variables as well.
      ignore_rngs: leave RNG state aside, which Linen checkpoints do not keep.
      ignore_dtype: compare values of different types, in the wider one.
      filter: compare only keys that one of these globs fits, such as `*.mlp.*`.
      exclude: leave aside keys that one of these globs fits.
      max_memory: bytes, or a text such as `2GiB`, that blocks in flight may take.
      allow_uncommitted: read a checkpoint in a bucket that has no `commit_success.txt`.
      distributed: share the work with other processes, which are started alike: see
        `nnxconv.cluster`. Each of them returns the same.
      coordinator_address: `host:port` of process 0; where it is None, JAX_COORDINATOR_ADDRESS or
        the cluster that JAX detects tells.
      num_processes: how many there are; else JAX_NUM_PROCESSES or the cluster tells.
      process_id: of this process, from 0; else JAX_PROCESS_ID or the cluster tells.
      watch: is called with an `Event` after each block of work.

    Returns:
      A report that counts, renders itself and owns the exit code.

    Raises:
      NnxconvError: one of the two cannot be read, or they cannot be compared.
    """
    from nnxconv.cluster import joined
    from nnxconv.comparison import compare_values as read_both
    from nnxconv.storage.files import read_text
    from nnxconv.storage.unchanged import refuse_changed

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


@plainly
def match(
    source_path: str,
    template: Any,
    *,
    output: str | None = None,
    step: int | None = None,
    layer_group: Iterable[str] = (),
) -> Proposal:
    """Proposes rename rules: which leaf of a checkpoint is which leaf of another model.

    Args:
      source_path: an item directory, a step, or a root of steps; only its metadata are read.
      template: another checkpoint; or `module:function`, a function without arguments; or what it
        returns: an `nnx.Module`, an `nnx.State`, Linen variables or a `TrainState`, for example
        from `nnx.eval_shape` or `jax.eval_shape`.
      output: a TOML file to write, as `rename` takes it; what is not certain is in its comments.
      step: which step of a root.
      layer_group: further names of layers, besides `layers`, `dense_layers`, `moe_layers`.

    Returns:
      The certain pairs with the evidence, what is not certain, and the rules.

    Raises:
      NnxconvError: one of the two cannot be read.
    """
    from nnxconv.storage.files import write_text

    names = tuple(layer_group)
    _, item, source = open_checkpoint(source_path, step, Options())
    label, state = _template(template, names)
    refuse_unknown(names, source.state, state)
    source = reread(with_layer_names(source, names), None)
    found = propose(source.state, source.groups, state, names=(str(item.path), label))
    if output is not None:
        write_text(output, found.to_toml())
    return found


def _template(template: Any, names: Sequence[str]) -> tuple[str, TrainState]:
    """What a template is called, and its state with the layers apart."""
    from nnxconv.live import call, is_python_name, state_of

    if isinstance(template, str | os.PathLike) and not is_python_name(str(template)):
        _, item, understood = open_checkpoint(str(template), None, Options(), has_step=False)
        return str(item.path), reread(with_layer_names(understood, names), None).state
    label = template if isinstance(template, str) else f"a {type(template).__name__}"
    state = state_of(call(template) if isinstance(template, str) else template)
    return label, unstack(state, names=(*DEFAULT_NAMES, *names))[0]


@plainly
def inspect(path: str, *, step: int | None = None, allow_uncommitted: bool = False) -> Inspection:
    """Says what a checkpoint is, from its metadata alone, besides its step.

    Args:
      path: an item directory, a step, or a root of steps.
      step: which step of a root.
      allow_uncommitted: read a checkpoint in a bucket that has no `commit_success.txt`.

    Raises:
      NotACheckpoint: there is no checkpoint there; the message says what it looks like.
      DamagedCheckpoint: its metadata cannot be read.
    """
    from nnxconv.storage.item import open_item
    from nnxconv.storage.locate import locate
    from nnxconv.storage.read import read_number
    from nnxconv.storage.shardings import read_shardings, writing_processes

    location = locate(path, step, allow_uncommitted=allow_uncommitted)
    item = open_item(location)
    understood, problem = None, ""
    try:
        understood = meaning(location, item, Options())
    except UnknownLayout as error:
        problem = "; ".join((error.message, *error.details))
    state = None if understood is None else understood.state
    return Inspection(
        item,
        understood,
        problem,
        None if state is None or state.step is None else read_number(item, state.step),
        sizes_of(item.tree if state is None else state.leaves()),
        [] if state is None else chain_of(state),
        dtypes_of(item.tree),
        chunks_of(item.formats),
        compressors_of(item.formats),
        [] if location.joined else writing_processes(location.folder),
        {} if location.joined else read_shardings(location.folder),
        {**location.custom_metadata, **item.custom_metadata},
    )
