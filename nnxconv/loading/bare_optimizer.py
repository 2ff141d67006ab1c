"""An optimizer's state without its model, as part of a training state.

```
nnx.Optimizer, nnx.State    step, opt_state/0/mu/<path>     optimizer/...    and model/<path>
optax state                 0/count, 0/mu/<path>            opt_state/...    and params/<path>
```

What is a moment can only be told beside parameters. They are put there under the paths that the
moments have, and are never loaded.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from nnxconv.errors import UnknownLayout
from nnxconv.layouts import Understood, understand
from nnxconv.state import Family, Tree, below, children, under
from nnxconv.tree import Key, Leaf, Literal, Source, is_digits, spell

LIKE = "`like`"
_BESIDE = "beside `like`"
_WRAPPER = "value"
_LEVEL = "params"


@dataclass(frozen=True)
class Surrounded:
    """The state of an optimizer within a training state.

    Attributes:
      understood: what the training state means.
      own: for each of the optimizer's keys in it, the key that `like` has.
    """

    understood: Understood
    own: Mapping[Key, Key]


@dataclass(frozen=True)
class _Place:
    """Where an optimizer stands in a training state: its leaves, its chain, and the model."""

    own: Mapping[Key, Key]
    chain: Key
    model: Key


def is_bare_optimizer(tree: Tree) -> bool:
    """True for the state of an `nnx.Optimizer`, and for a chain of optax states."""
    roots = children(tree)
    return bool(roots) and ({*roots} <= {"opt_state", "step"} or _is_chain(roots))


def _is_chain(roots: Collection[str | int]) -> bool:
    return all(isinstance(root, int) or is_digits(root) for root in roots)


def surround(
    tree: Tree, found: Understood, layer_axis: int | None, family: Family | None = None
) -> Surrounded:
    """The optimizer of `like` in a training state with the parameters of a checkpoint.

    Raises:
      UnknownLayout: it is not the state of an optimizer.
    """
    place = _place(tree)
    placed = {new: tree[old] for new, old in place.own.items()}
    wanted = found.state.params.keys()
    chain = below(placed, place.chain)

    def read(model: Tree) -> Understood:
        whole = {**placed, **under(place.model, model)}
        return understand(
            whole, custom_metadata={}, layer_axis=layer_axis, family=family, where=LIKE
        )

    model: dict[Key, Leaf] = {}
    for moments in _moments(chain, wanted):
        try:
            is_fitting = read(moments).state.params.keys() <= wanted
        except UnknownLayout:
            continue
        if is_fitting:
            model |= {key: leaf for key, leaf in moments.items() if key not in model or leaf.shape}
    return Surrounded(read(model or _parameters(placed, wanted)), place.own)


def _place(tree: Tree) -> _Place:
    """Where the leaves of `like` stand in a training state."""
    roots = children(tree)
    if {*roots} <= {"opt_state", "step"}:
        return _Place({("optimizer", *k): k for k in tree}, ("optimizer", "opt_state"), ("model",))
    if all(map(is_digits, roots)):
        chain = ("optimizer", "opt_state")
        return _Place({(*chain, *key): key for key in tree}, chain, ("model",))
    is_wrapped = _is_wrapped(tree)
    bare = {key: key[:-1] if is_wrapped and key[-1:] == (_WRAPPER,) else key for key in tree}
    own = {("opt_state", *new): old for old, new in bare.items()}
    return _Place(own, ("opt_state",), ("params",))


def _is_wrapped(tree: Tree) -> bool:
    """True when every array stands under a last key `value`."""
    arrays = [key for key, leaf in tree.items() if not isinstance(leaf, Literal)]
    return bool(arrays) and all(key[-1:] == (_WRAPPER,) for key in arrays)


def _moments(chain: Tree, wanted: Collection[Key]) -> Iterator[dict[Key, Source]]:
    """Trees in a chain that may be shaped as the parameters, none within another."""
    sizes = Counter(key[:size] for key in chain for size in range(1, len(key)))
    roots = {key[0] for key in wanted} | {_LEVEL}
    taken: list[Key] = []
    for prefix, _ in sizes.most_common():
        names = {re.sub(r"_\d+$", "", str(name)) for name in children(chain, prefix)}
        names |= {name for name in children(chain, prefix) if name in roots}
        inner = below(chain, prefix)
        is_new = not any(prefix[: len(other)] == other for other in taken)
        if is_new and roots & names and () not in inner:
            taken.append(prefix)
            yield {key: _beside(leaf) for key, leaf in inner.items()}


def _beside(leaf: Leaf) -> Source:
    """A parameter as its moment is; that of a masked moment has a shape that is not known."""
    return replace(leaf, store=_BESIDE) if isinstance(leaf, Source) else _UNKNOWN


_UNKNOWN = Source("masked", (), "float32", (), _BESIDE)


def _parameters(optimizer: Tree, wanted: Collection[Key]) -> dict[Key, Source]:
    """Parameters for an optimizer that has no moments."""
    end = (_WRAPPER,) if _is_wrapped(optimizer) else ()
    return {(*map(str, key), *end): replace(_UNKNOWN, name=spell(key)) for key in wanted}


def with_parameters_of(found: Understood, like: Understood) -> Understood:
    """The checkpoint with the parameters of `like`, so that only the optimizer can differ."""
    return replace(found, state=replace(found.state, params=like.state.params, aux={}))
