"""Real models: a run that is converted on its way goes on as if nothing had happened."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from optax.contrib import muon

import nnxconv
from tests.support import models
from tests.support.models import restore, restore_like, save, tokens, train_linen, train_nnx
from tests.support.trees import same_bits, shape_tree, values

BEFORE, AFTER = range(2), range(2, 4)

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    """The models are so small that compiling them takes longer than running them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@dataclass(frozen=True)
class LinenRun:
    """A run in Linen: new, after two steps, and the losses of the two steps after that."""

    fresh: TrainState
    halfway: TrainState
    losses: list[float]


@cache
def linen_run(is_scanned: bool) -> LinenRun:
    model = models.LinenTransformer(is_scanned)
    fresh = models.linen_state(model, models.adamw_with_clipping(), tokens(0)[0])
    halfway, _ = train_linen(fresh, tokens, BEFORE)
    return LinenRun(fresh, halfway, train_linen(halfway, tokens, AFTER)[1])


def nnx_transformer(is_stacked: bool, seed: int = 1) -> tuple[Any, nnx.Optimizer]:
    """A new model, its weights unlike those of every other seed, and its optimizer."""
    model = models.NnxTransformer(is_stacked, rngs=nnx.Rngs(seed))
    return model, nnx.Optimizer(model, models.adamw_with_clipping(), wrt=nnx.Param)


def goes_on_as(losses: list[float], expected: list[float]) -> None:
    """Fails unless the losses are equal to float tolerance."""
    np.testing.assert_allclose(losses, expected, rtol=2e-5)


def round_trip_is_exact(before: Path, after: Path) -> None:
    """Fails unless both items have the same tree, containers and bits."""
    assert shape_tree(after) == shape_tree(before)
    old, new = values(before), values(after)
    assert [path for path in old if not same_bits(old[path], new[path])] == []


CHANGES_OF_LAYERS = pytest.mark.parametrize(
    ("is_scanned", "is_stacked"),
    [(False, False), (False, True), (True, False), (True, True)],
    ids=["apart-apart", "apart-stacked", "stacked-apart", "stacked-stacked"],
)


@pytest.mark.full
@CHANGES_OF_LAYERS
def test_a_linen_run_goes_on_in_nnx_from_pure_dicts(is_scanned, is_stacked, tmp_path):
    run = linen_run(is_scanned)
    source = save(tmp_path / "linen", run.halfway)
    nnxconv.convert(str(source), str(tmp_path / "nnx"), to="nnx-pure", scan_layers=is_stacked)
    model, optimizer = nnx_transformer(is_stacked)
    models.load_pure_dicts(tmp_path / "nnx", model, optimizer)
    goes_on_as(train_nnx(model, optimizer, tokens, AFTER), run.losses)
    assert optimizer.step[...] == 4


@pytest.mark.sample(1)
@CHANGES_OF_LAYERS
def test_a_linen_run_goes_on_in_nnx_from_states(is_scanned, is_stacked, tmp_path):
    run = linen_run(is_scanned)
    source = save(tmp_path / "linen", run.halfway)
    nnxconv.convert(str(source), str(tmp_path / "nnx"), to="nnx-state", scan_layers=is_stacked)
    model, optimizer = nnx_transformer(is_stacked)
    models.load_states(tmp_path / "nnx", model, optimizer, has_rngs=False)
    goes_on_as(train_nnx(model, optimizer, tokens, AFTER), run.losses)
    assert optimizer.step[...] == 4


@pytest.mark.sample(1)
@CHANGES_OF_LAYERS
def test_like_gives_an_nnx_model_the_rng_state_that_linen_does_not_keep(
    is_scanned, is_stacked, tmp_path
):
    run = linen_run(is_scanned)
    source = save(tmp_path / "linen", run.halfway)
    template = nnx_transformer(is_stacked, seed=2)
    like = save(tmp_path / "like", models.nnx_states(*template))
    result = nnxconv.convert(str(source), str(tmp_path / "nnx"), like=str(like))
    assert {key[-1] for key in result.conversion.taken} == {"count", "key"}
    model, optimizer = nnx_transformer(is_stacked)
    models.load_states(tmp_path / "nnx", model, optimizer, has_rngs=True)
    goes_on_as(train_nnx(model, optimizer, tokens, AFTER), run.losses)
    for path, variable in nnx.to_flat_state(nnx.state(template[0], nnx.RngKey)):
        loaded = dict(nnx.to_flat_state(nnx.state(model, nnx.RngKey)))[path]
        assert jax.random.key_impl(loaded[...]) == jax.random.key_impl(variable[...])
        assert np.array_equal(jax.random.key_data(loaded[...]), jax.random.key_data(variable[...]))


