"""Optimizers as real programs have them: injected numbers, frozen parts, and states of nothing."""

import pytest

from nnxconv.layouts.conversion import convert_tree
from nnxconv.layouts.options import Options
from nnxconv.layouts.understanding import understand
from nnxconv.tree.views import NOTHING
from tests.support.disk import on_disk, there_and_back
from tests.support.layouts import TRAINING, default_tree, source_tree
from tests.support.states import table, tiny, told

# what optax 0.2 and flax 0.12 write for inject_hyperparams(adamw), cut short
INJECTED_LINEN = """
    step i32[]
    params/params/* x
    opt_state/count i32[]
    opt_state/hyperparams/learning_rate f32[]
    opt_state/hyperparams_states {}
    opt_state/inner_state/[0]/count i32[]
    opt_state/inner_state/[0]/mu/params/* x
    opt_state/inner_state/[0]/nu/params/* x
    opt_state/inner_state/[1] None
    opt_state/inner_state/[2] None
"""
INJECTED_PURE = """
    model/* x
    optimizer/step u32[]
    optimizer/opt_state/count i32[]
    optimizer/opt_state/hyperparams/learning_rate f32[]
    optimizer/opt_state/inner_state/0/count i32[]
    optimizer/opt_state/inner_state/0/mu/* x
    optimizer/opt_state/inner_state/0/nu/* x
"""


def test_an_empty_mapping_of_the_optimizer_is_an_empty_state_in_nnx_pure():
    disk = on_disk(source_tree(INJECTED_LINEN))
    there, _ = disk.converted(to="nnx-pure")
    assert told(there.tree) == table(INJECTED_PURE)


def test_an_empty_mapping_of_the_optimizer_comes_back_from_nnx_pure():
    disk = on_disk(source_tree(INJECTED_LINEN))
    returned, _ = there_and_back(disk, "nnx-pure")
    assert returned.contents() == disk.contents()


def test_like_gives_the_empty_mapping_of_an_optimizer():
    source = understand(source_tree(INJECTED_PURE), custom_metadata={})
    like = understand(source_tree(INJECTED_LINEN), custom_metadata={})
    conversion = convert_tree(source, Options(to="linen"), like)
    assert told(conversion.tree) == table(INJECTED_LINEN)


# what the frozen part of multi_transform looks like in Linen, and the ends of its chains
FROZEN_LINEN = """
    step i32[]
    params/params/* x
    opt_state/inner_states/frozen/inner_state None
    opt_state/inner_states/trainable/inner_state/[0]/count i32[]
    opt_state/inner_states/trainable/inner_state/[0]/mu/params/dense/bias None
    opt_state/inner_states/trainable/inner_state/[0]/mu/params/dense/kernel f32[2,3]
    opt_state/inner_states/trainable/inner_state/[1] None
    opt_state/inner_states/trainable/inner_state/[2] None
"""
FROZEN_PURE = """
    model/* x
    optimizer/step u32[]
    optimizer/opt_state/inner_states/trainable/inner_state/0/count i32[]
    optimizer/opt_state/inner_states/trainable/inner_state/0/mu/dense/bias None
    optimizer/opt_state/inner_states/trainable/inner_state/0/mu/dense/kernel f32[2,3]
"""


def test_a_frozen_part_is_absent_in_nnx_pure():
    there, _ = on_disk(source_tree(FROZEN_LINEN)).converted(to="nnx-pure")
    assert told(there.tree) == table(FROZEN_PURE)


@pytest.mark.parametrize("layout", [name for name in TRAINING if name != "linen"])
def test_a_frozen_part_comes_back(layout):
    disk = on_disk(source_tree(FROZEN_LINEN))
    returned, _ = there_and_back(disk, layout)
    assert returned.contents() == disk.contents()


def test_like_gives_the_frozen_part_and_the_ends_of_the_chains():
    source = understand(source_tree(FROZEN_PURE), custom_metadata={})
    like = understand(source_tree(FROZEN_LINEN), custom_metadata={})
    conversion = convert_tree(source, Options(to="linen"), like)
    assert told(conversion.tree) == table(FROZEN_LINEN)
    assert conversion.assumed == ()


def test_without_like_the_gaps_of_a_chain_are_assumed_to_be_empty():
    tree = default_tree("nnx-pure", tiny("adamw", "uint32"))
    _, conversion = on_disk(tree).converted(to="linen")
    assert conversion.tree[("opt_state", 1)] == NOTHING
    assert conversion.assumed == (
        "opt_state[1] is an empty state (None); a chain ends with its last state that holds arrays",
    )


# how programs spell the state of an optimizer that keeps nothing, and of none at all
EMPTY_OPT_STATES = {
    "a chain of empty states": "opt_state/[0] None\nopt_state/[1] None",
    "optax.set_to_zero": "opt_state None",
    "an empty list": "opt_state []",
    "an empty tuple": "opt_state ()",
    "parameters only": "opt_state {}",
    "no optimizer": "",
}


@pytest.mark.parametrize("other", [name for name in TRAINING if name != "linen"])
@pytest.mark.parametrize("spelled", EMPTY_OPT_STATES.values(), ids=EMPTY_OPT_STATES.keys())
def test_an_optimizer_without_arrays_comes_back_as_it_was(spelled, other):
    text = f"params/params/* x\n{spelled}"
    if spelled not in ("opt_state {}", ""):
        text = f"step i32[]\n{text}"
    disk = on_disk(source_tree(text))
    returned, _ = there_and_back(disk, other)
    assert returned.contents() == disk.contents()


def test_an_optimizer_of_flax_0_10_without_values_comes_back_without_them():
    text = """
        model/dense/kernel f32[2,3]
        model/dropout/rngs/default/count u32[]
        model/dropout/rngs/default/key u32[2]
        opt_state/1/0/count i32[]
        opt_state/1/0/mu/dense/kernel f32[2,3]
        opt_state/1/2/count i32[]
        step u32[]
    """
    disk = on_disk(source_tree(text))
    returned, conversion = there_and_back(disk, "maxtext")
    assert conversion.source.codec.name == "nnx-optimizer"
    assert returned.contents() == disk.contents()
