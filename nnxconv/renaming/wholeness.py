"""Whether arrays under the names of transformers are all those of a model, and no others.

A file that is missing, or a `config.json` of another size, would otherwise make a smaller model.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from nnxconv.errors import BadInput
from nnxconv.renaming.apply import fits
from nnxconv.renaming.pattern import Layer, Number, Part, Pattern, part_is_open
from nnxconv.renaming.rule import Rules
from nnxconv.tree import Key, in_order, spell


@dataclass(frozen=True)
class Wholeness:
    """How names differ from those that rules have for a model of so many layers.

    Attributes:
      missing: names that the rules have and that are not there, in order.
      unknown: names that no rule has, in order.
      beyond: those of them that are of layers which the model should not have.
    """

    missing: Sequence[Key]
    unknown: Sequence[Key]
    beyond: Collection[Key] = ()


def wholeness(keys: Collection[Key], rules: Rules, layers: int | None) -> Wholeness:
    """What is missing and what is too much; an optional rule may fit no key, or all of its own.

    Without a number of `layers` it is the one that the names themselves tell. Of very many layers
    that are missing, not all are named.

    >>> from nnxconv.renaming.toml import parse_rules
    >>> rules = parse_rules('[rules]\\n"h[{i}].w" = "layers[{i}].kernel"')
    >>> wholeness([("h", 0, "w"), ("h", 2, "w"), ("h", 3, "w")], rules, 3)
    Wholeness(missing=[('h', 1, 'w')], unknown=[('h', 3, 'w')], beyond={('h', 3, 'w')})
    """
    there = set(keys)
    known = fits(there, rules)
    count = _layers_in(known, rules) if layers is None else min(layers, len(there) + 1)
    wanted: set[Key] = set()
    allowed: set[Key] = set()
    for rule in rules:
        own = {key for pattern in rule.sources for key in _named(pattern, count)}
        allowed |= own
        wanted |= own if not rule.is_optional or own & there else set()
    unknown = {key for key in there if key not in known or (allowed and key not in allowed)}
    beyond = unknown & known.keys()
    return Wholeness(in_order(wanted - there), in_order(unknown), beyond)


def refuse_missing(
    missing: Sequence[Key], family: str, layers: int | None, *, is_back: bool
) -> None:
    """Refuses arrays of which some are missing.

    Raises:
      BadInput: there are some.
    """
    if not missing:
        return
    if [spell(key) for key in missing] == ["lm_head.weight"]:
        hint = "with `tie_word_embeddings` true in `config.json`, the embedding is used instead"
    elif layers is None:
        hint = f"the layers are those of the last array that is there; {_ASK[is_back]}"
    else:
        hint = f"`config.json` says that there are {layers:,} layers; {_ASK[is_back]}"
    whose = "the checkpoint" if is_back else "the folder"
    arrays = "1 array" if len(missing) == 1 else f"{len(missing):,} arrays"
    raise BadInput(
        f"{whose} lacks {arrays} of `{family}`", details=list(map(spell, missing)), hint=hint
    )


_ASK = ("are all files there?", "is it the one of this model?")


def _named(pattern: Pattern, layers: int) -> Iterator[Key]:
    """The keys that a pattern stands for in a model of so many layers."""
    opened = [part for part in pattern.parts if part_is_open(part)]
    if not opened:
        yield pattern.fill({})
    elif len(opened) == 1 and (number := _number(opened[0])) is not None:
        for layer in range(layers):
            binding: dict[str, int | str] = {}
            if number.solve(layer, binding):
                yield pattern.fill(binding)


def _number(part: Part) -> Number | None:
    """The number of a layer, where a part is nothing else."""
    if isinstance(part, Layer):
        return part.number
    [text] = part.texts if len(part.texts) == 1 else [""]
    return text if isinstance(text, Number) else None


def _layers_in(keys: Collection[Key], rules: Rules) -> int:
    """One more than the largest number of a layer in keys that rules fit."""
    places = {
        place
        for rule in rules
        for pattern in rule.sources
        for place, part in enumerate(pattern.parts)
        if part_is_open(part) and _number(part) is not None
    }
    numbers = [int(key[place]) for key in keys for place in places if _is_number(key, place)]
    return max(numbers, default=-1) + 1


def _is_number(key: Key, place: int) -> bool:
    return place < len(key) and str(key[place]).isdecimal()
