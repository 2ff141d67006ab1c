"""Every optimizer in every layout, written out."""

import pytest

from tests.support.layouts import STEP_DTYPES, TRAINING, default_tree
from tests.support.optimizer_trees import TREES, expected_tree
from tests.support.states import OPTIMIZERS, tiny, told


def test_every_optimizer_stands_in_the_table():
    assert TREES.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("layout", TRAINING)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_is_written_as_in_the_table(layout, optimizer):
    state = tiny(optimizer, STEP_DTYPES[layout])
    assert told(default_tree(layout, state)) == expected_tree(layout, optimizer)
