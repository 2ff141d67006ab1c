"""`merge-lora`: low-rank adapters added to the weights that they belong to, or taken out again."""

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from nnxconv.commands.boundary import plainly
from nnxconv.commands.carrying_out import Way
from nnxconv.commands.computing import Read, opened, write_computed
from nnxconv.commands.options import documented
from nnxconv.commands.result import Result
from nnxconv.errors import BadInput
from nnxconv.layouts import Options
from nnxconv.running import Watcher, ignore, share_one_heap
from nnxconv.state import (
    RNGS,
    Adapter,
    TrainState,
    adapters_in,
    arrays_of,
    dequantised,
    is_quantised,
    merged,
    rank_of,
)
from nnxconv.tree import (
    Formula,
    Key,
    Leaf,
    View,
    cast,
    computed_in,
    counted,
    dtype_of,
    notation,
    spell,
)

CONFIGURATION = "adapter_config.json"


@plainly
@documented
def merge_lora(
    base_path: str,
    adapter_path: str,
    target_path: str,
    *,
    alpha: float | None = None,
    rslora: bool | None = None,
    unmerge: bool = False,
    dequantize: bool = False,
    layer_axis: int | None = None,
    precision: str = "float32",
    max_memory: int | str = "2GiB",
    compression: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    verify: bool = False,
    resume: bool = False,
    allow_uncommitted: bool = False,
    watch: Watcher = ignore,
) -> Result:
    """Adds low-rank adapters to the weights that they belong to: `w + alpha / r * a @ b`.

    The base gives the layout, the arrangement of layers and the container; the adapter may be
    arranged otherwise, or stand in the same tree, whose path is then given twice. Everything else
    of the base, the optimizer's state included, is as it was. `state.lora` has the names that are
    known.

    Returns:
      What was done, as `convert` returns it.

    Raises:
      BadInput: alpha is not known; a factor is alone, or fits no weights; the adapter has other
        arrays; or weights are quantised.
    """
    started = time.monotonic()
    share_one_heap()
    base = _open(base_path, layer_axis, allow_uncommitted)
    adapter = (
        base if adapter_path == base_path else _open(adapter_path, layer_axis, allow_uncommitted)
    )
    state, scales = base.understood.state, dict[Key, str]()
    if dequantize:
        state, scales = dequantised(state, None)
    ours = _arrays(state)
    theirs = ours if adapter is base else _arrays(adapter.understood.state)
    found, alone = adapters_in(theirs)
    _refuse_others(found, alone, theirs, ours if adapter is base else {})
    told = _configuration(adapter)
    alpha = _known_alpha(told, alpha, adapter_path)
    by_root = bool(told.get("use_rslora")) if rslora is None else rslora
    changed: dict[Key, View] = {}
    for one in found:
        weights = _weights(one, ours, changed)
        a, b, rank = theirs[one.a], theirs[one.b], rank_of(theirs[one.a])
        _refuse_other_rank(told, rank, one)
        factor = (-alpha if unmerge else alpha) / (math.sqrt(rank) if by_root else rank)
        changed[weights] = _sum(ours[weights], a, b, factor, precision, weights)
    gone = {key for one in found for key in (one.a, one.b)} if adapter is base else set[Key]()
    params = {k: changed.get(k, leaf) for k, leaf in state.params.items() if k not in gone}
    aux = {k: changed.get(k[1:], leaf) for k, leaf in state.aux.items() if k[1:] not in gone}
    what = f"{'taken out of' if unmerge else 'added to'} the weights"
    before = base.understood.state.leaves()
    aside = {key: (leaf, what) for key, leaf in _at(state, gone).items()}
    aside |= {key: (before[key], why) for key, why in scales.items()}
    scale = f"{alpha:g} / {'the root of ' if by_root else ''}the rank"
    way = Way(max_memory, overwrite, dry_run, verify, resume=resume, watch=watch)
    way = replace(way, compression=compression)
    return write_computed(
        base,
        replace(state, params=params, aux=aux),
        [] if adapter is base else [adapter],
        target_path,
        way,
        deed=_deed(counted(len(found), "adapter"), unmerge),
        notes=_notes(f"{counted(len(found), 'adapter')} {what}, times {scale}", scales, state),
        aside=aside,
        options={"adapter": adapter_path, "alpha": alpha, "rslora": by_root}
        | {"unmerge": unmerge, "dequantize": dequantize},
        started=started,
    )


def _notes(done: str, scales: Collection[Key], state: TrainState) -> list[str]:
    """What the result says: what was added, and what was multiplied or left."""
    notes = [done]
    if scales:
        notes.append(f"{counted(len(scales), 'array')} of scales multiplied into their weights")
    if state.opt_state is not None:
        notes.append("the optimizer's state is as it was")
    return notes


def _open(path: str, layer_axis: int | None, allow_uncommitted: bool) -> Read:
    read = opened(path, how=Options(layer_axis=layer_axis), allow_uncommitted=allow_uncommitted)
    _refuse_unclear(read)
    return read


