"""RNG state and other variables of a model, and parameters of any name."""

import pytest

from nnxconv.errors import CannotHold
from nnxconv.state.train_state import TrainState, under
from tests.support import states
from tests.support.disk import on_disk, there_and_back
from tests.support.layouts import STEP_DTYPES, TRAINING, default_tree, source_tree
from tests.support.optimizer_trees import expected_tree
from tests.support.states import OPTIMIZERS, array, tiny, told

IN_NNX = tuple(name for name in TRAINING if name != "linen")


RNG_AUX = states.rngs_at(("dropout",), "unsafe_rbg")


def test_a_typed_key_stays_a_typed_key():
    tree = default_tree("nnx-pure", tiny("adamw", "uint32", RNG_AUX))
    key = ("model", "dropout", "rngs", "dropout", "key")
    assert told(tree)[key] == "u32[4] unsafe_rbg"
    there, _ = on_disk(tree).converted(to="maxtext")
    assert told(there.tree)[("nnx_aux", *key)] == "u32[4] unsafe_rbg"


def test_linen_leaves_rng_state_out_and_lists_it():
    tree = default_tree("nnx-pure", tiny("adamw", "uint32", RNG_AUX))
    _, conversion = on_disk(tree).converted(to="linen")
    assert conversion.left_out == {("aux", *key): "the linen layout keeps none" for key in RNG_AUX}


def test_with_strict_leaving_out_rng_state_is_an_error():
    tree = default_tree("nnx-pure", tiny("adamw", "uint32", RNG_AUX))
    with pytest.raises(CannotHold) as refused:
        on_disk(tree).converted(to="linen", strict=True)
    assert refused.value.render() == (
        "error: the linen layout has no place for 2 arrays\n"
        "  aux.rngs.dropout.rngs.dropout.count  u32[]\n"
        "  aux.rngs.dropout.rngs.dropout.key    u32[4]\n"
        "\n"
        "hint: without `--strict`, RNG state is left out and listed"
    )


def test_linen_refuses_other_variables_and_names_them():
    tree = default_tree("maxtext", tiny("adamw"))
    tree |= source_tree("nnx_aux/model/router/table f32[64,8]")
    with pytest.raises(CannotHold) as refused:
        on_disk(tree).converted(to="linen")
    assert refused.value.render() == (
        "error: the linen layout has no place for 1 array\n"
        "  aux.variables.router.table  f32[64,8]\n"
        "\n"
        "hint: `--to maxtext` keeps variables of the model; `--without aux` leaves them out"
    )


def test_without_aux_leaves_other_variables_out_and_lists_them():
    tree = default_tree("maxtext", tiny("adamw"))
    tree |= source_tree("nnx_aux/model/router/table f32[64,8]")
    there, conversion = on_disk(tree).converted(to="linen", without=("aux",))
    assert told(there.tree) == expected_tree("linen", "adamw")
    assert conversion.left_out == {
        ("aux", "variables", "router", "table"): "--without aux",
    }


def test_batch_statistics_stand_beside_the_parameters_of_an_nnx_model():
    tree = default_tree("linen", tiny("adamw"))
    tree |= source_tree("batch_stats/norm/mean f32[7]\nbatch_stats/norm/var f32[7]")
    disk = on_disk(tree)
    there, _ = disk.converted(to="nnx-pure")
    assert told(there.tree)[("model", "norm", "mean")] == "f32[7]"
    back, _ = there.converted(to="linen")
    assert back.contents() == disk.contents()


