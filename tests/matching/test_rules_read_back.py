"""Every rule that `match` writes reads back, and works: over keys of any spelling."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnxconv.matching import propose
from nnxconv.renaming import rename
from nnxconv.renaming.toml import parse_rules
from tests.support.generated_pairs import GeneratedPair, Side
from tests.support.in_memory_values import InMemoryValues

WORDS = st.sampled_from(["layer", "Dense_0", "q", "w", "h", "norm1", "kernel", "0", "12", "~"])
TEXTS = st.text(st.sampled_from("ab0 1_-./~{}[]\"'\\,:*é\n"), min_size=1, max_size=6)
SPELLINGS = {
    "nested": lambda path: path,
    "dotted": lambda path: (".".join(path),),
    "slashed": lambda path: ("/".join(path),),
    "Haiku's": lambda path: ("/~/".join(path[:-1]) or "net", path[-1]),
    "counted": lambda path: ("layers", *path),
}


def is_tree(paths):
    """True for keys of which none stands below another."""
    heads = {path[:size] for path in paths for size in range(1, len(path))}
    return len(set(paths)) == len(paths) and heads.isdisjoint(paths)


@st.composite
def spelled(draw, count):
    """Keys of leaves: layers of modules, in one of the spellings."""
    names = draw(st.lists(st.one_of(WORDS, TEXTS), min_size=1, max_size=3, unique=True))
    spelling = SPELLINGS[draw(st.sampled_from(sorted(SPELLINGS)))]
    order = draw(st.permutations(range(count)))
    suffix = draw(st.sampled_from(["{}", "block_{}", "h{}"]))
    paths = [spelling((*names[:-1], suffix.format(n), names[-1])) for n in order]
    return paths if is_tree(paths) else [("x", str(n)) for n in order]


@st.composite
def pairs(draw):
    """The same arrays under two lists of keys."""
    count = draw(st.integers(1, 5))
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3) + 10 * n for n in range(count)]
    sides = []
    for turned in (False, draw(st.booleans())):
        keys = draw(spelled(count))
        values = [array.T if turned else array for array in arrays]
        sides.append(dict(zip((("params", *key) for key in keys), values, strict=True)))
    return GeneratedPair("keys", Side("a", sides[0]), Side("b", sides[1]), is_known=False)


@pytest.mark.parametrize("by_values", [True, False], ids=["by values", "by names"])
@given(pair=pairs())
def test_what_match_writes_is_read_and_does_what_it_says(by_values, pair):
    state, groups = pair.source.state()
    template, _ = pair.template.state()
    values = InMemoryValues(pair, state.leaves(), template.leaves())
    found = propose(state, groups, template, names=("a", "b"), values=values if by_values else None)
    assert found.problems == ()
    rules = parse_rules(found.to_toml())
    assert rules.rules == found.rules.rules
    assert found.is_complete or not by_values
    renamed = rename(state, groups, rules, spelling="suffix") if rules.rules else None
    leaves = (renamed.state if renamed else state).leaves()
    certain = {
        ("params", *key)
        for pairs in found.pairs.certain
        for leaf in pairs.leaves
        for slot in leaf.templates
        for key in slot.keys
    }
    assert certain <= leaves.keys()
    for key in certain if by_values else ():
        wanted = pair.template.evaluated(template.leaves()[key])
        np.testing.assert_array_equal(pair.source.evaluated(leaves[key]), wanted)
