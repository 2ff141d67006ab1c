"""What a tree is: its layout recognised, its meaning in the canonical state, its layers named."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nnxconv.errors import BadInput, DamagedCheckpoint, NnxconvError
from nnxconv.layouts.form import Codec, Form, Reading, Record
from nnxconv.layouts.names import AUX_AXES
from nnxconv.layouts.recognition import CODECS, recognise
from nnxconv.layouts.replicas import in_replicas, replicas_of, without_replicas
from nnxconv.state import (
    DEFAULT_NAMES,
    Apart,
    Family,
    LayerGroup,
    Spelling,
    TrainState,
    Tree,
    alike_series,
    families_with,
    names_in,
    number_layers,
    unstack,
)
from nnxconv.tree import Key, Leaf

TENSORS = "safetensors"
"""A layout that the container says, whatever the names."""

RECORD = "nnxconv"
"""Where a checkpoint's custom metadata keep the record of earlier conversions."""


@dataclass(frozen=True)
class Understood:
    """A checkpoint with its meaning: layout, canonical state, layer groups, form and evidence.

    `origin` names the program's own format where the checkpoint is none of Orbax's layouts; the
    codec is then that of the layout whose state it holds. Where there are rules (of `renaming`),
    state and groups are the renamed ones, and `renamed` says what that did; the tree is as it is on
    disk. `others` are layouts that it could be of as well, with the same meaning. `aside` names, by
    canonical key, leaves that are not in the state, and why. `as_stored` is the state under its own
    names, its layers arranged as they are on disk. `families` are those whose blocks are known;
    None for all that come with nnxconv.
    """

    codec: Codec
    evidence: tuple[str, ...]
    notes: tuple[str, ...]
    state: TrainState
    groups: tuple[LayerGroup, ...]
    form: Form
    record: Record
    tree: Tree
    as_stored: TrainState
    is_scanned: bool | None = None
    layer_group: tuple[str, ...] = ()
    origin: str = ""
    rules: Any = None
    renamed: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    aside: Mapping[Key, tuple[Leaf, str]] = field(default_factory=dict)
    families: tuple[Family, ...] | None = None

    @property
    def layout(self) -> str:
        """What the checkpoint is, by name."""
        return self.origin or self.codec.name


def understand(
    tree: Tree,
    *,
    custom_metadata: Mapping[str, Any],
    is_scanned: bool | None = None,
    layout: str | None = None,
    layer_axis: int | None = None,
    layer_group: Sequence[str] = (),
    family: Family | None = None,
    where: str = "",
    like: Understood | None = None,
) -> Understood:
    """Recognises a tree's layout, and brings it to the canonical state.

    A tree with the same layers as one that is known, and more of them, is understood as it is
    (`like`).

    Raises:
      UnknownLayout: no layout fits, or several do.
      BadInput: the tree is not of the stated layout, or has no group of a stated name.
    """
    record = _record(custom_metadata, where)
    codec, reading = (
        _layout_of(tree, layout, record, where)
        if like is None
        else (like.codec, Reading(like.evidence, others=like.others))
    )
    decoded = codec.decode(tree, record)
    refuse_unknown(layer_group, decoded.state)
    understood = Understood(
        codec,
        reading.evidence,
        decoded.notes,
        decoded.state,
        (),
        decoded.form,
        record,
        tree,
        decoded.state,
        is_scanned,
        tuple(dict.fromkeys((*layer_group, *record.layer_group))),
        others=reading.others,
        families=families_with(family),
    )
    numbered = None if like is None else number_layers(decoded.state, like.groups)
    if numbered is None:
        return with_layers(understood, layer_axis)
    return _with_groups(understood, *numbered)


def _record(custom_metadata: Mapping[str, Any], where: str) -> Record:
    try:
        return Record.from_json(custom_metadata.get(RECORD) or {})
    except ValueError as error:
        raise no_record(error, where) from error


