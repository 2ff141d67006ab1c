"""Several models in lists or mappings, and the optimizers of each beside them in the same order."""

import pytest

from nnxconv.commands.convert import converted
from nnxconv.errors import BadInput
from nnxconv.layouts import Options, choose_part, unsure_of
from nnxconv.layouts.survey_options import SurveyOptions
from tests.layouts.test_any_tree import check_params_only, check_roles, check_way_back
from tests.layouts.test_trees_people_save import ADAM, DENSE, made, unmarked
from tests.support.layouts import source_tree

KINDS = {
    # `nnx.Optimizer` for each of several models of the same structure
    "NNX optimizers in a list": (
        DENSE.format("models/[0]", "P")
        + DENSE.format("models/[1]", "P")
        + "models/[1]/bn/mean f32[3] V\n"
        + ADAM.format("optimizers/[0]/opt_state/0")
        + "optimizers/[0]/step u32[] S\n"
        + ADAM.format("optimizers/[1]/opt_state/0")
        + "optimizers/[1]/step u32[] S\n"
        + "epoch i32[] X",
        ["models/[0]", "models/[1]"],
    ),
    "NNX optimizers by name": (
        DENSE.format("models/a", "P")
        + DENSE.format("models/b", "P")
        + ADAM.format("optimizers/a/opt_state/0")
        + "optimizers/a/step u32[] S\n"
        + ADAM.format("optimizers/b/opt_state/0")
        + "optimizers/b/step u32[] S\n",
        ["models/a", "models/b"],
    ),
    # of plain SGD, which count and keep nothing
    "plain SGD in a list": (
        DENSE.format("models/[0]", "P")
        + DENSE.format("models/[1]", "P")
        + "models/[1]/bn/mean f32[3] V\n"
        + "optimizers/[0]/step u32[] S\noptimizers/[1]/step u32[] S\nepoch i32[] X",
        ["models/[0]", "models/[1]"],
    ),
    "plain SGD by name": (
        DENSE.format("models/a", "P")
        + DENSE.format("models/b", "P")
        + "optimizers/a/step u32[] S\noptimizers/b/step u32[] S",
        ["models/a", "models/b"],
    ),
    # the same with optimizers of optax
    "optax in a list": (
        DENSE.format("params/[0]", "P")
        + DENSE.format("params/[1]", "P")
        + ADAM.format("opt_states/[0]/[0]")
        + ADAM.format("opt_states/[1]/[0]"),
        ["params/[0]", "params/[1]"],
    ),
    "optax in a list of any name": (
        DENSE.format("nets/[0]", "P")
        + DENSE.format("nets/[1]", "P")
        + DENSE.format("target_nets/[0]", "V")
        + DENSE.format("target_nets/[1]", "V")
        + ADAM.format("optims/[0]/[0]")
        + ADAM.format("optims/[1]/[0]")
        + "steps/[0] i64[] X",
        ["nets/[0]", "nets/[1]"],
    ),
    "optax by name": (
        DENSE.format("nets/a", "P")
        + DENSE.format("nets/b", "P")
        + ADAM.format("optims/a/[0]")
        + ADAM.format("optims/b/[0]"),
        ["nets/a", "nets/b"],
    ),
}


def made_of(name):
    text, ats = KINDS[name]
    found = made(text, ats)
    found.states = {
        tuple(int(part[1:-1]) if part[0] == "[" else part for part in at): None
        for at in found.states
    }
    return found


@pytest.mark.parametrize("name", KINDS)
def test_each_model_is_a_state_with_its_own_optimizer(name):
    chosen = check_roles(made_of(name))
    for one in chosen.survey.states:
        number = one.at[-1]
        others = {key for key in one.stored.values() if number not in key}
        assert not others


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("target", ["linen", "nnx", "nnx-state", "nnx-pure"])
def test_models_in_turn_come_back(name, target):
    made_tree = made_of(name)
    check_way_back(made_tree, check_roles(made_tree), target)
    check_params_only(made_tree, check_roles(made_tree))


@pytest.mark.parametrize(
    "name", ["NNX optimizers in a list", "plain SGD in a list", "optax in a list"]
)
def test_one_model_of_a_list_stands_alone_without_a_gap(name):
    chosen = check_roles(made_of(name))
    at = "params[1]" if "optax" in name else "models[1]"
    alone = choose_part(chosen.survey.tree, SurveyOptions(), at=at).survey
    assert [one.at for one in alone.states] == [()]
    tree = converted(alone, Options(to="linen", params_only=True), None, None).tree
    assert all(1 not in key for key in tree)


def surveyed(*optimizers, models=("D", "G")):
    text = "".join(DENSE.format(name, "P") for name in models)
    text += "".join(ADAM.format(f"{name}/[0]") for name in optimizers)
    return choose_part(source_tree(unmarked(text)), SurveyOptions()).survey


@pytest.mark.parametrize(
    ("optimizers", "models", "pairs"),
    [
        (("opt_D", "opt_G"), ("D", "G"), {"D": "opt_D", "G": "opt_G"}),
        (("opt1", "opt_D"), ("D", "G"), {"D": "opt_D", "G": "opt1"}),
        (("g_opt", "d_opt"), ("dis", "gen"), {"dis": "d_opt", "gen": "g_opt"}),
        (("opt1", "opt2"), ("net2", "net1"), {"net1": "opt1", "net2": "opt2"}),
    ],
)
def test_an_optimizer_follows_what_its_name_tells_or_what_no_other_follows(
    optimizers, models, pairs
):
    survey = surveyed(*optimizers, models=models)
    assert {one.at[0]: one.optimizers[0][0] for one in survey.states} == pairs
    assert not unsure_of(survey.states)


def test_optimizers_that_fit_several_models_equally_are_not_paired_by_order():
    survey = surveyed("opt1", "opt2")
    with pytest.raises(BadInput) as refused:
        converted(survey, Options(to="nnx"), None, None)
    assert refused.value.render() == (
        "error: neither names nor shapes tell which parameters an optimizer follows\n"
        "  `opt1` fits `D` and `G` equally\n"
        "  `opt2` fits `D` and `G` equally\n"
        "\n"
        "hint: `--drop G --drop opt2` keeps `D` and `opt1`; `--at D` takes parameters alone"
    )
    tree = survey.tree
    one = choose_part(tree, SurveyOptions(), drop=["G", "opt2"]).survey
    assert converted(one, Options(to="nnx"), None, None).states
    alone = choose_part(tree, SurveyOptions(), at="D").survey
    assert alone.states[0].understood.state.opt_state is None


def test_an_optimizer_that_fits_two_models_equally_makes_none_of_them_a_copy():
    with pytest.raises(BadInput, match="`opt` fits `D` and `G` equally"):
        converted(surveyed("opt"), Options(to="nnx", params_only=True), None, None)
