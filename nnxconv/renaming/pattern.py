"""Patterns of keys: names and layers in which some numbers, or whole names, are left open.

A pattern is a canonical key without its leading `params`, spelled as `keys.spell` does. In braces
stands what is open:

```
Dense_{i}                 a number in a name, called i on both sides of a rule
layers[{i}]               a layer, while `layers.{i}` is a module whose name is a number
layers[{i+2}]             numbers may be shifted and scaled: {2*i+1}, {6*block+i}
{*module}                 any one name, or the rest of one
["layers.{i}.weight"]     a name that is no word, in quotes; {{ and }} are braces in it
```

>>> key = ("encoder", "Dense_3", "kernel")
>>> found = parse("encoder.Dense_{i}").match(key)
>>> found
Match(binding={'i': 3}, rest=('kernel',))
>>> parse("encoder.layers[{i+2}].linear").fill(found.binding)
('encoder', 'layers', 5, 'linear')
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from nnxconv.errors import BadInput
from nnxconv.tree import Key

Binding: TypeAlias = dict[str, int | str]


@dataclass(frozen=True)
class Number:
    """A sum such as `6*block+i+1`: factors by name, and what is added."""

    terms: tuple[tuple[int, str], ...]
    plus: int = 0

    def __str__(self) -> str:
        parts = [name if factor == 1 else f"{factor}*{name}" for factor, name in self.terms]
        if self.plus or not parts:
            parts.append(str(self.plus))
        return "+".join(parts).replace("+-", "-")

    def value(self, binding: Mapping[str, int | str]) -> int:
        """The sum for these numbers."""
        total = self.plus
        for factor, name in self.terms:
            total += factor * int(binding[name])
        return total

    def solve(self, value: int, binding: Binding) -> bool:
        """Adds the open numbers that give a value to the binding; False when there are none.

        Of several open ones the smaller factor's stays below the next larger factor, so that
        `{6*block+i}` is 27 for block 4 and i 3.
        """
        value -= self.plus
        unknown: list[tuple[int, str]] = []
        for factor, name in self.terms:
            if name in binding:
                value -= factor * int(binding[name])
            else:
                unknown.append((factor, name))
        for factor, name in sorted(unknown, reverse=True):
            binding[name], value = divmod(value, factor)
            if int(binding[name]) < 0:
                return False
        return value == 0


@dataclass(frozen=True)
class AnyName:
    """`{*module}`: any text but none."""

    name: str

    def __str__(self) -> str:
        return f"*{self.name}"


@dataclass(frozen=True)
class Name:
    """A name, made of fixed and open texts."""

    texts: tuple[str | Number | AnyName, ...]

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        kinds = {Number: "(0|[1-9][0-9]*)", AnyName: "(.+)"}
        texts = (re.escape(t) if isinstance(t, str) else kinds[type(t)] for t in self.texts)
        return re.compile("".join(texts))

    def match(self, part: str | int, binding: Binding) -> bool:
        """True when the name fits; what was open is then in the binding."""
        found = self._expression.fullmatch(part) if isinstance(part, str) else None
        if found is None:
            return False
        opens = [text for text in self.texts if not isinstance(text, str)]
        return all(_bind(o, text, binding) for o, text in zip(opens, found.groups(), strict=True))

    def fill(self, binding: Binding) -> str:
        """The name for what was open."""
        return "".join(
            text
            if isinstance(text, str)
            else str(text.value(binding) if isinstance(text, Number) else binding[text.name])
            for text in self.texts
        )


@dataclass(frozen=True)
class Layer:
    """`[3]` or `[{i}]`: a layer, or another element of a sequence."""

    number: Number

    def match(self, part: str | int, binding: Binding) -> bool:
        """True when the layer fits; what was open is then in the binding."""
        return isinstance(part, int) and self.number.solve(part, binding)

    def fill(self, binding: Binding) -> int:
        """The layer for what was open.

        Raises:
          BadInput: there is none of this number.
        """
        number = self.number.value(binding)
        if number < 0:
            raise BadInput(f"`{self.number}` gives the layer {number}, which is below 0")
        return number


Part: TypeAlias = Name | Layer


def _bind(what: Number | AnyName, text: str, binding: Binding) -> bool:
    if isinstance(what, Number):
        return what.solve(int(text), binding)
    return binding.setdefault(what.name, text) == text


@dataclass(frozen=True)
class Match:
    """What was open in a pattern, and the rest of the key."""

    binding: Binding
    rest: Key


@dataclass(frozen=True)
class Pattern:
    """A pattern of the first parts of keys."""

    parts: tuple[Part, ...]

    def match(self, key: Key) -> Match | None:
        """What was open when the key starts as the pattern says, else None."""
        if len(key) < len(self.parts):
            return None
        for place, name in self.fixed:  # most keys end here, at little cost
            if key[place] != name:
                return None
        binding: Binding = {}
        for place, part in self._not_fixed:
            if not part.match(key[place], binding):
                return None
        return Match(binding, key[len(self.parts) :])

    @cached_property
    def fixed(self) -> tuple[tuple[int, str], ...]:
        """The places and texts of names that leave nothing open, the last one first."""
        names = [
            (place, part.fill({}))
            for place, part in enumerate(self.parts)
            if isinstance(part, Name) and not part_is_open(part)
        ]
        return tuple(reversed(names))

    @cached_property
    def _not_fixed(self) -> tuple[tuple[int, Part], ...]:
        known = {place for place, _ in self.fixed}
        return tuple((n, part) for n, part in enumerate(self.parts) if n not in known)

    def fill(self, binding: Binding) -> Key:
        """The key for what was open."""
        key = list(self._blank)
        for place, part in self._not_fixed:
            key[place] = part.fill(binding)
        return tuple(key)

    @cached_property
    def _blank(self) -> Key:
        """The key, its open parts still empty."""
        fixed = dict(self.fixed)
        return tuple(fixed.get(place, "") for place in range(len(self.parts)))

    @cached_property
    def names(self) -> frozenset[str]:
        """What is open."""
        return frozenset(name for number in self._open() for name in _names_in(number))

    @cached_property
    def words(self) -> frozenset[str]:
        """The fixed texts in its names."""
        names = (part for part in self.parts if isinstance(part, Name))
        return frozenset(text for name in names for text in name.texts if isinstance(text, str))

    def layer_names(self) -> Iterator[str]:
        """The names that have a layer right after them: those of layer groups."""
        for part, after in zip(self.parts, self.parts[1:], strict=False):
            if isinstance(after, Layer) and isinstance(part, Name) and not part_is_open(part):
                yield part.fill({})

    def known(self, values: Mapping[str, int]) -> "Pattern":
        """The pattern with some of its open numbers given."""
        return Pattern(tuple(_known(part, values) for part in self.parts))

    def _open(self) -> Iterator[Number | AnyName]:
        for part in self.parts:
            if isinstance(part, Layer):
                yield part.number
            else:
                yield from (text for text in part.texts if not isinstance(text, str))

    def __str__(self) -> str:
        return spell_pattern(self)


def part_is_open(part: Part) -> bool:
    """True when something in the part is left open."""
    if isinstance(part, Layer):
        return bool(part.number.terms)
    return any(not isinstance(text, str) for text in part.texts)


def _names_in(what: Number | AnyName) -> list[str]:
    return [what.name] if isinstance(what, AnyName) else [name for _, name in what.terms]


def _known(part: Part, values: Mapping[str, int]) -> Part:
    if isinstance(part, Layer):
        return Layer(_number_known(part.number, values))
    texts = (_number_known(t, values) if isinstance(t, Number) else t for t in part.texts)
    return Name(tuple(texts))


def _number_known(number: Number, values: Mapping[str, int]) -> Number:
    given = sum(factor * values[name] for factor, name in number.terms if name in values)
    left = tuple(term for term in number.terms if term[1] not in values)
    return replace(number, terms=left, plus=number.plus + given)


# --- as text ----------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""\["(?P<quoted>(?:[^"\\]|\\.)*)"\] | \[(?P<fixed>\d+)\] | \[\{(?P<layer>[^{}\[\]]+)\}\]
      | (?P<dot>\.)?(?P<name>(?:[^.\[\]{}"]|\{[^{}\[\]."]+\})+)""",
    re.VERBOSE,
)
_OPEN = re.compile(r"\{([^{}]+)\}")
_IN_QUOTES = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<open>[^{}]+)\}|.", re.DOTALL)
_TERM = re.compile(r"([+-]?)(?:(\d+)\*)?([A-Za-z_]\w*)|([+-]?\d+)")
_PLAIN = re.compile(r"[\w-]+")


