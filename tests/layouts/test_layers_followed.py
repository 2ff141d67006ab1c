"""No part of an optimizer keeps the old names of layers that are arranged or spelled anew.

The trees are made by optax; each is converted so that its layers have other names, or refused.
"""

from typing import Any

import jax.numpy as jnp
import optax
import pytest

from nnxconv.commands.convert import converted
from nnxconv.errors import CannotHold, LayerError, Mismatch
from nnxconv.layouts import Options, choose_part
from nnxconv.layouts.survey_options import SurveyOptions
from nnxconv.loading.template import template_of
from nnxconv.state import parameter_trees
from tests.support.disk import on_disk
from tests.support.layouts import source_tree

ADAM, SM3, LBFGS = optax.adam(1e-3), optax.sm3(0.1), optax.lbfgs(memory_size=2)


def block(*layers: int) -> dict[str, Any]:
    return {
        "attn": {"kernel": jnp.zeros((*layers, 4, 4))},
        "mlp": {"bias": jnp.zeros((*layers, 8))},
    }


def whole(params: dict[str, Any], **options: Any) -> Any:
    survey = choose_part(template_of(params).tree, SurveyOptions()).survey
    return converted(survey, Options(**options), None, None)


def test_a_stack_of_another_name_is_said_to_stay_stacked():
    told = whole({"blocks": block(3)}, to="linen").states[0].conversion.assumed
    assert (
        "`blocks` looks like stacked layers, and is left so"
        "; `--layer_group blocks` says that it is a stack"
    ) in told


def test_a_step_that_the_source_does_not_have_is_not_made_up():
    params = {"dense": {"kernel": jnp.zeros((2, 3))}}
    tree = {"params": params, "opt_state": ADAM.init(params)}
    like = choose_part(template_of({**tree, "step": jnp.int32(3)}).tree, SurveyOptions()).survey
    source = choose_part(template_of(tree).tree, SurveyOptions()).survey
    with pytest.raises(Mismatch) as refused:
        converted(source, Options(), like.states[0], None)
    assert refused.value.render() == (
        "error: the source has no step, and `--like` has one\n"
        "  step  i32[]  only in `--like`\n\n"
        "hint: `--to linen` without `--like` writes it without a step; with `--params_only` as"
        " well the parameters alone"
    )


@pytest.mark.parametrize("scan_layers", [None, False])
@pytest.mark.parametrize("target", ["linen", "nnx", "nnx-pure"])
def test_layers_whose_numbers_have_zeros_in_front_keep_all_their_names(target, scan_layers):
    names = {f"layers_{number:02}" for number in range(12)}
    tree = whole({name: block() for name in names}, to=target, scan_layers=scan_layers).tree
    assert {part for key in tree for part in key if "layers" in str(part)} == names


def test_layers_whose_numbers_have_zeros_in_front_are_not_stacked():
    with pytest.raises(LayerError, match="layers_00 to layers_11"):
        whole({f"layers_{n:02}": block() for n in range(12)}, to="nnx", scan_layers=True)


def model(width: int) -> dict[str, Any]:
    layers = {f"layers_{i}": {"kernel": jnp.zeros((4, width))} for i in range(3)}
    return {**layers, "out": {"kernel": jnp.zeros((width, 2))}}


