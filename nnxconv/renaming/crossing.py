"""From the names of transformers to a target's, and back, by the rules of a family."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from math import frexp
from typing import Any

from nnxconv.errors import BadInput
from nnxconv.layouts import Options, Understood
from nnxconv.renaming.apply import fits
from nnxconv.renaming.checkpoints import renamed
from nnxconv.renaming.hugging_face import HuggingFaceFamily
from nnxconv.renaming.numbers import Add, DivideBy, Times
from nnxconv.renaming.rule import Rules
from nnxconv.renaming.steps import Step
from nnxconv.renaming.wholeness import Wholeness, refuse_missing, wholeness
from nnxconv.state import TrainState
from nnxconv.tree import (
    NOTHING,
    Key,
    Leaf,
    Literal,
    cast,
    dtype_of,
    in_order,
    is_digits,
    notation,
    spell,
)

_NUMBERS = re.compile(r"\[\d+\]")


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
    _refuse_others(kept, family)
    new = renamed(_wide_enough(source, family.rules), family.rules, options)
    kept = {key: leaf for key, leaf in new.state.params.items() if key not in aside}
    new = replace(new, state=replace(new.state, params=kept))
    gone = {("params", *key): (params[key], why) for key, why in aside.items()}
    return replace(new, aside={**source.aside, **gone})


def _wide_enough(source: Understood, rules: Rules) -> Understood:
    """The checkpoint, of which parameters of bfloat16 that are shifted are float32.

    So are they in MaxText's own conversion: numpy makes float32 of a bfloat16 plus 1.0.
    """
    shifted = [rule for rule in rules if any(isinstance(step, Add) for step in rule.steps)]
    if not shifted:
        return source
    params = source.state.params
    found = {params[key] for key in fits(params, Rules(tuple(shifted), name=rules.name))}

    def widened(state: TrainState) -> TrainState:
        return replace(state, params={key: wide(leaf) for key, leaf in state.params.items()})

    def wide(leaf: Leaf) -> Leaf:
        if leaf not in found or isinstance(leaf, Literal) or dtype_of(leaf) != "bfloat16":
            return leaf
        return cast(leaf, "float32")

    return replace(source, state=widened(source.state), as_stored=widened(source.as_stored))


def _refuse_others(kept: Mapping[Key, Any], family: HuggingFaceFamily) -> None:
    """Refuses arrays that are not those of a model of the family.

    Raises:
      BadInput: some are not known, or missing.
    """
    rules = family.rules.counted(list(kept))
    if not family.is_whole:
        found = Wholeness([], in_order(kept.keys() - fits(kept, rules).keys()))
    else:
        found = wholeness(kept, rules, family.layers)
    unknown = found.unknown
    if not unknown:
        return refuse_missing(found.missing, family.name, family.layers, is_back=False)
    hint = f"`--drop '{_NUMBERS.sub('*', spell(unknown[0]))}'` leaves it out of all layers"
    message = f"{len(unknown):,} arrays are none of `{family.name}`"
    if family.quantised:
        message = f"the weights are quantised (`{family.quantised}`): {message}"
        hint = "transformers can load a model dequantised and save it; convert what it saves"
    elif unknown[0] in found.beyond:
        hint = _beyond(family, _layer_of(unknown[0]))
    told = [f"{spell(key)}  {notation(kept[key])}" for key in unknown]
    told += [f"{spell(key)} is missing" for key in found.missing]
    raise BadInput(message, details=told, hint=hint)


def _beyond(family: HuggingFaceFamily, example: str) -> str:
    told = f"`config.json` says that there are {family.layers or 0:,} layers"
    return f"{told}; `--drop {example}` leaves the others out"


def _layer_of(key: Key) -> str:
    """What leaves out the layer that an array is of."""
    place = next((place for place, part in enumerate(key) if isinstance(part, int)), len(key))
    return f"'{spell(('params', *key[: place + 1]))}'"


def to_hugging_face(source: Understood, family: HuggingFaceFamily, options: Options) -> Understood:
    """The checkpoint under the names of transformers.

    Raises:
      BadInput: the checkpoint has too few or too many arrays for the model.
      RuleError: the arrays are not those of the family.
    """
    new = with_variables(renamed(source, family.rules.inverse(), options), family.rules)
    held = {key: leaf for key, leaf in new.state.params.items() if leaf != NOTHING}
    params = {key: _typed(key, leaf, family) for key, leaf in held.items()}
    if not family.is_whole:
        left = in_order(key for key in params if not (key and key[0] in _roots(family)))
        found = Wholeness([], left)
    else:
        found = wholeness(params, family.rules, family.layers)
    if found.unknown:
        raise BadInput(
            f"{len(found.unknown):,} parameters are none of `{family.name}`",
            details=list(map(spell, found.unknown)),
            hint=_beyond(family, "GLOB") if found.beyond else "`--drop GLOB` leaves them out",
        )
    refuse_missing(found.missing, family.name, family.layers, is_back=True)
    return replace(new, state=replace(new.state, params=params))


def with_variables(source: Understood, rules: Rules) -> Understood:
    """The checkpoint with those of its variables as parameters that rules fit.

    MaxText 0.2.5 keeps the bias of DeepSeek's router among the variables.
    """
    aux = source.state.aux
    found = fits({key[1:] for key in aux if len(key) > 1}, rules)
    moved = {key[1:]: leaf for key, leaf in aux.items() if key[1:] in found}
    kept = {key: leaf for key, leaf in aux.items() if key[1:] not in found}
    params = {**moved, **source.state.params}
    return replace(source, state=replace(source.state, params=params, aux=kept))


def unwritten(family: HuggingFaceFamily, params: Collection[Key]) -> list[str]:
    """What is said of arrays that the folder has whose configuration is taken, and no other has."""
    written = {".".join(map(str, key)) for key in params}
    left = family.dtypes.keys() - written - {""}
    told: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for name in sorted(left):
        key = tuple(int(part) if is_digits(part) else part for part in name.split("."))
        fitting = ((str(p), why) for p, why in family.left_out if p.match(key) is not None)
        which, why = next(fitting, (name, "is none of the model of texts"))
        told[which] = why
        counts[which] += 1
    return [
        f"not written, though the folder has {_arrays(counts[which])}: `{which}` ({why})"
        for which, why in told.items()
    ]


def _arrays(count: int) -> str:
    return "it" if count == 1 else f"{count:,} arrays of it"


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
    if narrow[0] != "bfloat16" or not any(isinstance(step, Add) for step in steps):
        return f"what is scaled or shifted is rounded to {narrow[0]}; `--dtype float32` is exact"
    return (
        "what is scaled is rounded to bfloat16, and what is shifted becomes float32, as MaxText's"
        " converter has it; `--dtype float32` is exact for all"
    )


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
