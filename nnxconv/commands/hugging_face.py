"""Which family of Hugging Face a conversion or comparison is about, and what it has to know."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nnxconv.commands.adapters import (
    FORMS,
    adapters_at,
    configuration,
    form_of,
    is_peft,
    weights_of,
)
from nnxconv.commands.opening import Opened
from nnxconv.errors import BadInput
from nnxconv.layouts import TENSORS, Conversion, Options, Understood, convert_tree
from nnxconv.renaming import (
    LINEN,
    MAXTEXT,
    HuggingFaceFamily,
    Rules,
    adapter_family,
    asked_rules,
    family_for,
    from_hugging_face,
    renamed,
    rounding,
    templates,
    to_hugging_face,
    unwritten,
)
from nnxconv.state import Apart
from nnxconv.tree import Key, Source, View, spell

HUGGING_FACE = "hf"
"""What `--to` calls safetensors under the names of transformers."""

TUNIX = "tunix"
TARGETS = {"maxtext": MAXTEXT, "linen": LINEN, "tunix": TUNIX}
"""Whose names a folder of Hugging Face gets in a layout, where not its own."""


@dataclass(frozen=True)
class Crossing:
    """A conversion between the names of transformers and those of MaxText or Tunix.

    Attributes:
      family: the rules.
      is_back: towards transformers.
      files: small files that go into the target, by name.
    """

    family: HuggingFaceFamily
    is_back: bool = False
    files: Mapping[str, Any] = field(default_factory=dict)

    def source(self, source: Understood, options: Options) -> Understood:
        """The source under the target's names."""
        to, told = "to" if self.is_back else "from", self.family.name
        notes = [f"{to} the names of transformers by `{told}`, as `config.json` says"]
        if rounded := rounding(self.family, source, options, is_back=self.is_back):
            notes.append(rounded)
        step = to_hugging_face if self.is_back else from_hugging_face
        found = step(source, self.family, options)
        if self.is_back:
            notes += unwritten(self.family, found.state.params)
        return replace(found, notes=(*found.notes, *notes))

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
    family = rename if isinstance(rename, str) and rename in templates() else ""
    if options.to == HUGGING_FACE:
        if rename is not None and not family:
            raise BadInput(
                "`--to hf` follows the rules of a family",
                details=[f"`--rename` may name one: {', '.join(templates())}"],
                hint="first convert with `--rename`, then to `hf`",
            )
        if config is None:
            raise BadInput(
                "`--to hf` needs `--config HF_DIR`",
                hint="the folder of the model on Hugging Face, or its `config.json`: it says which"
                " names, types and files are written",
            )
        return replace(options, to=TENSORS), _back(config, family, opened)
    layout = options.to or ""
    if is_peft(opened) and (family or rename is None) and layout in FORMS:
        return options, Crossing(_adapters(opened, family, layout, config))
    if config is not None:
        raise BadInput("`--config` is for `--to hf`, and for adapters of PEFT")
    target = None if rename is not None else TARGETS.get(layout)
    if opened.location.container != TENSORS or not (family or target):
        return options, None
    found = family_of(opened, family, target or MAXTEXT)
    return options, None if found is None else Crossing(found)


def refuse_unnamed(options: Options, opened: Opened) -> None:
    """Refuses weights under PyTorch's names for a program that would look for its own.

    Raises:
      BadInput: nothing says which model they are of.
    """
    from nnxconv.storage.safetensors import CONFIG

    if opened.location.container != TENSORS or options.to not in (MAXTEXT, TUNIX):
        return
    keys = [key for one in opened.survey.states for key in one.understood.state.params]
    torch = [key for key in keys if str(key[-1]).rpartition(".")[2] == "weight"]
    if not torch:
        return
    raise BadInput(
        f"`--to {options.to}` needs to know which model these are the weights of",
        where=str(opened.location.item),
        details=[f"`{spell(torch[0])}` is no name of it, and there is no `{CONFIG}`"],
        hint=f"put the model's `{CONFIG}` beside them, or give `--rename FILE`"
        "; `--to nnx-pure` keeps the names",
    )


def asked_names(
    rename: str | Rules | None, rename_back: str | Rules | None, opened: Opened
) -> Rules | HuggingFaceFamily | None:
    """The rules that are asked for, or the family whose name is given.

    Raises:
      BadInput: both ways are asked for, or what is named is not there or cannot be read.
    """
    from nnxconv.storage.files import read_text

    if isinstance(rename, str) and rename in templates() and rename_back is None:
        return family_of(opened, rename)
    return asked_rules(rename, rename_back, read_text)