@pytest.mark.full
def test_without_a_word_linen_becomes_nnx_with_stacked_layers(tmp_path):
    run = linen_run(False)
    source = save(tmp_path / "linen", run.halfway)
    result = nnxconv.convert(str(source), str(tmp_path / "nnx"))
    assert result.conversion.layout == "nnx"
    assert result.conversion.scan_layers is True
    restored = restore(tmp_path / "nnx")
    model, _ = nnx_transformer(True)
    state = nnx.state(model, nnx.Param)
    nnx.update(model, restore_like_params(tmp_path / "nnx", state))
    logits = model(tokens(0)[0])
    linen = run.halfway.apply_fn(run.halfway.params, tokens(0)[0])
    np.testing.assert_allclose(logits, linen, rtol=1e-4, atol=1e-5)
    assert restored["optimizer"]["step"].dtype == np.uint32
    assert restored["optimizer"]["opt_state"][0] is None
    assert restored["optimizer"]["opt_state"][1][0]["count"] == 2


def restore_like_params(path: Path, state: Any) -> Any:
    """The weights of an `nnx` checkpoint, through a partial restore into a live state."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        args = ocp.args.PyTreeRestore({"model": state}, partial_restore=True)
        return checkpointer.restore(path, args=args)["model"]


def save_standard(root: Path, tree: Any) -> tuple[Path, str]:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(root, tree)
    return root, ""


def save_step(root: Path, tree: Any) -> tuple[Path, str]:
    with ocp.CheckpointManager(root) as manager:
        manager.save(2, args=ocp.args.StandardSave(tree))
        manager.wait_until_finished()
    return root, "2/default"


@pytest.mark.sample(1)
@pytest.mark.parametrize("writer", [save_standard, save_step])
def test_every_orbax_writer_of_a_train_state_will_do(writer, tmp_path):
    run = linen_run(False)
    source, item = writer(tmp_path / "linen", run.halfway)
    nnxconv.convert(str(source), str(tmp_path / "nnx"), to="nnx-pure", scan_layers=True)
    model, optimizer = nnx_transformer(True)
    models.load_pure_dicts(tmp_path / "nnx" / item, model, optimizer)
    goes_on_as(train_nnx(model, optimizer, tokens, AFTER), run.losses)


@pytest.mark.full
def test_weights_directly_under_params_are_understood_too(tmp_path):
    run = linen_run(False)
    model = models.LinenTransformer(False)
    tx = models.adamw_with_clipping()
    state = TrainState.create(apply_fn=model.apply, params=run.halfway.params["params"], tx=tx)
    source = save(tmp_path / "linen", state)
    nnxconv.convert(str(source), str(tmp_path / "nnx"), to="nnx-pure")
    live, optimizer = nnx_transformer(False)
    models.load_pure_dicts(tmp_path / "nnx", live, optimizer)
    linen = model.apply(run.halfway.params, tokens(0)[0])
    np.testing.assert_allclose(live(tokens(0)[0]), linen, rtol=1e-4, atol=1e-5)
    nnxconv.convert(str(tmp_path / "nnx"), str(tmp_path / "back"), scan_layers=False)
    round_trip_is_exact(source, tmp_path / "back")


@pytest.mark.sample(1)
@CHANGES_OF_LAYERS
def test_a_linen_run_comes_back_from_nnx_bit_for_bit(is_scanned, is_stacked, tmp_path):
    run = linen_run(is_scanned)
    source = save(tmp_path / "linen", run.halfway)
    nnxconv.convert(str(source), str(tmp_path / "nnx"), to="nnx-state", scan_layers=is_stacked)
    nnxconv.convert(str(tmp_path / "nnx"), str(tmp_path / "back"), scan_layers=is_scanned)
    round_trip_is_exact(source, tmp_path / "back")
    restored = restore_like(tmp_path / "back", run.fresh.replace(step=jnp.int32(0)))
    goes_on_as(train_linen(restored, tokens, AFTER)[1], run.losses)


NNX_WRITERS = pytest.mark.parametrize(
    "written", [models.nnx_states, models.pure_dicts], ids=["nnx-state", "nnx-pure"]
)


@pytest.mark.sample(1)
@CHANGES_OF_LAYERS
@NNX_WRITERS
def test_an_nnx_run_goes_on_in_linen_with_the_containers_of_a_fresh_checkpoint(
    is_scanned, is_stacked, written, tmp_path
):
    model, optimizer = nnx_transformer(is_stacked)
    train_nnx(model, optimizer, tokens, BEFORE)
    source = save(tmp_path / "nnx", written(model, optimizer))
    losses = train_nnx(model, optimizer, tokens, AFTER)
    fresh = linen_run(is_scanned).fresh
    like = save(tmp_path / "like", fresh)
    result = nnxconv.convert(str(source), str(tmp_path / "linen"), like=str(like))
    assert {key[-1] for key in result.conversion.left_out} == {"count", "key"}
    assert shape_tree(tmp_path / "linen") == shape_tree(like)
    restored = restore_like(tmp_path / "linen", fresh)
    assert restored.step == 2
    goes_on_as(train_linen(restored, tokens, AFTER)[1], losses)


@pytest.mark.full
def test_a_trip_into_nnx_and_two_steps_there_fit_the_linen_state_strictly(tmp_path):
    run = linen_run(False)
    source = save(tmp_path / "linen", run.halfway)
    nnxconv.convert(str(source), str(tmp_path / "nnx"), to="nnx-state", scan_layers=True)
    model, optimizer = nnx_transformer(True)
    models.load_states(tmp_path / "nnx", model, optimizer, has_rngs=False)
    train_nnx(model, optimizer, tokens, AFTER)
    later = save(tmp_path / "later", models.nnx_states(model, optimizer))
    nnxconv.convert(str(later), str(tmp_path / "back"), like=str(source))
    restored = restore_like(tmp_path / "back", run.halfway)
    assert int(restored.step) == 4
    state, _ = train_linen(run.halfway, tokens, AFTER)
    expected = train_linen(state, tokens, range(4, 6))[1]
    goes_on_as(train_linen(restored, tokens, range(4, 6))[1], expected)


def test_without_like_the_result_says_which_empty_states_it_assumed(tmp_path):
    model, optimizer = nnx_transformer(False)
    source = save(tmp_path / "nnx", models.nnx_states(model, optimizer))
    result = nnxconv.convert(str(source), str(tmp_path / "linen"))
    assert [line for line in result.conversion.assumed if "opt_state[0]" in line]
    assert restore(tmp_path / "linen")["opt_state"][0] is None


def test_strictly_rng_state_is_not_left_out(tmp_path):
    model, optimizer = nnx_transformer(False)
    source = save(tmp_path / "nnx", models.nnx_states(model, optimizer))
    with pytest.raises(nnxconv.NnxconvError, match="dropout"):
        nnxconv.convert(str(source), str(tmp_path / "linen"), strict=True)
    assert not (tmp_path / "linen").exists()


@pytest.mark.full
@pytest.mark.parametrize("is_stacked", [False, True], ids=["apart", "stacked"])
def test_the_weights_of_linen_alone_become_the_state_of_an_nnx_model(is_stacked, tmp_path):
    run = linen_run(False)
    source = save(tmp_path / "linen", run.halfway.params)
    nnxconv.convert(str(source), str(tmp_path / "nnx"), to="nnx", scan_layers=is_stacked)
    model, _ = nnx_transformer(is_stacked)
    nnx.update(model, restore_like(tmp_path / "nnx", nnx.state(model, nnx.Param)))
    linen = run.halfway.apply_fn(run.halfway.params, tokens(0)[0])
    np.testing.assert_allclose(model(tokens(0)[0]), linen, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_pure", [False, True], ids=["nnx.state", "nnx.to_pure_dict"])
def test_an_nnx_model_alone_becomes_the_weights_of_linen(is_pure, tmp_path):
    model, _ = nnx_transformer(True)
    state = nnx.state(model)
    source = save(tmp_path / "nnx", nnx.to_pure_dict(state) if is_pure else state)
    nnxconv.convert(str(source), str(tmp_path / "linen"))
    params = restore(tmp_path / "linen")["params"]
    linen = models.LinenTransformer(False).apply(params, tokens(0)[0])
    np.testing.assert_allclose(linen, model(tokens(0)[0]), rtol=1e-4, atol=1e-5)


class Partitioned(nn.Module):
    """A layer whose kernel is boxed with the names of its axes, its bias not."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        return nn.Dense(4, kernel_init=init, name="up")(x)


