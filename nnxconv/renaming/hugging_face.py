"""Families of Hugging Face: from the names of transformers to MaxText's, Tunix' or Flax', and back.

Each family is a file `hf-NAME.toml.j2` beside this one: a set of rules (see `toml`) in which Jinja
fills in what a model's `config.json` says, between `<<` and `>>`, and `<%` and `%>`. Besides rules
it has

```toml
[family]
model_types = ["llama", "mistral"]      # of `config.json`
target = "tunix"                        # whose names it leads to; "maxtext" by default, "linen"
                                        # for those of transformers' own models in Flax
period = 6                              # stacked layers are blocks of so many; 1 by default
blocks = "qwen3.5"                      # what these blocks are called: a table of families.toml
full_every = 6                          # every sixth layer attends to everything, and no others; a
                                        # `config.json` that says otherwise is refused

[left_out]
"lm_head.weight" = "is tied: ..."       # arrays that the target's model does not have, and why
```

A template knows `config` (of a model of texts and images that of the texts), `size(NAME, AXIS)` of
an array, which is None where the array is not there, `sqrt`, `gcd`, and `float32` and `bfloat16`,
which round.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from math import gcd, sqrt
from typing import Any

import ml_dtypes
import numpy as np

from nnxconv.errors import BadInput
from nnxconv.renaming.hugging_face_defaults import with_defaults
from nnxconv.renaming.pattern import Pattern, parse
from nnxconv.renaming.rule import Rules
from nnxconv.renaming.toml import parse_rules
from nnxconv.state import Arrangement, Blocks, known_families
from nnxconv.tree import View

SUFFIX = ".toml.j2"
_MODEL_TYPES = re.compile(r"^model_types = (\[[^\]]*\])", re.MULTILINE)
_TARGET = re.compile(r'^target = "(\w+)"', re.MULTILINE)
MAXTEXT = "maxtext"
"""The target of a family that names none."""
LINEN = "linen"
"""The target of models of transformers in Flax; where there is none, MaxText's is meant."""


@dataclass(frozen=True)
class HuggingFaceFamily:
    """A family's rules, for one model of it.

    Attributes:
      name: `hf-llama`.
      rules: from transformers to the target.
      left_out: which arrays the target's model does not have, and why.
      period: how many layers a block has, where stacked layers are blocks.
      stack: the known family of such blocks.
      dtypes: the types of the arrays of a folder that is written like another one.
      layers: how many the model has; None where its configuration does not say.
      quantised: how the folder's weights are quantised; empty where they are not.
      is_whole: the arrays are all those of the model, as those of an adapter are not.
    """

    name: str
    rules: Rules
    left_out: tuple[tuple[Pattern, str], ...] = ()
    period: int = 1
    stack: str = "blocks"
    dtypes: Mapping[str, str] = field(default_factory=dict)
    layers: int | None = None
    quantised: str = ""
    is_whole: bool = True

    def blocks(self, axis: int | None) -> Arrangement | None:
        """How stacked layers are arranged; None where one after the other."""
        if self.period == 1:
            return None
        return Blocks(1 if axis is None else axis, self.period, family=known_families()[self.stack])


@cache
def templates() -> Mapping[str, str]:
    """The families that come with nnxconv: their files, by name."""
    files = resources.files("nnxconv.renaming").iterdir()
    texts = {f.name.removesuffix(SUFFIX): f.read_text() for f in files if f.name.endswith(SUFFIX)}
    return dict(sorted(texts.items()))


def model_types(template: str) -> list[str]:
    """What `config.json` calls the models of a family."""
    found = _MODEL_TYPES.search(template)
    return tomllib.loads(f"types = {found[1]}")["types"] if found else []


def target_of(template: str) -> str:
    """Whose names a family leads to: "maxtext", "tunix" or "linen"."""
    found = _TARGET.search(template)
    return found[1] if found else MAXTEXT


def _family_of_type(kind: object, target: str) -> str:
    """The family that leads models of a type to a target.

    Raises:
      BadInput: there is none.
    """
    targets = (LINEN, MAXTEXT) if target == LINEN else (target,)
    known = {n: model_types(text) for n, text in templates().items() if target_of(text) in targets}
    found = [name for name, kinds in known.items() if kind in kinds]
    if kind is None:
        raise BadInput(
            "`config.json` does not say of which `model_type` the model is",
            hint=f"`--rename` may name its family: {', '.join(known)}",
        )
    if not found:
        every = sorted(kind for kinds in known.values() for kind in kinds)
        where = f" and names of {target}" if target not in (LINEN, MAXTEXT) else ""
        raise BadInput(
            f"no family of nnxconv has models of the type `{kind}`{where}",
            details=[f"known are {', '.join(every)}"],
            hint="`nnxconv match SRC TEMPLATE` proposes rules; `--to nnx-pure` keeps the names",
        )
    return found[0]