def parse(text: str) -> Pattern:
    """The pattern that a text spells.

    Raises:
      BadInput: it spells none.
    """
    parts: list[Part] = []
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None or (token["name"] and bool(token["dot"]) != bool(parts)):
            raise BadInput(
                f"`{text}` is not the pattern of a key: `{text[at:]}` cannot be read",
                hint="as in `encoder.Dense_{i}.kernel` or `decoder.layers[{i+2}]`",
            )
        parts.append(_part(token, text))
        at = token.end()
    if not parts:
        raise BadInput("an empty text is not the pattern of a key")
    return Pattern(tuple(parts))


def _part(token: re.Match[str], text: str) -> Part:
    if token["quoted"] is not None:
        return Name(tuple(_quoted(json.loads(f'"{token["quoted"]}"'), text)))
    if token["fixed"] is not None:
        return Layer(Number((), int(token["fixed"])))
    if token["layer"] is not None:
        return Layer(_number(token["layer"], text))
    texts: list[str | Number | AnyName] = []
    for place, piece in enumerate(_OPEN.split(token["name"])):
        if place % 2:
            texts.append(_open(piece, text))
        elif piece:
            texts.append(piece)
    return Name(tuple(texts))


def _quoted(name: str, text: str) -> Iterator[str | Number | AnyName]:
    """The texts of a name in quotes, where a brace of the name itself is written twice."""
    fixed = ""
    for found in _IN_QUOTES.finditer(name):
        if found["open"] is None:
            fixed += found[0][:1] if found["brace"] else found[0]
            continue
        if fixed:
            yield fixed
            fixed = ""
        yield _open(found["open"], text)
    if fixed or not name:
        yield fixed


