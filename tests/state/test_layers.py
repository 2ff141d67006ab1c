"""Layer groups: found, taken apart, and put together again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnxconv.errors import BadInput, LayerError
from nnxconv.state.arranging import arrange, choose
from nnxconv.state.layer_groups import Apart, Blocks, Stacked
from nnxconv.state.train_state import TrainState
from nnxconv.state.unstacking import unstack
from nnxconv.tree.array_notation import notation
from nnxconv.tree.normal_form import slot
from nnxconv.tree.views import NOTHING, Literal, Moved, Slot, Source
from tests.support import states
from tests.support.states import array

modest = settings(max_examples=25, deadline=None)


def params(*prefix, **shapes):
    """Parameters by their names; a name such as `wi__kernel` is a path."""
    paths = {(*prefix, *name.split("__")): shape for name, shape in shapes.items()}
    return {path: array(("params", *path), shape) for path, shape in paths.items()}


def state_of(*trees, opt_state=None, aux=None):
    return TrainState({k: v for tree in trees for k, v in tree.items()}, opt_state, None, aux or {})


def kinds(tree):
    return {key: notation(leaf) for key, leaf in tree.items()}


def arranged(state, arrangement, **options):
    """The state with all its groups in one arrangement."""
    canonical, groups = unstack(state, **options)
    return arrange(canonical, groups, {group.key: arrangement for group in groups})


def chosen_for(state, *, scan_layers=None, layer_axis=None, spelling="suffix", **options):
    """The state as a user's options arrange it."""
    canonical, groups = unstack(state, layer_axis=layer_axis, **options)
    chosen = choose(groups, scan_layers=scan_layers, layer_axis=layer_axis, spelling=spelling)
    return arrange(canonical, groups, chosen)


# --- laws -------------------------------------------------------------------------------------

SPELLINGS = st.sampled_from(("suffix", "index"))


@modest
@given(states.training_states(), SPELLINGS)
def test_layers_that_are_apart_are_numbered(state, spelling):
    canonical, groups = unstack(states.spelled(state, spelling))
    assert canonical == state
    assert {group.arrangement for group in groups} <= {Apart(spelling)}


@modest
@given(states.training_states(), SPELLINGS, SPELLINGS)
def test_layers_that_stay_apart_are_only_spelled_anew(state, before, after):
    assert arranged(states.spelled(state, before), Apart(after)) == states.spelled(state, after)


@modest
@given(states.training_states(), SPELLINGS, st.sampled_from((0, 1)))
def test_unstacking_undoes_stacking(state, spelling, axis):
    stacked = arranged(states.spelled(state, spelling), Stacked(axis))
    canonical, groups = unstack(stacked)
    assert canonical == state
    assert all(group.arrangement == Stacked(axis) for group in groups)


@modest
@given(states.training_states(), SPELLINGS, st.sampled_from((0, 1)))
def test_stacking_undoes_unstacking(state, spelling, axis):
    stacked = arranged(states.spelled(state, spelling), Stacked(axis))
    on_disk = TrainState(*(_stored(tree) for tree in (stacked.params, stacked.opt_state)))
    assert arranged(on_disk, Stacked(axis)) == on_disk


def _stored(tree):
    return {key: states.as_stored(key, leaf) for key, leaf in tree.items()}


@modest
@given(states.training_states(), st.sampled_from((0, 1)))
def test_the_layer_axis_is_moved_in_every_array(state, axis):
    stacked = arranged(states.spelled(state, "suffix"), Stacked(axis))
    on_disk = TrainState(_stored(stacked.params))
    moved = arranged(on_disk, Stacked(1 - axis))
    directly = arranged(states.spelled(TrainState(state.params), "suffix"), Stacked(1 - axis))
    assert kinds(moved.params) == kinds(directly.params)


@modest
@given(states.training_states(), st.sampled_from((0, 1)))
def test_no_layer_is_copied_by_leaving_a_stack_as_it_is(state, axis):
    stacked = arranged(states.spelled(state, "suffix"), Stacked(axis))
    on_disk = TrainState(_stored(stacked.params))
    assert chosen_for(on_disk) == on_disk


