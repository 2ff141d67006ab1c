"""Trees that people save, written by the scripts of the conformance cases: what each one is.

Every script is run as it is, in a process of its own; a row says which states its tree has, with
the number of their parameters, and how many leaves have the other roles.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

import nnxconv
from tests.support.command import run


@dataclass(frozen=True)
class Case:
    """What a case is: states with their parameters, second copies, roles besides, what is kept."""

    script: str
    arguments: str = ""
    states: dict[str, int] = field(default_factory=dict)
    copies: tuple[str, ...] = ()
    variables: int = 0
    rng: int = 0
    other: int = 0
    step: int | None = None
    inside: str = ""


def _linen(kind: str, states: dict[str, int] | None = None, **rest) -> Case:
    return Case("linen_roots", kind, states or {"": 6}, **rest)


def _nnx(kind: str, states: dict[str, int] | None = None, **rest) -> Case:
    rest = {"variables": 2, "step": 0, **rest}
    return Case("nnx_roots", kind, states or {"": 6}, **rest)


CASES = [
    Case("guide_bundle", "", {"model": 2}, other=3, step=0),
    Case("guide_bundle", "small", {"model": 2}, step=0),
    _linen("model_vars", {"model": 6}, variables=2),
    _linen("model_optimizer"),
    _linen("state_ts", {"state": 6}, step=7),
    _linen("state_epoch", {"state": 6}, other=1, step=7),
    _linen("train_state_rng", {"train_state": 6}, rng=1, step=7),
    _linen("ema", copies=("ema_params",), variables=6, step=7),
    _linen("bs_rng", variables=2, rng=1, step=7),
    _linen("epoch", other=2, step=7),
    _linen("gan", {"discriminator": 6, "generator": 6}, step=7),
    _linen("tuple"),
    _linen("bare"),
    _linen("optimizer_state", step=7),
    _linen("params_config", other=2),
    _linen("serl", {"": 12}, copies=("target_params",), variables=12, rng=1, step=7),
    _linen("model_opt_params", variables=2, step=7),
    _nnx("plain"),
    _nnx("epoch", other=1),
    _nnx("metrics", other=2),
    _nnx("rng", rng=1),
    _nnx("params_key"),
    _nnx("model_opt_state"),
    _nnx("ema", copies=("ema",), variables=10),
    _nnx("gan", {"disc": 6, "gen": 6}, variables=4),
    _nnx("tuple", step=None),
    Case("further_fields", "metrics", {"": 2}, other=4, step=5),
    Case("further_fields", "dynamic_scale", {"": 2}, other=2, step=5),
    Case("further_fields", "loss_scale", {"": 2}, other=1, step=5),
    Case("further_fields", "config", {"": 2}, other=2, step=5),
    Case("further_fields", "dropout_rng", {"": 2}, rng=1, step=5),
    Case("further_fields", "typed", {"": 2}, rng=1, step=5),
    Case("ema_layers", "", {"": 14}, copies=("ema_params",), variables=20, other=1, step=7),
    Case("items_of_a_policy", "", {"params": 10, "train_state": 10}),
    Case("items_model_optimizer", "", {"": 6}, variables=2, rng=2, step=3),
    Case("items_model_optimizer", "pure", {"": 6}, variables=2, rng=2, step=3),
    Case("items_model_optimizer", "linen", {"": 2}),
    Case("fp8_scales", "", {"": 4}, variables=12, step=3),
    Case("adafactor", "", {"": 9}, step=1),
    Case("adafactor", "stacked0", {"": 3}, step=1),
    Case("adafactor", "stacked1", {"": 3}, step=1),
    Case("replicated", "", {"": 4}, step=9),
    Case("step_names", "", {"": 2}, inside="flax"),
    Case("step_names", "", {"": 2}, inside="flaxprefix"),
    Case("step_names", "", {"": 2}, inside="flaxfloat"),
    Case("step_names", "", {"": 2}, inside="prefix"),
    Case("step_names", "", {"": 2}, inside="fixed"),
    Case("step_names", "", {"": 2}, inside="both"),
    Case("new_head", "", {"": 6}, step=3),
    Case("dotted_names", "", {"": 7}),
    Case("dotted_names", "under", {"": 7}),
]


def _name(case: Case) -> str:
    return " ".join(filter(None, (case.script, case.arguments, case.inside)))


@pytest.fixture(scope="session")
def written(conformance_cases, tmp_path_factory):
    """What a script writes; each once."""
    made: dict[tuple[str, str], Path] = {}

    def write(case: Case) -> Path:
        key = (case.script, case.arguments)
        if key not in made:
            folder = tmp_path_factory.mktemp("cases") / "x"
            script = conformance_cases / f"{case.script}.py"
            words = [sys.executable, "-W", "ignore", script, folder, *case.arguments.split()]
            subprocess.run(words, check=True, capture_output=True)
            made[key] = folder
        return made[key] / case.inside

    return write


each = pytest.mark.parametrize("case", CASES, ids=_name)


def stored_leaves(item: Path) -> int:
    """How many leaves Orbax's own metadata name that have a value."""
    entries = json.loads((item / "_METADATA").read_text())["tree_metadata"].values()
    return sum(not entry["value_metadata"]["skip_deserialize"] for entry in entries)


