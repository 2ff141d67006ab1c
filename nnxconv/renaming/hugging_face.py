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

[left_out]
"lm_head.weight" = "is tied: ..."       # arrays that the target's model does not have, and why
```

A template knows `config` (of a model of texts and images that of the texts), `size(NAME, AXIS)` of
an array, which is None where the array is not there, `sqrt`, and `float32` and `bfloat16`, which
round.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from math import frexp, sqrt
from typing import Any

import ml_dtypes
import numpy as np

from nnxconv.errors import BadInput
from nnxconv.layouts import Options, Understood
from nnxconv.renaming.apply import fits
from nnxconv.renaming.checkpoints import renamed
from nnxconv.renaming.numbers import Add, DivideBy, Times
from nnxconv.renaming.pattern import Pattern, parse
from nnxconv.renaming.rule import Rules
from nnxconv.renaming.steps import Step
from nnxconv.renaming.toml import parse_rules
from nnxconv.state import Arrangement, Blocks
from nnxconv.tree import NOTHING, Key, Literal, View, cast, dtype_of, in_order, notation, spell

SUFFIX = ".toml.j2"
_NUMBERS = re.compile(r"\[\d+\]")
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
      dtypes: the types of the arrays of a folder that is written like another one.
    """

    name: str
    rules: Rules
    left_out: tuple[tuple[Pattern, str], ...] = ()
    period: int = 1
    dtypes: Mapping[str, str] = field(default_factory=dict)

    def blocks(self, axis: int | None) -> Arrangement | None:
        """How stacked layers are arranged; None where one after the other."""
        return Blocks(1 if axis is None else axis, self.period) if self.period > 1 else None


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
      BadInput: there is no family for this type, or its file cannot be filled in.
    """
    name = name or _family_of_type(config.get("model_type"), target)
    text = _filled_in(templates()[name], config, arrays, name)
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _untold(name, error) from error
    told = document.get("left_out", {})
    return HuggingFaceFamily(
        name,
        parse_rules(text, name),
        tuple((parse(pattern), str(why)) for pattern, why in told.items()),
        int(document.get("family", {}).get("period", 1)),
    )


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
    texts = config.get("text_config")
    texts = texts if isinstance(texts, dict) else {}
    whole = {**config, **texts, "model_type": config.get("model_type")}
    try:
        return environment.from_string(template).render(
            config=_Config(whole),
            size=size,
            sqrt=sqrt,
            float32=lambda number: repr(float(np.float32(number))),
            bfloat16=lambda number: repr(float(ml_dtypes.bfloat16(number))),
        )
    except (jinja2.TemplateError, *_NOT_FILLED_IN) as error:
        raise _untold(name, error) from error


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


def from_hugging_face(
    source: Understood, family: HuggingFaceFamily, options: Options
) -> Understood:
    """The checkpoint under the target's names; what its model does not have is set aside.

    Raises:
      BadInput: the folder has arrays that the family does not know.
      RuleError: the arrays are not those of the family.
    """
    params = source.state.params
    aside = {
        key: why
        for key in params
        for pattern, why in family.left_out
        if pattern.match(key) is not None
    }
    kept = {key: leaf for key, leaf in params.items() if key not in aside}
    known = fits(kept, family.rules.counted(list(kept)))
    unknown = in_order(key for key in kept if key not in known)
    if unknown:
        raise BadInput(
            f"{len(unknown):,} arrays are none of `{family.name}`",
            details=[f"{spell(key)}  {notation(kept[key])}" for key in unknown],
            hint=f"`--drop '{_NUMBERS.sub('*', spell(unknown[0]))}'` leaves it out of all layers",
        )
    new = renamed(source, family.rules, options)
    kept = {key: leaf for key, leaf in new.state.params.items() if key not in aside}
    new = replace(new, state=replace(new.state, params=kept))
    gone = {("params", *key): (params[key], why) for key, why in aside.items()}
    return replace(new, aside={**source.aside, **gone})


def to_hugging_face(source: Understood, family: HuggingFaceFamily, options: Options) -> Understood:
    """The checkpoint under the names of transformers.

    Raises:
      RuleError: the arrays are not those of the family.
    """
    new = renamed(out_of_remainder(source, options), family.rules.inverse(), options)
    held = {key: leaf for key, leaf in new.state.params.items() if leaf != NOTHING}
    params = {key: _typed(key, leaf, family) for key, leaf in held.items()}
    left = [key for key in params if not (key and key[0] in _roots(family))]
    if left:
        raise BadInput(
            f"{len(left):,} parameters are none of `{family.name}`",
            details=list(map(spell, in_order(left))),
            hint="`--drop GLOB` leaves them out",
        )
    return replace(new, state=replace(new.state, params=params))


_ONLY_REMAINDER: Key = ("decoder", "layers_remainder", "layers")
"""Where MaxText has the layers that fill no block; all of a small model's."""
_OUT_OF_REMAINDER = parse_rules(
    '[rules]\n"decoder.layers_remainder.layers[{i}]" = "decoder.layers[{i}]"'
)


def out_of_remainder(source: Understood, options: Options) -> Understood:
    """A checkpoint of MaxText with its layers where they are when all of them fill no block."""
    names = {group.key for group in source.groups}
    if _ONLY_REMAINDER not in names or (*_ONLY_REMAINDER[:1], "layers") in names:
        return source
    return renamed(source, _OUT_OF_REMAINDER, options)


def rounding(
    family: HuggingFaceFamily, source: Understood, options: Options, *, is_back: bool
) -> str:
    """What is said of a conversion that computes with arrays; empty where it does not round."""
    steps = [step for rule in family.rules for step in rule.steps]
    if all(_is_exact(step) for step in steps):
        return ""
    if is_back:
        return "what MaxText keeps scaled or shifted comes back to within a rounding"
    leaves = [leaf for leaf in source.state.params.values() if not isinstance(leaf, Literal)]
    narrow = sorted({dtype_of(leaf) for leaf in leaves} & {"bfloat16", "float16"})
    if not narrow or options.dtype is not None:
        return ""
    return f"what is scaled or shifted is rounded to {narrow[0]}; `--dtype float32` is exact"


def _is_exact(step: Step) -> bool:
    """True for a step that rounds nothing."""
    if isinstance(step, Times | DivideBy):
        return frexp(step.by)[0] == 0.5
    return not isinstance(step, Add)


def _typed(key: Key, leaf: Any, family: HuggingFaceFamily) -> Any:
    """A parameter in the type that it has in the folder whose configuration is taken."""
    dtype = family.dtypes.get(".".join(map(str, key)), family.dtypes.get(""))
    if isinstance(leaf, Literal) or dtype is None or dtype_of(leaf) == dtype:
        return leaf
    return cast(leaf, dtype)


def _roots(family: HuggingFaceFamily) -> set[str]:
    """The first names of transformers' keys."""
    return {
        str(part.fill({}))
        for rule in family.rules
        for source in rule.sources
        for part in source.parts[:1]
    }
