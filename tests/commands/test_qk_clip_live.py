"""`qk_clip` on live states: Linen variables, `TrainState`s, NNX states and modules."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

import nnxconv
from nnxconv.errors import BadInput

HEADS, NOPE, ROPE, VALUE = 4, 8, 4, 6
LAYERS, WIDTH, RANK = 2, 10, 5
CONFIG = {"attention_type": "mla", "qk_nope_head_dim": NOPE}
THRESHOLD = 2.0
QUERY = (HEADS, NOPE + ROPE)
KEY = (HEADS, NOPE + VALUE)
big = nn.initializers.normal(1.0)
X = jax.random.normal(jax.random.key(3), (2, 3, WIDTH))


def largest(query, key):
    """The largest logit of each head in each sequence: shape (batch, heads)."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query[..., :NOPE], key[..., :NOPE])
    return logits.max((2, 3))


class LinenAttention(nn.Module):
    """Latent attention, as far as its logits go."""

    has_lora: bool

    @nn.compact
    def __call__(self, x, _=None):
        if self.has_lora:
            latent = nn.Dense(RANK, name="wq_a", use_bias=False)(x)
            query = nn.DenseGeneral(QUERY, name="wq_b", use_bias=False, kernel_init=big)(latent)
        else:
            query = nn.DenseGeneral(QUERY, name="query", use_bias=False, kernel_init=big)(x)
        latent = nn.Dense(RANK, name="wkv_a", use_bias=False)(x)
        key = nn.DenseGeneral(KEY, name="wkv_b", use_bias=False, kernel_init=big)(latent)
        self.sow("intermediates", "max_logits", largest(query, key))
        return nn.DenseGeneral(WIDTH, axis=(-2, -1), name="out")(key[..., NOPE:]), None


class LinenLayer(nn.Module):
    has_lora: bool

    @nn.compact
    def __call__(self, x, _=None):
        return x + LinenAttention(self.has_lora, name="self_attention")(x)[0], None


class LinenModel(nn.Module):
    has_lora: bool = True
    axis: int | None = None

    @nn.compact
    def __call__(self, x):
        if self.axis is None:
            for n in range(LAYERS):
                x, _ = LinenLayer(self.has_lora, name=f"layers_{n}")(x)
            return x
        axes = {"params": self.axis, "intermediates": 0}
        layers = nn.scan(LinenLayer, axes, split_rngs={"params": True}, length=LAYERS)
        return layers(self.has_lora, name="layers")(x, None)[0]


sows = pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")


class NnxOp(nnx.Module):
    def __call__(self, query, key):
        self.sow(nnx.Intermediate, "max_logits", largest(query, key))


class NnxAttention(nnx.Module):
    def __init__(self, rngs):
        self.wq_a = nnx.Linear(WIDTH, RANK, rngs=rngs)
        self.wq_b = nnx.LinearGeneral(RANK, QUERY, kernel_init=big, use_bias=False, rngs=rngs)
        self.wkv_a = nnx.Linear(WIDTH, RANK, rngs=rngs)
        self.wkv_b = nnx.LinearGeneral(RANK, KEY, kernel_init=big, use_bias=False, rngs=rngs)
        self.attention_op = NnxOp()
        self.out = nnx.LinearGeneral((HEADS, VALUE), WIDTH, axis=(-2, -1), rngs=rngs)

    def __call__(self, x):
        key = self.wkv_b(self.wkv_a(x))
        self.attention_op(self.wq_b(self.wq_a(x)), key)
        return self.out(key[..., NOPE:])


