"""Generated trees: roles are those they were made with, all leaves are accounted for, and what is
converted comes back.

`generate(SEED)` of `tests/support/any_trees.py` makes the tree of a failing seed again.
"""

import json

import pytest

from nnxconv.commands.convert import converted
from nnxconv.errors import NnxconvError
from nnxconv.layouts import Options, SurveyOptions, account, choose_part, nothing_lost
from nnxconv.layouts.understanding import RECORD
from nnxconv.state import is_stored, ledger_of
from nnxconv.tree import first_source, spell
from nnxconv.tree.views import Literal
from tests.support import any_trees, states

EVERYDAY = range(80)
TARGETS = ("linen", "nnx", "nnx-state", "nnx-pure")


def surveyed(tree, record=None):
    metadata = {} if record is None else {RECORD: json.loads(json.dumps(record))}
    return choose_part(tree, SurveyOptions(metadata))


def told(tree):
    return {spell(key): states.told({key: leaf})[key] for key, leaf in tree.items()}


def check_roles(made):
    """The survey's roles are those that the tree was made with, and add up."""
    chosen = surveyed(made.tree)
    found = {spell(key): chosen.survey.roles[key] for key in made.tree if is_stored(made.tree[key])}
    assert found == {spell(k): made.roles[k] for k in made.tree if is_stored(made.tree[k])}
    ledger = ledger_of(made.tree, chosen.survey.roles)
    assert sum(amount.leaves for amount in ledger.values()) == sum(
        map(is_stored, made.tree.values())
    )
    assert {one.at for one in chosen.survey.states} == set(made.states)
    return chosen


def check_way_back(made, chosen, target):
    """What is converted to a layout and back is the same tree, leaf by leaf and value by value."""
    try:
        whole = converted(chosen.survey, Options(to=target), None, None)
    except NnxconvError:
        return False
    nothing_lost(whole)
    count = account(made.tree, chosen, whole)
    assert count.total == sum(map(is_stored, made.tree.values()))
    if count.left_out:
        return False
    stored = states.first_values(made.tree)
    tree, values = states.written(whole.tree, stored)
    there = surveyed(tree, whole.record)
    for located in chosen.survey.states:
        if located.understood.codec.name not in (*TARGETS, "linen-variables"):
            return False
    names = {one.understood.codec.name for one in chosen.survey.states}
    if len(names) > 1:
        return True
    try:
        back = converted(there.survey, Options(to=names.pop()), None, None)
    except NnxconvError as error:
        raise AssertionError(error.render()) from error
    returned, again = states.written(back.tree, values)
    assert told(returned) == told(made.tree)
    for key, leaf in made.tree.items():
        if not isinstance(leaf, Literal):
            assert (again[spell(key)] == stored[spell(key)]).all()
    return True


def check_params_only(made, chosen):
    """Nothing but parameters, and variables that are no copies, is exported."""
    try:
        whole = converted(chosen.survey, Options(params_only=True, to="nnx"), None, None)
    except NnxconvError:
        return
    by_name = {
        leaf.name: made.roles[key]
        for key, leaf in made.tree.items()
        if not isinstance(leaf, Literal)
    }
    copies = {k for copy in chosen.survey.copies for k in copy.stored.values()}
    copied = {made.tree[key].name for key in copies if not isinstance(made.tree[key], Literal)}
    for leaf in whole.tree.values():
        if not isinstance(leaf, Literal):
            name = first_source(leaf).name
            assert by_name[name] in ("parameters", "variables")
            assert name not in copied


def check(seed):
    made = any_trees.generate(seed)
    chosen = check_roles(made)
    check_params_only(made, chosen)
    return check_way_back(made, chosen, TARGETS[seed % len(TARGETS)])


def test_generated_trees_are_understood_as_they_were_made_and_come_back():
    came_back = sum(check(seed) for seed in EVERYDAY)
    assert came_back > len(EVERYDAY) // 2


@pytest.mark.full
@pytest.mark.slow
def test_many_generated_trees_are_understood_as_they_were_made_and_come_back():
    came_back = sum(check(seed) for seed in range(20_000))
    assert came_back > 10_000
