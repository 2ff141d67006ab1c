"""Rule sets as TOML.

```toml
[counts]
n = "decoder.dense_layers[{i}]"          # {n}: how many of these the checkpoint has

[rules]
"encoder.Dense_{i}.kernel" = "encoder.layers[{i}].linear.kernel"
"decoder.moe_layers[{i}]" = "decoder.layers[{i+n}]"
"mlp.wi" = { to = ["mlp.wi_0", "mlp.wi_1"], split = 1 }
"q.kernel, k.kernel, v.kernel" = { to = "qkv.kernel", concat = 1 }
```

Keys are canonical, without the leading `params` (see `pattern`), and a rule holds for all that is
below its key. Of several rules that fit a key the first one is applied, and only that one. A table
says what else is done to the arrays, in the order in which it is written there (see `steps`).
A rule that fits no key is an error, unless it says `optional = true`. A
name followed by a layer in brackets, such as `layers` above, is that of a layer group, as if
`--layer_group` had named it.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nnxconv.errors import BadInput
from nnxconv.renaming.pattern import Pattern, parse
from nnxconv.renaming.rule import Rule, Rules
from nnxconv.renaming.steps import Concat, Divide, Merge, Pile, Split, Step, Transpose, Unstack

_QUOTED_OR_COMMA = re.compile(r'(?P<quoted>\["(?:[^"\\]|\\.)*"\])|,\s*')


def parse_rules(text: str, name: str = "") -> Rules:
    """The rule set that a TOML document spells.

    >>> parse_rules('[rules]\\n"norm" = "final_norm"').rules[0].targets[0].fill({})
    ('final_norm',)

    Raises:
      BadInput: it is no TOML, or no rule set; all faulty rules are listed.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"these are no rules: {error}", where=name) from error
    unknown = sorted(document.keys() - {"rules", "counts"})
    table = document.get("rules")
    if unknown or not isinstance(table, dict):
        told = f"`{unknown[0]}` is not known" if unknown else "there is no table `[rules]`"
        raise BadInput(f"these are no rules: {told}", where=name)
    rules, problems = [], []
    for left, right in table.items():
        try:
            rules.append(_rule(left, right))
        except BadInput as error:
            problems.append(f"{left}: {error.message}")
    if problems:
        raise BadInput("these rules cannot be read", where=name, details=problems)
    counts = {str(n): parse(str(pattern)) for n, pattern in document.get("counts", {}).items()}
    _check_all(rules, counts, name)
    return Rules(tuple(rules), name, counts)


def _check_all(rules: Sequence[Rule], counts: Mapping[str, Pattern], name: str) -> None:
    problems = []
    for rule in rules:
        counted = dict.fromkeys(counts, 0)
        try:
            Rule(
                tuple(pattern.known(counted) for pattern in rule.sources),
                tuple(pattern.known(counted) for pattern in rule.targets),
                rule.steps,
            ).check()
        except BadInput as error:
            problems.append(f"{rule}: {error.message}")
    if problems:
        raise BadInput("these rules cannot be applied", where=name, details=problems)


def _rule(left: str, right: Any) -> Rule:
    sources = _patterns(left)
    if not isinstance(right, dict):
        return Rule(sources, _patterns(right))
    if "to" not in right:
        raise BadInput("the table has no `to`")
    about = ("to", "optional")
    steps = tuple(_step(name, value) for name, value in right.items() if name not in about)
    return Rule(sources, _patterns(right["to"]), steps, bool(right.get("optional", False)))


def _patterns(value: Any) -> tuple[Pattern, ...]:
    """One pattern; several, in a list or with commas between them."""
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise BadInput(f"`{value}` is not the pattern of a key")
    return tuple(parse(text) for whole in texts for text in _without_commas(whole))


def _without_commas(text: str) -> Iterator[str]:
    """What stands between commas that are not within a quoted name."""
    start = 0
    for found in _QUOTED_OR_COMMA.finditer(text):
        if found["quoted"] is None:
            yield text[start : found.start()]
            start = found.end()
    yield text[start:]


def _step(name: str, value: Any) -> Step:
    """A step as it is written.

    Raises:
      BadInput: there is no such step, or it is written otherwise.
    """
    try:
        match name, value:
            case "transpose", list() if sorted(value) == list(range(len(value))):
                return Transpose(tuple(value))
            case (("split" | "concat"), (int() | dict())):
                axis, sizes = _axis_and(value, "sizes")
                return (Split if name == "split" else Concat)(axis, sizes)
            case (("stack" | "unstack"), int()):
                return (Pile if name == "stack" else Unstack)(value)
            case "divide", dict():
                axis, into = _axis_and(value, "into")
                if into is not None and len(into) == 2:
                    return Divide(axis, (into[0], into[1]))
            case "merge", (int() | dict()):
                axis, of = _axis_and(value, "of")
                if of is None or len(of) == 2:
                    return Merge(axis, None if of is None else (of[0], of[1]))
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"`{name} = {_toml(value)}` cannot be read") from error
    raise BadInput(f"`{name} = {_toml(value)}` is nothing that a rule can do")


def _axis_and(value: Any, field: str) -> tuple[int, tuple[int, ...] | None]:
    """The axis, and the sizes where they are given."""
    if isinstance(value, int):
        return value, None
    if value.keys() - {"axis", field}:
        raise KeyError(field)
    sizes = value.get(field)
    if sizes is not None and not (sizes and all(isinstance(s, int) and s > 0 for s in sizes)):
        raise ValueError(field)
    return int(value["axis"]), None if sizes is None else tuple(sizes)


# --- as text ----------------------------------------------------------------------------------


def write_rules(rules: Rules) -> str:
    """The rule set as TOML; `parse_rules` is the inverse."""
    lines = []
    if rules.counts:
        lines += ["[counts]", *(f"{n} = {_toml(str(p))}" for n, p in rules.counts.items()), ""]
    return "\n".join([*lines, "[rules]", *map(rule_line, rules)]) + "\n"


def rule_line(rule: Rule) -> str:
    """One rule as a line of TOML."""
    targets = [str(target) for target in rule.targets]
    right = _toml(targets[0] if len(targets) == 1 else targets)
    written = [f"{name} = {value}" for name, value in map(_written, rule.steps)]
    written += ["optional = true"] if rule.is_optional else []
    if written:
        right = f"{{ to = {right}, {', '.join(written)} }}"
    return f"{_toml(str(rule))} = {right}"


def _written(step: Step) -> tuple[str, str]:
    match step:
        case Transpose(order):
            return "transpose", _toml(list(order))
        case Split(axis, sizes):
            return "split", _with_sizes(axis, "sizes", sizes)
        case Concat(axis, sizes):
            return "concat", _with_sizes(axis, "sizes", sizes)
        case Unstack(axis):
            return "unstack", str(axis)
        case Pile(axis):
            return "stack", str(axis)
        case Divide(axis, into):
            return "divide", _with_sizes(axis, "into", into)
        case Merge(axis, of):
            return "merge", _with_sizes(axis, "of", of)


def _with_sizes(axis: int, field: str, sizes: Sequence[int] | None) -> str:
    if sizes is None:
        return str(axis)
    return f"{{ axis = {axis}, {field} = {_toml(list(sizes))} }}"


def _toml(value: Any) -> str:
    """A value as TOML; texts with quotes in them between single ones."""
    if isinstance(value, str):
        if "'" not in value and ('"' in value or "\\" in value):
            return f"'{value}'"
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{k} = {_toml(v)}' for k, v in value.items())} }}"
    return str(value).lower() if isinstance(value, bool) else str(value)
