"""What `match` calls certain is so, over generated pairs of which the truth is known by values."""

import itertools
from collections import Counter

import numpy as np
import pytest

from nnxconv.matching import propose
from nnxconv.renaming import rename
from nnxconv.renaming.toml import parse_rules
from tests.support.generated_pairs import generated_pair, pair_of, projects_of
from tests.support.model_families import FAMILIES
from tests.support.tiers import campaign

BLOCKS, PER_BLOCK = 100, 50


def counted(pair):
    """How many leaves of the template are certain and right, or wrong, or doubted.

    Where two projects keep arrays by other conventions, such as rotary heads, names tell no more.
    """
    state, groups = pair.source.state()
    template, _ = pair.template.state()
    found = propose(state, groups, template, names=("a", "b"))
    assert found.problems == ()
    rules = parse_rules(found.to_toml())
    assert rules.rules == found.rules.rules
    renamed = rename(state, groups, rules, spelling="suffix") if rules.rules else None
    leaves = (renamed.state if renamed else state).leaves()
    templates = template.leaves()
    counts = Counter(wrong=0, leaves=len(pair.template.values))
    for slot in (s for p in found.pairs.certain for leaf in p.leaves for s in leaf.templates):
        head = ("params",) if slot.collection == "params" else ("aux", slot.collection)
        for key in slot.keys:
            view, there = leaves[*head, *key], templates[*head, *key]
            wanted = pair.template.evaluated(there)
            is_right = view.shape == wanted.shape
            is_right = is_right and np.array_equal(pair.source.evaluated(view), wanted)
            counts["certain" if is_right else "wrong"] += 1
    doubted = [p for p in found.pairs.proposed if "names alike" not in p.evidence]
    counts["doubted"] = sum(leaf.count for p in doubted for leaf in p.leaves)
    return counts


@pytest.mark.sample(1)
@pytest.mark.parametrize("block", campaign(range(BLOCKS), 30))
def test_what_is_certain_is_right_and_most_is_certain_where_names_are_known(block):
    known = Counter()
    for seed in range(block * PER_BLOCK, (block + 1) * PER_BLOCK):
        pair = generated_pair(seed)
        counts = counted(pair)
        assert not counts["wrong"], f"seed {seed}"
        if pair.is_known:
            known += counts
    # 91 % in all; a hundred pairs may be hard ones, whose names tell little
    assert known["certain"] >= 0.75 * known["leaves"]


@pytest.mark.sample(2)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_model_of_one_project_is_found_in_the_names_of_another(family):
    """Every two of a family; what other collections hold is not renamed into parameters."""
    counts = Counter()
    couples = itertools.permutations(sorted(projects_of(family)), 2)
    for seed, (names, _) in enumerate(itertools.product(couples, range(3))):
        pair = pair_of(family, *names, seed)
        found = counted(pair)
        assert not found["wrong"], names
        if len({key[0] for side in (pair.source, pair.template) for key in side.values}) == 1:
            counts += found
    assert counts["certain"] >= 0.8 * (counts["leaves"] - counts["doubted"])
