"""Choose how layer groups shall be arranged, and arrange them so."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nnxconv.errors import LayerError
from nnxconv.state.layer_groups import (
    DEFAULT_AXIS,
    PARAMS,
    Apart,
    Arrangement,
    Blocks,
    LayerGroup,
    Spelling,
    Stacked,
    joined,
    remainder_key,
    sections_of,
    wanted_axis,
)
from nnxconv.state.quantised import scales_of
from nnxconv.state.train_state import TrainState, Tree
from nnxconv.tree import (
    Key,
    Leaf,
    Literal,
    in_order,
    notation,
    prng_impl_of,
    sort_key,
    spell,
    stack,
)


def choose(
    groups: Iterable[LayerGroup],
    *,
    scan_layers: bool | None,
    layer_axis: int | None,
    spelling: Spelling,
    kept_spelling: bool = False,
    spellings: Mapping[str, Spelling] | None = None,
    like: Mapping[Key, Arrangement | None] | None = None,
    aux_axes: Mapping[str, int] | None = None,
) -> dict[Key, Arrangement | None]:
    """The arrangement that each group shall have in the target.

    What `like` says of a group comes first. `scan_layers=None` leaves groups as they are. Layers
    that are apart are spelled as `spellings` says of their group, else as they were if
    `kept_spelling`, else as `spelling` says. `aux_axes` names the collections that are stacked
    on another axis than the parameters.
    """
    chosen: dict[Key, Arrangement | None] = {}
    for group in groups:
        now = group.arrangement
        usual = now.spelling if isinstance(now, Apart) and kept_spelling else spelling
        apart = Apart((spellings or {}).get(str(group.key[-1]), usual))
        if like is not None and group.key in like:
            chosen[group.key] = like[group.key]
        elif isinstance(now, Apart):
            stacked = Stacked(_or_default(layer_axis), aux_axes or {})
            chosen[group.key] = stacked if scan_layers else apart
        elif scan_layers is False:
            chosen[group.key] = apart
        elif now is not None and layer_axis is not None and now.axis != layer_axis:
            chosen[group.key] = replace(now, axis=layer_axis)
        else:
            chosen[group.key] = now
    return chosen


def _or_default(axis: int | None) -> int:
    return DEFAULT_AXIS if axis is None else axis


def arrange(
    state: TrainState, groups: Sequence[LayerGroup], chosen: Mapping[Key, Arrangement | None]
) -> TrainState:
    """The state with each group in its chosen arrangement.

    Raises:
      LayerError: layers that are to be stacked have gaps or differ in structure, shape or dtype;
        or a stack that could not be taken apart shall be arranged otherwise. All at once.
    """
    sections, rest = sections_of(state)
    problems: list[_Difference] = []
    for group in reversed(groups):
        target = chosen[group.key]
        if group.problem:
            if target != group.arrangement:
                raise LayerError(group.problem, hint=_axis_hint(group))
            continue
        if isinstance(target, Apart):
            sections = {h: _spelled(t, group.key, target.spelling) for h, t in sections.items()}
        elif target is not None:
            sections = {
                head: _put_together(tree, group, target, head, problems)
                for head, tree in sections.items()
            }
    if problems:
        raise _layer_error(problems)
    return joined(state, sections, rest)


def _axis_hint(group: LayerGroup) -> str:
    if group.arrangement is None:
        return "`--layer_axis 0` or `--layer_axis 1` says which it is"
    return "`--scan_layers` leaves these layers stacked as they are"


def _spelled(tree: dict[Key, Leaf], key: Key, spelling: Spelling) -> dict[Key, Leaf]:
    size = len(key)

    def spelled(path: Key) -> Key:
        if path[:size] != key or len(path) <= size or not isinstance(path[size], int):
            return path
        if spelling == "index":
            return (*key, str(path[size]), *path[size + 1 :])
        return (*key[:-1], f"{key[-1]}_{path[size]}", *path[size + 1 :])

    return {spelled(path): leaf for path, leaf in tree.items()}


@dataclass(frozen=True)
class _Difference:
    key: Key
    message: str


def _put_together(
    tree: dict[Key, Leaf],
    group: LayerGroup,
    target: Stacked | Blocks,
    head: Key,
    problems: list[_Difference],
) -> dict[Key, Leaf]:
    """One section with the layers of a group stacked; what does not fit is added to `problems`."""
    together, layers = _split_layers(tree, group.key)
    if not layers:
        return tree
    full: Key = (*head, *group.key)
    present = sorted(set(layers) | set(group.indices))
    gaps = sorted(set(range(present[-1])) - set(present))
    if gaps:
        names = ", ".join(map(str, gaps))
        problems.append(_Difference((*full, gaps[0]), f"layers are missing: {names}"))
        return tree
    layers = {i: layers.get(i, {}) for i in present}
    period = target.period if isinstance(target, Blocks) else 1
    stacked = len(layers) // period * period
    for place in range(period):
        run = range(place, stacked, period)
        inner: Key = (f"{group.key[-1]}_{place}",) if isinstance(target, Blocks) else ()
        differences = _differences(layers, run, full)
        problems += differences
        if differences or not run:
            continue
        scales = scales_of(layers[run[0]]) if head == PARAMS else {}
        for path in layers[run[0]]:
            leaves = [layers[i][path] for i in run]
            axis = 0 if path in scales else wanted_axis(head, target)
            together[(*group.key, *inner, *path)] = _stack_of(leaves, axis)
    for i in range(stacked, len(layers)):
        name = (f"{group.key[-1]}_{i - stacked}",)
        for path, leaf in layers[i].items():
            together[(*remainder_key(group.key), *name, *path)] = leaf
    return together


def _split_layers(
    tree: Mapping[Key, Leaf], key: Key
) -> tuple[dict[Key, Leaf], dict[int, dict[Key, Leaf]]]:
    """The leaves outside the layers of a group, and those of each layer by their inner path."""
    size = len(key)
    outside: dict[Key, Leaf] = {}
    layers: dict[int, dict[Key, Leaf]] = {}
    for path, leaf in tree.items():
        index = path[size] if path[:size] == key and len(path) > size else None
        if isinstance(index, int):
            layers.setdefault(index, {})[path[size + 1 :]] = leaf
        else:
            outside[path] = leaf
    return outside, layers


def _stack_of(leaves: Sequence[Leaf], axis: int) -> Leaf:
    views = [leaf for leaf in leaves if not isinstance(leaf, Literal)]
    if not views:
        return leaves[0]
    return stack(views, min(axis, len(views[0].shape)))


def _differences(layers: Mapping[int, Tree], run: Sequence[int], full: Key) -> list[_Difference]:
    """How the layers of a run differ from its first, each at the leaf that differs."""
    if not run:
        return []
    first, model = run[0], layers[run[0]]
    found: list[_Difference] = []
    for i in run[1:]:
        for path in in_order(layers[i].keys() ^ model.keys()):
            has, lacks = (i, first) if path in layers[i] else (first, i)
            message = f"layer {lacks} has no such leaf, but layer {has} has"
            found.append(_Difference((*full, i, *path), message))
        for path in in_order(layers[i].keys() & model.keys()):
            if not _alike(layers[i][path], model[path]):
                now, then = _told(layers[i][path]), _told(model[path])
                message = f"layer {i} is {now}, but layer {first} is {then}"
                found.append(_Difference((*full, i, *path), message))
    return found


def _told(leaf: Leaf) -> str:
    """Type and shape, and for typed PRNG keys their implementation."""
    impl = None if isinstance(leaf, Literal) else prng_impl_of(leaf)
    return notation(leaf) + (f" ({impl} key)" if impl else "")


def _alike(a: Leaf, b: Leaf) -> bool:
    if isinstance(a, Literal) or isinstance(b, Literal):
        return a == b
    return notation(a) == notation(b) and prng_impl_of(a) == prng_impl_of(b)


def _layer_error(problems: Sequence[_Difference]) -> LayerError:
    problems = sorted(problems, key=lambda problem: sort_key(problem.key))
    hint = "keep these layers apart with `--no-scan_layers`"
    first = problems[0]
    if len(problems) == 1:
        return LayerError(first.message, where=spell(first.key), hint=hint)
    return LayerError(
        f"the layers cannot be stacked: they differ in {len(problems):,} places",
        details=[f"{spell(p.key)}: {p.message}" for p in problems],
        hint=hint,
    )
