"""The line that says how a checkpoint is restored, run as it is printed."""

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

import nnxconv
from tests.support.checkpoints import save_item
from tests.support.command import run


class LinenNet(nn.Module):
    """One dense layer."""

    def setup(self) -> None:
        self.dense = nn.Dense(3)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dense(x)


class NnxNet(nnx.Module):
    """The same."""

    def __init__(self) -> None:
        self.dense = nnx.Linear(2, 3, rngs=nnx.Rngs(5))


TX = optax.adam(1e-3)


def linen_state(seed: int) -> TrainState:
    net = LinenNet()
    variables = net.init(jax.random.key(seed), jnp.zeros((1, 2)))
    state = TrainState.create(apply_fn=net.apply, params=variables, tx=TX)
    return state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))


def kernel_in(tree: Any) -> Any:
    """The kernel in a tree of whatever containers, moments aside."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    told = [(jax.tree_util.keystr(path), leaf) for path, leaf in paths]
    [kernel] = [
        leaf
        for key, leaf in told
        if "kernel" in key and not any(moment in key for moment in ("mu", "nu"))
    ]
    return np.asarray(kernel)


def executed(line: str, **own: Any) -> Any:
    """What a line gives in a program that has a fresh model, optimizer and training state."""
    model = NnxNet()
    scope = {
        "nnx": nnx,
        "ocp": ocp,
        "nnxconv": nnxconv,
        "model": model,
        "state": nnx.state(model),
        "optimizer": nnx.Optimizer(model, TX, wrt=nnx.Param),
        "train_state": linen_state(1),
        "variables": {"params": linen_state(1).params["params"]},
        **own,
    }
    there = eval(line, scope)
    if line.startswith("nnxconv.load_into"):
        there = nnx.state(model)
    elif line.startswith("nnx.replace"):
        there = scope["state"]
    return kernel_in(there)


def printed(stdout: str) -> str:
    [line] = [row for row in stdout.splitlines() if row.startswith("restore with: ")]
    return line.removeprefix("restore with: ")


WAYS = {
    "train state": ["--to", "linen"],
    "linen variables": ["--to", "linen-variables", "--params_only"],
    "linen parameters": ["--to", "linen", "--params_only"],
    "nnx": ["--to", "nnx"],
    "nnx-state": ["--to", "nnx-state"],
    "nnx-state, model alone": ["--to", "nnx-state", "--params_only"],
    "nnx-pure": ["--to", "nnx-pure"],
    "nnx-pure, model alone": ["--to", "nnx-pure", "--params_only"],
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_what_was_converted_is_restored_by_the_line_that_is_printed(options, tmp_path):
    state = linen_state(0)
    source = save_item(tmp_path / "source", state)
    done = run("convert", source, tmp_path / "new", *options)
    line = printed(done.stdout)
    assert np.array_equal(executed(line), state.params["params"]["dense"]["kernel"])
    [shown] = [
        row.removeprefix("  restore    ")
        for row in run("inspect", tmp_path / "new").stdout.splitlines()
        if row.startswith("  restore    ")
    ]
    assert shown == line


@pytest.mark.parametrize("levels", ["params/params", "params"])
def test_what_nnx_saved_is_restored_by_a_linen_program_of_either_form(levels, tmp_path):
    model = NnxNet()
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    tree = {"model": nnx.state(model), "optimizer": nnx.state(optimizer)}
    source = save_item(tmp_path / "source", tree)
    line = printed(run("convert", source, tmp_path / "new", "--to", "linen").stdout)
    params = linen_state(1).params if levels == "params/params" else linen_state(1).params["params"]
    state = TrainState.create(apply_fn=LinenNet().apply, params=params, tx=TX)
    assert np.array_equal(executed(line, train_state=state), model.dense.kernel[...])


class Listed(nnx.Module):
    """Two layers, in a list or as attributes."""

    def __init__(self, in_list: bool) -> None:
        layers = [nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(i)) for i in range(2)]
        if in_list:
            self.layers = nnx.List(layers)
        else:
            self.layers_0, self.layers_1 = layers


@pytest.mark.parametrize("in_list", [True, False])
@pytest.mark.parametrize("layout", ["nnx-state", "nnx-pure"])
def test_bare_parameters_are_restored_into_layers_of_either_form(layout, in_list, tmp_path):
    kernels = {f"layers_{i}": {"kernel": np.full((2, 2), i, "f4")} for i in range(2)}
    source = save_item(tmp_path / "source", kernels)
    line = printed(run("convert", source, tmp_path / "new", "--to", layout).stdout)
    model = Listed(in_list)
    eval(line, {"nnx": nnx, "ocp": ocp, "nnxconv": nnxconv, "model": model})
    last = model.layers[1] if in_list else model.layers_1
    assert last.kernel[...].tolist() == [[1, 1], [1, 1]]


def test_a_state_below_a_key_is_restored_by_its_key(tmp_path):
    state = linen_state(0)
    source = save_item(tmp_path / "source", {"net": state, "epoch": 3})
    done = run("convert", source, tmp_path / "new", "--to", "nnx-pure")
    line = printed(done.stdout)
    assert line.endswith(', at="net")')
    assert np.array_equal(executed(line), state.params["params"]["dense"]["kernel"])


RUN_OPTIONS = {
    "maxtext": ([], "MaxText: load_full_state_path=$/new"),
    "maxtext, parameters": (["--params_only"], "MaxText: load_parameters_path=$/new"),
}


@pytest.mark.parametrize(("options", "line"), RUN_OPTIONS.values(), ids=RUN_OPTIONS)
def test_programs_that_are_given_an_option_are_named_with_it(options, line, tmp_path):
    source = save_item(tmp_path / "source", linen_state(0))
    done = run("convert", source, tmp_path / "new", "--to", "maxtext", *options)
    assert printed(done.stdout).replace(str(tmp_path), "$") == line