class NnxLayer(nnx.Module):
    def __init__(self, rngs):
        self.self_attention = NnxAttention(rngs)

    def __call__(self, x):
        return x + self.self_attention(x)


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([NnxLayer(rngs) for _ in range(LAYERS)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def linen(has_lora=True, axis=None):
    """Variables of a model, and what it sows."""
    model = LinenModel(has_lora, axis)
    variables = {"params": model.init(jax.random.key(0), X)["params"]}
    return variables, model.apply(variables, X, mutable=["intermediates"])[1]


def nnx_model():
    """A model, and what it sows."""
    model = NnxModel(nnx.Rngs(0))
    model(X)
    return model, nnx.pop(model, nnx.Intermediate)


def by_hand(name, kernel, maxima):
    """The formula of one layer, by numpy in float32."""
    scale = np.minimum(
        np.float32(1), np.float32(THRESHOLD) / (np.asarray(maxima).max(0) + np.float32(1e-6))
    )
    rest = np.ones(HEADS, "float32") if name == "wkv_b" else scale
    nope, other = kernel[..., :NOPE], kernel[..., NOPE:]
    return np.concatenate([nope * np.sqrt(scale)[:, None], other * rest[:, None]], -1)


def expected(params, sown, axis=None):
    """All parameters of a Linen model, clipped by hand."""
    flat = flax.traverse_util.flatten_dict(flax.core.unfreeze(params))
    for path, kernel in flat.items():
        if path[-2] not in ("wq_b", "query", "wkv_b"):
            continue
        maxima = sown["intermediates"][path[0]]["self_attention"]["max_logits"][0]
        kernels = [kernel] if axis is None else np.moveaxis(np.asarray(kernel), axis, 0)
        layers = [maxima] if axis is None else maxima
        done = [by_hand(path[-2], np.asarray(k), m) for k, m in zip(kernels, layers, strict=True)]
        flat[path] = done[0] if axis is None else np.stack(done, axis)
    return flax.traverse_util.unflatten_dict(flat)


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.sample(1)
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("has_lora", [True, False])
def test_linen_variables_are_clipped_as_the_formula_says(has_lora, axis):
    variables, sown = linen(has_lora, axis)
    done = nnxconv.qk_clip(variables, sown, threshold=THRESHOLD, config=CONFIG, layer_axis=axis)
    wanted = expected(variables["params"], sown, axis)
    assert_same(done, {"params": wanted})
    name = "layers_0" if axis is None else "layers"
    kernels = [
        one["params"][name]["self_attention"]["wkv_b"]["kernel"] for one in (variables, done)
    ]
    assert not np.array_equal(*kernels)


def test_frozen_variables_stay_frozen_and_arrays_of_numpy_those_of_numpy():
    variables, sown = linen()
    frozen = flax.core.freeze(jax.tree.map(np.asarray, variables))
    done = nnxconv.qk_clip(frozen, sown["intermediates"], threshold=THRESHOLD, config=CONFIG)
    assert_same(done, flax.core.freeze({"params": expected(variables["params"], sown)}))
    assert {type(leaf) for leaf in jax.tree.leaves(done)} == {np.ndarray}


def test_moments_and_step_of_a_train_state_are_as_they_were():
    variables, sown = linen()
    state = TrainState.create(apply_fn=None, params=variables["params"], tx=optax.adam(0.1))
    state = state.apply_gradients(grads=state.params)
    done = nnxconv.qk_clip(state, sown, threshold=THRESHOLD, config=CONFIG)
    assert_same(done, state.replace(params=expected(state.params, sown)))


def test_a_function_that_is_traced_gives_the_same():
    variables, sown = linen()
    clip = jax.jit(lambda v, s: nnxconv.qk_clip(v, s, threshold=THRESHOLD, config=CONFIG))
    wanted = expected(variables["params"], sown)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-7),
        clip(variables, sown)["params"],
        wanted,
    )


def held(variable):
    """The only array in an NNX variable, which flax 0.12.0 and later ones give by other names."""
    [array] = jax.tree.leaves(variable)
    return array


def nnx_expected(state, sown):
    """The kernels of an NNX model by layer and name, clipped by hand."""
    found = {}
    for n in range(LAYERS):
        maxima = held(sown["layers"][n]["self_attention"]["attention_op"]["max_logits"])
        for name in ("wq_b", "wkv_b"):
            kernel = held(state["layers"][n]["self_attention"][name]["kernel"])
            found[n, name] = by_hand(name, np.asarray(kernel), maxima)
    return found


@sows
def test_a_module_is_clipped_in_place_and_a_state_is_not():
    model, sown = nnx_model()
    before = jax.tree.map(jnp.copy, nnx.state(model))
    wanted = nnx_expected(before, sown)
    new = nnxconv.qk_clip(before, sown, threshold=THRESHOLD, config=CONFIG)
    assert_same(before, nnx.state(model))
    assert nnxconv.qk_clip(model, sown, threshold=THRESHOLD, config=CONFIG) is model
    assert_same(new, nnx.state(model))
    for (n, name), kernel in wanted.items():
        attention = model.layers[n].self_attention
        np.testing.assert_array_equal(held(getattr(attention, name).kernel), kernel)
        np.testing.assert_array_equal(
            held(attention.out.kernel),
            held(before["layers"][n]["self_attention"]["out"]["kernel"]),
        )


