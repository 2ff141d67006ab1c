"""What a codec is, and the conventions that a layout leaves open."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, get_args
from typing import Literal as OneOf

from nnxconv.state import Spelling, TrainState, Tree
from nnxconv.tree import Key, Leaf

Family = OneOf["linen", "nnx", "torch"]


@dataclass(frozen=True)
class Form:
    """How a tree spells what its layout leaves open, so that it can be written again exactly.

    Attributes:
      has_level: Linen: the weights stand under `params/params`, not directly under `params`.
      has_root: NNX: the weights stand under `model`, not at the root; Linen variables: under
        `params`.
      is_wrapped: nnx-optimizer: every leaf stands under a last key `value`.
      wrapper: tunix: name of the module that the model is wrapped in.
      step_dtype: element type of `step`; None when the tree has no step.
      step_is_scalar: Linen: `step` is a Python number.
      opt_state: `tree`, or how its absence is spelled: `absent`, or the kind of an empty literal.
      empties: canonical keys of the optimizer's empty states that the tree spells out, and kinds.
      spellings: how layers that are apart are spelled, by name of the group, where it is not the
        layout's own way.
      collections: Linen: names of the top-level entries besides step, params and opt_state.
      inner_collections: Linen: names of the collections that stand beside `params/params`.
      leveled: Linen: collections that hold weights under a `params` level, as averages do.
      boxed: Linen: names of parameters that stand in boxes (`kernel/value`).
      boxed_collections: Linen: collections all of whose variables stand in boxes.
    """

    has_level: bool = True
    has_root: bool = True
    is_wrapped: bool = True
    wrapper: str = ""
    step_dtype: str | None = None
    step_is_scalar: bool = False
    opt_state: str = "tree"
    empties: tuple[tuple[Key, str], ...] = ()
    spellings: Mapping[str, Spelling] = field(default_factory=dict)
    collections: tuple[str, ...] = ()
    inner_collections: tuple[str, ...] = ()
    leveled: tuple[str, ...] = ()
    boxed: tuple[str, ...] = ()
    boxed_collections: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The form as JSON values; what is as usual is left out."""
        usual = Form()
        unusual = {
            name: value
            for name in self.__dataclass_fields__
            if (value := getattr(self, name)) != getattr(usual, name)
        }
        record = {k: list(v) if isinstance(v, tuple) else v for k, v in unusual.items()}
        if self.empties:
            record["empties"] = [[list(key), kind] for key, kind in self.empties]
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Form":
        """The inverse of `to_json`; unknown fields are ignored.

        Raises:
          ValueError: a field is not what `to_json` writes.
        """
        known: dict[str, Any] = {}
        for name in ("has_level", "has_root", "is_wrapped", "step_is_scalar"):
            known[name] = record.get(name, getattr(cls, name))
            claim(name, isinstance(known[name], bool))
        for name in ("wrapper", "opt_state"):
            known[name] = record.get(name, getattr(cls, name))
            claim(name, isinstance(known[name], str))
        known["step_dtype"] = record.get("step_dtype")
        claim("step_dtype", known["step_dtype"] in (None, *_STEP_DTYPES))
        for name in _NAMES:
            known[name] = names(name, record.get(name, []))
        known["spellings"] = mapping("spellings", record.get("spellings", {}))
        claim("spellings", all(one in get_args(Spelling) for one in known["spellings"].values()))
        known["empties"] = tuple(
            (key_of("empties", key), kind)
            for key, kind in pairs("empties", record.get("empties", []))
        )
        claim("empties", all(isinstance(kind, str) for _, kind in known["empties"]))
        return cls(**known)


def reboxed(form: Form, moves: Mapping[Key, Sequence[Key]]) -> tuple[Form, list[str]]:
    """The form when parameters are renamed, and which boxes it cannot spell.

    >>> reboxed(Form(boxed=("kernel",)), {("up", "kernel"): [("up", "weight")]})[0].boxed
    ('weight',)
    """
    if not form.boxed:
        return form, []
    names: dict[bool, set[str]] = {True: set(), False: set()}
    for old, targets in moves.items():
        names[old[-1] in form.boxed] |= {str(new[-1]) for new in targets}
    problems = [
        f"some parameters would be called `{name}`, others `{name}/value`"
        for name in sorted(names[True] & names[False])
    ]
    return replace(form, boxed=tuple(sorted(names[True]))), problems


_NAMES = ("collections", "inner_collections", "leveled", "boxed", "boxed_collections")
_STEP_DTYPES = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


def claim(field_name: str, is_so: bool) -> None:
    """Raises ValueError, which names a field, unless something is so."""
    if not is_so:
        raise ValueError(f"`{field_name}` is not what a conversion writes")


def names(field_name: str, value: Any) -> tuple[str, ...]:
    """A JSON list of texts."""
    claim(field_name, isinstance(value, list) and all(isinstance(one, str) for one in value))
    return tuple(value)