@pytest.mark.parametrize("layers", [3, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_maxtext_stacks_variables_on_axis_0_wherever_parameters_are_stacked(axis, layers):
    text = "\n".join(
        f"params/params/decoder/layers_{i}/gate/kernel f32[16,8]\n"
        f"nnx_aux/model/decoder/layers_{i}/gate/bias f32[8]\n"
        f"nnx_aux/model/decoder/layers_{i}/gate/table f32[8,16]"
        for i in range(layers)
    )
    apart = on_disk(source_tree(text))
    stacked, _ = apart.converted(to="maxtext", scan_layers=True, layer_axis=axis)
    shape = {0: f"{layers},16,8", 1: f"16,{layers},8"}[axis]
    assert told(stacked.tree) == {
        ("params", "params", "decoder", "layers", "gate", "kernel"): f"f32[{shape}]",
        ("nnx_aux", "model", "decoder", "layers", "gate", "bias"): f"f32[{layers},8]",
        ("nnx_aux", "model", "decoder", "layers", "gate", "table"): f"f32[{layers},8,16]",
    }
    back, _ = stacked.converted(to="maxtext", scan_layers=False, layer_axis=axis)
    assert back.contents() == apart.contents()


# collections of a Linen program, at the root and beside `params/params`
COLLECTIONS = {
    "of its own": "ema/dense/average f32[3]",
    "inside params": "params/spectral/dense/sigma f32[3]",
    "with the name of a parameter's variable": "ema/dense/mean f32[3]",
    "in a scope that is no module": "ema/decay f32[]",
}


@pytest.mark.parametrize("other", IN_NNX)
@pytest.mark.parametrize("text", COLLECTIONS.values(), ids=COLLECTIONS.keys())
def test_a_collection_of_any_name_comes_back(text, other):
    disk = on_disk(default_tree("linen", tiny("adamw")) | source_tree(text))
    returned, _ = there_and_back(disk, other)
    assert returned.contents() == disk.contents()


# names that flax also gives to other variables, or that layouts use themselves
PARAMETERS = {
    "called mean": "prior/mean f32[3]",
    "called var": "prior/var f32[3]",
    "a key beside a count": "table/key f32[3]\ntable/count f32[3]",
    "a module called rngs": "rngs/kernel f32[3]",
    "a module called model": "model/kernel f32[3]",
    "a module called optimizer": "optimizer/kernel f32[3]",
    "a module called value": "attention/value/kernel f32[3]",
    "a parameter called value": "attention/value f32[3]",
    "a module called mu": "mu/kernel f32[3]",
    "int-looking names": "0/kernel f32[3]\n1/kernel f32[3]",
    "a module called step": "step/kernel f32[3]",
    "a parameter at the root": "count f32[3]",
    "names with dots and slashes": "a.b/kernel f32[3]",
}


@pytest.mark.parametrize("other", IN_NNX)
@pytest.mark.parametrize("optimizer", ["adamw", "stateless", None])
@pytest.mark.parametrize("text", PARAMETERS.values(), ids=PARAMETERS.keys())
def test_a_parameter_of_any_name_comes_back(text, optimizer, other):
    extra = {key: array(("params", *key), (3,)) for key in source_tree(text)}
    params = {**states.TINY.params, **extra}
    opt_state = None if optimizer is None else OPTIMIZERS[optimizer](params)
    step = array(("step",), (), "int32") if optimizer else None
    disk = on_disk(default_tree("linen", TrainState(params, opt_state, step)))
    returned, _ = there_and_back(disk, other)
    assert returned.contents() == disk.contents()


@pytest.mark.parametrize("layout", ["nnx", "nnx-state", "nnx-pure", "maxtext"])
@pytest.mark.parametrize("name", ["w", "alpha"])
def test_parameters_alone_are_recognised_whatever_they_are_called(layout, name):
    disk = on_disk(default_tree("linen", TrainState({("dense", name): array(("w",), (3,))})))
    returned, _ = there_and_back(disk, layout)
    assert returned.contents() == disk.contents()


@pytest.mark.parametrize("other", IN_NNX)
def test_a_module_called_model_is_not_lost_where_it_stands_alone(other):
    params = {("model", *path): leaf for path, leaf in states.TINY.params.items()}
    disk = on_disk(default_tree("linen", TrainState(params)))
    try:
        there, _ = disk.converted(to=other)
    except CannotHold:
        return
    back, _ = there.converted(to="linen")
    assert back.contents() == disk.contents()


@pytest.mark.parametrize("layout", ["nnx", "nnx-state", "nnx-pure"])
@pytest.mark.parametrize("other", ["linen", "nnx", "nnx-state", "nnx-pure"])
def test_layers_that_are_taken_apart_have_integer_keys_in_nnx(other, layout):
    params = {
        ("layers", name): array(("params", name), shape)
        for name, shape in (("wi", (5, 2, 6)), ("wo", (6, 2, 5)))
    }
    tree = default_tree(other, TrainState(params, {}, array(("step",), (), STEP_DTYPES[other])))
    there, _ = on_disk(tree).converted(to=layout, scan_layers=False)
    wrapper = () if layout == "nnx-pure" else ("value",)
    assert {key for key in there.tree if key[0] == "model"} == {
        ("model", "layers", str(i), name, *wrapper) for i in range(2) for name in ("wi", "wo")
    }


def test_two_groups_that_are_spelled_differently_come_back():
    paths = [("layers", "2", "kernel"), ("dense_layers_0", "kernel"), ("dense_layers_1", "kernel")]
    params = {path: array(("params", *path), (5, 6)) for path in paths}
    tree = default_tree("nnx-pure", tiny("adamw", "uint32"))
    tree |= under(("model",), params)
    for moment in ("mu", "nu"):
        tree |= under(
            ("optimizer", "opt_state", "0", moment),
            {path: array((moment, *path), (5, 6)) for path in paths},
        )
    disk = on_disk(tree)
    returned, _ = there_and_back(disk, "linen")
    assert returned.contents() == disk.contents()
