"""Parameters without a training state: told apart, asked about, and converted."""

import pytest

from nnxconv.errors import CannotHold, UnknownLayout
from nnxconv.layouts.recognition import recognise
from nnxconv.layouts.understanding import understand
from tests.support import states
from tests.support.disk import on_disk
from tests.support.layouts import MODEL_ONLY, default_tree, recognised, source_tree
from tests.support.states import tiny

# what stands at the root, and the layout that it is recognised as
BARE = {
    "Dense_0/kernel f32[2,3]\nDense_0/bias f32[3]": "linen-variables",
    "encoder/Conv_12/kernel f32[2,3]": "linen-variables",
    "layers/0/kernel f32[2,3]": "nnx-pure",
    "norm/scale f32[3]\nnorm/mean f32[3]": "nnx-pure",
    "Dense_0/kernel f32[2,3]\nBatchNorm_0/mean f32[3]": "nnx-pure",
    "dense/kernel f32[2,3]\nrngs/default/count u32[]\nrngs/default/key u32[2]": "nnx-pure",
    "params/dense/kernel f32[2,3]": "linen-variables",
    "params/params/dense/kernel f32[2,3]": "linen-variables",
    "params/dense/kernel f32[2,3]\ncache/dense/cached_key f32[3]": "linen-variables",
    "params/dense/kernel f32[2,3]\nstep i32[]": "linen",
    "base/dense/kernel/value f32[2,3]": "nnx-rl",
    "model/dense/kernel/value f32[2,3]\nstep/value u32[]": "nnx-optimizer",
    "model/dense/kernel f32[2,3]\nopt_state/0/count i32[]\nstep u32[]": "nnx-optimizer",
}


@pytest.mark.parametrize(("text", "layout"), BARE.items())
def test_parameters_alone_are_told_apart_by_what_only_one_program_writes(text, layout):
    codec, reading = recognise(source_tree(text))
    assert (codec.name, reading.others) == (layout, ())


UNMARKED = "dense/kernel f32[2,3]\ndense/bias f32[3]"


def test_bare_parameters_without_marks_are_read_as_both_layouts_mean_them():
    source = understand(source_tree(UNMARKED), custom_metadata={})
    assert (source.codec.name, source.others) == ("nnx-pure", ("linen-variables",))
    assert source.state.params.keys() == states.TINY.params.keys()


def test_where_the_family_of_bare_parameters_matters_it_is_asked_for():
    with pytest.raises(UnknownLayout) as refused:
        on_disk(source_tree(UNMARKED)).converted()
    assert refused.value.render() == (
        "error: this could be linen-variables or nnx-pure\n"
        "  bare parameters at the root\n"
        "\n"
        "hint: `--to LAYOUT` says what it shall become, `--from LAYOUT` what it is"
    )


# options that say enough, and the layout of the target
ENOUGH = [
    ({"to": "maxtext"}, "maxtext"),
    ({"from_": "linen-variables"}, "nnx"),
    ({"from_": "nnx-pure"}, "linen"),
    ({"direction": "linen_to_nnx"}, "nnx"),
    ({"direction": "nnx_to_linen"}, "linen"),
]


@pytest.mark.parametrize(("options", "layout"), ENOUGH)
def test_bare_parameters_are_converted_when_the_target_is_clear(options, layout):
    there, conversion = on_disk(source_tree(UNMARKED)).converted(**options)
    assert conversion.layout == layout
    assert conversion.state.params.keys() == states.TINY.params.keys()
    assert recognised(there.tree)


@pytest.mark.parametrize("layout", MODEL_ONLY)
def test_layouts_of_a_model_alone_refuse_an_optimizer(layout):
    with pytest.raises(CannotHold) as refused:
        on_disk(default_tree("linen", tiny("lion"))).converted(to=layout)
    assert refused.value.render() == (
        f"error: the {layout} layout has no place for 4 arrays\n"
        "  opt_state[0].count            i32[]\n"
        "  opt_state[0].mu.dense.bias    f32[3]\n"
        "  opt_state[0].mu.dense.kernel  f32[2,3]\n"
        "  opt_state[2].count            i32[]\n"
        "\n"
        "hint: `--params_only` leaves the optimizer out"
    )


@pytest.mark.parametrize("layout", MODEL_ONLY)
def test_layouts_of_a_model_alone_leave_a_step_out_and_list_it(layout):
    disk = on_disk(default_tree("linen", tiny("lion")))
    _, conversion = disk.converted(to=layout, without=("opt_state",))
    assert conversion.left_out[("step",)] == f"the {layout} layout keeps none"


def test_batch_statistics_and_caches_are_collections_beside_linen_variables():
    text = """
        params/dense/kernel f32[2,3]
        batch_stats/norm/mean f32[3]
        cache/attention/cached_key f32[3]
    """
    disk = on_disk(source_tree(text))
    there, _ = disk.converted(to="nnx-rl")
    assert {key[-3:] for key in there.tree} == {
        ("dense", "kernel", "value"),
        ("norm", "mean", "value"),
        ("attention", "cached_key", "value"),
    }
    back, _ = there.converted(to="linen-variables")
    assert back.contents() == disk.contents()