def _refuse_unclear(read: Read) -> None:
    """Refuses stacks whose layers cannot be told, for an adapter belongs to each of them.

    Raises:
      BadInput: there is one.
    """
    for group in read.understood.groups:
        if group.problem:
            raise BadInput(
                group.problem,
                where=read.path,
                hint="`--layer_axis 0` or `--layer_axis 1` says which it is",
            )


def _deed(adapters: str, unmerge: bool) -> tuple[str, str]:
    if unmerge:
        return f"take {adapters} out of the weights", f"took {adapters} out of the weights"
    return f"add {adapters} to the weights", f"added {adapters} to the weights"


def _sum(w: View, a: View, b: View, factor: float, precision: str, where: Key) -> View:
    """Weights with an adapter in the type of the weights, rounded once.

    Raises:
      BadInput: the adapter does not fit.
    """
    wide = computed_in(precision, (w, a, b))
    whole = cast(w, wide) if isinstance(w, Formula) else w
    return cast(merged(whole, a, b, factor, wide, where), dtype_of(w))


def _arrays(state: TrainState) -> dict[Key, View]:
    """Parameters and other variables by their path in the model, without RNG state."""
    aux = {key[1:]: leaf for key, leaf in state.aux.items() if key[0] != RNGS}
    return arrays_of({**aux, **state.params})


def _at(state: TrainState, paths: Collection[Key]) -> dict[Key, Leaf]:
    """The leaves at these paths in the model, by canonical key."""
    starts = {"params": 1, "aux": 2}
    return {
        key: leaf
        for key, leaf in state.leaves().items()
        if key[0] in starts and key[starts[str(key[0])] :] in paths
    }


def _weights(adapter: Adapter, ours: Mapping[Key, View], changed: Collection[Key]) -> Key:
    """The key of the weights of an adapter, which are not among those that are changed already.

    Raises:
      BadInput: the base has none of the names that they may have, or they are quantised; or
        another adapter has changed them.
    """
    for key in adapter.weights:
        if key in ours:
            if key in changed:
                raise BadInput(f"`{spell(key)}` has two adapters")
            if is_quantised(ours[key]):
                raise BadInput(
                    f"`{spell(key)}` is quantised: {notation(ours[key])}",
                    hint="`--dequantize` multiplies such weights with the scales beside them",
                )
            return key
    raise BadInput(
        f"the base has no weights for the adapter `{spell(adapter.a)}`",
        details=[f"looked for {spell(key)}" for key in adapter.weights],
        hint="base and adapter need the same names: `nnxconv convert --rename` gives them",
    )


def _refuse_others(
    found: list[Adapter], alone: list[Key], theirs: Mapping[Key, View], base: Mapping[Key, View]
) -> None:
    """Refuses a tree without adapters, factors without their other half, and arrays besides."""
    if alone:
        raise BadInput(
            f"{counted(len(alone), 'factor')} of adapters without the other",
            details=[spell(key) for key in alone],
        )
    if not found:
        raise BadInput(
            "there is no adapter", details=["no two arrays are called `lora_a` and `lora_b`"]
        )
    used = {one.a for one in found} | {one.b for one in found}
    others = [key for key in theirs if key not in used and key not in base]
    if others:
        raise BadInput(
            f"the adapter has {counted(len(others), 'array')} besides, which would be lost",
            details=[f"{spell(key)}  {notation(theirs[key])}" for key in others],
            hint="give that tree as the base too, if it holds both",
        )


def _configuration(adapter: Read) -> Mapping[str, Any]:
    """What `adapter_config.json` beside the item, its step or root says; or custom metadata."""
    from nnxconv.storage.files import read_if_there, read_json

    item = adapter.opened.location.item
    for folder in (item, item.parent, item.parent.parent):
        file = folder / CONFIGURATION
        is_folder = folder != item or item.is_dir()
        if is_folder and read_if_there(file) is not None:
            return read_json(file)
    return {**adapter.opened.location.custom_metadata, **adapter.item.custom_metadata}


def _known_alpha(told: Mapping[str, Any], asked: float | None, where: str) -> float:
    """The scale that is asked for, or that the configuration says.

    Raises:
      BadInput: neither does.
    """
    alpha = _number(told, "lora_alpha") if asked is None else asked
    if alpha is None:
        raise BadInput(
            "alpha is not known, and it scales what is added",
            where=where,
            hint=f"`--alpha ALPHA` says it, or `lora_alpha` in `{CONFIGURATION}`",
        )
    if not math.isfinite(alpha):
        raise BadInput(f"alpha is {alpha}, which is no finite number", where=where)
    return alpha


def _number(told: Mapping[str, Any], name: str) -> float | None:
    value = told.get(name)
    if isinstance(value, int) and abs(value) > 2**53:
        return math.inf
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _refuse_other_rank(told: Mapping[str, Any], rank: int, adapter: Adapter) -> None:
    """Refuses what `adapter_config.json` says of other ranks, or of several."""
    for name in ("rank_pattern", "alpha_pattern"):
        if told.get(name):
            raise BadInput(f"`{CONFIGURATION}` has a `{name}`: modules that differ are not known")
    stated = _number(told, "r") or _number(told, "lora_rank")
    if stated is not None and stated != rank:
        raise BadInput(
            f"`{spell(adapter.a)}` has the rank {rank}, but `{CONFIGURATION}` says {stated:g}"
        )
