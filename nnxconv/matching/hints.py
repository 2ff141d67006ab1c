"""What is left over may fit with a step: transposed, with heads apart, or cut. Never certain.

>>> from nnxconv.matching.families import families
>>> from nnxconv.tree import Source
>>> fused, apart = (Source("w", shape, "float32", shape) for shape in ((8, 24), (8, 2, 4)))
>>> source = families({("params", "qkv", "kernel"): fused})
>>> template = families({("params", n, "kernel"): apart for n in ("query", "value", "key")})
>>> rule_line(hints(source, template)[0])
'"qkv" = { to = ["query", "key", "value"], split = 1, divide = { axis = 1, into = [2, 4] } }'
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from nnxconv.matching.families import Family
from nnxconv.matching.generalise import rules_for
from nnxconv.matching.names import words
from nnxconv.renaming import Divide, Merge, Rule, Split, Step, Transpose, rule_line
from nnxconv.tree import Key, Literal, Shape

__all__ = ["hints", "rule_line"]
_USUAL_ORDER = ("query", "key", "value")


def hints(source: Sequence[Family], template: Sequence[Family]) -> list[Rule]:
    """The rules with a step that would make something of what is left over of something else."""
    found = [*_one_to_one(source, template), *_one_to_several(source, template)]
    backwards = _one_to_several(template, source)
    return list(dict.fromkeys([*found, *(rule.inverse() for rule in backwards)]))


def _one_to_one(source: Sequence[Family], template: Sequence[Family]) -> Iterator[Rule]:
    for a in source:
        for b in template:
            old, new = _shape(a), _shape(b)
            steps = () if old is None or new is None else _steps(old, new)
            if steps and a.members[0][-1] == b.members[0][-1] and _parallel(a, b):
                yield from _rules(a, [b], steps)


def _one_to_several(source: Sequence[Family], template: Sequence[Family]) -> Iterator[Rule]:
    for a in source:
        beside: dict[tuple[Key, Shape | None], list[Family]] = defaultdict(list)
        for b in template:
            if a.members[0][-1] == b.members[0][-1] and _parallel(a, b):
                beside[b.members[0][:-2], _shape(b)].append(b)
        for (_, shape), targets in beside.items():
            steps = _cut(_shape(a), shape, len(targets))
            if steps and 1 < len(targets) < 4:
                yield from _rules(a, sorted(targets, key=_usual_place), steps)


def _parallel(a: Family, b: Family) -> bool:
    """True when the families have as many members, under the same numbers but for a shift."""
    return a.collection == b.collection and a.signature[2] == b.signature[2]


def _shape(family: Family) -> Shape | None:
    """The shape that all members have."""
    shapes = {None if isinstance(leaf, Literal) else leaf.shape for leaf in family.leaves}
    return shapes.pop() if len(shapes) == 1 else None


def _steps(a: Shape, b: Shape) -> tuple[Step, ...]:
    """One step that makes arrays of shape b of those of shape a; none when there is none."""
    if len(a) == len(b) == 2 and a == b[::-1]:
        return (Transpose((1, 0)),)
    for axis in range(min(len(a), len(b))):
        if len(b) == len(a) + 1 and _is_divided(a, b, axis):
            return (Divide(axis, (b[axis], b[axis + 1])),)
        if len(a) == len(b) + 1 and _is_divided(b, a, axis):
            return (Merge(axis, (a[axis], a[axis + 1])),)
    return ()


def _is_divided(a: Shape, b: Shape, axis: int) -> bool:
    """True when b has two axes where a has one, of as many elements."""
    if a[:axis] != b[:axis] or a[axis + 1 :] != b[axis + 2 :]:
        return False
    return a[axis] == b[axis] * b[axis + 1]


def _cut(a: Shape | None, b: Shape | None, count: int) -> tuple[Step, ...]:
    """The steps that cut an array of shape a into `count` of shape b; none when there are none."""
    if a is None or b is None:
        return ()
    for axis in reversed(range(len(a))):
        part = (*a[:axis], a[axis] // count, *a[axis + 1 :])
        if a[axis] % count == 0 and (part == b or _steps(part, b)):
            return (Split(axis), *(() if part == b else _steps(part, b)))
    return ()


def _usual_place(family: Family) -> tuple[int, str]:
    told = words(family.members[0])
    places = [place for place, word in enumerate(_USUAL_ORDER) if word in told]
    return (places[0] if places else len(_USUAL_ORDER), str(family))


def _rules(a: Family, targets: Sequence[Family], steps: tuple[Step, ...]) -> Iterator[Rule]:
    """The rule for all members, if one does for all."""
    found = []
    for target in targets:
        moves: dict[Key, Key] = dict(zip(a.members, target.members, strict=True))
        found.append(rules_for(moves, a.members))
    if all(len(rules) == 1 for rules in found):
        sources = {rules[0].sources for rules in found}
        if len(sources) == 1:
            yield Rule(sources.pop(), tuple(rules[0].targets[0] for rules in found), steps)
