"""`gpt3-from-paxml`: import a GPT-3 that Pax saved."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from nnxconv.commands.boundary import plainly
from nnxconv.commands.carrying_out import Way, carry_out
from nnxconv.commands.options import documented
from nnxconv.commands.places import Places
from nnxconv.commands.result import Result
from nnxconv.errors import BadInput, DamagedCheckpoint
from nnxconv.layouts import (
    CODECS,
    ITEMS,
    Account,
    Conversion,
    Form,
    Options,
    Record,
    Understood,
    alone,
    convert_tree,
    paxml,
)
from nnxconv.running import Watcher, ignore, share_one_heap
from nnxconv.state import DEFAULT_AXIS, LayerGroup, Stacked
from nnxconv.tree import Source, counted

if TYPE_CHECKING:
    from nnxconv.storage import PaxCheckpoint

ITEM = "items"
LAYERS = ("decoder", "layers")


@plainly
@documented
def gpt3_from_paxml(
    source_path: str,
    target_path: str,
    *,
    to: str = "linen",
    fused_qkv: bool = True,
    scan_layers: bool = True,
    layer_axis: int = DEFAULT_AXIS,
    optimizer: paxml.Optimizer = "adam_pax",
    b1: float = 0.9,
    b2: float = 0.95,
    params_only: bool = False,
    dtype: str | None = None,
    vocab_size: int | None = None,
    model: str | None = None,
    step: int | None = None,
    max_memory: int | str = "2GiB",
    compression: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    verify: bool = False,
    resume: bool = False,
    distributed: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    watch: Watcher = ignore,
) -> Result:
    """Imports a GPT-3 that paxml saved, as MaxText's `gpt3` model has it.

    Sizes are read from the arrays. Chunks are streamed, each decoded once; memory is bounded, and
    no accelerator is needed. Source of the layout: checkpoints that paxml 1.4 wrote.

    Raises:
      NnxconvError: it is not such a checkpoint, or chunks of it are missing; source and target
        are as they were.
    """
    from nnxconv.running.cluster import joined
    from nnxconv.storage import open_pax

    started = time.monotonic()
    share_one_heap()
    wanted = paxml.Wanted(fused_qkv, optimizer, b1, b2, 0)
    options = Options(
        to=to, scan_layers=scan_layers, layer_axis=layer_axis, params_only=params_only, dtype=dtype
    )
    asked = {**asdict(wanted), "vocab_size": vocab_size, "model": model, "step": step}
    with joined(distributed, coordinator_address, num_processes, process_id) as team:
        found = open_pax(source_path, step)
        layers = _checked_layers(found, params_only=params_only, needs_chunks=not dry_run)
        leaves, notes = _without_padding(found, vocab_size)
        if params_only:
            names = paxml.expected_leaves(layers, params_only=True)
            leaves = {name: leaves[name] for name in names}
        source, step_number = _understood(found, layers, leaves, wanted, model, notes)
        conversion = convert_tree(source, options, None)
        places = _places(found, conversion, source_path, target_path, step_number)
        way = Way(max_memory, overwrite, dry_run, verify, resume=resume, watch=watch, team=team)
        way = replace(way, compression=compression)
        whole = alone(conversion)
        return carry_out(
            whole,
            places,
            way,
            account=Account(whole.converted, (), whole.left_out),
            custom_metadata={},
            options={**asdict(options), **asked, "max_memory": max_memory},
            started=started,
        )


def _understood(
    found: "PaxCheckpoint",
    layers: int,
    leaves: Mapping[str, Source],
    wanted: paxml.Wanted,
    model: str | None,
    notes: Sequence[str],
) -> tuple[Understood, int]:
    """The checkpoint as MaxText's Linen runs have it, and its step.

    Raises:
      NotACheckpoint: its sizes are not those of a GPT-3.
      BadInput: they are not those of the `model`, or there is none of this name.
    """
    where = str(found.item.path)
    sizes = paxml.read_sizes({name: leaf.shape for name, leaf in leaves.items()}, layers, where)
    if model is not None:
        paxml.check_model(model, sizes, where)
    count, step_number, told = _counts(found, layers, leaves)
    redundant = set(paxml.counters(layers)[1:])
    state = paxml.decode(leaves, layers, replace(wanted, count=count))
    source = Understood(
        CODECS["linen"],
        (f"{counted(len(found.leaves), 'leaf', 'leaves')} of a Pax GPT-3", _sizes_text(sizes)),
        (*notes, *told),
        state,
        (LayerGroup(LAYERS, tuple(range(layers)), Stacked(0)),),
        Form(step_dtype="int32", empties=_EMPTIES if wanted.optimizer == "adamw" else ()),
        Record(),
        {(name,): leaf for name, leaf in leaves.items() if name not in redundant},
        state,
        origin="paxml",
    )
    return source, step_number


def _places(
    found: "PaxCheckpoint",
    conversion: Conversion,
    source_path: str,
    target_path: str,
    step_number: int,
) -> Places:
    """Where the import reads and writes: a step of a root, as `CheckpointManager` has it."""
    from nnxconv.storage.orbax import Location, Target, absolute
    from nnxconv.storage.zarr import ORBAX

    is_split = conversion.layout in ITEMS
    target = Target(
        absolute(target_path) / str(step_number),
        "" if is_split else ITEM,
        custom_metadata={"scan_layers": conversion.scan_layers},
        is_split=is_split,
    )
    return Places(
        source_path,
        Location(found.folder, "root", str(step_number)),
        {found.item.path.as_posix(): found.item},
        target_path,
        target,
        ORBAX,
    )


_EMPTIES = (((1,), "None"),)
"""optax's adamw is a chain of Adam, weight decay, which keeps nothing, and the learning rate."""


