"""From one checkpoint's tree to another's: decode, rearrange the layers, encode. Reads no array."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal as OneOf

from nnxconv.errors import BadInput, UnknownLayout
from nnxconv.layouts.conforming import conform
from nnxconv.layouts.form import Codec, Form, Record
from nnxconv.layouts.leaving_out import is_excluded, leave_out
from nnxconv.layouts.names import AUX_AXES
from nnxconv.layouts.parts import collections_to_record, is_rng_state, refuse_misfits
from nnxconv.layouts.recognition import CODECS
from nnxconv.layouts.understanding import Understood
from nnxconv.state import (
    Apart,
    Arrangement,
    Blocks,
    Family,
    Spelling,
    Stacked,
    TrainState,
    alike_series,
    arrange,
    blocks_for,
    choose,
    dequantised,
    is_amax_history,
    known_families,
    left_by_blocks,
    newly_stacked,
    refuse_unfollowed,
    scales_of,
    shared_rngs,
    told_by_marks,
)
from nnxconv.tree import Key, Leaf, Literal, cast, dtype_of, in_order

FLOATS = ("bfloat16", "float16", "float32", "float64")
"""Types that `--dtype` casts between; float8 and int4 hold quantised weights."""

NO_OPTIMIZER = ("absent", "Dict")
"""How forms call it that a tree has no optimizer state."""

Direction = OneOf["auto", "linen_to_nnx", "nnx_to_linen"]


@dataclass(frozen=True)
class Options:
    """How a tree shall be converted; names and defaults are those of the command."""

    direction: Direction = "auto"
    to: str | None = None
    from_: str | None = None
    scan_layers: bool | None = None
    layer_axis: int | None = None
    layer_group: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    strict: bool = False
    params_only: bool = False
    dtype: str | None = None
    at: str | None = None
    drop: tuple[str, ...] = ()
    params_from: str | None = None
    replica: int | None = None
    dequantize: bool = False
    family: Family | None = None


@dataclass(frozen=True)
class Conversion:
    """A converted tree, and everything that a person wants to know about it.

    Attributes:
      source: the checkpoint as it was understood.
      layout: of the target.
      tree: of the target.
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
    codec, scan_layers = _target(source, options, like)
    state, left_out = _reduced(source.state, options)
    left_out |= {key: why for key, (_, why) in source.aside.items()}
    form = _form(codec, source, state, like, is_copy=is_copy)
    if options.params_only and like is None:
        form = _params_only(form, codec.default_form(state))
    if arrangements is None and like is not None:
        arrangements = {group.key: group.arrangement for group in like.groups}
    blocks = _blocks(source, options) if scan_layers and arrangements is None else {}
    layers_told = _told_of(blocks, options) + _told_of_none(source, options, scan_layers, is_copy)
    arrangements = choose(
        source.groups,
        scan_layers=scan_layers,
        layer_axis=options.layer_axis,
        spelling=_spelling(codec, options),
        kept_spelling=source.codec.spelling == codec.spelling,
        spellings=form.spellings,
        like=arrangements,
        aux_axes=_aux_axes(state, source.codec.name, codec.name),
        blocks=blocks,
    )
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
    state, no_place = _fitting(codec, state, form, options.strict)
    arranged = arrange(state, source.groups, arrangements)
    refuse_unfollowed(state, arranged, source.groups, arrangements)
    encoded = codec.encode(arranged, form)
    tree = encoded.tree if like is None else conform(encoded.tree, like.tree)
    record = Record(
        {**source.record.forms, source.codec.name: source.form},
        collections_to_record(arranged),
        {key: a.axis for key, a in arrangements.items() if isinstance(a, Stacked | Blocks)},
        codec.name,
        form.has_root,
        source.layer_group,
    )
    return Conversion(
        source,
        codec.name,
        tree,
        state,
        arrangements,
        arranged,
        {**left_out, **no_place},
        taken,
        () if like is not None else (*encoded.assumed, *layers_told),
        uncast(state, options.dtype),
        record,
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
    series = [one for one in alike_series(source.state) if one.is_like_layers]
    return [
        f"{one} are not taken for layers; `--layer_group {one.key[-1]}` says that they are"
        for one in series
        if scan_layers
    ]


def _aux_axes(state: TrainState, *layouts: str) -> dict[str, int]:
    """The layer axis of each collection, where a program of these layouts has one for all."""
    axes = [AUX_AXES[layout] for layout in layouts if layout in AUX_AXES]
    return {str(key[0]): axis for axis in axes for key in state.aux}


def _blocks(source: Understood, options: Options) -> Mapping[Key, Blocks]:
    """How the source's layers are stacked that have blocks."""
    known = known_families().values()
    return blocks_for(source.state, source.groups, known, options.family)


def _told_of(blocks: Mapping[Key, Blocks], options: Options) -> list[str]:
    """What is assumed of blocks whose family nobody has named."""
    return told_by_marks(blocks) if options.family is None else []


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


def _target(
    source: Understood, options: Options, like: Understood | None
) -> tuple[Codec, bool | None]:
    """The target's codec, and whether its layers are stacked (None: as they are)."""
    direction = options.direction
    named = options.to or (like.codec.name if like is not None else None)
    if named is None and direction == "auto" and _is_rearranged(source, options):
        named = source.codec.name
    if like is not None and options.to not in (None, like.codec.name):
        raise BadInput(f"`--to` is {options.to}, but `--like` is a {like.codec.name} checkpoint")
    if named is None and source.codec.family == "torch":
        raise BadInput(
            "the names of safetensors lead to no layout of JAX's",
            hint="name it: `--to maxtext`, `--to nnx-pure`, ...",
        )
    families = {CODECS[layout].family for layout in (source.codec.name, *source.others)}
    target_family = "nnx" if source.codec.family == "linen" else "linen"
    if direction != "auto":
        source_family, _, target_family = direction.partition("_to_")
        if source_family not in families:
            raise BadInput(
                f"`--direction {direction}` needs a {source_family} source,"
                f" but this is a {source.codec.name} checkpoint",
                details=source.evidence,
                hint="leave `--direction` out, or name the layout that you want with `--to`",
            )
        if named is not None and CODECS[named].family != target_family:
            raise BadInput(f"`--direction {direction}` does not lead to the {named} layout")
    elif named is None and len(families) > 1:
        raise _unclear(source)
    target = CODECS[named or target_family]
    if options.scan_layers is not None or (direction == "auto" and named is not None):
        return target, options.scan_layers
    return target, target.family == "nnx"


def _is_rearranged(source: Understood, options: Options) -> bool:
    """True for a run of MaxText that is given an arrangement, or a replica, and no other layout.

    MaxText 0.2.5 trains in one layout; its other family is history, and is asked for by `--to`.
    """
    asked = (options.scan_layers, options.layer_axis, options.replica)
    return source.codec.name == "maxtext" and any(option is not None for option in asked)


def _unclear(source: Understood) -> UnknownLayout:
    """Where the other family shall be gone to, and both could be meant."""
    return UnknownLayout(
        f"this could be {' or '.join((*source.others, source.codec.name))}",
        details=source.evidence,
        hint="`--to LAYOUT` says what it shall become, `--from LAYOUT` what it is",
    )


def _spelling(codec: Codec, options: Options) -> Spelling:
    """How layers are spelled that are taken apart.

    MaxText calls the layers of an NNX model that it serves `layers_0`, as its Linen models do; its
    `generate_param_only_checkpoint` unrolls stacks to that.
    """
    return "suffix" if options.params_only and codec.name == "nnx" else codec.spelling


def _form(
    codec: Codec,
    source: Understood,
    state: TrainState,
    like: Understood | None,
    *,
    is_copy: bool = False,
) -> Form:
    if like is not None:
        return like.form
    if codec.name == source.codec.name:
        return source.form
    recorded = source.record.forms.get(codec.name)
    is_export = state.opt_state is None and state.step is None
    if recorded is not None and is_export and recorded.opt_state not in NO_OPTIMIZER:
        return _params_only(recorded, codec.default_form(state))
    usual = replace(codec.default_form(state), empties=_known_empties(source))
    if is_copy:
        usual = replace(usual, has_root=codec.family == "linen" and bool(state.aux))
    if codec.family == source.codec.family == "linen":
        usual = replace(
            usual,
            collections=source.form.collections,
            inner_collections=source.form.inner_collections if usual.has_level else (),
        )
    return recorded or usual


def _known_empties(source: Understood) -> tuple[tuple[Key, str], ...]:
    """The optimizer's empty states, from the layout that spelled them out last."""
    forms = [source.form, *source.record.forms.values()]
    return next((form.empties for form in forms if form.empties), ())


def _params_only(form: Form, usual: Form) -> Form:
    """The form with a root and step as in checkpoints that hold parameters only."""
    return replace(
        form,
        has_root=usual.has_root,
        step_dtype=usual.step_dtype,
        step_is_scalar=usual.step_is_scalar,
        opt_state=usual.opt_state,
        empties=(),
    )


def _reduced(state: TrainState, options: Options) -> tuple[TrainState, dict[Key, str]]:
    """The state without what is not wanted, its parameters in the wanted type."""
    left_out: dict[Key, str] = {}
    if options.params_only:
        state, left_out = leave_out(state, ("opt_state", "step"), "--params_only")
        rngs = {key for key, leaf in state.aux.items() if is_rng_state(key, leaf)}
        state = state.with_aux({key: leaf for key, leaf in state.aux.items() if key not in rngs})
        left_out |= {("aux", *key): "--params_only" for key in in_order(rngs)}
    state, also = leave_out(state, options.without)
    if options.dequantize:
        state, multiplied = dequantised(state, options.dtype)
        also |= multiplied
    if options.dtype is not None:
        kept = uncast(state, options.dtype)
        params = {
            key: leaf if key in kept or isinstance(leaf, Literal) else cast(leaf, options.dtype)
            for key, leaf in state.params.items()
        }
        state = replace(state, params=params)
    return state, {**left_out, **also}


def uncast(state: TrainState, dtype: str | None) -> set[Key]:
    """The parameters that `--dtype` leaves as they are: quantised weights and their scales."""
    if dtype is None:
        return set()
    scales = scales_of(state.params)
    return {
        key
        for key, leaf in state.params.items()
        if not isinstance(leaf, Literal)
        and (key in scales or is_amax_history(key) or dtype_of(leaf) not in FLOATS)
    }


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