@pytest.mark.sample(2)
@each
def test_states_and_roles_are_those_of_the_case(case, written):
    path = written(case)
    outcome = run("inspect", path, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    told = json.loads(outcome.stdout)
    ledger = {role: amount["leaves"] for role, amount in told["ledger"].items()}
    assert {one["at"]: one["parameters"] for one in told["states"]} == case.states
    assert tuple(copy for one in told["states"] for copy in one["copies"]) == case.copies
    assert ledger["parameters"] == sum(case.states.values())
    assert (ledger["variables"], ledger["rng"]) == (case.variables, case.rng)
    assert ledger["other"] == case.other
    item = Path(told["path"])
    items = (
        [item]
        if (item / "_METADATA").exists()
        else [one.parent for one in item.glob("*/_METADATA")]
    )
    assert sum(ledger.values()) == sum(map(stored_leaves, items))
    if case.step is not None:
        steps = told["step"] if isinstance(told["step"], list) else [told["step"]]
        assert set(steps) == {case.step}
    assert run("compare", path, path, "--compare_values").exit_code == 0


@pytest.mark.sample(2)
@each
@pytest.mark.parametrize("to", ["nnx", "linen"])
def test_what_is_converted_in_place_comes_back(case, to, written, tmp_path):
    path = written(case)
    there = nnxconv.convert(str(path), str(tmp_path / "there"), to=to, verify=True)
    if len(case.states) == 1 and case.script != "items_of_a_policy":
        back = there.conversion.source.codec.name
        nnxconv.convert(there.target_path, str(tmp_path / "back"), to=back)
        target = nnxconv.inspect(str(tmp_path / "back"))
        report = nnxconv.compare(
            str(path), str(target.item.path), compare_values=True, compare_only="all",
            ignore_rngs=False, atol=0, rtol=0,
        )  # fmt: skip
        told = {key[:2] for key in there.conversion.left_out}
        differ = {finding.key for finding in report.findings if finding.key[:2] not in told}
        assert differ <= {("step",)}  # which Linen's training states have, and bare ones have not
    account = there.account
    assert account.total == len(account.converted) + len(account.kept) + len(account.left_out or {})


@pytest.mark.sample(2)
@each
def test_parameters_alone_are_parameters_alone(case, written, tmp_path):
    path = written(case)
    for at in case.states:
        chosen = {"at": at} if len(case.states) > 1 else {}
        target = tmp_path / (at or "root")
        nnxconv.convert(
            str(path), str(target), to="nnx", params_only=True, dtype="bfloat16", **chosen
        )
        told = nnxconv.inspect(str(target)).ledger
        assert told["parameters"].leaves == case.states[at]
        assert [told[role].leaves for role in ("optimizer", "step", "rng", "other")] == [0, 0, 0, 0]
    if len(case.states) > 1:
        with pytest.raises(nnxconv.NnxconvError) as refused:
            nnxconv.convert(str(path), str(tmp_path / "both"), to="nnx", params_only=True)
        assert "--at" in refused.value.hint


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.sample(1)
@each
def test_the_same_tree_is_loaded_whatever_it_is(case, written):
    path = nnxconv.inspect(str(written(case))).item.path
    if not (Path(path) / "_METADATA").exists():
        pytest.skip("two items are no tree of Orbax")
    restored = ocp.PyTreeCheckpointer().restore(path)
    if any(isinstance(leaf, str) for leaf in _leaves(restored)):
        pytest.skip("JAX has no texts")
    loaded = nnxconv.load(path, like=restored, note=lambda text: None)
    for ours, theirs in zip(_leaves(loaded), _leaves(restored), strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def _leaves(tree):
    import jax

    return [
        jax.random.key_data(leaf)
        if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
        for leaf in jax.tree.leaves(tree)
    ]