@st.composite
def block_states(draw):
    """Layers in blocks of equal places, as Gemma 3 has them, and a state with them apart."""
    period, blocks = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    remainder = draw(st.integers(0, period - 1))
    axis = draw(st.sampled_from((0, 1)))
    layers = {}
    for i in range(period * blocks + remainder):
        shapes = {"wi__kernel": (5, 6), "wo__kernel": (6, 5), "norm__scale": (7,)}
        if i % period == 0:
            shapes["local__bias"] = (8,)
        layers |= params("decoder", f"layers_{i}", **shapes)
    return state_of(layers, opt_state=states.lion(layers)), Blocks(axis, period), remainder, blocks


@modest
@given(block_states())
def test_blocks_are_layers_in_turn_and_what_remains(made):
    state, target, remainder, blocks = made
    in_blocks = arranged(state, target)
    places = {key[2] for key in in_blocks.params if key[1] == "layers"}
    assert places == {f"layers_{j}" for j in range(target.period)}
    left = {key[2] for key in in_blocks.params if key[1] == "layers_remainder"}
    assert left == {f"layers_{j}" for j in range(remainder)}
    first = in_blocks.params[("decoder", "layers", "layers_0", "norm", "scale")]
    assert first.shape == ((blocks, 7) if target.axis == 0 else (7, blocks))


@modest
@given(block_states())
def test_taking_blocks_apart_gives_the_layers_back(made):
    state, target, _, _ = made
    in_blocks = arranged(state, target)
    canonical, [group] = unstack(in_blocks)
    assert group.arrangement == target
    assert arrange(canonical, [group], {group.key: Apart("suffix")}) == state


@modest
@given(block_states())
def test_blocks_that_stay_blocks_are_left_as_they_are(made):
    state, target, _, _ = made
    in_blocks = arranged(state, target)
    on_disk = TrainState(_stored(in_blocks.params), _stored(in_blocks.opt_state))
    assert arranged(on_disk, target) == on_disk


# --- what is stacked where --------------------------------------------------------------------

# a layer's array, stacked on axis 1, stacked on axis 0
STACKED_SHAPES = {
    "a matrix": ((5, 6), "f32[5,2,6]", "f32[2,5,6]"),
    "more axes": ((5, 6, 8), "f32[5,2,6,8]", "f32[2,5,6,8]"),
    "one axis": ((5,), "f32[5,2]", "f32[2,5]"),
    "a scalar per layer": ((), "f32[2]", "f32[2]"),
}


@pytest.mark.parametrize(
    ("shape", "on_1", "on_0"), STACKED_SHAPES.values(), ids=STACKED_SHAPES.keys()
)
def test_arrays_of_any_rank_are_stacked(shape, on_1, on_0):
    layers = state_of(params("layers_0", x=shape), params("layers_1", x=shape))
    assert kinds(arranged(layers, Stacked(1)).params) == {("layers", "x"): on_1}
    assert kinds(arranged(layers, Stacked(0)).params) == {("layers", "x"): on_0}


def test_rng_state_is_stacked_on_axis_0():
    aux = states.rngs_at(("layers_0",), None) | states.rngs_at(("layers_1",), None)
    layers = [params(f"layers_{i}", wi__kernel=(5, 6), wo__kernel=(6, 5)) for i in range(2)]
    stacked = arranged(state_of(*layers, aux=aux), Stacked(1))
    stem = ("rngs", "layers", "rngs", "dropout")
    assert kinds(stacked.aux) == {(*stem, "count"): "u32[2]", (*stem, "key"): "u32[2,2]"}
    assert kinds(stacked.params)[("layers", "wi", "kernel")] == "f32[5,2,6]"


def test_rng_state_tells_how_many_layers_there_are():
    stack = state_of(
        params("layers", a=(2, 3, 7)),
        aux={("rngs", "layers", "rngs", "dropout", "count"): array(("count",), (3,), "uint32")},
    )
    _, [group] = unstack(stack)
    assert group.arrangement == Stacked(1)


