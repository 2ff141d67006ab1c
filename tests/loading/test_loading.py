"""`load` and `load_into`: a run goes on in other live values as if nothing had happened."""

import asyncio
import inspect
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import nnxconv
from tests.promises.test_training import (
    AFTER,
    BEFORE,
    CHANGES_OF_LAYERS,
    OPTIMIZERS,
    Partitioned,
    as_evaluated,
    cnn_run,
    compile_quickly,
    goes_on_as,
    linen_run,
    nnx_cnn,
    nnx_transformer,
)
from tests.support import checkpoints, models
from tests.support.layouts import LAYOUTS
from tests.support.models import save, tokens, train_linen, train_nnx

__all__ = ["compile_quickly"]


@cache
def nnx_run(is_stacked: bool) -> tuple[dict[str, Any], list[float]]:
    """What both writers save of an NNX run after two steps, and the losses of the next two."""
    return _halfway(*nnx_transformer(is_stacked))


@cache
def nnx_tower_run(name: str) -> tuple[dict[str, Any], list[float]]:
    """The same of the small tower with one optimizer."""
    model = models.NnxTower(rngs=nnx.Rngs(1))
    return _halfway(model, nnx.Optimizer(model, OPTIMIZERS[name], wrt=nnx.Param))


def _halfway(model: Any, optimizer: nnx.Optimizer) -> tuple[dict[str, Any], list[float]]:
    train_nnx(model, optimizer, tokens, BEFORE)
    written = {
        "nnx-state": models.nnx_states(model, optimizer),
        "nnx-pure": models.pure_dicts(model, optimizer),
    }
    written = jax.tree.map(jnp.copy, written)
    return written, train_nnx(model, optimizer, tokens, AFTER)


BOTH_WRITERS = pytest.mark.parametrize("written", ["nnx-state", "nnx-pure"])
NNX_WRITERS = pytest.mark.parametrize(
    "written", [models.nnx_states, models.pure_dicts], ids=["nnx-state", "nnx-pure"]
)


def unsaid(text: str) -> None:
    """Fails: nothing is to be kept or left out."""
    raise AssertionError(text)


# From Linen to NNX


@pytest.mark.sample(1)
@CHANGES_OF_LAYERS
def test_a_linen_run_goes_on_in_a_live_nnx_model(is_scanned, is_stacked, tmp_path):
    run = linen_run(is_scanned)
    source = save(tmp_path / "linen", run.halfway)
    model, optimizer = nnx_transformer(is_stacked)
    before = {path: key_data(key) for path, key in rng_keys(model).items()}
    notes: list[str] = []
    nnxconv.load_into(model, str(source), optimizer=optimizer, note=notes.append)
    assert [note.partition(",")[0] for note in notes] == [
        "kept from `like`: 6 arrays of `aux.rngs`"
    ]
    assert optimizer.step[...] == 2
    goes_on_as(train_nnx(model, optimizer, tokens, AFTER), run.losses)
    after = {path: key_data(key) for path, key in rng_keys(model).items()}
    assert before == after


def rng_keys(model: Any) -> dict[Any, Any]:
    return {path: var[...] for path, var in nnx.to_flat_state(nnx.state(model, nnx.RngKey))}


def key_data(key: jax.Array) -> bytes:
    return np.asarray(jax.random.key_data(key)).tobytes()