def test_boxes_with_axis_names_are_no_part_of_a_parameter_path(tmp_path):
    model = Partitioned()
    state = models.linen_state(model, optax.adam(1e-2), jnp.ones((1, 3)))
    source = save(tmp_path / "linen", state)
    assert ("params", "params", "up", "kernel", "value") in shape_tree(source)
    nnxconv.convert(str(source), str(tmp_path / "nnx"), to="nnx-pure")
    restored = restore(tmp_path / "nnx")
    assert restored["model"]["up"]["kernel"].shape == (3, 4)
    assert restored["optimizer"]["opt_state"]["0"]["mu"]["up"]["kernel"].shape == (3, 4)
    nnxconv.convert(str(tmp_path / "nnx"), str(tmp_path / "back"))
    round_trip_is_exact(source, tmp_path / "back")


@cache
def cnn_run() -> tuple[TrainState, TrainState, TrainState, list[float]]:
    """New, halfway and finished states of the convolutional network, and its last losses."""
    tx = models.adamw_with_clipping()
    fresh = models.linen_state(models.LinenCnn(), tx, models.pictures(0)[0])
    halfway, _ = train_linen(fresh, models.pictures, BEFORE)
    finished, losses = train_linen(halfway, models.pictures, AFTER)
    return fresh, halfway, finished, losses