def _checked_layers(found: "PaxCheckpoint", *, params_only: bool, needs_chunks: bool) -> int:
    """The number of layers, once all leaves are there and are those of a GPT-3.

    Raises:
      NotACheckpoint: it is laid out in another way, or is another model.
      DamagedCheckpoint: leaves or chunks are missing; all are listed.
    """
    names, where = found.leaves.keys(), str(found.item.path)
    paxml.refuse_other_models(names, where)
    layers = paxml.count_layers({name: leaf.shape for name, leaf in found.leaves.items()}, where)
    wanted = paxml.expected_leaves(layers, params_only=params_only)
    missing = [name for name in wanted if name not in names]
    chunks = {n: text for n, text in found.missing_chunks.items() if n in wanted and needs_chunks}
    if missing or chunks:
        parts = [counted(len(missing), "leaf", "leaves")] if missing else []
        parts += [f"chunks of {counted(len(chunks), 'leaf', 'leaves')}"] if chunks else []
        has_params = not chunks and all(name.startswith("opt_states") for name in missing)
        raise DamagedCheckpoint(
            f"this Pax checkpoint is not complete: it lacks {' and '.join(parts)}",
            where=where,
            details=[*missing, *(f"{name}: {text}" for name, text in chunks.items())],
            hint="`--params_only` imports the parameters alone" if has_params else "copy it again",
        )
    paxml.refuse_strangers(names, layers, where)
    return layers


def _without_padding(
    found: "PaxCheckpoint", vocab_size: int | None
) -> tuple[dict[str, Source], list[str]]:
    """The leaves as they are without padding, and what was decided.

    Raises:
      BadInput: the vocabulary that is asked for is not that of the metadata, or is none.
      DamagedCheckpoint: the metadata tell of more than is stored.
    """
    notes: list[str] = []
    leaves: dict[str, Source] = {}
    for name, leaf in found.leaves.items():
        shape = found.unpadded.get(paxml.parameter_of(name), leaf.shape)
        if len(shape) != len(leaf.shape) or any(
            a > b for a, b in zip(shape, leaf.shape, strict=True)
        ):
            parameter = paxml.parameter_of(name)
            raise DamagedCheckpoint(
                f"the metadata give `{parameter}` the shape {list(shape)},"
                f" but {list(leaf.shape)} is stored",
                where=f"{found.item.path / name}",
            )
        leaves[name] = paxml.resized(leaf, shape)
    trimmed = [name for name, leaf in leaves.items() if leaf.shape != found.leaves[name].shape]
    if trimmed:
        told = counted(len(trimmed), "leaf", "leaves")
        notes.append(f"padding of {told} is cut off, as the metadata say")
    if vocab_size is None:
        return leaves, notes
    stored = paxml.vocabulary(leaves)
    if vocab_size < 1:
        raise BadInput(f"`--vocab_size {vocab_size}` is not a size")
    if found.unpadded and vocab_size != stored:
        raise BadInput(
            f"`--vocab_size` is {vocab_size:,}, but the metadata say {stored:,}",
            where=str(found.item.path),
            hint="leave `--vocab_size` out",
        )
    if vocab_size != stored:
        notes.append(f"vocabulary {stored:,} -> {vocab_size:,}, as `--vocab_size` says")
    return paxml.with_vocabulary(leaves, vocab_size), notes


def _counts(
    found: "PaxCheckpoint", layers: int, leaves: Mapping[str, Source]
) -> tuple[int, int, list[str]]:
    """Adam's counter, the step, and what was found when all counters were compared.

    Where nothing can be read, as in a dry run without chunks, the step's name tells.
    """
    from nnxconv.storage.orbax import read_numbers

    names = [paxml.STEP, *(name for name in paxml.counters(layers) if name in leaves)]
    there = [name for name in names if name not in found.missing_chunks]
    numbers = {name: read_numbers(found.item, leaves[name]) for name in there}
    step = numbers[paxml.STEP][0] if paxml.STEP in numbers else found.step or 0
    own = paxml.counters(layers)[0]
    count = numbers[own][0] if own in numbers else step
    if len(there) < len(names):
        lacking = counted(len(found.missing_chunks), "leaf", "leaves")
        return (
            count,
            step,
            [
                f"the step, {step:,}, is that of the directory: its chunk is not there",
                f"chunks of {lacking} are not there: only a dry run goes on without them",
            ],
        )
    notes = []
    if found.step not in (None, step):
        notes.append(f"`step` is {step:,}, but the directory is that of step {found.step:,}")
    for name, values in numbers.items():
        wrong = sorted({value for value in values if value != count})
        if wrong:
            told = ", ".join(f"{value:,}" for value in wrong)
            notes.append(f"`{name}` is {told}, but Adam's own, `{own}`, is {count:,}")
    if len(names) > 1:
        notes.append(f"Adam's own counter, {count:,}, is taken; {len(names) - 2} others go with it")
    return count, step, notes


def _sizes_text(sizes: Mapping[str, int]) -> str:
    """`5 layers, embedding 16, ...`."""
    return ", ".join(f"{paxml.MEANING[letter]} {sizes[letter]:,}" for letter in "LDNHFVP")
