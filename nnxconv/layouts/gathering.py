"""A found state in the form of a known layout: as it stands, as Linen's, or as an NNX program's."""

from collections.abc import Iterator, Mapping

from nnxconv.layouts.finding import Found
from nnxconv.layouts.optimizers import is_counting
from nnxconv.layouts.outline import Node
from nnxconv.layouts.parts import WRAPPER, bare, collection_of
from nnxconv.layouts.placement import Placement
from nnxconv.layouts.places import Place
from nnxconv.state import BATCH_STATS, LEVEL, RNGS, Role
from nnxconv.tree import Key, is_digits

_Moves = dict[Key, Key]
_MODEL: Key = ("model",)
_FROZEN = "frozen_params"
"""What `params` are called beside others that are trained in their place, such as LoRA's."""


def parts_of(place: Place, root: Node) -> set[Key]:
    """The subtrees of a state, without its copies, and without PRNG keys that are no module's."""
    parts = {place.params, *place.optimizers, *place.variables, *place.rest}
    parts |= {key for key in place.rngs if _are_streams(root.at(key))}
    return parts if place.step is None else {*parts, place.step}


def _are_streams(node: Node) -> bool:
    """True for RNG streams, as NNX modules have them, and no keys by other names."""
    names = {str(bare(leaf.key)[-1]) for leaf in node.leaves() if leaf.key}
    return bool(names) and names <= {"count", "key"} and node.value() is None


def placements(place: Place, found: Found) -> Iterator[Placement]:
    """The ways to bring a state into a known layout, the likeliest first."""
    root = found.root
    stands = (place.params, *place.optimizers, *place.variables, *place.rest)
    inner = place.params[len(place.at) :]
    is_usual = len(inner) < 2 or inner[-1] == LEVEL or not place.optimizers
    if all(key[: len(place.at)] == place.at for key in stands) and is_usual and not place.rest:
        moves: _Moves = {place.at: ()}
        yield Placement(tuple((moves | _levels(place, root, moves, _level(place))).items()))
    linens = [] if place.rest else [_as_linen(place, root, found.roles)]
    nnxs = [_as_nnx(place, root)]
    yield from (*nnxs, *linens) if _is_nnxs(place, root) else (*linens, *nnxs)


def _is_nnxs(place: Place, root: Node) -> bool:
    """True for the state of an `nnx.Optimizer`, and for modules keyed by digits."""
    if any(is_counting(root.at(key)) for key in place.optimizers):
        return True
    names = (name for leaf in root.at(place.params).leaves() for name in leaf.key[:-1])
    return any(is_digits(name) for name in names)


def _as_linen(place: Place, root: Node, roles: Mapping[Key, Role]) -> Placement:
    level = _level(place)
    moves: _Moves = {place.params: ("params", *level)}
    if place.optimizers:
        moves |= _out_of_model(place, root, roles)
    for key in (*place.variables, *place.rngs):
        is_inner = bool(level) and len(key) > len(place.at) + 1
        name = _FROZEN if key[-1] == LEVEL else str(key[-1])
        moves[key] = ("params", name) if is_inner else (name,)
    if place.step is not None:
        moves[place.step] = ("step",)
    for key, target in _named(place.optimizers, ("opt_state",)).items():
        if is_counting(root.at(key)):
            moves |= {(*key, "opt_state"): target, (*key, "step"): ("step",)}
        else:
            moves[key] = target
    return Placement(tuple((moves | _levels(place, root, moves, level)).items()))


def _out_of_model(place: Place, root: Node, roles: Mapping[Key, Role]) -> _Moves:
    """Where an NNX model's other variables go, which Linen has in collections of their own."""
    moves: _Moves = {}
    for leaf in root.at(place.params).leaves():
        path = leaf.key[len(place.params) :]
        role = roles.get(leaf.key, "other")
        if role == "rng":
            moves[leaf.key] = (RNGS, *path)
        elif role == "variables" and not any(leaf.key[: len(k)] == k for k in place.copies):
            moves[leaf.key] = (collection_of(bare(path)[-1]) or BATCH_STATS, *path)
    return moves


def _level(place: Place) -> Key:
    """The level between `params` and the parameters, where there is one."""
    inner = place.params[len(place.at) :]
    return (LEVEL,) if len(inner) > 1 and inner[-1] == LEVEL else ()


def _as_nnx(place: Place, root: Node) -> Placement:
    moves: _Moves = {place.params: _MODEL}
    apart = [
        (name, key)
        for key in (*place.variables, *place.rest)
        for name in sorted(_collections(root.at(key)))
    ]
    chain: Key = ("optimizer", "opt_state")
    for key, target in _named(place.optimizers, chain).items():
        moves[key] = ("optimizer",) if is_counting(root.at(key)) and target == chain else target
    if place.step is not None:
        is_wrapped = any(leaf.key[-1] == WRAPPER for leaf in root.at(place.params).leaves())
        end = (WRAPPER,) if is_wrapped and root.at(place.step).leaf is not None else ()
        moves[place.step] = ("optimizer", "step", *end)
    moves |= _levels(place, root, moves, ())
    return Placement(tuple(moves.items()), tuple(apart))


def _collections(node: Node) -> set[str]:
    """What the variables of a subtree are that stands apart from the parameters."""
    names = {bare(leaf.key)[-1] for leaf in node.leaves()}
    found = {kind for name in names if (kind := collection_of(name)) is not None}
    return found | ({RNGS} if names & {"count", "key"} else set()) or {BATCH_STATS}


def _named(optimizers: tuple[Key, ...], root: Key) -> _Moves:
    """Where optimizer states go: to the root, or where there are several, below it by name."""
    if len(optimizers) == 1:
        return {optimizers[0]: root}
    return {key: (*root, str(key[-1])) for key in optimizers}


def _levels(place: Place, root: Node, moves: _Moves, level: Key) -> _Moves:
    """Moves that give moments the level, and the part of the model, that their parameters have."""
    found: _Moves = {}
    for moments, part in place.parts.items():
        if level and any(is_digits(name) for name in moments):
            continue  # MaxText keeps nested chains as NNX programs do, without the level
        stored = root.at(moments).core().key
        usual = _under(moments, moves)
        wanted = (*usual, *_under(part, moves)[1:])  # below what the layout calls the parameters
        if _under(stored, moves) != wanted:
            found[stored] = wanted
    return found


def _under(key: Key, moves: _Moves) -> Key:
    for size in range(len(key), -1, -1):
        if key[:size] in moves:
            return (*moves[key[:size]], *key[size:])
    return key
