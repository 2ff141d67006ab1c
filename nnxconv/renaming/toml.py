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
says what else is done to the arrays, in the order in which it is written there (see `steps`);
where the same is done twice, it is a list: `steps = [{ transpose = [1, 0] }, ...]`.
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
from nnxconv.renaming.step_toml import read_step, toml_value, written_step
from nnxconv.renaming.steps import Step

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
    except RecursionError as error:
        raise BadInput("these are no rules: they are nested too deeply", where=name) from error
    unknown = sorted(document.keys() - {"rules", "counts", "family", "left_out"})
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
    written = [(name, value) for name, value in right.items() if name not in ("to", "optional")]
    steps = tuple(step for name, value in written for step in _steps(name, value))
    return Rule(sources, _patterns(right["to"]), steps, bool(right.get("optional", False)))


def _steps(name: str, value: Any) -> Iterator[Step]:
    """One step, or those of a list, where one may stand more than once."""
    if name != "steps":
        yield read_step(name, value)
        return
    if not isinstance(value, list) or not all(isinstance(v, dict) and len(v) == 1 for v in value):
        raise BadInput(f"`steps = {toml_value(value)}` is no list of steps")
    for [(inner, its_value)] in (table.items() for table in value):
        yield read_step(inner, its_value)


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


# --- as text ----------------------------------------------------------------------------------


def write_rules(rules: Rules) -> str:
    """The rule set as TOML; `parse_rules` is the inverse."""
    lines = []
    if rules.counts:
        lines += ["[counts]", *(f"{n} = {toml_value(str(p))}" for n, p in rules.counts.items()), ""]
    return "\n".join([*lines, "[rules]", *map(rule_line, rules)]) + "\n"


def rule_line(rule: Rule) -> str:
    """One rule as a line of TOML."""
    targets = [str(target) for target in rule.targets]
    right = toml_value(targets[0] if len(targets) == 1 else targets)
    steps = [written_step(step) for step in rule.steps]
    written = [f"{name} = {value}" for name, value in steps]
    if len({name for name, _ in steps}) < len(steps):
        written = [f"steps = [{', '.join(f'{{ {step} }}' for step in written)}]"]
    written += ["optional = true"] if rule.is_optional else []
    if written:
        right = f"{{ to = {right}, {', '.join(written)} }}"
    return f"{toml_value(str(rule))} = {right}"