def under_names(
    source: Understood, names: Rules | HuggingFaceFamily, options: Options
) -> Understood:
    """A checkpoint under the names that rules or a family give it.

    Raises:
      RuleError: they do not fit.
    """
    if isinstance(names, HuggingFaceFamily):
        return from_hugging_face(source, names, options)
    return renamed(source, names, options)


def family_of(opened: Opened, name: str = "", target: str = MAXTEXT) -> HuggingFaceFamily | None:
    """The family of an opened folder, or the one of this name; None without `config.json`.

    `target` says whose names it leads to, where no family is named.

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
    return family_for(read_json(file), _arrays(opened), name=name, target=target)


def one_sided(a: Opened, b: Opened) -> tuple[HuggingFaceFamily | None, HuggingFaceFamily | None]:
    """The families of two sides of which one has the names of transformers, the other a target's.

    Two folders of Hugging Face are compared under their own names.
    """
    is_tensors = [side.location.container == TENSORS for side in (a, b)]
    target = _target_in(b if is_tensors[0] else a)
    if is_tensors[0] == is_tensors[1] or target is None:
        return None, None
    if is_tensors[0]:
        return family_of(a, target=target), None
    return None, family_of(b, target=target)


def _target_in(opened: Opened) -> str | None:
    """Whose names a checkpoint has: MaxText's, Tunix', those of Flax in transformers, or others."""
    return target_of_names(
        key for one in opened.survey.states for key in one.understood.state.params
    )


def target_of_names(names: Iterable[Key]) -> str | None:
    """Whose names these are: MaxText's, Tunix', those of Flax in transformers, or others."""
    keys = list(names)
    if any("decoder" in key or "token_embedder" in key for key in keys):
        return MAXTEXT
    if any(key[:2] == ("transformer", "wte") and key[-1] == "embedding" for key in keys):
        return LINEN
    return TUNIX if any(key[:2] == ("embedder", "input_embedding") for key in keys) else None


def _arrays(opened: Opened) -> dict[str, View]:
    return {leaf.name: leaf for leaf in opened.item.tree.values() if isinstance(leaf, Source)}


def _adapters(opened: Opened, asked: str, layout: str, config: str | None) -> HuggingFaceFamily:
    """The family of the model that adapters of PEFT belong to, for them.

    Raises:
      BadInput: the model's configuration is not known.
    """
    from nnxconv.storage.files import read_json
    from nnxconv.storage.safetensors import CONFIG, home_of

    home = home_of(opened.location.item) if config is None else _home(config)
    if not (home / CONFIG).exists():
        raise BadInput(
            "adapters of PEFT do not say which model they belong to",
            where=str(home),
            hint="`--config HF_DIR` names the model's folder, or its `config.json`",
        )
    target = TUNIX if layout == TUNIX else MAXTEXT
    told = read_json(home / CONFIG)
    return adapter_family(
        family_for(told, weights_of(opened), name=asked, target=target), FORMS[layout]
    )


def _home(config: str) -> Any:
    """The folder of a model that is given by its path, or by that of its `config.json`.

    Raises:
      BadInput: there is no `config.json`.
    """
    from nnxconv.storage.orbax import absolute
    from nnxconv.storage.safetensors import CONFIG

    given = absolute(config)
    home = given.parent if given.name == CONFIG else given
    if not (home / CONFIG).exists():
        raise BadInput(f"`{config}` has no `{CONFIG}`", hint="give the folder of the model")
    return home


def _back(config: str, asked: str, opened: Opened) -> Crossing:
    """What a folder of Hugging Face, or its `config.json`, says of how another one is written."""
    from nnxconv.storage.files import open_folder, read_json
    from nnxconv.storage.safetensors import CONFIG, find_tensors, has_tensors, small_files

    home = _home(config)
    adapters = adapters_at(opened)
    folder = open_folder(home)
    told = read_json(home / CONFIG)
    arrays: dict[str, View] = {}
    dtypes: dict[str, str] = {}
    if has_tensors(folder):
        for name, one in find_tensors(folder, home).items():
            arrays[name] = Source(name, one.shape, one.dtype, one.shape)
            dtypes[name] = one.dtype
    usual = told.get("dtype") or told.get("torch_dtype")
    if not dtypes and isinstance(usual, str):
        dtypes[""] = usual
    if adapters:
        form = form_of(adapters)
        target = TUNIX if form == "apart" else MAXTEXT
        family = adapter_family(family_for(told, arrays, name=asked, target=target), form)
        return Crossing(family, is_back=True, files=configuration(opened, home))
    target = _target_in(opened) or MAXTEXT
    family = replace(family_for(told, arrays, name=asked, target=target), dtypes=dtypes)
    return Crossing(family, is_back=True, files=small_files(folder))
