"""`load` for the state of an optimizer alone: what it holds is known without its model."""

from functools import cache

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import nnxconv
from tests.promises.test_training import OPTIMIZERS
from tests.support import checkpoints, models
from tests.support.models import save, tokens


@cache
def linen_params():
    return jax.jit(models.LinenTower().init)(jax.random.key(0), tokens(0)[0])


def new_nnx(name):
    model = models.NnxTower(rngs=nnx.Rngs(1))
    return model, nnx.Optimizer(model, OPTIMIZERS[name], wrt=nnx.Param)


def filled(tree):
    """The tree with other numbers, no two alike."""
    leaves, structure = jax.tree.flatten(tree)
    random = np.random.default_rng(0)
    numbers = [
        random.uniform(1, 99, np.shape(leaf)).astype(np.asarray(leaf).dtype) for leaf in leaves
    ]
    return jax.tree.unflatten(structure, numbers)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """For each optimizer: a Linen checkpoint in the middle of a run, and its optax state."""

    @cache
    def saved(name):
        opt_state = filled(OPTIMIZERS[name].init(linen_params()))
        tree = {"step": np.int32(5), "params": linen_params(), "opt_state": opt_state}
        return save(tmp_path_factory.mktemp("run") / "linen", tree), opt_state

    return saved


def same_leaves(a, b):
    """True for two trees, or optimizers, with the same structure and numbers."""
    (left, shape), (right, other) = (
        jax.tree.flatten(nnx.to_pure_dict(nnx.state(x)) if isinstance(x, nnx.Optimizer) else x)
        for x in (a, b)
    )
    return shape == other and all(map(np.array_equal, left, right))


KINDS = {
    "nnx.Optimizer": lambda optimizer: optimizer,
    "nnx.State": nnx.state,
    "pure dict": lambda optimizer: nnx.to_pure_dict(nnx.state(optimizer)),
    "its chain": lambda optimizer: dict(nnx.state(optimizer)).get("opt_state", {}),
    "optax state of variables": lambda optimizer: optimizer.opt_state,
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_an_nnx_optimizer(name, run):
    source, _ = run(name)
    model, whole = new_nnx(name)
    nnxconv.load_into(model, source, optimizer=whole)
    like = new_nnx(name)[1]
    for kind, part in KINDS.items():
        is_chain = kind != "its chain" or all(str(name).isdigit() for name in part(like))
        if jax.tree.leaves(part(like)) and is_chain:
            assert same_leaves(nnxconv.load(source, like=part(like)), part(whole)), kind


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optax_state(name, run, tmp_path):
    source, opt_state = run(name)
    like = OPTIMIZERS[name].init(linen_params())
    assert same_leaves(nnxconv.load(source, like=like), opt_state)
    abstract = jax.eval_shape(OPTIMIZERS[name].init, linen_params())
    nnxconv.convert(str(source), str(tmp_path / "nnx"), to="nnx-pure")
    if jax.tree.leaves(like):
        assert same_leaves(nnxconv.load(tmp_path / "nnx", like=abstract), opt_state)


def test_stacked_layers_are_told_by_the_moments(tmp_path):
    source = checkpoints.save_item(tmp_path / "a", checkpoints.linen())
    stacked = checkpoints.linen(axis=1)["opt_state"][0]
    like = optax.ScaleByAdamState(*(filled(stacked[name]) for name in ("count", "mu", "nu")))
    loaded = nnxconv.load(source, like=(like, optax.EmptyState(), {"count": np.int32(0)}))
    assert same_leaves(loaded[0]._asdict(), stacked)


def test_another_optimizer_is_a_mismatch(run):
    source, _ = run("adam with a schedule")
    with pytest.raises(nnxconv.NnxconvError) as refused:
        nnxconv.load(source, like=optax.sgd(1e-1, momentum=0.9).init(linen_params()))
    assert "only in `like`" in refused.value.details[-1]


def test_an_optimizer_of_other_parameters_is_refused(run):
    source, _ = run("adam")
    with pytest.raises(nnxconv.NnxconvError) as refused:
        nnxconv.load(source, like=optax.adam(1e-2).init({"params": {"w": np.zeros(3)}}))
    assert refused.value.details[-2:] == (
        "opt_state[0].mu.params.w         f32[3]      only in `like`",
        "opt_state[0].nu.params.w         f32[3]      only in `like`",
    )


@pytest.mark.parametrize("params", [linen_params, lambda: linen_params()["params"]])
def test_numbers_of_numpy_are_loaded_as_the_numbers_that_orbax_restores(params, tmp_path):
    tree = {"params": linen_params(), "loss_scale": {"counter": np.int32(3), "scale": 2.0}}
    source = checkpoints.save_item(tmp_path / "a", tree)
    like = {"params": params(), "loss_scale": {"counter": 0, "scale": 0.0}}
    assert nnxconv.load(source, like=like)["loss_scale"] == {"counter": 3, "scale": 2.0}
