"""Abstract models as training states: what a program would save, with no arrays behind it.

flax and jax are imported only when a Python object is asked for.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np

from nnxconv.errors import BadInput
from nnxconv.state import BATCH_STATS, RNGS, TrainState
from nnxconv.tree import Key, Leaf, Source, spell

KINDS = (
    "an `nnx.Module`, an `nnx.State`, a mapping of Linen variables, or a flax `TrainState`,"
    " abstract or not"
)


def is_python_name(template: str) -> bool:
    """True for `module:function`, which is neither a path nor an address.

    >>> is_python_name("train.models:abstract_state"), is_python_name("gs://bucket/ckpt")
    (True, False)
    """
    module, colon, function = template.partition(":")
    is_name = all(part.isidentifier() for part in [*module.split("."), function])
    return bool(colon) and is_name and not Path(template).exists()


def call(name: str) -> Any:
    """What `module:function` returns; the module is looked for in the working directory as well.

    Raises:
      BadInput: there is no such function, or it fails.
    """
    module, _, function = name.partition(":")
    try:
        with _working_directory(module.partition(".")[0]):
            return getattr(importlib.import_module(module), function)()
    except (Exception, SystemExit) as error:
        raise BadInput(f"`{name}` gives no model: {type(error).__name__}: {error}") from error


@contextmanager
def _working_directory(name: str) -> Iterator[None]:
    """Lets one module or package be found there first, and any other only where nowhere else.

    A file there that is called as an installed package is not imported in its place.
    """
    here = str(Path.cwd())
    before = list(sys.path)
    spec = None if name in sys.modules else PathFinder.find_spec(name, [here])
    sys.path.append(here)
    try:
        if spec is not None and spec.loader is not None:
            sys.modules[name] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(sys.modules[name])
            except BaseException:
                del sys.modules[name]
                raise
        yield
    finally:
        sys.path[:] = before


def state_of(thing: Any) -> TrainState:
    """The parameters and other variables of a model, as a canonical state with layers as they are.

    Raises:
      BadInput: it is none of the things that hold variables.
    """
    from flax import nnx

    if isinstance(thing, Mapping) and isinstance(thing.get("model"), nnx.Module | nnx.State):
        thing = thing["model"]
    if isinstance(thing, nnx.Module):
        thing = nnx.state(thing)
    if isinstance(thing, nnx.State):
        return _of_variables(thing)
    fields = {name: getattr(thing, name, None) for name in ("params", "opt_state", BATCH_STATS)}
    if fields["params"] is not None and fields["opt_state"] is not None:
        thing = dict(_leveled(fields["params"]))
        thing |= {name: fields[name] for name in (BATCH_STATS,) if fields[name] is not None}
    if isinstance(thing, Mapping) and thing:
        return _of_collections(_leveled(thing))
    raise BadInput(f"this is a `{type(thing).__name__}`", hint=f"give {KINDS}")


def _of_variables(state: Any) -> TrainState:
    """An `nnx.State`: the types of its variables tell what they are."""
    from flax import nnx

    params: dict[Key, Leaf] = {}
    aux: dict[Key, Leaf] = {}
    for path, variable in nnx.to_flat_state(state):
        key = tuple(map(str, path))
        if isinstance(variable, nnx.RngState):
            continue
        leaf = _leaf(key, _value(variable))
        if isinstance(variable, nnx.Param):
            params[key] = leaf
        else:
            aux[(nnx.variable_name_from_type(type(variable)), *key)] = leaf
    return TrainState(params, aux=aux)


def _value(variable: Any) -> Any:
    """What an NNX variable holds; flax 0.12.0 has no `get_value`, later ones warn of `value`."""
    return variable.get_value() if hasattr(type(variable), "get_value") else variable.value


def _leveled(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Variables by collection; a mapping without the collection `params` is that collection."""
    return variables if isinstance(variables.get("params"), Mapping) else {"params": variables}


def _of_collections(variables: Mapping[str, Any]) -> TrainState:
    """Linen variables: a mapping of collections."""
    from flax.core import meta

    found = {name: dict(_flat(meta.unbox(inner))) for name, inner in variables.items()}
    params = found.pop("params")
    aux = {(name, *key): leaf for name, tree in found.items() for key, leaf in tree.items()}
    return TrainState(params, aux={key: leaf for key, leaf in aux.items() if key[0] != RNGS})


def _flat(tree: Any, path: Key = ()) -> Iterator[tuple[Key, Leaf]]:
    if isinstance(tree, Mapping):
        for name, inner in tree.items():
            yield from _flat(inner, (*path, str(name)))
    else:
        yield path, _leaf(path, tree)


def _leaf(key: Key, value: Any) -> Source:
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        told = type(value).__name__
        raise BadInput(f"this is a `{told}` and no array", where=spell(key), hint=f"give {KINDS}")
    shape = tuple(value.shape)
    return Source(spell(key), shape, np.dtype(value.dtype).name, shape)
