"""`merge-lora`: low-rank adapters added to the weights that they belong to, or taken out again."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nnxconv.commands.boundary import plainly
from nnxconv.commands.carrying_out import Way
from nnxconv.commands.computing import Read, opened, write_computed
from nnxconv.commands.lora_scale import (
    LoraScale,
    known_alpha,
    lora_configuration,
    number_in,
    refuse_other_rank,
)
from nnxconv.commands.options import documented
from nnxconv.commands.result import Result
from nnxconv.errors import BadInput
from nnxconv.layouts import Options
from nnxconv.running import Watcher, ignore, share_one_heap
from nnxconv.state import (
    RNGS,
    Adapter,
    TrainState,
    Tree,
    adapters_in,
    arrays_of,
    dequantised,
    is_quantised,
    merged,
    parameter_trees,
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
    at: str | None = None,
    adapter_at: str | None = None,
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
    arranged otherwise, or stand in the same tree, whose path is then given twice, with `adapter_at`
    where it is a subtree of its own. Everything else
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
    how = Options(layer_axis=layer_axis, at=at)
    base = _open(base_path, how, allow_uncommitted, "--at")
    is_one = adapter_path == base_path and adapter_at in (None, at)
    adapter = base
    if not is_one:
        adapter = _open(
            adapter_path, replace(how, at=adapter_at), allow_uncommitted, "--adapter_at"
        )
    stored = base.understood.state
    state, scales = dequantised(stored, None) if dequantize else (stored, dict[Key, str]())
    ours = _arrays(state)
    theirs = ours if is_one else _arrays(adapter.understood.state)
    found, alone = adapters_in(theirs)
    _refuse_others(found, alone, theirs, ours if is_one else {})
    told = lora_configuration(adapter)
    alpha = known_alpha(told, alpha, adapter_path)
    scale = LoraScale(alpha, bool(told.get("use_rslora")) if rslora is None else rslora)
    for one in found:
        refuse_other_rank(told, rank_of(theirs[one.a]), one)
    changed = _changed(found, ours, theirs, scale, is_added=not unmerge, precision=precision)
    gone = {key for one in found for key in (one.a, one.b)} if is_one else set[Key]()
    opt_state, moments = _without_moments(state, gone)
    notes = _notes(told, alpha, scales, None if opt_state is None else len(moments))
    adapters = counted(len(found), "adapter")
    what = f"{'taken out of' if unmerge else 'added to'} the weights"
    before = stored.leaves()
    aside = {key: (before[key], why) for key, why in scales.items()}
    aside |= {key: (leaf, what) for key, leaf in _at(state, gone).items()}
    aside |= {key: (leaf, f"moments of what was {what}") for key, leaf in moments.items()}
    way = Way(max_memory, overwrite, dry_run, verify, resume=resume, watch=watch)
    return write_computed(
        base,
        replace(_with(state, changed, gone), opt_state=opt_state),
        [] if is_one else [adapter],
        target_path,
        replace(way, compression=compression),
        deed=_deed(adapters, unmerge),
        notes=[f"{adapters} {what}, times {scale}", *notes],
        aside=aside,
        options={"adapter": adapter_path, "alpha": alpha, "rslora": scale.by_root}
        | {"unmerge": unmerge, "dequantize": dequantize, "at": at, "adapter_at": adapter_at},
        started=started,
    )


def _changed(
    found: Sequence[Adapter],
    ours: Mapping[Key, View],
    theirs: Mapping[Key, View],
    scale: LoraScale,
    *,
    is_added: bool,
    precision: str,
) -> dict[Key, View]:
    """The weights that have adapters, each with its own added, or taken out of it.

    Raises:
      BadInput: an adapter fits no weights.
    """
    changed: dict[Key, View] = {}
    for one in found:
        key, factor = _weights(one, ours, changed), scale.of(rank_of(theirs[one.a]))
        factor = factor if is_added else -factor
        changed[key] = _sum(ours[key], theirs[one.a], theirs[one.b], factor, precision, key)
    return changed


def _with(state: TrainState, changed: Mapping[Key, View], gone: Collection[Key]) -> TrainState:
    """A state with these arrays at their paths in the model, and without what has gone."""
    return replace(
        state,
        params={k: changed.get(k, leaf) for k, leaf in state.params.items() if k not in gone},
        aux={k: changed.get(k[1:], leaf) for k, leaf in state.aux.items() if k[1:] not in gone},
    )


def _notes(
    told: Mapping[str, Any], alpha: float, scales: Collection[Key], moments: int | None
) -> list[str]:
    """What the result says besides what was added: what is not as told, multiplied, or left."""
    notes: list[str] = []
    if number_in(told, "lora_alpha") not in (None, alpha):
        notes.append(f"alpha is {alpha:g} as asked, and not {told['lora_alpha']} as recorded")
    if scales:
        notes.append(f"{counted(len(scales), 'array')} of scales multiplied into their weights")
    if moments is not None:
        what = "the rest of the optimizer's state" if moments else "the optimizer's state"
        notes.append(f"{what} is as it was")
    return notes


def _open(path: str, how: Options, allow_uncommitted: bool, option: str) -> Read:
    read = opened(path, how=how, allow_uncommitted=allow_uncommitted, option=option)
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


def _without_moments(
    state: TrainState, gone: Collection[Key]
) -> tuple[Tree | None, dict[Key, Leaf]]:
    """The optimizer's state without what follows these parameters, and that by canonical key."""
    if state.opt_state is None or not gone:
        return state.opt_state, {}
    trees = parameter_trees(state.opt_state, state.params)
    theirs = {
        key: leaf
        for key, leaf in state.opt_state.items()
        if any(key[: len(tree)] == tree and key[len(tree) :] in gone for tree in trees)
    }
    kept = {key: leaf for key, leaf in state.opt_state.items() if key not in theirs}
    return kept, {("opt_state", *key): leaf for key, leaf in theirs.items()}


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
