"""Optimizers that keep no moments, such as plain SGD: theirs are the parameters called alike."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from nnxconv.layouts.kinds import has_named_weights, is_plausible
from nnxconv.layouts.named_states import core_of
from nnxconv.layouts.optimizers import Tops, is_counting
from nnxconv.layouts.outline import Node
from nnxconv.layouts.partners import common, overlap
from nnxconv.layouts.places import Place
from nnxconv.layouts.vocabulary import OPTIMIZER, PARAMETERS, is_copys, is_optimizers, tokens
from nnxconv.tree import Key


def with_lone_optimizers(
    places: Sequence[Place], tops: Tops, nodes: Mapping[Key, Node]
) -> list[Place]:
    """The states with optimizers that keep no moments, which stand beside the parameters."""
    used = {key for place in places for key in place.optimizers}
    used |= {key[:size] for key in used for size in range(1, len(key))}
    lone = [top for top in tops.nodes if top.key not in used and top.key]
    done = []
    for place in places:
        mine = [t.key for t in lone if t.key[:-1] == place.at and place.at != place.params]
        lone = [t for t in lone if t.key not in mine]
        done.append(replace(place, optimizers=(*place.optimizers, *mine)))
    for top in lone:
        above = nodes[top.key[:-1]]
        called = [k for k in above.trees() if k.name in PARAMETERS and k.trainable]
        models = called or list(_called_alike(top, nodes))
        is_told = bool(called) or len(models) == 1
        if is_told and not any(overlap(p.params, k.key) for p in done for k in models):
            core = core_of(models[0])
            done.append(Place(common((core.key, top.key)), core.key, (top.key,)))
    return done


def _called_alike(top: Node, nodes: Mapping[Key, Node]) -> Iterator[Node]:
    """The models called as an optimizer is that counts: `models/0` for `optimizers/0`."""
    if not is_counting(top):
        return
    above = nodes[top.key[:-1]]
    if is_optimizers(above.name) and above.key:
        names = set(map(str, above.kids))
        for beside in nodes[above.key[:-1]].trees():
            if beside is not above and set(map(str, beside.kids)) == names:
                yield from (kid for kid in beside.kids.values() if _is_model(kid, top.name))
        return
    wanted = tokens(top.name) - OPTIMIZER
    models = (kid for kid in above.trees() if _is_model(kid))
    yield from (kid for kid in models if not wanted or tokens(kid.name) == wanted)


def _is_model(node: Node, name: str | None = None) -> bool:
    """True for what may be a model, of this name where one is given, and no second copy."""
    is_so = node.value() is None and bool(node.trainable) and not is_copys(node.key[-2:])
    is_called_so = name is None or node.name == name
    return is_so and is_called_so and is_plausible(node) and has_named_weights(node)
