"""Every optimizer of optax: its state follows layers that are stacked, or they are not stacked.

The optimizers are those that optax and `optax.contrib` have today, found by introspection, so that
a new one is noticed; what `init` makes of stacked parameters is the witness.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest

from nnxconv.errors import LayerError
from nnxconv.layouts.conversion import convert_tree
from nnxconv.layouts.options import Options
from nnxconv.layouts.understanding import understand
from nnxconv.loading.template import template_of
from nnxconv.tree import Leaf, notation

LAYERS = 3
KERNELS = {"kernel": (6, 4), "bias": (4,), "scale": (6,)}

_ARGUMENTS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "decay": 0.9,
    "weight_decay": 0.1,
    "b1": 0.9,
    "eta": 0.1,
    "max_delta": 1.0,
    "max_norm": 1.0,
    "clipping": 0.1,
    "l2_norm_clip": 1.0,
    "step_size": 1.0,
    "gamma": 0.1,
    "noise_multiplier": 0.1,
    "seed": 0,
    "k": 2,
    "k_steps": 2,
    "every_k_schedule": 2,
    "max_consecutive_errors": 2,
    "step_size_fn": lambda count: 1.0,
    **dict.fromkeys(
        ("inner", "opt", "inner_opt", "optimizer", "base_optimizer", "transform"), optax.adam(1e-3)
    ),
}
"""Values for the arguments that such functions ask for."""

REFUSED = {
    **dict.fromkeys(("adafactor", "scale_by_factored_rms"), "rows and columns"),
    **dict.fromkeys(("lbfgs", "scale_by_lbfgs"), "memories have an axis of their own"),
    **dict.fromkeys(("novograd", "scale_by_novograd"), "one norm for each array"),
    **dict.fromkeys(("sm3", "scale_by_sm3"), "one vector for each axis"),
    **dict.fromkeys(("galore", "scale_by_galore"), "projections"),
    "scale_by_distance_over_gradients": "one distance for each array",
    "zero_nans": "one answer for each array",
    "muon": "matrices are told by their two axes",
}
"""What is not the same for stacked layers, by the optimizer."""


def optimizers() -> Iterator[tuple[str, optax.GradientTransformation]]:
    """Every optimizer that can be made, and initialised on a small tree; each name once."""
    known: set[str] = set()
    for module in (optax, optax.contrib):
        for name, function in vars(module).items():
            if name.startswith("_") or not inspect.isfunction(function) or name in known:
                continue
            made = _made(function)
            if made is not None:
                known.add(name)
                yield name, made


def _made(function: Any) -> optax.GradientTransformation | None:
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    required = [p.name for p in parameters if p.default is p.empty and p.kind in kinds]
    if not set(required) <= _ARGUMENTS.keys():
        return None
    try:
        made = function(**{name: _ARGUMENTS[name] for name in required})
        jax.eval_shape(made.init, apart())
    except Exception:  # it is no optimizer, or none for these parameters
        return None
    return made


def apart() -> dict[str, Any]:
    layers = {
        f"layers_{i}": {name: jnp.zeros(shape) for name, shape in KERNELS.items()}
        for i in range(LAYERS)
    }
    return {"params": {"embed": {"embedding": jnp.zeros((8, 6))}, **layers}}


def stacked(axis: int) -> dict[str, Any]:
    shapes = {name: (*s[:axis], LAYERS, *s[axis:]) for name, s in KERNELS.items()}
    layers = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    return {"params": {"embed": {"embedding": jnp.zeros((8, 6))}, "layers": layers}}


def tree_of(made: optax.GradientTransformation, params: dict[str, Any]) -> dict[Any, Leaf]:
    state = {"step": jnp.int32(0), "params": params, "opt_state": made.init(params)}
    return dict(template_of(state).tree)


def told(tree: Any) -> dict[Any, str]:
    return {key: notation(leaf) for key, leaf in tree.items()}


OPTIMIZERS = dict(optimizers())


def test_optax_has_the_optimizers_that_are_refused():
    assert OPTIMIZERS.keys() >= REFUSED.keys()
    assert len(OPTIMIZERS) > 80


@pytest.mark.sample(70)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_its_state_is_stacked_as_init_shapes_it_or_refused(name, axis):
    made = OPTIMIZERS[name]
    source = understand(tree_of(made, apart()), custom_metadata={})
    options = Options(to="linen", scan_layers=True, layer_axis=axis)
    if name in REFUSED:
        with pytest.raises(LayerError, match="cannot follow these layers"):
            convert_tree(source, options, None)
        return
    there = convert_tree(source, options, None)
    assert told(there.tree) == told(tree_of(made, stacked(axis)))


@pytest.mark.sample(70)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in REFUSED])
def test_its_state_is_unstacked_as_init_shapes_it(name, axis):
    made = OPTIMIZERS[name]
    source = understand(tree_of(made, stacked(axis)), custom_metadata={}, layer_axis=axis)
    back = convert_tree(source, Options(to="linen", scan_layers=False), None)
    assert told(back.tree) == told(tree_of(made, apart()))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_stacked_is_not_unstacked(name, axis):
    made = OPTIMIZERS[name]
    source = understand(tree_of(made, stacked(axis)), custom_metadata={}, layer_axis=axis)
    with pytest.raises(LayerError):
        convert_tree(source, Options(to="linen", scan_layers=False), None)