def test_batch_statistics_may_have_their_layers_on_another_axis():
    stack = state_of(
        params("layers", wi__kernel=(5, 3, 6), wo__kernel=(6, 3, 5)),
        aux={("batch_stats", "layers", "norm", "mean"): array(("mean",), (3, 7))},
    )
    canonical, [group] = unstack(stack)
    assert kinds(canonical.aux) == {
        ("batch_stats", "layers", i, "norm", "mean"): "f32[7]" for i in range(3)
    }
    assert arrange(canonical, [group], {group.key: group.arrangement}) == stack


def test_masked_leaves_stay_masked_in_every_layer_and_in_the_stack():
    layers = [params(f"layers_{i}", wi=(5, 6), wo=(6, 5)) for i in range(2)]
    whole = {path: leaf for layer in layers for path, leaf in layer.items()}
    moments = {
        (0, "mu", *path): NOTHING if path[-1] == "wo" else array(("mu", *path), leaf.shape)
        for path, leaf in whole.items()
    }
    state = state_of(whole, opt_state=moments)
    stacked = arranged(state, Stacked(1))
    assert kinds(stacked.opt_state) == {
        (0, "mu", "layers", "wi"): "f32[5,2,6]",
        (0, "mu", "layers", "wo"): "None",
    }
    canonical, _ = unstack(stacked)
    assert canonical.opt_state[(0, "mu", "layers", 1, "wo")] == NOTHING
    assert arranged(stacked, Apart("suffix")) == state


def test_moments_follow_their_parameters_wherever_the_optimizer_keeps_them():
    layers = [params(f"layers_{i}", wi=(5, 6), wo=(6, 5)) for i in range(2)]
    whole = {path: leaf for layer in layers for path, leaf in layer.items()}
    prefixes = [(0, "mu"), (0, "nu"), ("inner_states", "muon", "inner_state", 1, "trace")]
    opt_state = {
        (*prefix, *path): array((*prefix, *path), leaf.shape)
        for prefix in prefixes
        for path, leaf in whole.items()
    }
    stacked = arranged(state_of(whole, opt_state=opt_state), Stacked(1))
    assert kinds(stacked.opt_state) == {
        (*prefix, "layers", name): shape
        for prefix in prefixes
        for name, shape in (("wi", "f32[5,2,6]"), ("wo", "f32[6,2,5]"))
    }


def test_two_groups_of_different_length_are_stacked_apart_from_each_other():
    shapes = {"wi": (5, 6), "wo": (6, 5)}
    state = state_of(
        params("decoder", "dense_layers_0", **shapes),
        *(params("decoder", f"moe_layers_{i}", **shapes) for i in range(3)),
    )
    assert kinds(arranged(state, Stacked(1)).params) == {
        ("decoder", "dense_layers", "wi"): "f32[5,1,6]",
        ("decoder", "dense_layers", "wo"): "f32[6,1,5]",
        ("decoder", "moe_layers", "wi"): "f32[5,3,6]",
        ("decoder", "moe_layers", "wo"): "f32[6,3,5]",
    }


def test_a_stack_without_layers_is_not_dropped():
    state = state_of(params("layers", wi=(5, 0, 6), wo=(6, 0, 5)))
    assert arranged(state, Stacked(1)).params.keys() == state.params.keys()


def test_ten_layers_are_stacked_by_number_and_not_by_name():
    state = state_of(*(params(f"layers_{i}", w=(5, 6), v=(6, 5)) for i in range(12)))
    stacked = arranged(state, Stacked(1)).params[("layers", "w")]
    assert [item.name for item in stacked.items] == [f"params.layers_{i}.w" for i in range(12)]


# --- which names are layers -------------------------------------------------------------------

