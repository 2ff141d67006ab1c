"""Which family of Hugging Face a conversion or comparison is about, and what it has to know."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nnxconv.commands.opening import Opened
from nnxconv.errors import BadInput
from nnxconv.layouts import TENSORS, Conversion, Options, Understood, convert_tree
from nnxconv.renaming import (
    Family,
    family_for,
    from_hugging_face,
    templates,
    to_hugging_face,
)
from nnxconv.state import Apart
from nnxconv.tree import Source, View

HUGGING_FACE = "hf"
"""What `--to` calls safetensors under the names of transformers."""

OF_MAXTEXT = ("maxtext", "linen")
"""Layouts whose names are MaxText's."""


@dataclass(frozen=True)
class Crossing:
    """A conversion between the names of transformers and those of MaxText.

    Attributes:
      family: the rules.
      is_back: towards transformers.
      files: small files that go into the target, by name.
    """

    family: Family
    is_back: bool
    files: Mapping[str, Any]

    def source(self, source: Understood, options: Options) -> Understood:
        """The source under the target's names."""
        if self.is_back:
            return to_hugging_face(source, self.family, options)
        found = from_hugging_face(source, self.family, options)
        told = f"as `{self.family.name}`, which is what `config.json` says"
        return replace(found, notes=(*found.notes, told))

    def converted(self, source: Understood, options: Options) -> Conversion:
        """A source under the target's names in the target's layout."""
        if self.is_back:
            return convert_tree(source, replace(options, scan_layers=False), None)
        blocks = self.family.blocks(options.layer_axis)
        arrangements = None
        if options.scan_layers and blocks is not None:
            arrangements = {
                group.key: blocks for group in source.groups if isinstance(group.arrangement, Apart)
            }
        return convert_tree(source, options, None, arrangements or None)


def crossing(
    options: Options, rename: object, config: str | None, opened: Opened
) -> tuple[Options, Crossing | None]:
    """How names of transformers are crossed to or from, and the options without `hf`.

    Raises:
      BadInput: `--to hf` is not told of which model; `config.json` is missing, or of no family.
    """
    if options.to == HUGGING_FACE:
        if config is None:
            raise BadInput(
                "`--to hf` needs `--config HF_DIR`",
                hint="the folder of the model on Hugging Face, or its `config.json`: it says which"
                " names, types and files are written",
            )
        return replace(options, to=TENSORS), _back(config)
    if config is not None:
        raise BadInput("`--config` is for `--to hf`")
    is_named = isinstance(rename, str) and rename in templates()
    is_crossed = options.to in OF_MAXTEXT and rename is None
    if opened.location.container != TENSORS or not (is_named or is_crossed):
        return options, None
    family = family_of(opened, str(rename) if is_named else "")
    return options, None if family is None else Crossing(family, False, {})


def family_of(opened: Opened, name: str = "") -> Family | None:
    """The family of an opened folder, or the one of this name; None without `config.json`.

    Raises:
      BadInput: `config.json` is of no family.
    """
    from nnxconv.storage.files import read_json
    from nnxconv.storage.safetensors import CONFIG, home_of

    file = home_of(opened.location.item) / CONFIG
    if not file.exists():
        if name:
            raise BadInput(f"`{name}` needs `{CONFIG}`", where=str(file.parent))
        return None
    return family_for(
        read_json(file), _arrays(opened), template=templates().get(name, ""), name=name
    )


def _arrays(opened: Opened) -> dict[str, View]:
    return {leaf.name: leaf for leaf in opened.item.tree.values() if isinstance(leaf, Source)}


def _back(config: str) -> Crossing:
    """What a folder of Hugging Face, or its `config.json`, says of how another one is written."""
    from nnxconv.storage.files import open_folder, read_json
    from nnxconv.storage.orbax import absolute
    from nnxconv.storage.safetensors import CONFIG, companions, find_tensors, has_tensors

    given = absolute(config)
    home = given.parent if given.name == CONFIG else given
    if not (home / CONFIG).exists():
        raise BadInput(f"`{config}` has no `{CONFIG}`", hint="give the folder of the model")
    folder = open_folder(home)
    told = read_json(home / CONFIG)
    arrays: dict[str, View] = {}
    dtypes: dict[str, str] = {}
    if has_tensors(folder):
        for name, one in find_tensors(folder).arrays.items():
            arrays[name] = Source(name, one.shape, one.dtype, one.shape)
            dtypes[name] = one.dtype
    usual = told.get("dtype") or told.get("torch_dtype")
    if not dtypes and isinstance(usual, str):
        dtypes[""] = usual
    family = replace(family_for(told, arrays), dtypes=dtypes)
    return Crossing(family, True, companions(folder))
