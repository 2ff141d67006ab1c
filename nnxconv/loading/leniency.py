"""Which differences between a checkpoint and `like` a user accepts, by globs."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from nnxconv.state import TrainState, Tree, parameter_trees
from nnxconv.tree import Key, Leaf, Literal, dtype_of, in_order, matches, spell


@dataclass(frozen=True)
class Lenient:
    """Globs of module paths, such as `encoder.lora.*`, or of whole keys.

    Attributes:
      missing: what `like` may have that the checkpoint has not: `like` keeps its own.
      unexpected: what the checkpoint may have that `like` has not: it is not loaded.
      mismatched: what may be of another shape or type: `like` keeps its own.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """What partial loading did: keys that `like` kept, and keys that were not loaded.

    >>> print(Loaded(missing=("params.head.bias",)).render())
    missing in the checkpoint, kept as it was: params.head.bias
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()

    def render(self) -> str:
        """One line for each key."""
        told = [f"missing in the checkpoint, kept as it was: {key}" for key in self.missing]
        told += [f"unexpected, not loaded: {key}" for key in self.unexpected]
        told += [f"of another shape or type, kept as it was: {key}" for key in self.mismatched]
        return "\n".join(told)


@dataclass
class _Differences:
    missing: list[Key] = field(default_factory=list)
    unexpected: list[Key] = field(default_factory=list)
    mismatched: list[Key] = field(default_factory=list)


def leave_aside(
    state: TrainState, like: TrainState, lenient: Lenient
) -> tuple[TrainState, TrainState, Loaded]:
    """Both states without the differences that are accepted, and which those are."""
    if lenient == Lenient():
        return state, like, Loaded()
    a, b = state.leaves(), like.leaves()
    ours, theirs = _paths(state), _paths(like)
    found = _Differences()
    for key in in_order(a.keys() | b.keys()):
        path = ours.get(key) or theirs.get(key) or key
        if key not in a and _fits(key, path, lenient.missing):
            found.missing.append(key)
        elif key not in b and _fits(key, path, lenient.unexpected):
            found.unexpected.append(key)
        elif (
            key in a
            and key in b
            and _differ(a[key], b[key])
            and _fits(key, path, lenient.mismatched)
        ):
            found.mismatched.append(key)
    done = Loaded(
        *(tuple(map(spell, k)) for k in (found.missing, found.unexpected, found.mismatched))
    )
    gone = {*found.missing, *found.unexpected, *found.mismatched}
    return _without(state, gone), _without(like, gone), done


def _paths(state: TrainState) -> dict[Key, Key]:
    """The module path of each leaf, moments included, by its canonical key."""
    prefixes = parameter_trees(state.opt_state or {}, state.params)
    found: dict[Key, Key] = {("params", *path): path for path in state.params}
    found |= {("aux", *key): key[1:] for key in state.aux}
    for key in state.opt_state or {}:
        size = next((n for n in range(len(key)) if key[:n] in prefixes), None)
        if size is not None:
            found[("opt_state", *key)] = key[size:]
    return found


def _fits(key: Key, path: Key, globs: Iterable[str]) -> bool:
    return any(matches(spell(one), glob) for glob in globs for one in (key, path))


def _differ(a: Leaf, b: Leaf) -> bool:
    if isinstance(a, Literal) or isinstance(b, Literal):
        return a != b
    return a.shape != b.shape or dtype_of(a) != dtype_of(b)


def _without(state: TrainState, gone: Iterable[Key]) -> TrainState:
    keys = set(gone)

    def rest(part: str, tree: Tree) -> dict[Key, Leaf]:
        return {key: leaf for key, leaf in tree.items() if (part, *key) not in keys}

    return replace(
        state,
        params=rest("params", state.params),
        opt_state=None if state.opt_state is None else rest("opt_state", state.opt_state),
        aux=rest("aux", state.aux),
    )