# what stands in the tree, the names that the user gives, the groups that are found
GROUPS = {
    "modules that flax numbers are no layers": (["Dense_0/w", "Dense_1/w"], [], set()),
    "nor are blocks": (["blocks_0/w", "blocks_1/w"], [], set()),
    "unless the user says so": (["blocks_0/w", "blocks_1/w"], ["blocks"], {("blocks",)}),
    "a digit is no layer of something else": (["seq/0/w", "seq/1/w"], [], set()),
    "unless the user says this": (["seq/0/w", "seq/1/w"], ["seq"], {("seq",)}),
    "anywhere in the tree": (
        ["a/b/layers_0/w", "c/moe_layers/0/w"],
        [],
        {("a", "b", "layers"), ("c", "moe_layers")},
    ),
    "layers in layers": (
        ["layers_0/layers_0/w", "layers_0/layers_1/w"],
        [],
        {("layers",), ("layers", 0, "layers")},
    ),
    "a leaf is no layer": (["layers_0", "layers_1"], [], set()),
    "a number with a zero before it is a name": (["layers_00/w"], [], set()),
    "a name beside numbers": (["layers/norm/w", "layers/0/w"], [], set()),
}


@pytest.mark.parametrize(("paths", "names", "expected"), GROUPS.values(), ids=GROUPS.keys())
def test_layers_are_found_by_their_names(paths, names, expected):
    tree = {tuple(path.split("/")): array((path,), ()) for path in paths}
    _, groups = unstack(TrainState(tree), names=("layers", "dense_layers", "moe_layers", *names))
    assert {group.key for group in groups} == expected


def test_a_stack_with_a_name_of_its_own_is_one_when_the_user_says_so():
    state = state_of(params("ScanBlock", wi=(5, 3, 6), wo=(6, 3, 5)))
    assert unstack(state)[1] == []
    canonical, [group] = unstack(state, names=("ScanBlock",))
    assert group.indices == (0, 1, 2)
    assert canonical.params[("ScanBlock", 2, "wi")] == slot(state.params[("ScanBlock", "wi")], 1, 2)


def test_a_name_that_is_not_there_is_refused():
    from nnxconv.layouts.understanding import understand

    tree = {("params", "params", "dense", "kernel"): array(("w",), (3,))}
    with pytest.raises(BadInput) as refused:
        understand(tree, custom_metadata={}, layer_group=["blocks"])
    assert refused.value.render() == "error: no layers are called `blocks`"


def test_a_program_that_stacks_no_layers_is_believed():
    state = state_of(params("layers", wi=(5, 3, 6), wo=(6, 3, 5)))
    assert unstack(state, is_scanned=False) == (state, [])


# --- the layer axis ---------------------------------------------------------------------------

# shapes in a stack, the axis that they tell
AXES = {
    "in every array the second of three": ([(5, 3, 6), (6, 3, 5)], 1),
    "in every array the first": ([(3, 5, 6), (3, 6, 5)], 0),
    "the last of two": ([(5, 3, 6), (7, 3)], 1),
    "one axis only": ([(3,), (3,)], 0),
    "a scalar per layer beside matrices": ([(5, 3, 6), (6, 3, 5), (3,)], 1),
    "fused bias of gpt3 beside other leaves": ([(3, 3, 4, 5), (5, 3), (5, 3, 4), (6, 3)], 1),
}


@pytest.mark.parametrize(("shapes", "axis"), AXES.values(), ids=AXES.keys())
def test_the_layer_axis_is_told_by_the_whole_group(shapes, axis):
    state = state_of({("layers", str(n), "x"): array((n,), s) for n, s in enumerate(shapes)})
    names = {("layers", "abcdef"[int(key[1])], "x"): leaf for key, leaf in state.params.items()}
    _, [group] = unstack(TrainState(names))
    assert group.arrangement == Stacked(axis)
    assert group.indices == (0, 1, 2)


AMBIGUOUS = params("decoder", "layers", w=(4, 3, 5), v=(4, 3, 6))


def test_an_axis_that_cannot_be_told_is_no_error_for_a_stack_that_stays_one():
    state = state_of(AMBIGUOUS, opt_state=states.lion(AMBIGUOUS))
    assert chosen_for(state) == state
    assert chosen_for(state, scan_layers=True) == state


