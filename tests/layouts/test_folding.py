"""What is found out of a few layers is found out of all of them, in trees of every kind."""

import random
from unittest import mock

import pytest

from nnxconv.layouts import SurveyOptions, surveying
from nnxconv.layouts.folding import Folded, folded
from nnxconv.tree import Source
from tests.support import any_trees
from tests.support.states import array

LAYERS = 7


def surveyed(tree, *, is_folded):
    with mock.patch.object(surveying, "folded", folded if is_folded else lambda tree: None):
        return surveying.survey(tree, SurveyOptions())


def told(survey):
    """All that a survey says, with the order of what has one."""
    return [
        *(list(part.items()) for part in (survey.tree, survey.around, survey.roles)),
        [
            [(one, list(one.stored.items())) for one in some]
            for some in (survey.states, survey.copies)
        ],
        None if survey.problem is None else survey.problem.render(),
    ]


def with_layers(tree, rng):
    """The tree with some of its names numbered, and what they have repeated."""
    names = sorted({part for key in tree for part in key[:-1] if isinstance(part, str)})
    spelled = {
        name: rng.choice(("{}_{}", "{}{}", "{1}")) for name in rng.sample(names, min(2, len(names)))
    }
    layers = {
        (*key[:place], spelled[part].format(part, number), *key[place + 1 :]): leaf
        for key, leaf in tree.items()
        for place, part in enumerate(key)
        if part in spelled
        for number in (range(LAYERS) if rng.random() < 0.97 else range(LAYERS - 1))
    }
    rest = {key: leaf for key, leaf in tree.items() if spelled.keys().isdisjoint(key)}
    return {key: any_trees.renamed(leaf, key) for key, leaf in (layers | rest).items()}


def check(seed):
    rng = random.Random(seed)
    tree = with_layers(any_trees.generate(seed).tree, rng)
    with mock.patch.object(surveying, "find", wraps=surveying.find) as looked_at:
        found = surveyed(tree, is_folded=True)
    assert told(found) == told(surveyed(tree, is_folded=False)), seed
    return all(len(call.args[0]) < len(tree) for call in looked_at.call_args_list)


def test_a_tree_is_what_its_layers_say_of_which_a_few_are_looked_at():
    assert sum(map(check, (114, 237, 664, 749, 1668, *range(20)))) > 6


@pytest.mark.full
@pytest.mark.parametrize("first", range(0, 5000, 500))
def test_many_trees_are_what_their_layers_say_of_which_a_few_are_looked_at(first):
    assert sum(map(check, range(first, first + 500))) > 80


def model(layers, shape=lambda layer, name: (4, 4)):
    """A model's parameters and moments, keys and shapes alone."""
    keys = [(f"layers_{layer}", name) for layer in range(layers) for name in ("up", "down")]
    roots = (("params",), ("opt_state", 0, "mu"), ("opt_state", 0, "nu"))
    tree = {
        (*root, *key): array((*root, *key), shape(int(key[0].rpartition("_")[2]), key[1]))
        for root in roots
        for key in keys
    }
    return tree | {("opt_state", 0, "count"): array(("count",), (), "int32")}


def shortened(tree) -> Folded:
    short = folded(tree)
    assert short is not None
    return short


def layers_in(tree):
    return sorted({int(key[1].removeprefix("layers_")) for key in tree if key[0] == "params"})


def test_of_layers_that_are_alike_three_are_kept():
    short = shortened(model(9))
    assert layers_in(short.tree) == [0, 1, 2]
    assert [list(short.tree)[place] for place in short.like] == [
        key if key in short.tree else tuple("layers_0" if "layers" in str(p) else p for p in key)
        for key in model(9)
    ]
    assert short.is_repeated([("params", "layers_0")])
    assert short.is_repeated([("params", "layers_8", "up")])
    assert not short.is_repeated([("params",), ("opt_state", 0, "mu")])


def test_of_layers_of_two_kinds_three_of_each_are_kept():
    tree = model(12, lambda layer, name: (4, 4 + layer % 2))
    assert layers_in(shortened(tree).tree) == [0, 1, 2, 3, 4, 5]


def test_layers_that_differ_in_the_moments_alone_differ():
    tree = model(9)
    key = ("opt_state", 0, "nu", "layers_7", "up")
    assert layers_in(shortened(tree | {key: array(key, (4, 5))}).tree) == [0, 1, 2, 7]
    masked = {k: leaf for k, leaf in tree.items() if k != key}
    assert layers_in(shortened(masked).tree) == [0, 1, 2, 7]


@pytest.mark.parametrize(
    "odd",
    [
        Source("x", (4, 4), "bfloat16", (4, 4)),
        Source("x", (4, 4), "float32", (4, 4), kind="scalar"),
        Source("x", (4, 4), "float32", (4, 4), prng_impl="rbg"),
    ],
    ids=["dtype", "kind", "key"],
)
def test_a_layer_of_another_kind_of_array_is_kept(odd):
    tree = model(9) | {("params", "layers_5", "up"): odd}
    assert layers_in(shortened(tree).tree) == [0, 1, 2, 5]


def test_layers_within_layers_are_left_aside_at_both_levels():
    tree = {
        ("params", "stages", stage, f"block{block}", "w"): array(("w",), (2, 2))
        for stage in range(5)
        for block in range(6)
    }
    assert len(shortened(tree).tree) == 9


def test_names_with_leading_zeros_do_not_stand_for_those_without():
    tree = {
        ("params", f"layers_{zero}{layer}", "w"): array(("w",), (2, 2))
        for zero in ("", "0")
        for layer in range(6)
    }
    names = {str(key[1]) for key in shortened(tree).tree}
    assert names == {f"layers_{zero}{layer}" for zero in ("", "0") for layer in range(3)}


def test_trees_of_few_layers_are_left_as_they_are():
    assert folded(model(3)) is None
    assert folded({}) is None
    assert folded(model(6, lambda layer, name: (4, 4 + layer))) is None