@sows
def test_intermediates_as_pure_dicts_are_read_too():
    model, sown = nnx_model()
    state = nnx.state(model)
    pure = nnx.to_pure_dict(sown)
    assert_same(
        nnxconv.qk_clip(state, pure, threshold=THRESHOLD, config=CONFIG),
        nnxconv.qk_clip(state, sown, threshold=THRESHOLD, config=CONFIG),
    )


@sows
def test_after_a_clip_the_logits_are_at_most_the_threshold():
    model, sown = nnx_model()
    nnxconv.qk_clip(model, sown, threshold=THRESHOLD, config=CONFIG)
    model(X)
    first = nnx.pop(model, nnx.Intermediate)["layers"][0]["self_attention"]["attention_op"]
    assert held(first["max_logits"]).max() <= THRESHOLD * (1 + 1e-5)


def test_below_the_threshold_every_leaf_is_the_very_array_it_was():
    variables, sown = linen()
    done = nnxconv.qk_clip(variables, sown, threshold=1e6, config=CONFIG)
    assert all(map(lambda a, b: a is b, jax.tree.leaves(done), jax.tree.leaves(variables)))


def test_bfloat16_is_computed_in_float32_and_rounded_once():
    variables, sown = linen()
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    done = nnxconv.qk_clip(low, sown, threshold=THRESHOLD, config=CONFIG)
    wanted = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), expected(wide["params"], sown))
    assert_same(done["params"], wanted)


def of_module(sown, layers):
    return {"intermediates": {name: sown["intermediates"][name] for name in layers}}


# what is wrong, and the message
REFUSED = [
    (
        {"config": {**CONFIG, "attention_type": "global"}},
        "attention is `global`: only that of multi-head latent attention is clipped",
    ),
    (
        {"config": {**CONFIG, "attn_logits_soft_cap": 30.0}},
        "logits with a soft cap are not clipped\n  at attn_logits_soft_cap",
    ),
    ({"config": {}}, "`config` has no `qk_nope_head_dim`"),
    ({"threshold": 0}, "`threshold=0` is not above 0"),
    (
        {"threshold": None},
        "there is no `threshold`, and `config` has no `qk_clip_threshold`",
    ),
    ({"intermediates": {}}, "`intermediates` has no `max_logits`"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_what_cannot_be_clipped_is_refused(given, message):
    variables, sown = linen()
    arguments = {"intermediates": sown, "threshold": THRESHOLD, "config": CONFIG, **given}
    with pytest.raises(BadInput) as error:
        nnxconv.qk_clip(variables, **arguments)
    assert str(error.value) == message


def test_a_layer_without_logits_is_an_error_unless_it_may_stay_as_it_is():
    variables, sown = linen()
    part = of_module(sown, ["layers_1"])
    with pytest.raises(BadInput) as error:
        nnxconv.qk_clip(variables, part, threshold=THRESHOLD, config=CONFIG)
    assert str(error.value) == (
        "1 layer of 2 have no recorded logits\n"
        "  at intermediates\n"
        "  layers[0].self_attention\n"
        "\n"
        'hint: `missing="keep"` leaves them as they are'
    )
    done = nnxconv.qk_clip(variables, part, threshold=THRESHOLD, config=CONFIG, missing="keep")
    wanted = expected(variables["params"], sown)
    assert_same(
        done["params"],
        {"layers_0": variables["params"]["layers_0"], "layers_1": wanted["layers_1"]},
    )


def test_logits_that_are_infinite_or_recorded_twice_are_refused():
    variables, sown = linen()
    infinite = jax.tree.map(lambda x: x / 0, sown)
    with pytest.raises(BadInput, match="is not a finite number"):
        nnxconv.qk_clip(variables, infinite, threshold=THRESHOLD, config=CONFIG)
    record = sown["intermediates"]["layers_0"]["self_attention"]
    record["max_logits"] = record["max_logits"] * 2
    with pytest.raises(BadInput, match="logits were recorded more than once"):
        nnxconv.qk_clip(variables, sown, threshold=THRESHOLD, config=CONFIG)


def test_a_maximum_that_belongs_to_no_attention_is_an_error_that_names_it():
    variables, sown = linen()
    sown["intermediates"]["layers_7"] = sown["intermediates"]["layers_0"]
    with pytest.raises(BadInput) as error:
        nnxconv.qk_clip(variables, sown, threshold=THRESHOLD, config=CONFIG)
    assert str(error.value).startswith(
        "1 recorded maximum of logits belongs to no attention module\n"
        "  intermediates.layers_7.self_attention.max_logits"
    )