A, B = model(4), model(5)
TREES: dict[str, dict[str, Any]] = {
    "one model": {"params": A, "opt_state": ADAM.init(A)},
    "SM3": {"params": A, "opt_state": SM3.init(A)},
    "L-BFGS, which keeps parameters": {"params": A, "opt_state": LBFGS.init(A)},
    "L-BFGS below a level": {"params": {"params": A}, "opt_state": LBFGS.init({"params": A})},
    "a level for each of two": {
        "params": {"actor_params": {"params": A}, "critic_params": {"params": B}},
        "opt_states": {"a_opt": ADAM.init({"params": A}), "c_opt": ADAM.init({"params": B})},
    },
    "one optimizer for two names": {
        "actor_params": A,
        "critic_params": B,
        "opt_state": ADAM.init({"actor": A, "critic": B}),
    },
    "one optimizer for a pair": {
        "actor_params": A,
        "critic_params": B,
        "opt_state": ADAM.init((A, B)),
    },
    "one optimizer for a pair that is alike": {
        "actor_params": A,
        "critic_params": A,
        "opt_state": ADAM.init((A, A)),
    },
    "a pair of optimizers": {"params": (A, B), "opt_state": (ADAM.init(A), SM3.init(B))},
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize(
    "options",
    [
        Options(to="linen", scan_layers=True),
        Options(to="nnx-pure", scan_layers=True),
        Options(to="nnx-pure", scan_layers=False),
        Options(to="nnx-state", scan_layers=False),
    ],
    ids=["linen stacked", "pure stacked", "pure apart", "state apart"],
)
def test_layers_have_one_kind_of_name_in_parameters_and_optimizer(name, options):
    survey = choose_part(template_of(TREES[name]).tree, SurveyOptions()).survey
    try:
        whole = converted(survey, options, None, None)
    except (CannotHold, LayerError):
        return
    names = {str(part) for key in whole.tree for part in key if str(part).startswith("layers")}
    kinds = {name.rstrip("0123456789") for name in names}
    assert kinds in ({"layers"}, {"layers_"})


@pytest.mark.parametrize("name", TREES)
def test_apart_in_nnx_none_of_these_is_refused(name):
    survey = choose_part(template_of(TREES[name]).tree, SurveyOptions()).survey
    assert converted(survey, Options(to="nnx-pure", scan_layers=False), None, None).states


def test_moments_of_an_optimizer_that_nothing_tells_are_not_left_with_old_names():
    tree = template_of(TREES["one optimizer for a pair that is alike"]).tree
    survey = choose_part(tree, SurveyOptions()).survey
    with pytest.raises(CannotHold) as refused:
        converted(survey, Options(to="linen", scan_layers=True), None, None)
    [first, *_] = refused.value.details
    assert (
        refused.value.message
        == "the optimizer's state beside these parameters cannot follow their layers"
    )
    assert first == "opt_state[0].mu[0].layers_0.kernel  f32[4,4]"
    assert refused.value.hint == "`--drop 'opt_state'` leaves out what is in the way"
    alone = choose_part(tree, SurveyOptions(), drop=["opt_state"]).survey
    assert converted(alone, Options(to="linen", scan_layers=True), None, None).states


def test_elements_of_what_is_kept_for_a_parameter_follow_it():
    state = source_tree("[0]/mu/w/[0] f32[2]\n[0]/mu/w/[1] f32[3]\n[0]/nu/w f32[2,3]")
    assert parameter_trees(state, {("w",)}) == {(0, "mu"): False, (0, "nu"): False}


def test_a_tree_of_parameters_within_the_optimizer_is_no_level():
    state = source_tree("[0]/count i32[]\n[0]/params/w f32[2]\n[0]/updates/w f32[2]")
    assert parameter_trees(state, {("w",)}) == {(0, "params"): False, (0, "updates"): False}


def test_factors_of_layers_are_not_stacked():
    tree = source_tree(
        """
        params/layers_0/kernel f32[4,4]
        params/layers_1/kernel f32[4,4]
        opt_state/velocities/layers_0/kernel f32[4,4]
        opt_state/velocities/layers_1/kernel f32[4,4]
        opt_state/estimator_state/blocks/dense_0/factor f32[4,4]
        """
    )
    survey = choose_part(tree, SurveyOptions()).survey
    with pytest.raises(LayerError) as refused:
        converted(survey, Options(to="linen", scan_layers=True), None, None)
    assert refused.value.details == (
        "opt_state.estimator_state.blocks.dense_0.factor is a factor of one layer",
    )


IN_LIST = """
    step i32[]
    params/layers/[0]/kernel f32[4,5]
    params/layers/[1]/kernel f32[4,5]
    params/layers/[2]/kernel f32[4,5]
    opt_state/[0]/count i32[]
    opt_state/[0]/trace/layers/[0]/kernel f32[4,5]
    opt_state/[0]/trace/layers/[1]/kernel f32[4,5]
    opt_state/[0]/trace/layers/[2]/kernel f32[4,5]
"""
KERNELS = {
    ("linen", True): ("params", "layers", "kernel"),
    ("maxtext", True): ("params", "params", "layers", "kernel"),
    ("maxtext", None): ("params", "params", "layers_2", "kernel"),
    ("nnx-pure", None): ("model", "layers", "2", "kernel"),
}


@pytest.mark.parametrize(("target", "scan_layers"), KERNELS)
def test_layers_in_a_list_are_layers_and_come_back_as_a_list(target, scan_layers):
    disk = on_disk(source_tree(IN_LIST))
    there, conversion = disk.converted(to=target, scan_layers=scan_layers)
    assert KERNELS[target, scan_layers] in conversion.tree
    back, _ = there.converted(to="linen", scan_layers=False if scan_layers else None)
    assert back.contents() == disk.contents()
