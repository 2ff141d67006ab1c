"""The variables of NNX modules and optimizers: taken out, and put back."""

from typing import Any


def variables(module: Any) -> Any:
    """The `nnx.State` of a module or an optimizer."""
    from flax import nnx

    return nnx.state(module)


def is_module(thing: Any) -> bool:
    """True for NNX modules and optimizers, which are changed in place."""
    from flax import nnx

    return isinstance(thing, nnx.Module | nnx.Optimizer)


def update(module: Any, state: Any) -> None:
    """Gives a module or an optimizer the values of a state."""
    from flax import nnx

    nnx.update(module, state)