def test_an_axis_that_cannot_be_told_is_an_error_when_something_depends_on_it():
    with pytest.raises(LayerError) as refused:
        chosen_for(state_of(AMBIGUOUS), scan_layers=False)
    assert refused.value.render() == (
        "error: the layer axis of `decoder.layers` cannot be told from the shapes:"
        " axis 0 of 4 or axis 1 of 3\n"
        "\n"
        "hint: `--layer_axis 0` or `--layer_axis 1` says which it is"
    )


@pytest.mark.parametrize(("axis", "count", "shape"), [(0, 4, "f32[3,5]"), (1, 3, "f32[4,5]")])
def test_the_user_decides_which_axis_it_is(axis, count, shape):
    apart = chosen_for(state_of(AMBIGUOUS), scan_layers=False, layer_axis=axis, spelling="suffix")
    assert {key: kind for key, kind in kinds(apart.params).items() if key[-1] == "w"} == {
        ("decoder", f"layers_{i}", "w"): shape for i in range(count)
    }


def test_an_axis_that_the_shapes_tell_is_moved_to_where_the_user_wants_it():
    w = array(("w",), (3, 5, 6))
    state = state_of({("layers", "w"): w, ("layers", "v"): array(("v",), (3, 6, 5))})
    assert chosen_for(state, layer_axis=1).params[("layers", "w")] == Moved(w, 0, 1)


# --- layers that do not fit together ----------------------------------------------------------

HINT = "\n\nhint: keep these layers apart with `--no-scan_layers`"

# layers 0, 1, ..., the whole message
MISFITS = {
    "a gap": (
        {0: {"w": (5, 6)}, 2: {"w": (5, 6)}},
        "error: layers are missing: 1\n  at params.decoder.layers[1]" + HINT,
    ),
    "layers that do not begin at 0": (
        {2: {"w": (5, 6)}, 3: {"w": (5, 6)}},
        "error: layers are missing: 0, 1\n  at params.decoder.layers[0]" + HINT,
    ),
    "another shape": (
        {0: {"w": (5, 6)}, 1: {"w": (5, 7)}},
        "error: layer 1 is f32[5,7], but layer 0 is f32[5,6]\n  at params.decoder.layers[1].w"
        + HINT,
    ),
    "another rank": (
        {0: {"w": (5,)}, 1: {"w": ()}},
        "error: layer 1 is f32[], but layer 0 is f32[5]\n  at params.decoder.layers[1].w" + HINT,
    ),
    "another type": (
        {0: {"w": (5,)}, 1: {"w": ("bfloat16", (5,))}},
        "error: layer 1 is bf16[5], but layer 0 is f32[5]\n  at params.decoder.layers[1].w" + HINT,
    ),
    "a leaf too many": (
        {0: {"w": (5,)}, 1: {"w": (5,), "b": ()}},
        "error: layer 0 has no such leaf, but layer 1 has\n  at params.decoder.layers[1].b" + HINT,
    ),
    "a leaf too few": (
        {0: {"w": (5,), "b": ()}, 1: {"w": (5,)}},
        "error: layer 1 has no such leaf, but layer 0 has\n  at params.decoder.layers[1].b" + HINT,
    ),
    "several differences": (
        {0: {"w": (5,)}, 1: {"w": (6,)}, 2: {"v": (5,)}},
        "error: the layers cannot be stacked: they differ in 3 places\n"
        "  params.decoder.layers[1].w: layer 1 is f32[6], but layer 0 is f32[5]\n"
        "  params.decoder.layers[2].v: layer 0 has no such leaf, but layer 2 has\n"
        "  params.decoder.layers[2].w: layer 2 has no such leaf, but layer 0 has" + HINT,
    ),
}


def _layers(table):
    found = {}
    for i, shapes in table.items():
        for name, shape in shapes.items():
            dtype, shape = shape if shape and isinstance(shape[0], str) else ("float32", shape)
            path = ("decoder", f"layers_{i}", name)
            found[path] = array(("params", *path), shape, dtype)
    return found


