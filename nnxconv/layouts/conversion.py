"""From one checkpoint's tree to another's: decode, rearrange the layers, encode. Reads no array."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from shlex import quote

from nnxconv.layouts.conforming import conform, refuse_stepless
from nnxconv.layouts.form import Codec, Form, Record
from nnxconv.layouts.leaving_out import is_excluded
from nnxconv.layouts.names import AUX_AXES
from nnxconv.layouts.options import Options
from nnxconv.layouts.parts import collections_to_record, is_rng_state, refuse_misfits
from nnxconv.layouts.reducing import reduced, uncast
from nnxconv.layouts.replicas import refuse_rearranged_replicas
from nnxconv.layouts.target import bare_form, spelling_of, target_codec, target_form
from nnxconv.layouts.understanding import Understood
from nnxconv.state import (
    DEFAULT_AXIS,
    FIXED,
    SCALES,
    Apart,
    Arrangement,
    Blocks,
    Family,
    Stacked,
    TrainState,
    alike_series,
    arrange,
    blocks_for,
    choose,
    has_trained_scales,
    known_families,
    left_by_blocks,
    like_stacks,
    newly_stacked,
    refuse_unfollowed,
    shared_rngs,
    told_by_marks,
)
from nnxconv.tree import Key, Leaf, in_order, spell


@dataclass(frozen=True)
class Conversion:
    """A converted tree, and everything that a person wants to know about it.

    Attributes:
      source: the checkpoint as it was understood.
      layout: of the target.
      tree: of the target.
      state: what is converted, its layers as the source has them.
      arranged: the state with its layers as the target has them.
      arrangements: how each layer group is arranged there.
      left_out: canonical keys that the target does not have, with the reason.
      taken: keys of the target's leaves that come from the checkpoint given as `--like`.
      assumed: what had to be assumed.
      uncast: parameters that `--dtype` leaves as they are, for they are quantised, or scales.
      record: what goes into the target's metadata for the way back.
    """

    source: Understood
    layout: str
    tree: Mapping[Key, Leaf]
    state: TrainState
    arrangements: Mapping[Key, Arrangement | None]
    arranged: TrainState
    left_out: Mapping[Key, str] = field(default_factory=dict)
    taken: Sequence[Key] = ()
    assumed: Sequence[str] = ()
    uncast: Collection[Key] = ()
    record: Record = field(default_factory=Record)

    @property
    def scan_layers(self) -> bool | None:
        """True when the target stacks its layers; None when it has none."""
        kinds = [not isinstance(a, Apart) for a in self.arrangements.values()]
        return any(kinds) if kinds else None


def convert_tree(
    source: Understood,
    options: Options,
    like: Understood | None,
    arrangements: Mapping[Key, Arrangement | None] | None = None,
    *,
    is_copy: bool = False,
) -> Conversion:
    """The tree of the target; its layers as `arrangements` say, else as `like` has them.

    A second copy of parameters, `is_copy`, has no root of its own: it stands under its key.

    Raises:
      BadInput: direction, layout and `--like` contradict each other or the source.
      CannotHold: the target layout has no place for some leaves.
      LayerError: the layers cannot be arranged as asked.
      Mismatch: the tree is not that of `--like`.
    """
    codec, scan_layers = target_codec(source, options, like)
    state, left_out = reduced(source.state, options)
    left_out |= {key: why for key, (_, why) in source.aside.items()}
    form = target_form(codec, source, state, like, is_copy=is_copy)
    if options.params_only and like is None:
        form = bare_form(form, codec.default_form(state))
    if arrangements is None and like is not None:
        arrangements = {group.key: group.arrangement for group in like.groups}
    blocks = _blocks(source, options) if scan_layers and arrangements is None else {}
    layers_told = _told_of(source, blocks, options) + _told_of_none(
        source, options, scan_layers, is_copy
    )
    layers_told += _told_of_fixed(source, options)
    arrangements = choose(
        source.groups,
        scan_layers=scan_layers,
        layer_axis=options.layer_axis,
        spelling=spelling_of(codec, options),
        kept_spelling=source.codec.spelling == codec.spelling,
        spellings=form.spellings,
        like=arrangements,
        aux_axes=_aux_axes(state, source.codec.name, codec.name) | _scale_axes(state, options),
        blocks=blocks,
    )
    refuse_rearranged_replicas(source.as_stored, source.groups, arrangements)
    state, homeless = _without_homeless(state, source, arrangements)
    left_out |= homeless
    taken: list[Key] = []
    if like is not None:
        if not options.strict:
            state, unlike = _without_unlike(state, like)
            left_out |= unlike
        taken = [
            key
            for key in like.state.aux
            if key not in state.aux and not is_excluded(key, options.without)
        ]
        state = state.with_aux({**state.aux, **{key: like.state.aux[key] for key in taken}})
        refuse_stepless(state.step, like.state.step, like.codec.name)
    state, no_place = _fitting(codec, state, form, options.strict)
    arranged = arrange(state, source.groups, arrangements)
    refuse_unfollowed(state, arranged, source.groups, arrangements)
    encoded = codec.encode(arranged, form)
    tree = encoded.tree if like is None else conform(encoded.tree, like.tree)
    record = Record(
        forms={**source.record.forms, source.codec.name: source.form},
        collections=collections_to_record(arranged),
        axes={key: a.axis for key, a in arrangements.items() if isinstance(a, Stacked | Blocks)},
        layout=codec.name,
        family=_family_of(source),
        has_root=form.has_root,
        layer_group=source.layer_group,
    )
    return Conversion(
        source=source,
        layout=codec.name,
        tree=tree,
        state=state,
        arrangements=arrangements,
        arranged=arranged,
        left_out={**left_out, **no_place},
        taken=taken,
        assumed=() if like is not None else (*encoded.assumed, *layers_told),
        uncast=uncast(state, options.dtype),
        record=record,
    )


def _told_of_none(
    source: Understood, options: Options, scan_layers: bool | None, is_copy: bool
) -> list[str]:
    """What is said where no layers were found that could be stacked or taken apart."""
    if source.groups or is_copy:
        return []
    if options.scan_layers is not None:
        option = "--scan_layers" if options.scan_layers else "--no-scan_layers"
        return [f"no layers are known here, and `{option}` leaves everything as it is"]
    if not scan_layers:
        return [
            f"`{spell(key)}` looks like stacked layers, and is left so"
            f"; `--layer_group {quote(str(key[-1]))}` says that it is a stack"
            for key in like_stacks(source.state, source.groups)
        ]
    series = [one for one in alike_series(source.state) if one.is_like_layers]
    return [
        f"{one} are not taken for layers"
        + (f"; {one.group} says that they are" if one.group else "")
        for one in series
    ]


def _told_of_fixed(source: Understood, options: Options) -> list[str]:
    """What is said of layers that are neither stacked nor taken apart."""
    if options.scan_layers is None:
        return []
    modules = {
        path[: path.index(name) + 1]: why
        for path in source.state.params
        for name, why in FIXED.items()
        if name in path
    }
    return [f"`{spell(key)}` stays as it is: {modules[key]}" for key in in_order(modules)]


def _aux_axes(state: TrainState, *layouts: str) -> dict[str, int]:
    """The layer axis of each collection, where a program of these layouts has one for all."""
    axes = [AUX_AXES[layout] for layout in layouts if layout in AUX_AXES]
    return {str(key[0]): axis for axis in axes for key in state.aux}


def _scale_axes(state: TrainState, options: Options) -> dict[str, int]:
    """The layer axis of scales, where they are trained as other parameters are."""
    if not has_trained_scales(state):
        return {}
    return {SCALES: DEFAULT_AXIS if options.layer_axis is None else options.layer_axis}


def _blocks(source: Understood, options: Options) -> Mapping[Key, Blocks]:
    """How the source's layers are stacked that have blocks."""
    known = known_families().values()
    family = options.family or _recorded(source)
    return blocks_for(source.state, source.groups, known, family)


