"""`match`: rules found for real models, with which a run goes on as if nothing had happened."""

from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import nnxconv
from tests.support import checkpoints, models
from tests.support.command import check_golden, run, session
from tests.support.model_pairs import PAIRS, NnxMlp, abstract_mlp
from tests.support.models import save, train_linen, train_nnx

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


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", PAIRS)
def test_what_is_found_is_told_with_the_evidence(name, checkpoints_of):
    source, template = checkpoints_of(name)
    outcome = run("match", source, template)
    text = session(outcome, {"LINEN": source, "NNX": template})
    check_golden(f"match/{name}.txt", text)


@pytest.mark.sample(1)
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
    loaded, its_optimizer = new_nnx(name, 3)
    nnxconv.load_into(loaded, source, optimizer=its_optimizer, rename=found.rules)
    assert numbers(loaded, its_optimizer) == numbers(model, optimizer)
    losses = train_nnx(model, optimizer, PAIRS[name].batch, AFTER)
    np.testing.assert_allclose(losses, linen_run(name)[1], rtol=2e-5)


def numbers(model, optimizer):
    """The bytes of everything but RNG state, by path."""
    return {
        (part, *path): np.asarray(jax.tree.leaves(variable)[0]).tobytes()
        for part, state in models.nnx_states(model, optimizer).items()
        for path, variable in nnx.to_flat_state(state)
        if not isinstance(variable, nnx.RngState)
    }


@pytest.mark.sample(1)
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


# --- what is not certain ----------------------------------------------------------------------


def small(**leaves):
    """A Linen checkpoint's tree with these parameters, by name and shape."""
    params = {name: checkpoints.values(shape, n) for n, (name, shape) in enumerate(leaves.items())}
    return {"params": {"params": params}}


def test_what_could_be_several_things_is_left_to_a_person(tmp_path):
    source = save(tmp_path / "a", small(left=(4, 4), right=(4, 4), old=(3,), same=(5,)))
    template = save(tmp_path / "b", small(first=(4, 4), second=(4, 4), new=(2,), same=(5,)))
    rules = tmp_path / "rules.toml"
    names = {"A": source, "B": template, "RULES": rules}
    told = session(run("match", source, template), names)
    told += session(run("match", source, template, "--output", rules), names)
    told += session(run("match", source, template, "--json"), names)
    check_golden("match/unclear.txt", told + rules.read_text())


def test_what_may_fit_with_a_step_is_a_hint_and_no_rule(tmp_path):
    def saved(path, **kernels):
        params = {
            f"layers_{i}": {name: {"kernel": np.ones(shape)} for name, shape in kernels.items()}
            for i in range(2)
        }
        return save(path, {"params": {"params": params}})

    source = saved(tmp_path / "a", c_attn=(8, 24), c_proj=(8, 8), up=(16, 8), down=(8, 16, 1))
    heads = dict.fromkeys(("key", "query", "value"), (8, 2, 4))
    template = saved(tmp_path / "b", **heads, out=(2, 4, 8), wi=(8, 16), wo=(8, 16))
    rules = tmp_path / "rules.toml"
    outcome = run("match", source, template, "--output", rules)
    told = session(outcome, {"A": source, "B": template, "RULES": rules})
    check_golden("match/hints.txt", told + rules.read_text())


def test_modules_whose_order_is_not_known_are_not_guessed(tmp_path):
    def saved(path, names):
        return save(path, {"params": {name: {"kernel": np.ones((4, 4))} for name in names}})

    source = saved(tmp_path / "a", ("Dense_0", "Dense_1", "Dense_2"))
    template = saved(tmp_path / "b", ("query", "key", "value"))
    found = nnxconv.match(str(source), str(template))
    assert not found.pairs.certain
    assert [len(unclear.candidates) for unclear in found.pairs.unclear] == [3, 3, 3]


def test_rules_are_not_replaced_unasked(tmp_path):
    source = checkpoints.save_item(tmp_path / "a", small(a=(2, 2)))
    rules = tmp_path / "rules.toml"
    rules.write_text("precious")
    words = ("match", source, source, "--output", rules)
    refused = run(*words)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == f"error: `{rules}` exists\n\nhint: add `--overwrite` to replace it\n"
    assert rules.read_text() == "precious"
    assert run(*words, "--overwrite").exit_code < 2
    assert rules.read_text().startswith("#")


def test_checkpoints_with_the_same_names_need_no_rules(tmp_path):
    source = save(tmp_path / "a", small(x=(4, 4), y=(4, 4)))
    assert run("match", source, source).stdout.endswith(
        "no rules: what is certain has the same keys on both sides\n"
    )
    rules = tmp_path / "rules.toml"
    assert run("match", source, source, "--output", rules).stdout.endswith(
        "no rules: what is certain has the same keys on both sides\n"
        f"{rules} has what is not certain, as comments\n"
    )


# --- templates that are no checkpoints --------------------------------------------------------


TEMPLATES = {
    "an abstract state": abstract_mlp,
    "an abstract module": lambda: nnx.eval_shape(lambda: NnxMlp(rngs=nnx.Rngs(0))),
    "a module": lambda: NnxMlp(rngs=nnx.Rngs(0)),
    "a model and its optimizer": lambda: models.nnx_states(*new_nnx("mlp", 0)),
    "a function": lambda: "tests.support.model_pairs:abstract_mlp",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_a_template_can_be_a_python_object(template, checkpoints_of):
    source, checkpoint = checkpoints_of("mlp")
    found = nnxconv.match(str(source), template())
    assert found.is_complete
    assert found.rules == nnxconv.match(str(source), str(checkpoint)).rules


LINEN_TEMPLATES = {
    "abstract variables": lambda model, x: jax.eval_shape(model.init, jax.random.key(0), x),
    "parameters alone": lambda model, x: model.init(jax.random.key(0), x)["params"],
    "a training state": lambda model, x: models.linen_state(model, models.adamw_with_clipping(), x),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("template", LINEN_TEMPLATES.values(), ids=LINEN_TEMPLATES.keys())
def test_a_template_can_be_of_linen(template, name, checkpoints_of):
    _, checkpoint = checkpoints_of(name)
    found = nnxconv.match(str(checkpoint), template(PAIRS[name].linen(), PAIRS[name].batch(0)[0]))
    assert not found.pairs.unclear and not found.pairs.only_template
    assert found.is_complete or template is LINEN_TEMPLATES["parameters alone"]


def test_what_is_no_template_is_told(checkpoints_of):
    source, _ = checkpoints_of("mlp")
    told = [run("match", source, name) for name in ("tests.nowhere:model", "math:pi", "os:getcwd")]
    sessions = "".join(session(outcome, {"LINEN": source}) for outcome in told)
    check_golden("match/no-template.txt", sessions.replace(str(Path.cwd()), "HERE"))


def test_a_template_is_looked_for_in_the_working_directory(checkpoints_of, tmp_path, monkeypatch):
    source, _ = checkpoints_of("mlp")
    (tmp_path / "my_own_model.py").write_text(
        "from tests.support.model_pairs import abstract_mlp as it\n"
    )
    monkeypatch.chdir(tmp_path)
    assert run("match", source, "my_own_model:it").exit_code == 0