def _open(expression: str, text: str) -> Number | AnyName:
    """What stands in braces."""
    return AnyName(expression[1:]) if expression.startswith("*") else _number(expression, text)


def _number(expression: str, text: str) -> Number:
    terms: list[tuple[int, str]] = []
    plus, at, bare = 0, 0, expression.replace(" ", "")
    while at < len(bare):
        term = _TERM.match(bare, at)
        if term is None or term[1] == "-" or (at and bare[at] not in "+-"):
            raise BadInput(
                f"`{{{expression}}}` in `{text}` is not a sum of numbers",
                hint="as in `{i}`, `{i+2}`, `{2*i+1}` or `{6*block+i}`",
            )
        if term[4] is not None:
            plus += int(term[4])
        else:
            terms.append((int(term[2] or 1), term[3]))
        at = term.end()
    return Number(tuple(terms), plus)


def spell_pattern(pattern: Pattern) -> str:
    """The pattern as text; `parse` is the inverse.

    >>> spell_pattern(parse('encoder.Dense_{i}["a.{i}"][{2*i + 1}].h.0'))
    'encoder.Dense_{i}["a.{i}"][{2*i+1}].h.0'
    """
    text = ""
    for part in pattern.parts:
        if isinstance(part, Layer):
            number = part.number
            text += f"[{{{number}}}]" if number.terms else f"[{number.plus}]"
        elif part.texts and all(_PLAIN.fullmatch(t) for t in part.texts if isinstance(t, str)):
            name = "".join(t if isinstance(t, str) else f"{{{t}}}" for t in part.texts)
            text += f".{name}" if text else name
        else:
            text += f"[{_quote(''.join(map(_in_quotes, part.texts)))}]"
    return text


def _quote(name: str) -> str:
    """The name in quotes, without what TOML does not allow in a text."""
    return json.dumps(name).replace("\x7f", "\\u007f")


def _in_quotes(text: str | Number | AnyName) -> str:
    if isinstance(text, str):
        return text.replace("{", "{{").replace("}", "}}")
    return f"{{{text}}}"


def literal(key: Key) -> Pattern:
    """The pattern that fits one key, and what is below it."""
    return Pattern(tuple(Name((k,)) if isinstance(k, str) else Layer(Number((), k)) for k in key))
