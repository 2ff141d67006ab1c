"""A tree of live or abstract values as a tree that codecs understand, and the way back.

```
nnx.State, nnx.Module, nnx.Optimizer    <path>/value, or model/... and optimizer/...
TrainState, also abstract               step, params/..., opt_state/0/mu/...
mappings of variables                   params/..., batch_stats/...
```
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nnxconv.errors import BadInput
from nnxconv.state import Tree
from nnxconv.tree import Key, Leaf, Literal, Source, spell

LIKE = "like"
"""The store that the arrays of such a tree are said to lie in."""

_EMPTY = {dict: "Dict", list: "List", tuple: "Tuple"}
_PYTHON = {bool: "bool", int: "int64", float: "float64", complex: "complex128"}


@dataclass(frozen=True)
class Template:
    """What `like` asks for.

    Attributes:
      tree: its arrays as sources, under the keys that Orbax would save them under.
      leaves: the very leaves, by the same keys; empty containers are leaves too.
      strangers: keys and types of the leaves that are neither arrays nor numbers.
      rebuild: `like` again, with the leaves that are given.
    """

    tree: Tree
    leaves: Mapping[Key, Any]
    rebuild: Callable[[Mapping[Key, Any]], Any]
    strangers: tuple[str, ...] = ()

    def refuse_strangers(self) -> None:
        """Refuses leaves that only a checkpoint of the very same tree could fill.

        Raises:
          BadInput: there are such leaves; all are listed.
        """
        if self.strangers:
            raise BadInput("`like` has leaves that are no arrays", details=self.strangers)


def template_of(like: Any) -> Template:
    """What a tree of live or abstract values asks for.

    Raises:
      BadInput: two of its leaves have one name.
    """
    import jax
    from flax import nnx

    if isinstance(like, nnx.Module | nnx.Optimizer):
        graph, state = nnx.split(like)
        return _around(template_of(state), lambda filled: nnx.merge(graph, filled))
    if isinstance(like, nnx.statelib.FlatState):
        return _around(template_of(nnx.from_flat_state(like)), nnx.to_flat_state)
    paths, structure = jax.tree_util.tree_flatten_with_path(like, is_leaf=is_empty)
    leaves = {_key(path): leaf for path, leaf in paths}
    if len(leaves) < len(paths):
        raise BadInput("`like` has different leaves under one and the same name")
    tree, strangers = _tree(leaves)
    return Template(
        tree,
        leaves,
        lambda filled: jax.tree_util.tree_unflatten(structure, [filled[key] for key in leaves]),
        tuple(strangers),
    )


def is_empty(leaf: Any) -> bool:
    """True for `None`, containers without elements, and the empty states of optax."""
    return leaf is None or (isinstance(leaf, tuple | list | dict) and not leaf)


def _around(inner: Template, build: Callable[[Any], Any]) -> Template:
    return replace(inner, rebuild=lambda filled: build(inner.rebuild(filled)))


def _key(path: Any) -> Key:
    return tuple(part for entry in path for part in _parts(entry))


def _parts(entry: Any) -> Key:
    """What one step of a path in a pytree is in a key, as Orbax has it."""
    from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

    match entry:
        case DictKey(key=tuple() as path):
            return tuple(map(str, path))
        case DictKey(key=name) | GetAttrKey(name=name):
            return (str(name),)
        case SequenceKey(idx=index) | FlattenedIndexKey(key=index):
            return (index,)
    return (str(entry),)


def _tree(leaves: Mapping[Key, Any]) -> tuple[Tree, list[str]]:
    """The leaves as a codec sees them, and which are no arrays or numbers."""
    tree: dict[Key, Leaf] = {}
    strangers: list[str] = []
    for key, leaf in leaves.items():
        described = _described(key, leaf)
        if described is None:
            strangers.append(f"{spell(key)}  {type(leaf).__name__}")
        else:
            tree[key] = described
    return tree, strangers


def _described(key: Key, leaf: Any) -> Leaf | None:
    """A leaf as a source or an empty literal; None when it is neither an array nor a number."""
    import jax

    name = ".".join(map(str, key))
    if is_empty(leaf):
        return Literal(_EMPTY.get(type(leaf), "None"))
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            shape, impl = _key_data(leaf)
            return Source(name, shape, "uint32", shape, LIKE, prng_impl=impl)
        return Source(name, leaf.shape, leaf.dtype.name, leaf.shape, LIKE)
    if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind not in "OSUmM":
        return Source(name, leaf.shape, leaf.dtype.name, leaf.shape, LIKE)
    if type(leaf) in _PYTHON:
        return Source(name, (), _PYTHON[type(leaf)], (), LIKE, "scalar")
    return None


def _key_data(leaf: Any) -> tuple[tuple[int, ...], str]:
    """The shape of the data of typed PRNG keys, and their implementation."""
    import jax

    impls: list[str] = []

    def look(keys: jax.Array) -> jax.Array:
        impls.append(str(jax.random.key_impl(keys)))
        return jax.random.key_data(keys)

    bare = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return jax.eval_shape(look, bare).shape, impls[0]