@pytest.mark.sample(1)
@CHANGES_OF_LAYERS
def test_an_abstract_nnx_state_is_filled_and_merged(is_scanned, is_stacked, tmp_path):
    run = linen_run(is_scanned)
    source = save(tmp_path / "linen", run.halfway)
    abstract, _ = nnx.eval_shape(lambda: nnx_transformer(is_stacked))
    graph, params, rngs = nnx.split(abstract, nnx.Param, ...)
    loaded = nnxconv.load(source, like=params, note=lambda _: None)
    assert type(loaded) is type(params)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    live = nnx.state(nnx_transformer(is_stacked)[0], nnx.Not(nnx.Param))
    assert jax.tree.structure(live) == jax.tree.structure(rngs)
    model = nnx.merge(graph, loaded, live)
    linen = run.halfway.apply_fn(run.halfway.params, tokens(0)[0])
    np.testing.assert_allclose(model(tokens(0)[0]), linen, rtol=1e-4, atol=1e-5)


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", ["module", "state", "flat", "pure", "train state"])
def test_the_result_is_what_like_is(kind, tmp_path):
    run = linen_run(False)
    source = save(tmp_path / "linen", run.halfway)
    model, optimizer = nnx_transformer(True)
    like = {
        "module": lambda: model,
        "state": lambda: nnx.state(model),
        "flat": lambda: nnx.to_flat_state(nnx.state(model)),
        "pure": lambda: nnx.to_pure_dict(nnx.state(model)),
        "train state": lambda: nnx.state(Both(model, optimizer)),
    }[kind]()
    values = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    loaded = nnxconv.load(source, like=like, note=lambda _: None)
    assert type(loaded) is type(like)
    if kind != "module":
        assert jax.tree.structure(loaded) == jax.tree.structure(like)
    kernel = run.halfway.params["params"]["layers_1"]["up"]["kernel"]
    assert any(
        leaf.shape == (16, 3, 32) and np.array_equal(leaf[:, 1], kernel)
        for leaf in jax.tree.leaves(loaded if kind != "module" else nnx.state(loaded))
    )
    after = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert all(np.array_equal(a, b) for a, b in zip(values, after, strict=True)), "like changed"


class Both(nnx.Module):
    """A model and its optimizer as one module, as MaxText's `TrainStateNNX` is."""

    def __init__(self, model: nnx.Module, optimizer: nnx.Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_in_nnx(name, tmp_path):
    fresh = models.linen_state(models.LinenTower(), OPTIMIZERS[name], tokens(0)[0])
    halfway, _ = train_linen(fresh, tokens, BEFORE)
    source = save(tmp_path / "linen", halfway)
    losses = train_linen(halfway, tokens, AFTER)[1]
    model = models.NnxTower(rngs=nnx.Rngs(1))
    optimizer = nnx.Optimizer(model, OPTIMIZERS[name], wrt=nnx.Param)
    nnxconv.load_into(model, source, optimizer=optimizer, note=unsaid)
    goes_on_as(train_nnx(model, optimizer, tokens, AFTER), losses)


@pytest.mark.full
def test_batch_statistics_go_on_in_nnx(tmp_path):
    _, halfway, finished, losses = cnn_run()
    source = save(tmp_path / "linen", halfway)
    model, optimizer = nnx_cnn()
    nnxconv.load_into(model, source, optimizer=optimizer, note=unsaid)
    goes_on_as(train_nnx(model, optimizer, models.pictures, AFTER), losses)
    evaluated = model(models.pictures(9)[0], is_training=False)
    np.testing.assert_allclose(evaluated, as_evaluated(finished), rtol=1e-4, atol=1e-5)


def test_a_converted_checkpoint_loads_as_its_source_does(tmp_path):
    run = linen_run(True)
    source = save(tmp_path / "linen", run.halfway)
    like = jax.eval_shape(lambda: run.fresh)
    first = nnxconv.load(source, like=like)
    for layout in ("nnx", "nnx-state", "nnx-pure", "maxtext"):
        nnxconv.convert(str(source), str(tmp_path / layout), to=layout)
        second = nnxconv.load(tmp_path / layout, like=like, note=unsaid)
        assert jax.tree.all(jax.tree.map(np.array_equal, first, second))


# From NNX to Linen


@pytest.mark.sample(1)
@CHANGES_OF_LAYERS
@BOTH_WRITERS
def test_an_nnx_run_goes_on_in_linen(is_scanned, is_stacked, written, tmp_path):
    trees, losses = nnx_run(is_stacked)
    source = save(tmp_path / "nnx", trees[written])
    fresh = linen_run(is_scanned).fresh
    notes: list[str] = []
    loaded = nnxconv.load(source, like=fresh, note=notes.append)
    assert type(loaded) is TrainState
    assert jax.tree.structure(loaded) == jax.tree.structure(fresh)
    assert type(loaded.step) is int and loaded.step == 2
    assert notes == [
        "left out, `like` has none: 6 arrays of `aux.rngs`,"
        " first `aux.rngs.layers[0].dropout.rngs.count`"
    ]
    goes_on_as(train_linen(loaded, tokens, AFTER)[1], losses)


@pytest.mark.sample(2)
@BOTH_WRITERS
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_in_linen(name, written, tmp_path):
    trees, losses = nnx_tower_run(name)
    source = save(tmp_path / "nnx", trees[written])
    fresh = models.linen_state(models.LinenTower(), OPTIMIZERS[name], tokens(0)[0])
    abstract = jax.eval_shape(lambda: fresh.replace(step=jnp.int32(0)))
    loaded = nnxconv.load(source, like=abstract, note=unsaid)
    assert jax.tree.structure(loaded) == jax.tree.structure(abstract)
    goes_on_as(train_linen(loaded, tokens, AFTER)[1], losses)


@pytest.mark.full
@NNX_WRITERS
def test_an_nnx_network_with_batch_statistics_goes_on_in_linen(written, tmp_path):
    fresh, *_ = cnn_run()
    model, optimizer = nnx_cnn()
    train_nnx(model, optimizer, models.pictures, BEFORE)
    source = save(tmp_path / "nnx", written(model, optimizer))
    losses = train_nnx(model, optimizer, models.pictures, AFTER)
    loaded = nnxconv.load(source, like=fresh, note=unsaid)
    assert type(loaded) is models.BatchNormState
    state, continued = train_linen(loaded, models.pictures, AFTER)
    goes_on_as(continued, losses)
    evaluated = model(models.pictures(9)[0], is_training=False)
    np.testing.assert_allclose(as_evaluated(state), evaluated, rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_the_variables_of_linen_are_a_mapping_without_a_train_state(tmp_path):
    model, _ = nnx_cnn()
    source = save(tmp_path / "nnx", nnx.state(model))
    fresh = cnn_run()[0]
    like = {"params": fresh.params["params"], "batch_stats": fresh.batch_stats}
    loaded = nnxconv.load(source, like=like, note=unsaid)
    logits = models.LinenCnn().apply(loaded, models.pictures(0)[0], is_training=False)
    expected = model(models.pictures(0)[0], is_training=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_boxes_with_axis_names_stay_boxes(tmp_path):
    model = Partitioned()
    state = models.linen_state(model, optax.adam(1e-2), jnp.ones((1, 3)))
    source = save(tmp_path / "linen", state)
    nnxconv.convert(str(source), str(tmp_path / "nnx"))
    loaded = nnxconv.load(tmp_path / "nnx", like=jax.eval_shape(lambda: state), note=unsaid)
    assert jax.tree.structure(loaded) == jax.tree.structure(jax.eval_shape(lambda: state))
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, state))


# What is kept, left out, cast


@cache
def halfway() -> TrainState:
    return linen_run(False).halfway


def test_a_model_alone_takes_the_parameters_and_says_so(tmp_path, caplog):
    source = save(tmp_path / "linen", halfway())
    model, _ = nnx_transformer(True)
    nnxconv.load_into(model, source)
    assert [record.name for record in caplog.records] == ["nnxconv"] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "left out, `like` has none: 107 arrays of `opt_state`, first `opt_state[1][0].count`",
        "left out, `like` has none: 1 array of `step`",
        "kept from `like`: 6 arrays of `aux.rngs`, first `aux.rngs.layers[0].dropout.rngs.count`",
    ]
    linen = halfway().apply_fn(halfway().params, tokens(0)[0])
    np.testing.assert_allclose(model(tokens(0)[0]), linen, rtol=1e-4, atol=1e-5)


