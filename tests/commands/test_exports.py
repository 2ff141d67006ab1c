"""`--params_only`, `--dtype`: what serving loads, from every layout to every layout."""

import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import nnxconv
from nnxconv.layouts.recognition import CODECS
from nnxconv.layouts.reducing import FLOATS
from nnxconv.state.arranging import arrange
from nnxconv.state.layer_groups import Apart, Stacked
from nnxconv.state.train_state import TrainState
from nnxconv.state.unstacking import unstack
from nnxconv.tree.elements import dtype_of
from nnxconv.tree.views import Literal
from tests.support import checkpoints, models, states
from tests.support.disk import on_disk
from tests.support.layouts import LAYOUTS, TRAINING
from tests.support.states import array, table, tiny, told

each_layout = pytest.mark.parametrize("layout", TRAINING)
each_pair = pytest.mark.parametrize(
    ("layout", "other"), [(a, b) for a in TRAINING for b in LAYOUTS]
)

# what stands on disk when the tiny model is exported
EXPORTS = {
    "linen": "step 0\nparams/params/* x\nopt_state {}",
    "maxtext": "step 0\nparams/params/* x\nopt_state {}",
    "nnx": "*/value x",
    "nnx-state": "model/*/value x",
    "nnx-pure": "* x",
    "linen-variables": "params/* x",
    "nnx-optimizer": "model/*/value x",
    "nnx-rl": "base/*/value x",
    "tunix": "model_params/*/value x",
}


def stored(layout, state):
    """A checkpoint in a layout, as a first program wrote it."""
    codec = CODECS[layout]
    spelled = states.spelled(state, codec.spelling)
    return on_disk(codec.encode(spelled, codec.default_form(spelled)).tree)


@each_pair
def test_an_export_is_written_as_in_the_table(layout, other):
    there, _ = stored(layout, tiny("adamw", "int32")).converted(to=other, params_only=True)
    assert told(there.tree) == table(EXPORTS[other])


@pytest.mark.sample(12)
@each_pair
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_an_export_holds_the_parameters_and_their_values(layout, other, data):
    state = data.draw(states.training_states(with_rngs=False))
    disk = stored(layout, state)
    scan_layers = data.draw(st.sampled_from([None, True, False]))
    there, conversion = disk.converted(
        to=other, params_only=True, scan_layers=scan_layers, without=("aux",)
    )
    back, again = there.converted(to=layout, scan_layers=False)
    assert conversion.state.params.keys() == state.params.keys()
    assert again.source.state.params.keys() == state.params.keys()
    expected, _ = disk.converted(to=layout, params_only=True, scan_layers=False, without=("aux",))
    # Names are those of the source's own form on the way back, and the layout's in an export.
    assert sorted(map(repr, back.contents().values())) == sorted(
        map(repr, expected.contents().values())
    )


@pytest.mark.sample(15)
@each_pair
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_only_floating_point_parameters_are_cast(layout, other, data):
    state = data.draw(states.training_states(with_rngs=False))
    _, conversion = stored(layout, state).converted(
        to=other, params_only=True, dtype="bfloat16", without=("aux",)
    )
    for path, leaf in conversion.state.params.items():
        before = dtype_of(state.params[path])
        assert dtype_of(leaf) == ("bfloat16" if before in FLOATS else before)


@pytest.mark.parametrize("layout", TRAINING)
def test_moments_and_counts_keep_their_type(layout):
    _, conversion = stored(layout, tiny("adamw", "int32")).converted(to=layout, dtype="bfloat16")
    types = {
        (key[0], dtype_of(leaf))
        for key, leaf in conversion.state.leaves().items()
        if not isinstance(leaf, Literal) and key != ("step",)
    }
    assert types == {("params", "bfloat16"), ("opt_state", "float32"), ("opt_state", "int32")}


VARIABLES = """
    model/dense/bias f32[3]
    model/dense/kernel i8[2,3]
    model/dense/scale f8[3]
    model/dense/table i4[4]
    model/norm/mean f32[3]
    model/norm/var f32[3]
    model/norm/scale f32[3]
    model/dropout/rngs/dropout/count u32[]
    model/dropout/rngs/dropout/key u32[4]
"""
_TYPES = {"f32": "float32", "u32": "uint32", "i8": "int8", "f8": "float8_e4m3fn", "i4": "int4"}


def with_variables():
    """A quantised layer, batch statistics and RNG state, in nnx-pure."""
    tree = {}
    for key, what in table(VARIABLES).items():
        short, _, rest = what.partition("[")
        shape = tuple(int(size) for size in rest[:-1].split(",") if size)
        tree[key] = array(key, shape, _TYPES[short])
    return on_disk(tree)