def family_for(
    config: Mapping[str, Any],
    arrays: Mapping[str, View],
    *,
    name: str = "",
    target: str = MAXTEXT,
) -> HuggingFaceFamily:
    """The family of a model.

    Args:
      config: what its `config.json` says.
      arrays: those of its folder, by name; none where there are none.
      name: a family; by default the one for the model's type and the target.
      target: whose names it leads to, where no family is named.

    Raises:
      BadInput: there is no family for this type, its file cannot be filled in, or the model's
        layers have other windows than those of the target; this not where it is named.
    """
    named, name = bool(name), name or _family_of_type(_type_of(config), target)
    text = _filled_in(templates()[name], config, arrays, name)
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _untold(name, error) from error
    told_family = document.get("family", {})
    if not named:
        _refuse_other_windows(config, told_family.get("full_every"), name)
    told = document.get("left_out", {})
    return HuggingFaceFamily(
        name,
        parse_rules(text, name),
        tuple((parse(pattern), str(why)) for pattern, why in told.items()),
        int(told_family.get("period", 1)),
        str(told_family.get("blocks", "blocks")),
        layers=_layers(config),
        quantised=_quantised(config),
    )


def _type_of(config: Mapping[str, Any]) -> object:
    """What a configuration calls the model, or else the model of texts in it."""
    texts = config.get("text_config")
    told = config.get("model_type") or (
        texts.get("model_type") if isinstance(texts, dict) else None
    )
    return told or None


def _layers(config: Mapping[str, Any]) -> int | None:
    """How many layers a configuration says that the model of texts has."""
    whole = _texts(config)
    found = whole.get("num_hidden_layers", whole.get("n_layer"))
    return found if isinstance(found, int) else None


def _refuse_other_windows(config: Mapping[str, Any], every: object, name: str) -> None:
    """Refuses a model of which other layers attend to everything than of the target's.

    Raises:
      BadInput: its configuration says so.
    """
    if not isinstance(every, int):
        return
    told = _texts(config)
    types, pattern = told.get("layer_types"), told.get("sliding_window_pattern")
    problems = []
    if isinstance(types, list):
        wanted = [(i + 1) % every == 0 for i in range(len(types))]
        problems = [
            f"layer {i} is `{kind}`"
            for i, (kind, is_full) in enumerate(zip(types, wanted, strict=True))
            if (kind == "full_attention") != is_full
        ]
    elif isinstance(pattern, int) and pattern != every:
        problems = [f"`sliding_window_pattern` is {pattern}"]
    if problems:
        which = "every layer" if every == 1 else f"the last of every {every} layers alone"
        raise BadInput(
            f"models of `{name}` have full attention in {which}, and this one has not",
            details=problems,
            hint=f"`--rename {name}` converts it all the same",
        )


def _texts(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with what it says of its model of texts, where that stands apart.

    Whether the output layer is tied is the whole model's, as in transformers 5.
    """
    texts = config.get("text_config")
    whole = {**config, **(texts if isinstance(texts, dict) else {})}
    return {**whole, **{name: config[name] for name in (_TIED,) if name in config}}


_TIED = "tie_word_embeddings"


def _quantised(config: Mapping[str, Any]) -> str:
    """How a configuration says that weights are quantised: `fp8`."""
    told = config.get("quantization_config")
    return str(told.get("quant_method", "somehow")) if isinstance(told, dict) else ""


def _filled_in(
    template: str, config: Mapping[str, Any], arrays: Mapping[str, View], name: str
) -> str:
    """The rules of a family for one model."""
    import jinja2.sandbox  # noqa: TID251

    def size(array: str, axis: int) -> int | None:
        found = arrays.get(array)
        return None if found is None or axis >= len(found.shape) else found.shape[axis]

    environment = jinja2.sandbox.SandboxedEnvironment(
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.tests["found_below"] = lambda root: any(n.startswith(f"{root}.") for n in arrays)
    whole = with_defaults({**_texts(config), "model_type": _type_of(config)})
    is_bare = any(name.startswith("embed_tokens.") for name in arrays)
    if is_bare:
        whole["tie_word_embeddings"] = True
    try:
        text = environment.from_string(template).render(
            config=_Config(whole),
            size=size,
            sqrt=sqrt,
            gcd=gcd,
            float32=lambda number: repr(float(np.float32(number))),
            bfloat16=lambda number: repr(float(ml_dtypes.bfloat16(number))),
        )
    except (jinja2.TemplateError, *_NOT_FILLED_IN) as error:
        raise _untold(name, error) from error
    return text.replace(f'"{_ROOT}', '"').replace(f", {_ROOT}", ", ") if is_bare else text


_ROOT = "model."
"""What names begin with, but those of a model that was saved without the output layer around it."""

_NOT_FILLED_IN = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, MemoryError)
"""What templates raise where a configuration has values that no model has."""


def _untold(name: str, error: Exception) -> BadInput:
    return BadInput(f"`config.json` does not tell what `{name}` needs: {error}")


class _Config(dict[str, Any]):
    """A configuration, whose entries a template may also name as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)
