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
    apart,
    joined,
    places,
    scale_axis,
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
    blocks: Mapping[Key, Blocks] | None = None,
) -> dict[Key, Arrangement | None]:
    """The arrangement that each group shall have in the target.

    What `like` says of a group comes first. `scan_layers=None` leaves groups as they are. Layers
    that are apart are spelled as `spellings` says of their group, else as they were if
    `kept_spelling`, else as `spelling` says. `aux_axes` names the collections that are stacked
    on another axis than the parameters; `blocks`, how groups are stacked that have blocks.
    """
    chosen: dict[Key, Arrangement | None] = {}
    for group in groups:
        now = group.arrangement
        is_kept = isinstance(now, Apart) and kept_spelling and now.spelling != "sequence"
        usual = now.spelling if isinstance(now, Apart) and is_kept else spelling
        apart = Apart((spellings or {}).get(str(group.key[-1]), usual))
        if like is not None and group.key in like:
            chosen[group.key] = like[group.key]
        elif isinstance(now, Apart):
            chosen[group.key] = apart
            if scan_layers:
                axis = _or_default(layer_axis)
                made = (blocks or {}).get(group.key, Stacked(axis))
                made = replace(made, axis=axis, aux_axes=aux_axes or {})
                chosen[group.key] = _with_spelling(made, apart)
        elif scan_layers is False:
            chosen[group.key] = apart
        elif now is not None and layer_axis is not None and now.axis != layer_axis:
            chosen[group.key] = _with_spelling(replace(now, axis=layer_axis), apart)
        else:
            chosen[group.key] = now if now is None else _with_spelling(now, apart)
    return chosen


def _with_spelling(stacked: Stacked | Blocks, layers: Apart) -> Stacked | Blocks:
    """The arrangement, layers that stay apart before blocks spelled as the layout has them."""
    if isinstance(stacked, Blocks) and stacked.prefix:
        return replace(stacked, spelling=layers.spelling)
    return stacked


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
        layer = path[size] if path[:size] == key and len(path) > size else None
        return (*apart(key, layer, spelling), *path[size + 1 :]) if isinstance(layer, int) else path

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
    placed = places(group.key, target, len(layers))
    left = sorted(set(layers).difference(*(place.layers for place in placed)))
    if left:
        problems.append(_Difference((*full, left[0]), _no_block(left, target)))
    for place in placed:
        differences = _differences(layers, place.layers, full) if place.layers else []
        problems += differences
        if differences or not place.layers:
            continue
        model = layers[place.layers[0]]
        scales = scales_of(model) if head == PARAMS else {}
        for path in model:
            leaves = [layers[i][path] for i in place.layers]
            axis = scale_axis(target) if path in scales else wanted_axis(head, target)
            together[(*place.path, *path)] = _stack_of(leaves, axis, place.sizes)
    return together


def _no_block(left: Sequence[int], target: Stacked | Blocks) -> str:
    """What is said of layers that a family has no place for."""
    period = target.period if isinstance(target, Blocks) else 1
    names = ", ".join(map(str, left))
    return f"these layers fill no block of {period}: {names}"


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


def _stack_of(leaves: Sequence[Leaf], axis: int, sizes: tuple[int, ...]) -> Leaf:
    """The leaves along layer axes of these sizes, the last of which runs fastest."""
    if not sizes:
        return leaves[0]
    views = [leaf for leaf in leaves if not isinstance(leaf, Literal)]
    if not views:
        return leaves[0]
    if len(sizes) > 1:
        run = len(views) // sizes[0]
        inner = [views[i : i + run] for i in range(0, len(views), run)]
        stacks = [_stack_of(some, axis, sizes[1:]) for some in inner]
        views = [view for view in stacks if not isinstance(view, Literal)]
    return stack(views, min(axis, len(leaves[0].shape)))  # pyright: ignore


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