def no_record(error: Exception, where: str) -> DamagedCheckpoint:
    """What is said of metadata that are not what a conversion records."""
    return DamagedCheckpoint(
        f"`custom_metadata.{RECORD}` is not the record of a conversion: {error}", where=where
    )


def refuse_unknown(layer_group: Iterable[str], *states: TrainState) -> None:
    """Raises BadInput for names of layers that none of the states has."""
    asked = set(layer_group)
    unknown = asked.difference(*map(names_in, states)) if asked else asked
    if unknown:
        alike = [str(one) for state in states for one in alike_series(state)]
        raise BadInput(
            f"no layers are called {', '.join(f'`{n}`' for n in sorted(unknown))}",
            details=[f"{one} are alike" for one in dict.fromkeys(alike)],
        )


def with_layers(understood: Understood, layer_axis: int | None) -> Understood:
    """The same checkpoint under its own names, unclear stacks read with the layers on that axis."""
    if understood.groups or understood.rules:
        understood = replace(understood, state=understood.as_stored)
    count = replicas_of(understood.state)
    if not count:
        return _with_groups(understood, *_unstacked(understood, understood.state, layer_axis))
    _, of_one = _unstacked(understood, without_replicas(understood.state), layer_axis)
    stacks = [
        in_replicas(group, count) for group in of_one if not isinstance(group.arrangement, Apart)
    ]
    whole = replace(understood, is_scanned=False)
    state, groups = _unstacked(whole, whole.state, layer_axis)
    return _with_groups(understood, state, [*groups, *stacks])


def _unstacked(
    understood: Understood, state: TrainState, layer_axis: int | None
) -> tuple[TrainState, list[LayerGroup]]:
    """The state with its layers apart, as the checkpoint's layout and its record have them."""
    return unstack(
        state,
        names=(*DEFAULT_NAMES, *understood.layer_group),
        layer_axis=layer_axis,
        known_axes=understood.record.axes,
        is_scanned=understood.is_scanned,
        aux_axis=AUX_AXES.get(understood.codec.name),
        families=understood.families,
    )


def _with_groups(
    understood: Understood, state: TrainState, groups: Sequence[LayerGroup]
) -> Understood:
    form = replace(understood.form, spellings=_spellings(understood.codec, groups))
    return replace(understood, state=state, groups=tuple(groups), form=form)


def with_layer_names(side: Understood, names: Iterable[str]) -> Understood:
    """The side, not yet read anew, with further names of layer groups."""
    return replace(side, layer_group=tuple(dict.fromkeys((*side.layer_group, *names))))


def _layout_of(tree: Tree, layout: str | None, record: Record, where: str) -> tuple[Codec, Reading]:
    """The tree's codec, and why: stated, as nnxconv wrote it, or recognised."""
    stated = layout or record.layout
    if stated is not None and stated in CODECS:
        codec = CODECS[stated]
        if _comes_back(codec, tree, record):
            if layout == TENSORS:
                return codec, Reading((TENSORS,))
            return codec, Reading(("stated by `--from`" if layout else "written by nnxconv",))
        if layout is not None:
            raise BadInput(
                f"this is not a tree in the {layout} layout",
                where=where,
                details=codec.recognise(tree).objections,
            )
    return recognise(tree, where)


def _comes_back(codec: Codec, tree: Tree, record: Record) -> bool:
    """True when the codec gives exactly this tree back, so that it reads every leaf of it."""
    try:
        decoded = codec.decode(tree, record)
        is_exact = codec.encode(decoded.state, decoded.form).tree == dict(tree)
    except NnxconvError:
        return False
    return is_exact and bool(decoded.state.params)


def _spellings(codec: Codec, groups: Sequence[LayerGroup]) -> dict[str, Spelling]:
    """How the layers of each group are spelled, where it is not the layout's own way."""
    return {
        str(group.key[-1]): group.arrangement.spelling
        for group in groups
        if isinstance(group.arrangement, Apart) and group.arrangement.spelling != codec.spelling
    }
