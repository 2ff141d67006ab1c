"""`average`: the weighted mean of several checkpoints of one model, block by block."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from nnxconv.commands.boundary import plainly
from nnxconv.commands.carrying_out import Way
from nnxconv.commands.computing import Read, opened, write_computed
from nnxconv.commands.options import documented
from nnxconv.commands.result import Result
from nnxconv.comparing import agree_on_layers, line_up
from nnxconv.errors import BadInput, Mismatch
from nnxconv.layouts import FLOATS, Options, is_rng_state
from nnxconv.running import Watcher, ignore, share_one_heap
from nnxconv.tree import (
    Average,
    Formula,
    Key,
    Leaf,
    Literal,
    Source,
    View,
    computed_in,
    counted,
    dtype_of,
    notation,
    parse_bytes,
    spell,
)


@plainly
@documented
def average(
    source_paths: Sequence[str],
    target_path: str,
    *,
    weights: Sequence[float] | None = None,
    last: int | None = None,
    ema: float | None = None,
    precision: str = "float32",
    at: str | None = None,
    max_memory: int | str = "2GiB",
    compression: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    verify: bool = False,
    resume: bool = False,
    allow_uncommitted: bool = False,
    watch: Watcher = ignore,
) -> Result:
    """Averages the parameters and statistics of checkpoints of one model.

    The first checkpoint gives the layout, the arrangement of layers and the container, and all that
    is not averaged: optimizer state, step, RNG state. Others may be of other layouts. Integers must
    be equal everywhere. The average of equal arrays is that array, bit for bit.

    Returns:
      What was done, as `convert` returns it.

    Raises:
      Mismatch: the checkpoints do not have the same arrays.
      BadInput: weights do not fit, or integers differ.
    """
    started = time.monotonic()
    share_one_heap()
    paths = _steps(source_paths, last)
    shares = _weights(len(paths), weights, ema)
    how = Options(at=at)
    every = [opened(path, how=how, allow_uncommitted=allow_uncommitted) for path in paths]
    first, *others = every
    state, names = first.understood.state, tuple(paths)
    columns = _columns(first, others)
    _refuse_unequal(_integers(columns), every, max_memory)
    params = {key: _averaged(columns[("params", *key)], shares, precision) for key in state.params}
    aux = {
        key: _averaged(columns.get(("aux", *key), [leaf]), shares, precision)
        for key, leaf in state.aux.items()
    }
    way = Way(max_memory, overwrite, dry_run, verify, resume=resume, watch=watch)
    way = replace(way, compression=compression)
    many = counted(len(every), "checkpoint")
    return write_computed(
        first,
        replace(state, params=params, aux=aux),
        others,
        target_path,
        way,
        deed=(f"average {many}", f"averaged {many}"),
        notes=_notes(first, shares, names),
        options={"sources": names, "weights": shares, "precision": precision, "at": at},
        started=started,
    )


def _steps(paths: Sequence[str], last: int | None) -> list[str]:
    """The checkpoints to average, as named, or the last steps of one root, newest first.

    Raises:
      BadInput: there are not enough of them.
    """
    from nnxconv.storage.orbax import finished_directory, steps_in

    if last is None:
        if len(paths) < 2:
            raise BadInput(
                "there is one checkpoint, and an average needs two",
                hint="`--last N` averages the last N steps of a root",
            )
        return list(paths)
    if len(paths) != 1 or last < 2:
        raise BadInput("`--last N` takes one root of steps, and N is 2 or more")
    steps = list(steps_in(finished_directory(paths[0])).values())
    if len(steps) < last:
        raise BadInput(
            f"`{paths[0]}` has {counted(len(steps), 'step')}, and `--last {last}` needs {last}"
        )
    return [path.as_posix() for path in reversed(steps[-last:])]


def _weights(count: int, weights: Sequence[float] | None, ema: float | None) -> tuple[float, ...]:
    """The weight of each checkpoint; they add up to 1.

    `ema` is the decay d of `e = d * e + (1 - d) * x`, from the oldest, which comes last, to the
    newest, which comes first.

    >>> _weights(3, None, 0.5)
    (0.5, 0.25, 0.25)

    Raises:
      BadInput: weights and checkpoints are not equally many, or do not add up to 1.
    """
    if weights is not None and ema is not None:
        raise BadInput("`--weights` and `--ema` are both given: give one of them")
    if ema is not None:
        if not 0 < ema < 1:
            raise BadInput(f"`--ema {ema:g}` is not between 0 and 1")
        return (*((1 - ema) * ema**age for age in range(count - 1)), ema ** (count - 1))
    if weights is None:
        return (1 / count,) * count
    if len(weights) != count:
        raise BadInput(
            f"{counted(len(weights), 'weight')} for {counted(count, 'checkpoint')}",
            hint="`--weights` has one number for each, in their order",
        )
    if not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise BadInput(f"the weights add up to {sum(weights):.6g}, and not to 1")
    return tuple(weights)


def _columns(first: Read, others: Sequence[Read]) -> dict[Key, list[Leaf]]:
    """Each parameter and other variable with what every checkpoint has for it, the first one first.

    Raises:
      Mismatch: one does not have the same arrays; all that differ are listed.
    """
    columns: dict[Key, list[Leaf]] = {
        key: [leaf]
        for key, leaf in first.understood.state.leaves().items()
        if _is_joined(key, leaf)
    }
    for other in others:
        a, b = agree_on_layers(first.understood, other.understood)
        left = {key: leaf for key, leaf in a.state.leaves().items() if _is_joined(key, leaf)}
        right = {key: leaf for key, leaf in b.state.leaves().items() if _is_joined(key, leaf)}
        findings, _ = line_up(left, right, ignore_dtype=True)
        if findings or left.keys() != columns.keys():
            raise Mismatch(
                f"`{other.path}` does not hold the model of `{first.path}`",
                details=[
                    f"{spell(f.key)}  {_told(f.a)} here, {_told(f.b)} there" for f in findings
                ],
                hint=f"`nnxconv compare {first.path} {other.path}` shows more",
            )
        for key, column in columns.items():
            column.append(right[key])
    return columns


def _told(leaf: Leaf | None) -> str:
    return "nothing" if leaf is None else notation(leaf)


def _is_joined(key: Key, leaf: Leaf) -> bool:
    """True for what every checkpoint must have: parameters, and variables but RNG state."""
    return key[0] == "params" or (key[0] == "aux" and not is_rng_state(key[1:], leaf))


def _averaged(column: Sequence[Leaf], weights: Sequence[float], precision: str) -> Leaf:
    """The average of floating-point arrays; the first of all others."""
    views = [leaf for leaf in column if not isinstance(leaf, Literal)]
    if len(views) < len(weights) or dtype_of(views[0]) not in FLOATS:
        return column[0]
    wide = computed_in(precision, views)
    return Formula(Average(tuple(weights)), tuple(views), dtype_of(views[0]), wide)


def _integers(columns: Mapping[Key, Sequence[Leaf]]) -> list[tuple[Key, list[View]]]:
    """What is not averaged, and has to be equal."""
    found: list[tuple[Key, list[View]]] = []
    for key, column in columns.items():
        views = [leaf for leaf in column if not isinstance(leaf, Literal)]
        if len(views) > 1 and dtype_of(views[0]) not in FLOATS:
            found.append((key, views))
    return found


def _refuse_unequal(
    columns: Sequence[tuple[Key, list[View]]], every: Sequence[Read], max_memory: int | str
) -> None:
    """Refuses integers, and types that are not averaged, that are not the same everywhere.

    Raises:
      BadInput: some differ; all are named.
    """
    from nnxconv.comparing import Pair, Tolerance, compare_values

    if not columns:
        return
    items = {name: item for one in every for name, item in one.item.stores.items()}
    unequal: list[str] = []
    for number in range(1, len(every)):
        pairs = [Pair((key,), views[0], views[number]) for key, views in columns]
        found = compare_values(pairs, items, Tolerance(0, 0, True), parse_bytes(max_memory))
        unequal += [
            f"{spell(key)}  in `{every[number].path}`"
            for key, difference in found.statistics.items()
            if difference.unequal
        ]
    if unequal:
        raise BadInput(
            "these arrays are not floating-point and differ, so that there is no average of them",
            details=unequal,
        )


def _notes(first: Read, weights: Sequence[float], paths: Sequence[str]) -> list[str]:
    state = first.understood.state
    taken = [
        name
        for name, leaves in (("optimizer state", state.opt_state), ("step", state.step))
        if leaves is not None
    ]
    if any(is_rng_state(key, leaf) for key, leaf in state.aux.items()):
        taken.append("RNG state")
    told = [f"{weight:.6g} of {path}" for weight, path in zip(weights, paths, strict=True)]
    notes = ["averaged: " + ", ".join(told)]
    if taken:
        notes.append(f"{', '.join(taken)}: of {first.path}, as they are")
    if any(
        isinstance(leaf, Source) and dtype_of(leaf) not in FLOATS for leaf in state.aux.values()
    ):
        notes.append("integers: equal in all of them")
    return notes
