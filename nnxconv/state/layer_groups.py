"""What a layer group is, and which trees of a state share its paths."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal as OneOf
from typing import TypeAlias

from nnxconv.state.families import Family
from nnxconv.state.family_sources import known_families
from nnxconv.state.optimizer import parameter_trees
from nnxconv.state.quantised import scales_of
from nnxconv.state.train_state import RNGS, TrainState, below, children, under
from nnxconv.tree import Key, Leaf, Literal

FIXED = {
    "pipeline_module": "MaxText has the layers of a pipeline by stages, with `scan_layers` and"
    " without",
    "Llama4VisionEncoder_0": "MaxText stacks these layers neither with `scan_layers` nor without",
}
"""Modules whose layers are neither stacked nor taken apart, and why."""

DEFAULT_NAMES = (
    *("layers", "dense_layers", "moe_layers"),
    *("layers_outside_pipeline", "moe_layers_outside_pipeline"),
)
DEFAULT_AXIS = 1

Spelling: TypeAlias = OneOf["suffix", "index", "sequence"]


@dataclass(frozen=True)
class Apart:
    """One subtree per layer: `layers_3` (suffix), `layers/3` (index) or `layers/[3]` (sequence)."""

    spelling: Spelling


@dataclass(frozen=True)
class Stacked:
    """One subtree for all layers, with a layer axis in every array.

    An array of rank r has it at `min(axis, r - 1)`; RNG state and the scales of quantised weights
    at 0. `aux_axes` names the collections that have it elsewhere, and `SCALES` where scales do.
    """

    axis: int
    aux_axes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Blocks:
    """Blocks of `period` layers, stacked as their family has it, and what stands beside them.

    Where a block's layers are a stack within the stack, their axis comes right after that of the
    blocks. The first `prefix` layers are apart, spelled as `spelling` says.
    """

    axis: int
    period: int
    aux_axes: Mapping[str, int] = field(default_factory=dict)
    family: Family = field(default_factory=lambda: known_families()["blocks"])
    prefix: int = 0
    spelling: Spelling = "suffix"


Arrangement: TypeAlias = Apart | Stacked | Blocks


@dataclass(frozen=True)
class LayerGroup:
    """Where a group stands, and how the checkpoint arranges it.

    Attributes:
      key: module path of the group, for example `("decoder", "layers")`.
      indices: the layers that are there; empty for a stack that cannot be taken apart.
      arrangement: on disk; None when the layer axis of a stack cannot be told.
      problem: why a stack was left whole, empty otherwise.
    """

    key: Key
    indices: tuple[int, ...]
    arrangement: Arrangement | None
    problem: str = ""


def newly_stacked(
    groups: Iterable[LayerGroup], chosen: Mapping[Key, Arrangement | None]
) -> list[Key]:
    """The paths of the groups whose layers are apart, and shall be stacked."""
    return [
        group.key
        for group in groups
        if isinstance(group.arrangement, Apart) and isinstance(chosen[group.key], Stacked | Blocks)
    ]


SCALES = "*_scale"
"""What `aux_axes` calls the scales of quantised weights; no collection has this name."""


def is_module(tree: Mapping[Key, Leaf]) -> bool:
    """True for one module that is called as layers are, by its kernel of no more than two axes."""
    kernel = tree.get(("kernel",))
    return kernel is not None and not isinstance(kernel, Literal) and len(kernel.shape) < 3


Sections: TypeAlias = dict[Key, dict[Key, Leaf]]
"""The trees that share the module paths of the parameters, by where they stand in the state."""

PARAMS: Key = ("params",)


def sections_of(state: TrainState) -> tuple[Sections, dict[Key, Leaf]]:
    """The state's trees over module paths, and the optimizer's leaves that are no such tree."""
    sections: Sections = {PARAMS: dict(state.params)}
    rest = dict(state.opt_state or {})
    for prefix in parameter_trees(rest, state.params):
        tree = below(rest, prefix)
        sections[("opt_state", *prefix)] = tree
        for path in tree:
            del rest[(*prefix, *path)]
    for collection in children(state.aux):
        tree = {path: leaf for path, leaf in below(state.aux, (collection,)).items() if path}
        if tree:
            sections[("aux", collection)] = tree
    return sections, rest


def has_trained_scales(state: TrainState) -> bool:
    """True where the optimizer has moments of the scales of quantised weights."""
    scales = scales_of(state.params)
    sections = sections_of(state)[0] if scales else {}
    return any(
        head[0] == "opt_state" and not scales.keys().isdisjoint(tree)
        for head, tree in sections.items()
    )


def joined(state: TrainState, sections: Sections, rest: dict[Key, Leaf]) -> TrainState:
    """The inverse of `sections_of`: the state with these sections."""
    opt_state = dict(rest)
    aux: dict[Key, Leaf] = {key: leaf for key, leaf in state.aux.items() if len(key) == 1}
    for head, tree in sections.items():
        if head != PARAMS:
            (opt_state if head[0] == "opt_state" else aux).update(under(head[1:], tree))
    return replace(
        state,
        params=sections[PARAMS],
        opt_state=None if state.opt_state is None else opt_state,
        aux=aux,
    )


def scale_axis(arrangement: Stacked | Blocks) -> int:
    """Where the scales of quantised weights have their layer axis."""
    return arrangement.aux_axes.get(SCALES, 0)


def wanted_axis(head: Key, arrangement: Stacked | Blocks) -> int:
    """Where a section has its layer axis, in arrays of enough axes."""
    if head[0] != "aux":
        return arrangement.axis
    return 0 if head[1] == RNGS else arrangement.aux_axes.get(str(head[1]), arrangement.axis)


@dataclass(frozen=True)
class Place:
    """A subtree on disk, and the layers that it holds.

    Attributes:
      path: of the subtree, below the root of a section.
      layers: their numbers, those along the last axis one after the other.
      sizes: of its layer axes: none where one layer is apart, two where it is stacked twice.
    """

    path: Key
    layers: tuple[int, ...]
    sizes: tuple[int, ...]


def places(key: Key, arrangement: Stacked | Blocks, count: int) -> list[Place]:
    """Where the layers of a group stand, `count` of them."""
    if isinstance(arrangement, Stacked):
        return [Place(key, tuple(range(count)), (count,))]
    family, parent = arrangement.family.called(str(key[-1])), key[:-1]
    prefix, period = min(arrangement.prefix, count), arrangement.period
    blocks, rest = divmod(count - prefix, period)
    found = [Place(apart(key, i, arrangement.spelling), (i,), ()) for i in range(prefix)]
    for slot in family.slots(period) if blocks else ():
        inner = range(slot.first, slot.first + slot.count)
        layers = tuple(prefix + block * period + i for block in range(blocks) for i in inner)
        sizes = (blocks, slot.count) if slot.is_stack else (blocks,)
        found.append(Place((*parent, family.stack, slot.name), layers, sizes))
    left = range(count - rest, count)
    if family.rest is not None and left:
        above = (*parent, *family.remainder)
        if family.rest.is_stack:
            return [*found, Place((*above, family.rest.name), tuple(left), (rest,))]
        name = family.rest.name
        found += [Place((*above, f"{name}{i - left[0]}"), (i,), ()) for i in left]
    return found


def apart(key: Key, layer: int, spelling: Spelling) -> Key:
    """Where a layer of a group stands that is apart."""
    if spelling == "sequence":
        return (*key, layer)
    if spelling == "index":
        return (*key, str(layer))
    return (*key[:-1], f"{key[-1]}_{layer}")


def is_fixed(path: Key) -> bool:
    """True for what stands below a module whose layers stay as they are."""
    return not FIXED.keys().isdisjoint(path)


def names_in(state: TrainState) -> set[str]:
    """Every name in the parameters' paths that could be the name of a layer group."""
    names: set[str] = set()
    for path in state.params:
        for part in path[:-1]:
            if isinstance(part, str):
                names |= {part, re.sub(r"_[0-9]+$", "", part)}
    return names