def test_quantised_leaves_and_batch_statistics_keep_their_type_and_rngs_are_left_out():
    there, conversion = with_variables().converted(to="nnx", params_only=True, dtype="bfloat16")
    assert {key: dtype_of(leaf) for key, leaf in there.tree.items()} == {
        ("dense", "bias", "value"): "bfloat16",
        ("dense", "kernel", "value"): "int8",
        ("dense", "scale", "value"): "float8_e4m3fn",
        ("dense", "table", "value"): "int4",
        ("norm", "mean", "value"): "float32",
        ("norm", "var", "value"): "float32",
        ("norm", "scale", "value"): "bfloat16",
    }
    assert conversion.left_out == {
        ("aux", "rngs", "dropout", "rngs", "dropout", name): "--params_only"
        for name in ("count", "key")
    }


def test_what_an_export_leaves_out_and_assumes_is_said():
    _, conversion = stored("linen", tiny("sgd", "int32")).converted(to="linen", params_only=True)
    assert conversion.left_out == {
        ("opt_state", 1, "count"): "--params_only",
        ("step",): "--params_only",
    }
    assert conversion.assumed == ("`step` is 0, as where MaxText saves parameters only",)


# layout, arrangement of the source, the layers of the export in NNX
SPELLINGS = [
    ("linen", Apart("suffix"), {"layers_0", "layers_1"}),
    ("maxtext", Stacked(1), {"layers_0", "layers_1"}),
    ("nnx", Stacked(0), {"layers_0", "layers_1"}),
    ("nnx-pure", Apart("index"), {"layers"}),  # layers that stand in an `nnx.List` stay there
]


@pytest.mark.parametrize(("layout", "arrangement", "expected"), SPELLINGS)
def test_layers_that_are_unrolled_for_serving_are_called_as_maxtext_calls_them(
    layout, arrangement, expected
):
    paths = [("layers", i, name, "kernel") for i in range(2) for name in ("wi", "wo")]
    shapes = {"wi": (5, 6), "wo": (6, 5)}
    params = {path: array(("params", *path), shapes[path[2]]) for path in paths}
    state = TrainState(params, {}, array(("step",), (), "int32"))
    canonical, groups = unstack(states.spelled(state, "suffix"))
    arranged = arrange(canonical, groups, {group.key: arrangement for group in groups})
    codec = CODECS[layout]
    disk = on_disk(codec.encode(arranged, codec.default_form(arranged)).tree)
    there, _ = disk.converted(to="nnx", params_only=True, scan_layers=False)
    assert {key[0] for key in there.tree} == expected


# --- on disk ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A stacked Linen run and its bfloat16 export, layers apart, proved while it was written."""
    root = tmp_path_factory.mktemp("run")
    checkpoints.save_root(root / "training", {5: checkpoints.linen(axis=1)})
    return root


@each_layout
def test_an_export_that_is_verified_says_so_and_compares_as_equal(layout, run):
    target = run / f"export-{layout}"
    result = nnxconv.convert(
        str(run / "training"),
        str(target),
        to=layout,
        params_only=True,
        dtype="bfloat16",
        scan_layers=False,
        verify=True,
    )
    assert result.is_verified
    exact = nnxconv.compare(str(run / "training"), str(target))
    assert exact.counts["dtype"] == 11
    report = nnxconv.compare(
        str(run / "training"), str(target), compare_values=True, ignore_dtype=True, rtol=2**-8
    )
    assert report.is_match, report.render()


@each_layout
def test_an_export_without_a_cast_compares_as_equal(layout, run):
    target = run / f"plain-{layout}"
    nnxconv.convert(str(run / "training"), str(target), to=layout, params_only=True)
    assert nnxconv.compare(str(run / "training"), str(target), compare_values=True).is_match


@pytest.mark.full
def test_an_exported_model_gives_the_same_pictures_their_classes(tmp_path):
    """Batch statistics are exported too: a network cannot be evaluated without them."""
    model = models.NnxCnn(rngs=nnx.Rngs(0))
    model(models.pictures(0)[0])
    source = models.save(tmp_path / "model", nnx.state(model))
    result = nnxconv.convert(str(source), str(tmp_path / "out"), to="nnx-pure", params_only=True)
    fresh = models.NnxCnn(rngs=nnx.Rngs(1))
    state = nnx.state(fresh)
    nnx.replace_by_pure_dict(state, models.restore(tmp_path / "out"))
    nnx.update(fresh, state)
    shown = models.pictures(1)[0]
    assert np.array_equal(model(shown, False), fresh(shown, False))
    assert result.conversion.left_out == {}
