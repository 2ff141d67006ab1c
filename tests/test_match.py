"""`match`: rules found for real models, with which a run goes on as if nothing had happened."""

from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx

import nnxconv
from tests import models
from tests.command import check_golden, run, session
from tests.model_pairs import PAIRS
from tests.models import save, train_linen, train_nnx

BEFORE, AFTER = range(2), range(2, 4)

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    """The models are so small that compiling them takes longer than running them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@cache
def linen_run(name):
    """A run in Linen after two steps, and the losses of the two after that."""
    pair = PAIRS[name]
    fresh = models.linen_state(pair.linen(), models.adamw_with_clipping(), pair.batch(0)[0])
    halfway, _ = train_linen(fresh, pair.batch, BEFORE)
    return halfway, train_linen(halfway, pair.batch, AFTER)[1]


def new_nnx(name, seed):
    model = PAIRS[name].nnx(rngs=nnx.Rngs(seed))
    return model, nnx.Optimizer(model, models.adamw_with_clipping(), wrt=nnx.Param)


@pytest.fixture(scope="module")
def checkpoints_of(tmp_path_factory):
    """For a pair of models: the Linen run's checkpoint, and one of a new NNX model."""

    @cache
    def made(name):
        root = tmp_path_factory.mktemp(name)
        source = save(root / "linen", linen_run(name)[0])
        return source, save(root / "nnx", models.nnx_states(*new_nnx(name, 2)))

    return made


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_found_is_told_with_the_evidence(name, checkpoints_of):
    source, template = checkpoints_of(name)
    outcome = run("match", source, template)
    text = session(outcome, {"LINEN": source, "NNX": template})
    check_golden(f"match/{name}.txt", text)


@pytest.mark.parametrize("name", PAIRS)
def test_a_linen_run_goes_on_in_a_differently_named_nnx_model(name, checkpoints_of, tmp_path):
    source, template = checkpoints_of(name)
    rules = str(tmp_path / "rules.toml")
    found = nnxconv.match(str(source), str(template), output=rules)
    assert found.is_complete, found.to_toml()
    target = tmp_path / "converted"
    nnxconv.convert(str(source), str(target), like=str(template), rename=rules, verify=True)
    model, optimizer = new_nnx(name, 1)
    models.load_states(target, model, optimizer, has_rngs=True)
    losses = train_nnx(model, optimizer, PAIRS[name].batch, AFTER)
    np.testing.assert_allclose(losses, linen_run(name)[1], rtol=2e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_the_run_comes_back_to_linen_by_the_inverse_rules(name, checkpoints_of, tmp_path):
    source, template = checkpoints_of(name)
    rules = str(tmp_path / "rules.toml")
    nnxconv.match(str(source), str(template), output=rules)
    there, back = tmp_path / "there", tmp_path / "back"
    nnxconv.convert(str(source), str(there), to="nnx-state", rename=rules)
    nnxconv.convert(str(there), str(back), to="linen", rename_back=rules)
    report = nnxconv.compare(
        str(source), str(back), compare_values=True, compare_only="all", atol=0, rtol=0
    )
    assert report.is_match, report.render()