def nnx_cnn(seed: int = 1) -> tuple[Any, nnx.Optimizer]:
    model = models.NnxCnn(rngs=nnx.Rngs(seed))
    return model, nnx.Optimizer(model, models.adamw_with_clipping(), wrt=nnx.Param)


def as_evaluated(state: TrainState) -> jax.Array:
    """What the network says with its running averages."""
    variables = {**state.params, "batch_stats": state.batch_stats}
    return models.LinenCnn().apply(variables, models.pictures(9)[0], is_training=False)


@pytest.mark.full
@pytest.mark.parametrize("layout", ["nnx-pure", "nnx-state"])
def test_batch_statistics_move_to_nnx_and_back(layout, tmp_path):
    _, halfway, finished, losses = cnn_run()
    source = save(tmp_path / "linen", halfway)
    result = nnxconv.convert(str(source), str(tmp_path / "nnx"), to=layout)
    assert result.conversion.left_out == {}
    model, optimizer = nnx_cnn()
    if layout == "nnx-pure":
        models.load_pure_dicts(tmp_path / "nnx", model, optimizer)
    else:
        models.load_states(tmp_path / "nnx", model, optimizer, has_rngs=True)
    goes_on_as(train_nnx(model, optimizer, models.pictures, AFTER), losses)
    evaluated = model(models.pictures(9)[0], is_training=False)
    np.testing.assert_allclose(evaluated, as_evaluated(finished), rtol=1e-4, atol=1e-5)
    nnxconv.convert(str(tmp_path / "nnx"), str(tmp_path / "back"))
    round_trip_is_exact(source, tmp_path / "back")


@pytest.mark.full
@NNX_WRITERS
def test_an_nnx_network_with_batch_statistics_goes_on_in_linen(written, tmp_path):
    fresh, *_ = cnn_run()
    model, optimizer = nnx_cnn()
    train_nnx(model, optimizer, models.pictures, BEFORE)
    source = save(tmp_path / "nnx", written(model, optimizer))
    losses = train_nnx(model, optimizer, models.pictures, AFTER)
    like = save(tmp_path / "like", fresh)
    nnxconv.convert(str(source), str(tmp_path / "linen"), like=str(like))
    restored = restore_like(tmp_path / "linen", fresh)
    state, continued = train_linen(restored, models.pictures, AFTER)
    goes_on_as(continued, losses)
    evaluated = model(models.pictures(9)[0], is_training=False)
    np.testing.assert_allclose(as_evaluated(state), evaluated, rtol=1e-4, atol=1e-5)


def only_matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def embedding_is_frozen(params: Any) -> Any:
    def label(path: Any, _: Any) -> str:
        return "frozen" if "embed" in jax.tree_util.keystr(path) else "trained"

    return jax.tree_util.tree_map_with_path(label, params)


OPTIMIZERS = {
    # nested chains: an empty state in front, two more at the end of the inner chain
    "adamw in a chain": models.adamw_with_clipping(),
    # one chain, its last state empty
    "adam": optax.adam(1e-2),
    # the count of a schedule where adam has an empty state
    "adam with a schedule": optax.adam(optax.linear_schedule(1e-2, 0.0, 10)),
    # no moments at all: nothing but empty states
    "sgd": optax.sgd(1e-1),
    # one parameter-shaped tree, called `trace`
    "sgd with momentum": optax.sgd(1e-1, momentum=0.9),
    "lion": optax.lion(1e-3),
    # two masked halves, each with the other's parameters left out
    "muon": muon(1e-2),
    # a dataclass of scalars and an empty mapping around a chain
    "injected hyperparameters": optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2),
    # `inner_states` with a state that is empty as a whole
    "a frozen embedding": optax.multi_transform(
        {"trained": optax.adam(1e-2), "frozen": optax.set_to_zero()}, embedding_is_frozen
    ),
    "masked decay": optax.chain(
        optax.masked(optax.trace(0.9), only_matrices), optax.scale_by_adam(), optax.scale(-1e-2)
    ),
    # accumulates: a whole optimizer inside, and a gradient accumulator with the parameters' paths
    "every second step": optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
}


