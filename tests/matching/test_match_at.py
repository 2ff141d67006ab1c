"""`match --at` and `--at_template`: subtrees as the source and as the template."""

import numpy as np
import pytest

import nnxconv
from nnxconv.errors import BadInput
from tests.support.command import run
from tests.support.model_pairs import abstract_mlp
from tests.support.models import save


def part(*names):
    """A dense layer and its bias, under these names."""
    weight, bias = names
    return {weight: np.ones((3, 4), np.float32), bias: np.ones(4, np.float32)}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Two checkpoints, each with two states of which either could be meant."""
    root = tmp_path_factory.mktemp("at")
    old = {"generator": {"params": {"first": part("kernel", "bias")}}}
    old["discriminator"] = {"params": {"judge": part("kernel", "bias")}}
    new = {"a": {"params": {"second": part("kernel", "bias")}}}
    new["b"] = {"params": {"other": part("kernel", "bias")}}
    return save(root / "old", old), save(root / "new", new)


def test_a_subtree_of_either_side_is_matched(both):
    source, template = map(str, both)
    found = nnxconv.match(source, template, at="generator", at_template="b")
    assert found.is_complete
    assert [(str(rule), str(rule.targets[0])) for rule in found.rules] == [("first", "other")]
    outcome = run("match", source, template, "--at", "generator", "--at_template", "b")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert '"first" = "other"' in outcome.stdout


def test_a_template_of_several_states_names_the_option_that_chooses(both):
    outcome = run("match", *both, "--at", "generator")
    assert outcome.exit_code == 2
    assert outcome.stderr == (
        "error: there are 2 states, and `match` needs one\n"
        "  a\n"
        "  b\n"
        "\n"
        "hint: `--at_template a` or `--at_template b`\n"
    )


def test_a_key_of_what_is_made_in_python_is_refused(both):
    with pytest.raises(BadInput) as refused:
        nnxconv.match(str(both[0]), abstract_mlp(), at="generator", at_template="b")
    assert refused.value.message == (
        "`a State` is no checkpoint, in which `--at_template` could name a key"
    )