def test_parameters_alone_go_into_a_new_run_that_keeps_its_optimizer(tmp_path):
    source = save(tmp_path / "linen", halfway().params)
    model, optimizer = nnx_transformer(False)
    with pytest.raises(nnxconv.NnxconvError) as caught:
        nnxconv.load_into(model, source, optimizer=optimizer)
    assert caught.value.message == ("108 of 161 arrays do not fit `like`: 108 only in `like`")
    assert caught.value.hint == (
        "`without=['opt_state', 'step']` does not load them: `like` keeps what it has"
    )
    nnxconv.load_into(model, source, optimizer=optimizer, without=["opt_state", "step"])
    linen = halfway().apply_fn(halfway().params, tokens(0)[0])
    np.testing.assert_allclose(model(tokens(0)[0]), linen, rtol=1e-4, atol=1e-5)
    assert optimizer.step[...] == 0


def test_without_a_part_like_keeps_its_own(tmp_path):
    source = save(tmp_path / "linen", halfway())
    fresh = linen_run(False).fresh
    loaded = nnxconv.load(source, like=fresh, without=["opt_state"])
    assert loaded.step == 2
    assert all(
        a is b
        for a, b in zip(
            jax.tree.leaves(loaded.opt_state), jax.tree.leaves(fresh.opt_state), strict=True
        )
    )