@pytest.mark.parametrize(("layers", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_layers_that_differ_are_not_stacked(layers, message):
    with pytest.raises(LayerError) as refused:
        chosen_for(TrainState(_layers(layers)), scan_layers=True)
    assert refused.value.render() == message


@pytest.mark.parametrize("layers", [layers for layers, _ in MISFITS.values()], ids=MISFITS.keys())
@pytest.mark.parametrize("spelling", ["suffix", "index"])
def test_layers_that_differ_can_stay_apart(layers, spelling):
    state = TrainState(_layers(layers))
    numbered = {
        (key[0], "layers", int(key[1][7:]), *key[2:]): leaf for key, leaf in state.params.items()
    }
    expected = states.spelled(TrainState(numbered), spelling)
    assert chosen_for(state, scan_layers=False, spelling=spelling) == expected


def test_moments_that_differ_between_layers_are_named_where_they_stand():
    layers = _layers({0: {"w": (5,)}, 1: {"w": (5,)}})
    moments = states.lion(layers)
    moments[(0, "mu", "decoder", "layers_1", "w")] = NOTHING
    with pytest.raises(LayerError) as refused:
        chosen_for(TrainState(layers, moments), scan_layers=True)
    assert refused.value.render() == (
        "error: layer 1 is None, but layer 0 is f32[5]\n"
        "  at opt_state[0].mu.decoder.layers[1].w" + HINT
    )


def test_a_moment_that_one_layer_lacks_is_no_reason_to_drop_it():
    layers = _layers({0: {"w": (5,)}, 1: {"w": (5,)}})
    moments = states.lion(layers)
    del moments[(0, "mu", "decoder", "layers_1", "w")]
    with pytest.raises(LayerError) as refused:
        chosen_for(TrainState(layers, moments), scan_layers=True)
    assert refused.value.render() == (
        "error: layer 1 has no such leaf, but layer 0 has\n"
        "  at opt_state[0].mu.decoder.layers[1].w" + HINT
    )


def test_typed_and_untyped_keys_are_not_stacked():
    layers = _layers({0: {"w": (5,)}, 1: {"w": (5,)}})
    aux = states.rngs_at(("decoder", "layers_0"), "threefry2x32")
    aux |= states.rngs_at(("decoder", "layers_1"), None)
    with pytest.raises(LayerError):
        chosen_for(TrainState(layers, aux=aux), scan_layers=True)


# moments as adafactor keeps them: some have other shapes than their parameters
FACTORED = {
    (0, "v_row", *path): array((0, "v_row", *path), leaf.shape[:1])
    for path, leaf in params("layers", wi=(5, 3, 6), wo=(6, 3, 5)).items()
}
FACTORED_PARAMS = params("layers", wi=(5, 3, 6), wo=(6, 3, 5))


def test_moments_of_other_shapes_may_stay_stacked():
    state = state_of(FACTORED_PARAMS, opt_state=FACTORED)
    assert chosen_for(state) == state
    assert chosen_for(state, scan_layers=True) == state


def test_moments_of_other_shapes_are_named_when_their_layers_are_asked_for():
    with pytest.raises(LayerError) as refused:
        chosen_for(state_of(FACTORED_PARAMS, opt_state=FACTORED), scan_layers=False)
    assert refused.value.render() == (
        "error: opt_state[0].v_row.layers.wi is f32[5], but its parameter is f32[5,3,6]\n"
        "\n"
        "hint: `--scan_layers` leaves these layers stacked as they are"
    )


def test_moments_of_other_shapes_are_named_when_their_layers_are_moved():
    with pytest.raises(LayerError) as refused:
        chosen_for(state_of(FACTORED_PARAMS, opt_state=FACTORED), layer_axis=0)
    assert refused.value.message.startswith("opt_state[0].v_row.layers.wi is f32[5]")


def test_variables_without_a_layer_axis_are_named_when_their_layers_are_asked_for():
    state = state_of(
        params("layers", wi=(5, 3, 6), wo=(6, 3, 5)),
        aux={("batch_stats", "layers", "mean"): array(("mean",), (7,))},
    )
    assert chosen_for(state) == state
    with pytest.raises(LayerError) as refused:
        chosen_for(state, scan_layers=False)
    assert refused.value.message == "aux.batch_stats has no layer axis of 3 in every array"


def test_literals_in_layers_are_stacked_when_they_are_equal():
    layers = {
        ("layers_0", "name"): Literal("string", "a"),
        ("layers_1", "name"): Literal("string", "a"),
        ("layers_0", "w"): array(("w0",), (5,)),
        ("layers_1", "w"): array(("w1",), (5,)),
    }
    stacked = chosen_for(TrainState(layers), scan_layers=True)
    assert kinds(stacked.params) == {("layers", "name"): "'a'", ("layers", "w"): "f32[5,2]"}
    layers[("layers_1", "name")] = Literal("string", "b")
    with pytest.raises(LayerError) as refused:
        chosen_for(TrainState(layers), scan_layers=True)
    assert refused.value.message == "layer 1 is 'b', but layer 0 is 'a'"


# --- choosing ---------------------------------------------------------------------------------

W = Source("w", (5, 3, 6), "float32", (5, 3, 6))
V = Source("v", (6, 3, 5), "float32", (6, 3, 5))
STACK = TrainState({("layers", "w"): W, ("layers", "v"): V})
LAYERS = TrainState(
    {
        ("layers", str(i), name): Slot(of, 1, i)
        for i in range(3)
        for name, of in (("w", W), ("v", V))
    }
)

# what there is, the options, what a group becomes
CHOICES = [
    (STACK, {}, Stacked(1)),
    (STACK, {"scan_layers": True}, Stacked(1)),
    (STACK, {"scan_layers": False}, Apart("suffix")),
    (STACK, {"scan_layers": False, "spelling": "index"}, Apart("index")),
    (STACK, {"layer_axis": 0}, Stacked(0)),
    (STACK, {"like": {("layers",): Stacked(0)}}, Stacked(0)),
    (STACK, {"like": {("layers",): Blocks(1, 3)}, "scan_layers": False}, Blocks(1, 3)),
    (LAYERS, {}, Apart("suffix")),
    (LAYERS, {"kept_spelling": True}, Apart("index")),
    (LAYERS, {"kept_spelling": True, "spellings": {"layers": "suffix"}}, Apart("suffix")),
    (LAYERS, {"scan_layers": False, "kept_spelling": True}, Apart("index")),
    (LAYERS, {"scan_layers": True}, Stacked(1)),
    (LAYERS, {"scan_layers": True, "layer_axis": 0}, Stacked(0)),
    (LAYERS, {"like": {("other",): Stacked(0)}, "spelling": "index"}, Apart("index")),
]


@pytest.mark.parametrize(("state", "options", "expected"), CHOICES)
def test_the_arrangement_follows_the_options(state, options, expected):
    _, groups = unstack(state)
    defaults = {"scan_layers": None, "layer_axis": None, "spelling": "suffix"}
    assert choose(groups, **{**defaults, **options}) == {("layers",): expected}


def test_layers_of_one_stored_stack_are_that_stack_again():
    assert chosen_for(LAYERS, scan_layers=True) == STACK


def test_one_module_that_is_called_layers_is_no_stack():
    state = state_of(params(layers__kernel=(4, 4), layers__bias=(4,)))
    assert unstack(state) == (state, [])
    stacked = state_of(params(layers__kernel=(3, 4, 4), layers__bias=(3, 4)))
    assert [group.key for group in unstack(stacked)[1]] == [("layers",)]


def test_layers_that_are_called_so_themselves_are_no_stack():
    blocks = {
        ("layers", f"encoder_layer_{i}", name, "weight"): array(("x",), (8,))
        for i in range(2)
        for name in ("ln_1", "ln_2")
    }
    state, groups = unstack(TrainState(blocks))
    assert state.params.keys() == blocks.keys()
    assert groups == []