@dataclass(frozen=True)
class Tower:
    """A run of the small tower with one optimizer."""

    item: Path
    fresh: TrainState
    losses: list[float]


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """For each optimizer, its run in Linen and the checkpoint in the middle of it."""

    @cache
    def run(name: str) -> Tower:
        fresh = models.linen_state(models.LinenTower(), OPTIMIZERS[name], tokens(0)[0])
        halfway, _ = train_linen(fresh, tokens, BEFORE)
        item = save(tmp_path_factory.mktemp("tower") / "linen", halfway)
        return Tower(item, fresh, train_linen(halfway, tokens, AFTER)[1])

    return run


@pytest.mark.sample(1)
@pytest.mark.parametrize("layout", ["nnx", "nnx-pure", "nnx-state", "maxtext"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_comes_back_to_linen_bit_for_bit(name, layout, tower, tmp_path):
    source = tower(name).item
    nnxconv.convert(str(source), str(tmp_path / "nnx"), to=layout)
    nnxconv.convert(str(tmp_path / "nnx"), str(tmp_path / "back"), to="linen")
    round_trip_is_exact(source, tmp_path / "back")
    restore_like(tmp_path / "back", tower(name).fresh.replace(step=jnp.int32(0)))


@pytest.mark.sample(1)
@pytest.mark.parametrize("layout", ["nnx-pure", "nnx-state"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_in_nnx_as_it_would_have_in_linen(name, layout, tower, tmp_path):
    run = tower(name)
    nnxconv.convert(str(run.item), str(tmp_path / "nnx"), to=layout)
    model = models.NnxTower(rngs=nnx.Rngs(1))
    optimizer = nnx.Optimizer(model, OPTIMIZERS[name], wrt=nnx.Param)
    if layout == "nnx-pure":
        models.load_pure_dicts(tmp_path / "nnx", model, optimizer)
    else:
        models.load_states(tmp_path / "nnx", model, optimizer, has_rngs=True)
    goes_on_as(train_nnx(model, optimizer, tokens, AFTER), run.losses)


@pytest.mark.sample(3)
@pytest.mark.parametrize("written", ["nnx-pure", "nnx-state"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_converted_tree_of_every_optimizer_is_the_one_that_nnx_writes(
    name, written, tower, tmp_path
):
    nnxconv.convert(str(tower(name).item), str(tmp_path / "nnx"), to=written)
    model = models.NnxTower(rngs=nnx.Rngs(1))
    optimizer = nnx.Optimizer(model, OPTIMIZERS[name], wrt=nnx.Param)
    kind = models.pure_dicts if written == "nnx-pure" else models.nnx_states
    native = save(tmp_path / "native", kind(model, optimizer))
    assert shape_tree(tmp_path / "nnx") == shape_tree(native)


@pytest.mark.sample(1)
@pytest.mark.parametrize("written", ["nnx-pure", "nnx-state"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_in_linen_as_it_would_have_in_nnx(name, written, tower, tmp_path):
    model = models.NnxTower(rngs=nnx.Rngs(1))
    optimizer = nnx.Optimizer(model, OPTIMIZERS[name], wrt=nnx.Param)
    train_nnx(model, optimizer, tokens, BEFORE)
    kind = models.pure_dicts if written == "nnx-pure" else models.nnx_states
    source = save(tmp_path / "nnx", kind(model, optimizer))
    losses = train_nnx(model, optimizer, tokens, AFTER)
    like = save(tmp_path / "like", tower(name).fresh)
    nnxconv.convert(str(source), str(tmp_path / "linen"), like=str(like))
    assert shape_tree(tmp_path / "linen") == shape_tree(like)
    restored = restore_like(tmp_path / "linen", tower(name).fresh)
    goes_on_as(train_linen(restored, tokens, AFTER)[1], losses)


def test_the_way_back_is_recorded_in_the_checkpoint_itself(tower, tmp_path):
    nnxconv.convert(str(tower("adam").item), str(tmp_path / "nnx"))
    metadata = json.loads((tmp_path / "nnx" / "_METADATA").read_text())
    assert metadata["custom_metadata"]["nnxconv"]["forms"]["linen"]["empties"] == [[[1], "None"]]