def as_bfloat16(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, tree)


def test_another_type_is_a_mismatch_unless_a_cast_is_asked_for(tmp_path):
    source = save(tmp_path / "linen", {"params": {"up": {"kernel": numbers(2, 3)}}})
    like = {"up": {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}}
    with pytest.raises(nnxconv.NnxconvError) as caught:
        nnxconv.load(source, like=like)
    assert caught.value.render() == (
        "error: 1 of 1 array does not fit `like`: 1 in type\n"
        "  params.up.kernel  f32[2,3]  in `like`: bf16[2,3]\n\n"
        "hint: `cast=True` reads them in the types that `like` has"
    )
    kernel = nnxconv.load(source, like=like, cast=True)["up"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    assert np.array_equal(kernel, numbers(2, 3).astype(jnp.bfloat16))


def numbers(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 0.3


def test_a_cast_changes_no_integer(tmp_path):
    tree = {"params": {"kernel": numbers(2)}, "cache": {"index": np.array([1, 70000])}}
    source = save(tmp_path / "linen", tree)
    like = {"params": {"kernel": numbers(2)}, "cache": {"index": np.zeros(2, np.int16)}}
    with pytest.raises(nnxconv.NnxconvError, match="in `like`: i16"):
        nnxconv.load(source, like=like)
    with pytest.raises(nnxconv.NnxconvError) as caught:
        nnxconv.load(source, like=like, cast=True)
    assert caught.value.render() == "error: 70000 does not fit in int16\n  at cache.index"


def test_rng_state_is_loaded_where_the_checkpoint_has_it(tmp_path):
    trained, _ = nnx_transformer(False, seed=5)
    source = save(tmp_path / "nnx", nnx.state(trained))
    model, _ = nnx_transformer(True, seed=6)
    nnxconv.load_into(model, source, note=unsaid)
    [found] = rng_keys(model).values()
    assert key_data(found) == key_data(jnp.stack(list(rng_keys(trained).values())))


class Dropped(TrainState):
    """A training state that has its own stream of random numbers."""

    dropout_rng: jax.Array


@pytest.mark.sample(1)
@pytest.mark.parametrize("key", [jax.random.key, jax.random.PRNGKey], ids=["typed", "raw"])
def test_a_train_state_keeps_its_own_stream_of_random_numbers(key, tmp_path):
    model, optimizer = nnx_transformer(False)
    source = save(tmp_path / "nnx", models.nnx_states(model, optimizer))
    fresh = linen_run(False).fresh
    parts = {
        name: getattr(fresh, name) for name in ("step", "apply_fn", "params", "tx", "opt_state")
    }
    like = Dropped(**parts, dropout_rng=key(3))
    notes: list[str] = []
    loaded = nnxconv.load(source, like=like, note=notes.append)
    assert loaded.dropout_rng is like.dropout_rng
    assert notes[-1] == "kept from `like`: 1 array of `aux.dropout_rng`"
    save(tmp_path / "linen", loaded.replace(dropout_rng=key(4)))
    again = nnxconv.load(tmp_path / "linen", like=like, note=unsaid)
    assert again.dropout_rng.dtype == like.dropout_rng.dtype
    bits = jax.random.bits
    assert bits(again.dropout_rng) == bits(key(4)) != bits(like.dropout_rng)


class Usage(nnx.Variable):
    """How often an expert was chosen: a collection that only this program knows."""


def test_variables_of_unknown_collections_are_known_by_their_paths(tmp_path):
    tree = {
        "params": {"router": {"kernel": numbers(3, 2)}},
        "usage": {"router": {"hits": numbers(2)}},
    }
    source = save(tmp_path / "linen", tree)

    class Router(nnx.Module):
        def __init__(self) -> None:
            self.kernel = nnx.Param(jnp.zeros((3, 2)))
            self.hits = Usage(jnp.zeros(2))

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.router = Router()

    model = Model()
    nnxconv.load_into(model, source, note=unsaid)
    assert np.array_equal(model.router.hits[...], numbers(2))
    saved = save(tmp_path / "nnx", nnx.state(model))
    loaded = nnxconv.load(saved, like=tree, note=unsaid)
    assert np.array_equal(loaded["usage"]["router"]["hits"], numbers(2))


# Mismatches


def test_everything_that_does_not_fit_is_told_at_once(tmp_path):
    layer = {"up": {"kernel": numbers(4, 5), "bias": numbers(5)}}
    layers = {f"layers_{i}": layer for i in range(3)}
    extra = {"router": {"kernel": numbers(2)}, "head": {"kernel": numbers(5, 6)}}
    tree = {"step": np.int32(1), "params": {"params": {**layers, **extra}}, "opt_state": {}}
    source = save(tmp_path / "linen", tree)
    abstract = jax.ShapeDtypeStruct
    like = {
        "layers": {
            "up": {
                "kernel": abstract((4, 4, 5), jnp.float32),
                "bias": abstract((4, 5), jnp.float32),
            }
        },
        "head": {"kernel": abstract((5, 7), jnp.float32)},
        "norm": {"scale": abstract((5,), jnp.float32)},
        "embed": {"embedding": abstract((8, 4), jnp.float32)},
    }
    with pytest.raises(nnxconv.NnxconvError) as caught:
        nnxconv.load(source, like=like)
    assert caught.value.render() == (
        "error: 6 of 12 arrays do not fit `like`: 1 only in the checkpoint, 4 only in `like`,"
        " 1 in shape\n"
        "  params.router.kernel        f32[2]    only in the checkpoint\n"
        "  params.embed.embedding      f32[8,4]  only in `like`\n"
        "  params.layers[3].up.bias    f32[5]    only in `like`\n"
        "  params.layers[3].up.kernel  f32[4,5]  only in `like`\n"
        "  params.norm.scale           f32[5]    only in `like`\n"
        "  params.head.kernel          f32[5,6]  in `like`: f32[5,7]"
    )


def test_a_mismatch_leaves_the_live_model_as_it_was(tmp_path):
    source = save(tmp_path / "linen", cnn_run()[1])
    model, optimizer = nnx_transformer(False)
    before = jax.tree.leaves(nnx.state(model))
    with pytest.raises(nnxconv.NnxconvError, match="do not fit `like`"):
        nnxconv.load_into(model, source, optimizer=optimizer)
    assert all(a is b for a, b in zip(before, jax.tree.leaves(nnx.state(model)), strict=True))


def test_a_model_with_another_optimizer_is_a_mismatch(tmp_path):
    source = save(tmp_path / "linen", halfway())
    model = models.LinenTransformer(False)
    fresh = models.linen_state(model, optax.sgd(1e-1), tokens(0)[0])
    with pytest.raises(nnxconv.NnxconvError) as caught:
        nnxconv.load(source, like=fresh)
    assert caught.value.message == (
        "107 of 161 arrays do not fit `like`: 107 only in the checkpoint"
    )
    assert caught.value.hint == (
        "`without=['opt_state']` does not load them: `like` keeps what it has"
    )
    assert nnxconv.load(source, like=fresh, without=["opt_state"]).step == 2


def test_batch_statistics_are_not_left_out_in_silence(tmp_path):
    source = save(tmp_path / "linen", cnn_run()[1])
    like = nnx.state(nnx_cnn()[0], nnx.Param)
    with pytest.raises(nnxconv.NnxconvError) as caught:
        nnxconv.load(source, like=like)
    assert caught.value.message == "4 of 14 arrays do not fit `like`: 4 only in the checkpoint"
    assert "`without=['aux.batch_stats']`" in caught.value.hint
    nnxconv.load(source, like=like, without=["aux.batch_stats"])


def test_abstract_rng_state_has_no_value_to_keep(tmp_path):
    source = save(tmp_path / "linen", halfway())
    model = nnx.eval_shape(lambda: nnx_transformer(True)[0])
    with pytest.raises(nnxconv.NnxconvError) as caught:
        nnxconv.load_into(model, source)
    assert caught.value.render() == (
        "error: 6 of 59 arrays do not fit `like`: 6 only in `like`\n"
        + "".join(
            f"  aux.rngs.layers[{i}].dropout.rngs.{name}  {text}  only in `like`\n"
            for i in range(3)
            for name, text in (
                ("count", "u32[]                    "),
                ("key  ", "u32[2] (threefry2x32 key)"),
            )
        )
        + "\nhint: `without=['aux.rngs']` does not load them: `like` keeps what it has"
    )


def test_keys_of_another_implementation_are_a_mismatch(tmp_path):
    model, _ = nnx_transformer(True)
    source = save(tmp_path / "nnx", nnx.state(model))
    state = nnx.state(model)
    rng = state["layers"]["dropout"]["rngs"]
    keys = jax.random.wrap_key_data(np.zeros((3, 4), np.uint32), impl="rbg")
    rng["key"] = rng["key"].replace(keys)
    with pytest.raises(nnxconv.NnxconvError, match=r"u32\[4\] \(rbg key\)"):
        nnxconv.load(source, like=state)


# Every layout


WITHOUT_OPTIMIZER = ("linen-variables", "nnx-rl")


@pytest.fixture(scope="module")
def in_layout(tmp_path_factory):
    """One state in every layout."""
    root = tmp_path_factory.mktemp("layouts")
    source = str(checkpoints.save_item(root / "source", checkpoints.linen()))

    @cache
    def written(layout: str) -> str:
        is_bare = layout in WITHOUT_OPTIMIZER
        nnxconv.convert(source, str(root / layout), to=layout, params_only=is_bare)
        return str(root / layout)

    return written


@pytest.mark.sample(13)
@pytest.mark.parametrize("like", [checkpoints.linen, checkpoints.nnx_pure, checkpoints.nnx_state])
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_loaded_as_a_program_has_it(layout, axis, like, in_layout):
    is_bare = layout in WITHOUT_OPTIMIZER
    zeros = jax.tree.map(np.zeros_like, like(axis=axis))
    left = ["opt_state", "step"] if is_bare else []
    loaded = nnxconv.load(in_layout(layout), like=zeros, without=left)
    name = "model" if "model" in zeros else "params"
    expected = like(axis=axis)
    expected = zeros | {name: expected[name]} if is_bare else expected
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    assert all(map(np.array_equal, jax.tree.leaves(loaded), jax.tree.leaves(expected)))


# Options


def test_options_are_named_as_those_of_convert_and_have_the_same_defaults():
    convert = inspect.signature(nnxconv.convert).parameters
    for function in (nnxconv.load, nnxconv.load_into, nnxconv.open):
        options = inspect.signature(function).parameters
        own = {"path", "like", "model", "optimizer", "cast", "note"}
        own |= {"missing", "unexpected", "mismatched"}
        assert options.keys() - own <= convert.keys()
        for name in options.keys() - own:
            assert options[name].default == convert[name].default, name


# what is asked for, and the last line of the message
IN_WORDS_OF_PYTHON = {
    "which step": ({"step": 5}, "hint: it has 3, 4"),
    "more memory": ({"step": 3, "max_memory": 100}, 'hint: `max_memory="1MiB"`'),
    "rules for one direction": (
        {"rename": "a", "rename_back": "b"},
        "`rename` and `rename_back` are both given: give one of them",
    ),
}


@pytest.mark.parametrize(("options", "last"), IN_WORDS_OF_PYTHON.values(), ids=IN_WORDS_OF_PYTHON)
def test_messages_name_arguments_and_no_options(options, last, tmp_path):
    tree = checkpoints.linen()
    root = checkpoints.save_root(tmp_path / "root", dict.fromkeys((3, 4), tree))
    with pytest.raises(nnxconv.NnxconvError) as refused:
        nnxconv.load(root, like=tree, **options)
    assert str(refused.value).splitlines()[-1] == last
    assert "--" not in str(refused.value)


def test_one_of_several_steps_is_loaded(tmp_path):
    steps = {step: checkpoints.linen(step=step) for step in (3, 4)}
    root = checkpoints.save_root(tmp_path / "root", steps)
    like = {**checkpoints.linen(), "step": 0}
    assert nnxconv.load(root, like=like, step=3)["step"] == 3


def test_a_checkpoint_is_loaded_within_a_running_event_loop(tmp_path):
    tree = checkpoints.linen()
    source = checkpoints.save_item(tmp_path / "a", tree)

    async def cell() -> Any:
        return nnxconv.load(source, like=tree)

    assert jax.tree.all(jax.tree.map(np.array_equal, asyncio.run(cell()), tree))


def test_names_of_layers_are_given(tmp_path):
    apart = {f"h_{i}": {"kernel": numbers(3, 2) + i} for i in range(4)}
    source = save(tmp_path / "a", {"params": apart})
    like = {"h": {"kernel": np.zeros((4, 3, 2), np.float32)}}
    with pytest.raises(nnxconv.NnxconvError, match="do not fit `like`"):
        nnxconv.load(source, like=like)
    loaded = nnxconv.load(source, like=like, layer_group=["h"], layer_axis=0)
    assert np.array_equal(loaded["h"]["kernel"], np.stack([numbers(3, 2) + i for i in range(4)]))


def test_layers_whose_axis_is_unclear_ask_for_it(tmp_path):
    apart = {f"layers_{i}": {"kernel": numbers(3, 2)} for i in range(4)}
    source = save(tmp_path / "a", {"params": {**apart, "head": {"bias": numbers(2)}}})
    like = {"layers": {"kernel": np.zeros((4, 3, 2), np.float32)}, "head": {"kernel": numbers(2)}}
    with pytest.raises(nnxconv.NnxconvError) as caught:
        nnxconv.load(source, like=like)
    assert caught.value.render() == (
        "error: the layer axis of `layers` cannot be told from the shapes:"
        " axis 0 of 4 or axis 1 of 3\n\n"
        "hint: `layer_axis=0` or `layer_axis=1` says which it is"
    )


# What cannot be loaded into


def test_leaves_that_are_no_arrays_are_refused(tmp_path):
    source = save(tmp_path / "linen", halfway())
    like = {"params": {"kernel": "text", "bias": object(), "scale": numbers(2)}}
    with pytest.raises(nnxconv.NnxconvError) as caught:
        nnxconv.load(source, like=like)
    assert caught.value.render() == (
        "error: `like` has leaves that are no arrays\n  params.bias  object\n  params.kernel  str"
    )


def test_a_tree_that_is_none_of_the_layouts_is_refused(tmp_path):
    source = save(tmp_path / "linen", halfway())
    with pytest.raises(nnxconv.NnxconvError) as caught:
        nnxconv.load(source, like={"theta": numbers(2)})
    assert caught.value.message == "this is none of the layouts that nnxconv knows"
    assert caught.value.where == "`like`"


def test_64_bits_are_not_made_32_in_silence(tmp_path):
    wide = {"params": {"kernel": numbers(2).astype(np.float64)}}
    source = save(tmp_path / "linen", wide)
    like = {"params": {"kernel": jax.ShapeDtypeStruct((2,), np.float64)}}
    with pytest.raises(nnxconv.NnxconvError) as caught:
        nnxconv.load(source, like=like)
    assert caught.value.render() == (
        "error: JAX is set to make 32 bits of these 64\n"
        "  params.kernel  f64[2]\n\n"
        "hint: `jax.config.update('jax_enable_x64', True)`"
    )
    loaded = nnxconv.load(source, like=wide)["params"]["kernel"]
    assert type(loaded) is np.ndarray and loaded.dtype == np.float64


def test_a_path_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(nnxconv.NnxconvError, match="does not exist"):
        nnxconv.load(tmp_path / "nowhere", like=halfway())


@pytest.mark.parametrize("kind", [np.float32, float, np.ndarray, jax.Array])
def test_numbers_come_back_as_what_they_were(kind, tmp_path):
    of = {np.float32: np.float32(0), float: 0.5, np.ndarray: np.zeros((), np.float32)}
    like = {"params": {"kernel": numbers(2), "scale": of.get(kind, jnp.zeros(()))}}
    stored = {"params": {"kernel": numbers(2), "scale": 2.5 if kind is float else np.float32(2.5)}}
    loaded = nnxconv.load(save(tmp_path / "a", stored), like=like)["params"]["scale"]
    assert isinstance(loaded, kind) and loaded == 2.5


def test_a_model_of_other_names_is_told_how_to_get_rules(tmp_path):
    path = save(tmp_path / "a", {"params": {"dense": {"kernel": jnp.ones((4, 2))}}})
    like = {"params": {"linear": {"kernel": jnp.zeros((4, 2))}}}
    with pytest.raises(nnxconv.NnxconvError) as refused:
        nnxconv.load(path, like=like)
    assert refused.value.render() == (
        "error: 2 of 2 arrays do not fit `like`: 1 only in the checkpoint, 1 only in `like`\n"
        "  params.dense.kernel   f32[4,2]  only in the checkpoint\n"
        "  params.linear.kernel  f32[4,2]  only in `like`\n\n"
        "hint: where names alone differ, `nnxconv match CHECKPOINT TEMPLATE` proposes rules for "
        "`rename=`"
    )
