"""The laws that every layout keeps, and every optimizer in every layout, written out."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnxconv.errors import BadInput, CannotHold, Mismatch, UnknownLayout
from nnxconv.layouts.conforming import conform
from nnxconv.layouts.conversion import Options, convert_tree
from nnxconv.layouts.form import Form, Record
from nnxconv.layouts.parts import collections_to_record
from nnxconv.layouts.recognition import CODECS, recognise
from nnxconv.layouts.understanding import understand
from nnxconv.state.arranging import arrange
from nnxconv.state.layer_groups import Apart, Stacked
from nnxconv.state.train_state import TrainState, under
from nnxconv.state.unstacking import unstack
from nnxconv.tree.views import NOTHING, Literal
from tests.support import states
from tests.support.disk import on_disk, there_and_back
from tests.support.states import OPTIMIZERS, array, table, tiny, told

modest = settings(max_examples=20, deadline=None)

LAYOUTS = tuple(CODECS)
MODEL_ONLY = ("linen-variables", "nnx-rl")
"""Layouts that hold neither step nor optimizer."""
TRAINING = tuple(name for name in LAYOUTS if name not in MODEL_ONLY)
IN_NNX = tuple(name for name in TRAINING if name != "linen")
IN_LINEN = ("linen", "linen-variables")
"""Layouts that have no place for RNG state."""
STEP_DTYPES = {
    name: "int32" if name in ("linen", "maxtext") else "uint32" for name in TRAINING
}  # fmt: skip
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_pair = pytest.mark.parametrize(
    ("layout", "other"), [(a, b) for a in LAYOUTS for b in LAYOUTS]
)
each_pair = pytest.mark.parametrize(
    ("layout", "other"), [(a, b) for a in LAYOUTS for b in LAYOUTS if a != b]
)


def holdable(layout, other=None, with_layers=False):
    """States that a layout, and another one, hold; layers are apart, as no codec looks at them."""
    with_rngs = layout not in IN_LINEN
    without_training = states.params_only_states(with_layers)
    if layout in MODEL_ONLY or other in MODEL_ONLY:
        return st.one_of(without_training, states.models(with_layers, with_rngs))
    training = states.training_states(
        step_dtype=STEP_DTYPES[layout], with_rngs=with_rngs, with_layers=with_layers
    )
    return st.one_of(training, training, without_training)


def default_tree(layout, state):
    """The state in a layout, in the form in which it is written when nothing else is known."""
    codec = CODECS[layout]
    return codec.encode(state, codec.default_form(state)).tree


# --- laws of one layout -----------------------------------------------------------------------


@pytest.mark.sample(3)
@each_layout
@modest
@given(data=st.data())
def test_decoding_what_was_encoded_gives_the_state(layout, data):
    state = data.draw(holdable(layout))
    assert CODECS[layout].decode(default_tree(layout, state), Record()).state == state


@st.composite
def forms(draw, layout, state):
    """What a layout leaves open, as programs may have spelled it."""
    form = CODECS[layout].default_form(state)
    if layout == "linen-variables":
        is_bare = not state.aux and draw(st.booleans())
        return replace(form, has_root=not is_bare, has_level=not is_bare and draw(st.booleans()))
    if layout == "nnx-optimizer":
        form = replace(form, is_wrapped=draw(st.booleans()))
    if layout == "tunix":
        form = replace(form, wrapper=draw(st.sampled_from(("", "base"))))
    if state.opt_state is None:
        if layout == "linen":
            absent = draw(st.sampled_from(("Dict", "absent")))
            form = replace(form, has_level=draw(st.booleans()), opt_state=absent)
        return form
    if layout in ("linen", "maxtext"):
        is_scalar = draw(st.booleans())
        dtype = "int64" if is_scalar else draw(st.sampled_from(("int32", "uint32", "int64")))
        form = replace(form, step_dtype=dtype, step_is_scalar=is_scalar)
    if layout == "linen":
        form = replace(form, has_level=draw(st.booleans()))
        if not state.opt_state:
            form = replace(form, opt_state=draw(st.sampled_from(("List", "None", "Tuple"))))
    if layout in ("linen", "nnx", "maxtext"):
        form = replace(form, empties=draw(trailing_empties(layout, state)))
    return form


@st.composite
def trailing_empties(draw, layout, state):
    """Some empty states at the ends of the chains; programs that keep a step have these."""
    lengths = {}
    for key in state.opt_state:
        for place, part in enumerate(key):
            outer = key[:place]
            if states.is_layer(key, place):
                break
            if isinstance(part, int) and (layout != "maxtext" or not outer):
                lengths[outer] = max(lengths.get(outer, 0), part + 1)
    more = {outer: draw(st.integers(0, 2)) for outer in lengths}
    kinds = st.sampled_from(("None", "Dict", "Tuple"))
    return tuple(
        ((*outer, lengths[outer] + i), draw(kinds)) for outer, n in more.items() for i in range(n)
    )


@pytest.mark.sample(3)
@each_layout
@modest
@given(data=st.data())
def test_encoding_what_was_decoded_gives_the_tree(layout, data):
    codec = CODECS[layout]
    state = data.draw(holdable(layout))
    tree = codec.encode(state, data.draw(forms(layout, state))).tree
    decoded = codec.decode(tree, Record())
    assert codec.encode(decoded.state, decoded.form).tree == tree


@pytest.mark.sample(3)
@each_layout
@modest
@given(data=st.data())
def test_exactly_one_codec_recognises_a_tree(layout, data):
    state = data.draw(holdable(layout))
    tree = CODECS[layout].encode(state, data.draw(forms(layout, state))).tree
    assert recognised(tree) in ({layout}, *shared_trees(layout, tree))


def shared_trees(layout, tree):
    """Other ways to read trees that hold too little to be of one layout only."""
    roots = {key[0] for key in tree}
    if layout == "maxtext":
        yield {"linen"}
    if layout == "linen" and not roots & {"step", "opt_state"}:
        yield {"linen-variables"}
    if layout == "nnx-optimizer" and roots == {"model"}:
        yield from ({"nnx-state"}, {"nnx-pure"})
    if layout == "nnx-pure" and "model" not in roots:
        yield from ({"linen-variables"}, {"linen-variables", "nnx-pure"})
    if layout == "linen-variables" and "params" not in roots:
        yield from ({"nnx-pure"}, {"linen-variables", "nnx-pure"})


def recognised(tree):
    return {name for name, codec in CODECS.items() if not codec.recognise(tree).objections}


@modest
@given(data=st.data())
def test_what_maxtext_shares_with_linen_is_written_alike(data):
    state = data.draw(holdable("linen"))
    tree = default_tree("maxtext", state)
    if recognised(tree) == {"linen"}:
        assert tree == default_tree("linen", state)


@st.composite
def odd_states(draw):
    """States with variables that some layouts have no place for, or cannot tell apart."""
    state = draw(states.training_states(step_dtype="int32", with_layers=False))
    kind = draw(st.sampled_from(("collection", "clash", "twice", "step")))
    path = next(iter(state.params))
    aux = dict(state.aux)
    if kind == "collection":
        aux[("router", "head", "table")] = array(("router",), (4,))
    elif kind == "clash":
        aux[("ema", *path)] = array(("ema",), (4,))
    elif kind == "twice":
        for collection in ("one", "two"):
            aux[(collection, "head", "table")] = array((collection,), (4,))
    elif kind == "step":
        return replace(state, opt_state=None)
    return state.with_aux(aux)


@pytest.mark.sample(3)
@each_layout
@modest
@given(state=odd_states())
def test_a_state_is_held_exactly_or_refused(layout, state):
    codec = CODECS[layout]
    form = codec.default_form(state)
    record = Record({}, collections_to_record(state))
    misfits = codec.misfits(state, form)
    if misfits:
        with pytest.raises(CannotHold) as refused:
            codec.encode(state, form)
        assert refused.value.message.startswith(f"the {layout} layout has no place for ")
        assert len(refused.value.details) == len(misfits)
        return
    decoded = codec.decode(codec.encode(state, form).tree, record).state
    assert (decoded.params, decoded.opt_state, decoded.aux) == (
        state.params,
        state.opt_state,
        state.aux,
    )


# --- there and back ---------------------------------------------------------------------------


def stored_tree(layout, state, arrangement, form=None):
    """A canonical state in a layout, its layer groups arranged alike."""
    spelling = arrangement.spelling if isinstance(arrangement, Apart) else "suffix"
    canonical, groups = unstack(states.spelled(state, spelling))
    arranged = arrange(canonical, groups, {group.key: arrangement for group in groups})
    codec = CODECS[layout]
    return codec.encode(arranged, form or codec.default_form(arranged)).tree


ARRANGEMENTS = st.sampled_from([Apart("suffix"), Apart("index"), Stacked(0), Stacked(1)])


@pytest.mark.sample(16)
@each_pair
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_there_and_back_is_where_it_was(layout, other, data):
    state = data.draw(holdable(layout, other, with_layers=True))
    form = data.draw(forms(layout, state))
    tree = stored_tree(layout, state, data.draw(ARRANGEMENTS), form)
    disk = on_disk(tree)
    returned, _ = there_and_back(disk, other)
    without_rngs = other in IN_LINEN
    assert returned.contents() == disk.contents(without_rngs)


@pytest.mark.sample(16)
@every_pair
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_layers_stacked_on_the_way_are_taken_apart_on_the_way_back(layout, other, data):
    state = data.draw(holdable(layout, other, with_layers=True))
    disk = on_disk(stored_tree(layout, state, Apart(CODECS[layout].spelling)))
    axis = data.draw(st.sampled_from((None, 0, 1)))
    there = {"scan_layers": True, "layer_axis": axis}
    returned, conversion = there_and_back(disk, other, there, {"scan_layers": False})
    assert conversion.scan_layers in (True, None)
    assert returned.contents() == disk.contents(without_rngs=other in IN_LINEN)


@pytest.mark.sample(16)
@every_pair
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_layers_taken_apart_on_the_way_are_stacked_on_the_way_back(layout, other, data):
    state = data.draw(holdable(layout, other, with_layers=True))
    axis = data.draw(st.sampled_from((0, 1)))
    disk = on_disk(stored_tree(layout, state, Stacked(axis)))
    back = {"scan_layers": True, "layer_axis": axis}
    returned, conversion = there_and_back(disk, other, {"scan_layers": False}, back)
    assert conversion.scan_layers in (False, None)
    assert returned.contents() == disk.contents(without_rngs=other in IN_LINEN)


@pytest.mark.full
@modest
@given(st.data())
def test_a_tour_of_all_layouts_ends_where_it_began(data):
    state = data.draw(states.training_states(step_dtype="int32", with_rngs=False, with_layers=True))
    tree = stored_tree("linen", state, data.draw(ARRANGEMENTS), data.draw(forms("linen", state)))
    disk = start = on_disk(tree)
    for layout in (*data.draw(st.permutations(["nnx", "nnx-state", "nnx-pure"])), "linen"):
        disk, _ = disk.converted(to=layout)
    assert disk.contents() == start.contents()


def test_the_record_survives_json():
    form = Form(
        has_level=False,
        step_dtype="int64",
        step_is_scalar=True,
        opt_state="List",
        empties=(((1,), "None"), (("inner_states", "frozen", "inner_state"), "Dict")),
        spellings={"layers": "index"},
        collections=("ema",),
        inner_collections=("stats",),
    )
    collections = {"ema": (("a", "b.c"), ("x", "0"))}
    record = Record({"linen": form}, collections, {("decoder", "layers"): 1}, "nnx", False)
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


# --- every optimizer, written out -------------------------------------------------------------

WEIGHTS = {
    "linen": "step i32[]\nparams/params/* x",
    "maxtext": "step i32[]\nparams/params/* x",
    "nnx": "optimizer/step u32[]\nmodel/*/value x",
    "nnx-state": "optimizer/step/value u32[]\nmodel/*/value x",
    "nnx-pure": "optimizer/step u32[]\nmodel/* x",
    "nnx-optimizer": "step/value u32[]\nmodel/*/value x",
    "tunix": "optimizer_state/step/value u32[]\nmodel_params/*/value x",
}

# optimizer: what stands under `opt_state`, under `optimizer/opt_state` in the nnx layouts;
# `nnx-state`, `nnx-optimizer` and `tunix` are `nnx-pure` with `value` under every leaf; maxtext is
# linen unless said
TREES = {
    "adamw": {
        "linen": """
            [0]/count i32[]
            [0]/mu/params/* x
            [0]/nu/params/* x
            [1] None
            [2]/count i32[]
        """,
        "nnx": """
            [0]/count i32[]
            [0]/mu/* x
            [0]/nu/* x
            [1] None
            [2]/count i32[]
        """,
        "nnx-pure": """
            0/count i32[]
            0/mu/* x
            0/nu/* x
            2/count i32[]
        """,
    },
    "adam_flat": {
        "linen": """
            count i32[]
            mu/params/* x
            nu/params/* x
        """,
        "nnx": """
            count i32[]
            mu/* x
            nu/* x
        """,
        "nnx-pure": """
            count i32[]
            mu/* x
            nu/* x
        """,
    },
    "clipped_adamw": {
        "linen": """
            [0] None
            [1]/[0]/count i32[]
            [1]/[0]/mu/params/* x
            [1]/[0]/nu/params/* x
            [1]/[1] None
            [1]/[2]/count i32[]
        """,
        "nnx": """
            [0] None
            [1]/[0]/count i32[]
            [1]/[0]/mu/* x
            [1]/[0]/nu/* x
            [1]/[1] None
            [1]/[2]/count i32[]
        """,
        "nnx-pure": """
            1/0/count i32[]
            1/0/mu/* x
            1/0/nu/* x
            1/2/count i32[]
        """,
        "maxtext": """
            [0] None
            [1]/0/count i32[]
            [1]/0/mu/* x
            [1]/0/nu/* x
            [1]/2/count i32[]
        """,
    },
    "sgd": {
        "linen": """
            [0] None
            [1]/count i32[]
        """,
        "nnx": """
            [0] None
            [1]/count i32[]
        """,
        "nnx-pure": "1/count i32[]",
    },
    "sgd_momentum": {
        "linen": """
            [0]/trace/params/* x
            [1]/count i32[]
        """,
        "nnx": """
            [0]/trace/* x
            [1]/count i32[]
        """,
        "nnx-pure": """
            0/trace/* x
            1/count i32[]
        """,
    },
    "stateless": {"linen": " []", "nnx": "", "nnx-pure": ""},
    "lion": {
        "linen": """
            [0]/count i32[]
            [0]/mu/params/* x
            [1] None
            [2]/count i32[]
        """,
        "nnx": """
            [0]/count i32[]
            [0]/mu/* x
            [1] None
            [2]/count i32[]
        """,
        "nnx-pure": """
            0/count i32[]
            0/mu/* x
            2/count i32[]
        """,
    },
    "muon": {
        "linen": """
            inner_states/adam/inner_state/[0]/count i32[]
            inner_states/adam/inner_state/[0]/mu/params/dense/bias f32[3]
            inner_states/adam/inner_state/[0]/mu/params/dense/kernel None
            inner_states/adam/inner_state/[0]/nu/params/dense/bias f32[3]
            inner_states/adam/inner_state/[0]/nu/params/dense/kernel None
            inner_states/adam/inner_state/[1] None
            inner_states/adam/inner_state/[2]/count i32[]
            inner_states/muon/inner_state/[0]/count i32[]
            inner_states/muon/inner_state/[0]/ns_coeffs f32[3]
            inner_states/muon/inner_state/[0]/mu/params/dense/bias None
            inner_states/muon/inner_state/[0]/mu/params/dense/kernel f32[2,3]
        """,
        "nnx": """
            inner_states/adam/inner_state/[0]/count i32[]
            inner_states/adam/inner_state/[0]/mu/dense/bias f32[3]
            inner_states/adam/inner_state/[0]/mu/dense/kernel None
            inner_states/adam/inner_state/[0]/nu/dense/bias f32[3]
            inner_states/adam/inner_state/[0]/nu/dense/kernel None
            inner_states/adam/inner_state/[1] None
            inner_states/adam/inner_state/[2]/count i32[]
            inner_states/muon/inner_state/[0]/count i32[]
            inner_states/muon/inner_state/[0]/ns_coeffs f32[3]
            inner_states/muon/inner_state/[0]/mu/dense/bias None
            inner_states/muon/inner_state/[0]/mu/dense/kernel f32[2,3]
        """,
        "nnx-pure": """
            inner_states/adam/inner_state/0/count i32[]
            inner_states/adam/inner_state/0/mu/dense/bias f32[3]
            inner_states/adam/inner_state/0/mu/dense/kernel None
            inner_states/adam/inner_state/0/nu/dense/bias f32[3]
            inner_states/adam/inner_state/0/nu/dense/kernel None
            inner_states/adam/inner_state/2/count i32[]
            inner_states/muon/inner_state/0/count i32[]
            inner_states/muon/inner_state/0/ns_coeffs f32[3]
            inner_states/muon/inner_state/0/mu/dense/bias None
            inner_states/muon/inner_state/0/mu/dense/kernel f32[2,3]
        """,
        "maxtext": "as nnx-pure",
    },
    "inject_hyperparams": {
        "linen": """
            count i32[]
            hyperparams/learning_rate f32[]
            hyperparams/b1 f32[]
            inner_state/[0]/count i32[]
            inner_state/[0]/mu/params/* x
            inner_state/[0]/nu/params/* x
        """,
        "nnx": """
            count i32[]
            hyperparams/learning_rate f32[]
            hyperparams/b1 f32[]
            inner_state/[0]/count i32[]
            inner_state/[0]/mu/* x
            inner_state/[0]/nu/* x
        """,
        "nnx-pure": """
            count i32[]
            hyperparams/learning_rate f32[]
            hyperparams/b1 f32[]
            inner_state/0/count i32[]
            inner_state/0/mu/* x
            inner_state/0/nu/* x
        """,
        "maxtext": "as nnx-pure",
    },
    "multi_transform": {
        "linen": """
            inner_states/trainable/inner_state/[0]/count i32[]
            inner_states/trainable/inner_state/[0]/mu/params/dense/bias None
            inner_states/trainable/inner_state/[0]/mu/params/dense/kernel f32[2,3]
            inner_states/trainable/inner_state/[0]/nu/params/dense/bias None
            inner_states/trainable/inner_state/[0]/nu/params/dense/kernel f32[2,3]
        """,
        "nnx": """
            inner_states/trainable/inner_state/[0]/count i32[]
            inner_states/trainable/inner_state/[0]/mu/dense/bias None
            inner_states/trainable/inner_state/[0]/mu/dense/kernel f32[2,3]
            inner_states/trainable/inner_state/[0]/nu/dense/bias None
            inner_states/trainable/inner_state/[0]/nu/dense/kernel f32[2,3]
        """,
        "nnx-pure": """
            inner_states/trainable/inner_state/0/count i32[]
            inner_states/trainable/inner_state/0/mu/dense/bias None
            inner_states/trainable/inner_state/0/mu/dense/kernel f32[2,3]
            inner_states/trainable/inner_state/0/nu/dense/bias None
            inner_states/trainable/inner_state/0/nu/dense/kernel f32[2,3]
        """,
        "maxtext": "as nnx-pure",
    },
    "skip_step": {
        "linen": """
            count i32[]
            losses f32[16]
            grad_norms f32[16]
            is_skipped bool[]
            inner_state/[0]/count i32[]
            inner_state/[0]/mu/params/* x
            inner_state/[0]/nu/params/* x
            inner_state/[1] None
            inner_state/[2]/count i32[]
        """,
        "nnx": """
            count i32[]
            losses f32[16]
            grad_norms f32[16]
            is_skipped bool[]
            inner_state/[0]/count i32[]
            inner_state/[0]/mu/* x
            inner_state/[0]/nu/* x
            inner_state/[1] None
            inner_state/[2]/count i32[]
        """,
        "nnx-pure": """
            count i32[]
            losses f32[16]
            grad_norms f32[16]
            is_skipped bool[]
            inner_state/0/count i32[]
            inner_state/0/mu/* x
            inner_state/0/nu/* x
            inner_state/2/count i32[]
        """,
        "maxtext": "as nnx-pure",
    },
    "nested_chains": {
        "linen": """
            [0]/[0] None
            [0]/[1]/[0]/count i32[]
            [0]/[1]/[0]/mu/params/* x
            [0]/[1]/[0]/nu/params/* x
            [0]/[2]/trace/params/* x
            [1] None
            [2] None
            [3]/[0] None
            [3]/[1]/count i32[]
        """,
        "nnx": """
            [0]/[0] None
            [0]/[1]/[0]/count i32[]
            [0]/[1]/[0]/mu/* x
            [0]/[1]/[0]/nu/* x
            [0]/[2]/trace/* x
            [1] None
            [2] None
            [3]/[0] None
            [3]/[1]/count i32[]
        """,
        "nnx-pure": """
            0/1/0/count i32[]
            0/1/0/mu/* x
            0/1/0/nu/* x
            0/2/trace/* x
            3/1/count i32[]
        """,
        "maxtext": """
            [0]/1/0/count i32[]
            [0]/1/0/mu/* x
            [0]/1/0/nu/* x
            [0]/2/trace/* x
            [1] None
            [2] None
            [3]/1/count i32[]
        """,
    },
}


_WRAPPED = ("nnx-state", "nnx-optimizer", "tunix")
_LIKE = {"maxtext": "linen"} | dict.fromkeys(_WRAPPED, "nnx-pure")
_HEADS = dict.fromkeys(("linen", "maxtext", "nnx-optimizer"), "opt_state")
_HEADS |= {"tunix": "optimizer_state/opt_state"}


def expected_tree(layout, optimizer):
    """The whole tree of the tiny model, from the tables above."""
    trees = TREES[optimizer]
    source = _LIKE.get(layout, layout)
    text = trees.get(layout, trees[source])
    if text == "as nnx-pure":
        text = trees["nnx-pure"]
    head = _HEADS.get(layout, "optimizer/opt_state")
    lines = []
    for line in text.splitlines():
        if line.strip():
            key, what = line.rsplit(" ", 1)
            wrapper = "/value" if layout in _WRAPPED else ""
            lines.append(f"{head}/{key.strip()}".rstrip("/") + f"{wrapper} {what}")
    return table("\n".join([WEIGHTS[layout], *lines]))


def test_every_optimizer_stands_in_the_table():
    assert TREES.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("layout", TRAINING)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_is_written_as_in_the_table(layout, optimizer):
    state = tiny(optimizer, STEP_DTYPES[layout])
    assert told(default_tree(layout, state)) == expected_tree(layout, optimizer)


# --- the forms of real programs ---------------------------------------------------------------


def source_tree(text, **leaves):
    """A table as a tree of stored arrays; `None`, `{}`, `[]` and `()` are empty containers."""
    kinds = {"None": "None", "{}": "Dict", "[]": "List", "()": "Tuple"}
    tree = {}
    for key, what in table(text).items():
        if what in kinds:
            tree[key] = Literal(kinds[what])
            continue
        short, _, rest = what.partition("[")
        shape = tuple(int(size) for size in rest[:-1].split(",") if size)
        tree[key] = array(key, shape, _LONG[short])
    return tree | leaves


_LONG = {"f32": "float32", "bf16": "bfloat16", "i32": "int32", "u32": "uint32", "i64": "int64"}

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


# --- RNG state and other variables ------------------------------------------------------------

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


# --- messages ---------------------------------------------------------------------------------


def test_a_tree_of_no_layout_is_refused_with_the_evidence():
    with pytest.raises(UnknownLayout) as refused:
        recognise(source_tree("alpha f32[3]\nbeta/gamma f32[3]"), where="here")
    assert refused.value.render() == (
        "error: this is none of the layouts that nnxconv knows\n"
        "  at here\n"
        "  at the root: alpha, beta\n"
        "  not linen: no weights under `params`, no `step` and no `opt_state` at the root\n"
        "  not linen-variables: no weights under `params`\n"
        "  not maxtext: no `nnx_aux` at the root, no weights under `params/params`,"
        " `alpha` at the root, `beta` at the root\n"
        "  not nnx: weights at the root are not wrapped in `value`\n"
        "  not nnx-state: no `model` at the root\n"
        "  not nnx-pure: no `model`, and no kernel, bias, scale or embedding at the root\n"
        "  not nnx-optimizer: no `model` at the root, `alpha` at the root, `beta` at the root\n"
        "  not nnx-rl: no `base` at the root, `alpha` at the root, `beta` at the root\n"
        "  not tunix: no item `model_params`, `alpha` at the root, `beta` at the root"
    )


# direction, source layout, the whole message
DIRECTIONS = [
    (
        "linen_to_nnx",
        "nnx-pure",
        "error: `--direction linen_to_nnx` needs a linen source, but this is a nnx-pure"
        " checkpoint\n"
        "  bare weights under `model`\n"
        "\n"
        "hint: leave `--direction` out, or name the layout that you want with `--to`",
    ),
    (
        "nnx_to_linen",
        "linen",
        "error: `--direction nnx_to_linen` needs a nnx source, but this is a linen checkpoint\n"
        "  weights under `params/params`\n"
        "  `opt_state` at the root, its chains are sequences\n"
        "\n"
        "hint: leave `--direction` out, or name the layout that you want with `--to`",
    ),
]


@pytest.mark.parametrize(("direction", "layout", "message"), DIRECTIONS)
def test_a_source_of_the_other_family_is_refused(direction, layout, message):
    disk = on_disk(default_tree(layout, tiny("adamw", STEP_DTYPES[layout])))
    with pytest.raises(BadInput) as refused:
        disk.converted(direction=direction)
    assert refused.value.render() == message


@pytest.mark.parametrize("layout", TRAINING)
def test_auto_goes_to_the_other_family(layout):
    tree = default_tree(layout, tiny("muon", STEP_DTYPES[layout]))
    _, conversion = on_disk(tree).converted()
    assert conversion.layout == ("nnx" if layout == "linen" else "linen")


def test_a_tree_that_is_not_like_the_other_lists_every_difference():
    ours = source_tree("a f32[2]\nb f32[3]\nc None\ne f32[]")
    theirs = source_tree("a bf16[2]\nb f32[4]\nc {}\nd f32[1]")
    with pytest.raises(Mismatch) as refused:
        conform(ours, theirs)
    assert refused.value.render() == (
        "error: 4 leaves do not match `--like`\n"
        "  b  f32[3], but f32[4] in `--like`\n"
        "  c  None, but {} in `--like`\n"
        "  d  f32[1]  only in `--like`\n"
        "  e  f32[]  not in `--like`"
    )


# --- parameters without a training state --------------------------------------------------------

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