def mapping(field_name: str, value: Any) -> dict[str, Any]:
    """A JSON mapping."""
    claim(field_name, isinstance(value, dict))
    return value


def pairs(field_name: str, value: Any) -> list[Any]:
    """A JSON list of lists of two."""
    claim(field_name, isinstance(value, list))
    claim(field_name, all(isinstance(one, list) and len(one) == 2 for one in value))
    return value


def key_of(field_name: str, value: Any) -> Key:
    """A JSON list of names and indices."""
    claim(field_name, isinstance(value, list) and all(type(part) in (str, int) for part in value))
    return tuple(value)


PARAMETERS = "params"
"""What a record calls variables that are parameters, whatever their names suggest."""


@dataclass(frozen=True)
class Record:
    """What an earlier conversion wrote into the checkpoint's metadata for the way back.

    Attributes:
      forms: for each layout that the state has been in, its form there.
      collections: for each collection that cannot be told by its variables' names, their paths;
        `params` for parameters whose names suggest otherwise.
      axes: the layer axis of each group that was written as a stack.
      layout: the layout that was written, and `has_root` as in its form.
      layer_group: further names of layer groups, as `--layer_group` gave them.
      family: of the blocks that its layers were stacked in before they were taken apart.
    """

    forms: Mapping[str, Form] = field(default_factory=dict)
    collections: Mapping[str, tuple[Key, ...]] = field(default_factory=dict)
    axes: Mapping[Key, int] = field(default_factory=dict)
    layout: str | None = None
    has_root: bool = True
    layer_group: tuple[str, ...] = ()
    family: str = ""

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        family = {"family": self.family} if self.family else {}
        return family | {
            "layout": self.layout,
            "layer_group": list(self.layer_group),
            "has_root": self.has_root,
            "forms": {name: form.to_json() for name, form in self.forms.items()},
            "collections": {
                name: [list(path) for path in paths] for name, paths in self.collections.items()
            },
            "axes": [[list(key), axis] for key, axis in self.axes.items()],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Record":
        """The inverse of `to_json`.

        Raises:
          ValueError: a field is not what `to_json` writes.
        """
        mapping("nnxconv", record)
        forms = mapping("forms", record.get("forms", {}))
        collections = mapping("collections", record.get("collections", {}))
        for paths in collections.values():
            claim("collections", isinstance(paths, list))
        axes = {key_of("axes", k): axis for k, axis in pairs("axes", record.get("axes", []))}
        claim("axes", all(type(axis) is int and 0 <= axis < 32 for axis in axes.values()))
        layout, has_root = record.get("layout"), record.get("has_root", True)
        claim("layout", layout is None or isinstance(layout, str))
        claim("has_root", isinstance(has_root, bool))
        family = record.get("family", "")
        claim("family", isinstance(family, str))
        return cls(
            {name: Form.from_json(mapping(name, form)) for name, form in forms.items()},
            {
                name: tuple(key_of("collections", path) for path in paths)
                for name, paths in collections.items()
            },
            axes,
            layout,
            has_root,
            names("layer_group", record.get("layer_group", [])),
            family,
        )


@dataclass(frozen=True)
class Reading:
    """Why a tree is, or is not, of a layout; it is when nothing speaks against it.

    `is_bare` is true where any names may stand at the root: such a reading gives way to one that
    knows them. `others` names further layouts that it could be of as well, with the same meaning.
    """

    evidence: tuple[str, ...] = ()
    objections: tuple[str, ...] = ()
    is_bare: bool = False
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decoded:
    """A tree with its meaning: the state (layers still as stored), its form, what was decided."""

    state: TrainState
    form: Form
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """A tree in a layout, and what had to be assumed to write it."""

    tree: dict[Key, Leaf]
    form: Form
    assumed: tuple[str, ...] = ()


class Codec(Protocol):
    """One layout. Codecs rearrange names and views; they never read an array."""

    @property
    def name(self) -> str:
        """The layout's name, as `--to` takes it."""
        ...

    @property
    def family(self) -> Family:
        """The API whose programs write this layout."""
        ...

    @property
    def spelling(self) -> Spelling:
        """How layers that are apart are spelled."""
        ...

    def recognise(self, tree: Tree) -> Reading:
        """What speaks for and against the tree being of this layout."""
        ...

    def decode(self, tree: Tree, record: Record) -> Decoded:
        """The meaning of a tree that is of this layout."""
        ...

    def default_form(self, state: TrainState) -> Form:
        """The form in which a state is written when nothing else is known."""
        ...

    def misfits(self, state: TrainState, form: Form) -> list[Key]:
        """The canonical keys, such as `("aux", "rngs", ...)`, that this layout has no place for."""
        ...

    def encode(self, state: TrainState, form: Form) -> Encoded:
        """The state in this layout.

        Raises:
          CannotHold: the state has leaves that `misfits` names.
        """
        ...