def _recorded(source: Understood) -> Family | None:
    """The family that an earlier conversion took the layers apart of."""
    family = known_families().get(source.record.family)
    named = {group.key[-1] for group in source.groups if isinstance(group.arrangement, Apart)}
    if family is None or family.period is None or family.apart not in named:
        return None
    return family


def _family_of(source: Understood) -> str:
    """The family of the blocks that the layers are in, or were in before an earlier conversion.

    A family that does not say how many layers a block has is none to go back by.
    """
    blocks = [g.arrangement for g in source.groups if isinstance(g.arrangement, Blocks)]
    named = [one.family for one in blocks if one.family is not None]
    whole = [family.name for family in named if family.period is not None]
    return next(iter(whole), source.record.family)


def _told_of(source: Understood, blocks: Mapping[Key, Blocks], options: Options) -> list[str]:
    """What is assumed of blocks whose family nobody has named."""
    return told_by_marks(blocks) if (options.family or _recorded(source)) is None else []


_SHARED = "one set for all layers, which stands in the first one alone"
_OF_BLOCKS = "one for each block of layers, and none of a layer's"


def _without_homeless(
    state: TrainState, source: Understood, arrangements: Mapping[Key, Arrangement | None]
) -> tuple[TrainState, dict[Key, str]]:
    """The state without RNG state that its layers' new arrangement has no place for, and why."""
    shared = shared_rngs(state, newly_stacked(source.groups, arrangements))
    of_blocks = left_by_blocks(state, source.groups, arrangements)
    reasons = dict.fromkeys(shared, _SHARED) | dict.fromkeys(of_blocks, _OF_BLOCKS)
    kept = {key: leaf for key, leaf in state.aux.items() if key not in reasons}
    return state.with_aux(kept), {("aux", *key): why for key, why in reasons.items()}


def _without_unlike(state: TrainState, like: Understood) -> tuple[TrainState, dict[Key, str]]:
    """The state without RNG state that `--like` does not have, and why; programs make it anew."""
    surplus = [
        key
        for key, leaf in state.aux.items()
        if key not in like.state.aux and is_rng_state(key, leaf)
    ]
    kept = {key: leaf for key, leaf in state.aux.items() if key not in set(surplus)}
    return state.with_aux(kept), {("aux", *key): "`--like` has none there" for key in surplus}


def _fitting(
    codec: Codec, state: TrainState, form: Form, strict: bool
) -> tuple[TrainState, dict[Key, str]]:
    """The state without what the layout has no place for and can do without."""
    misfits = codec.misfits(state, form)
    if strict:
        hint = "without `--strict`, RNG state is left out and listed"
        refuse_misfits(codec.name, state, misfits, hint)
    leaves = state.leaves()
    expendable = [
        key
        for key in misfits
        if key == ("step",) or (key[0] == "aux" and is_rng_state(key[1:], leaves[key]))
    ]
    refuse_misfits(codec.name, state, [key for key in misfits if key not in set(expendable)])
    reasons = dict.fromkeys(in_order(expendable), f"the {codec.name} layout keeps none")
    aux = {key: leaf for key, leaf in state.aux.items() if ("aux", *key) not in reasons}
    step = None if ("step",) in reasons else state.step
    return replace(state, aux=aux, step=step), reasons
