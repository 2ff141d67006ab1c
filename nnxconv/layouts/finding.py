"""Training states in any tree: which parameters there are, and what belongs to them.

Optimizer states come first, then the parameters that they repeat; where there is no optimizer,
parameters are told by the names that they, and what is around them, usually have.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from nnxconv.layouts.kinds import (
    has_arrays,
    holds,
    is_copy,
    is_in_modules,
    is_key,
    is_rng_tree,
    the_number,
)
from nnxconv.layouts.leaf_roles import roles_of
from nnxconv.layouts.lone_optimizers import with_lone_optimizers
from nnxconv.layouts.named_states import NamedStates, rest_of
from nnxconv.layouts.names import TUNIX_ITEMS
from nnxconv.layouts.optimizers import Repeats, Tops, find_optimizers, is_counting, repeats_in, walk
from nnxconv.layouts.outline import Node, is_integer, outline
from nnxconv.layouts.partners import Partner, are_apart, common, first_number, in_turn, overlap
from nnxconv.layouts.places import Place
from nnxconv.layouts.vocabulary import (
    COLLECTIONS,
    MOMENTS,
    PARAMETERS,
    STEPS,
    UNMISTAKABLE,
    is_abbreviated,
    is_copys,
    is_optimizers,
    words,
)
from nnxconv.state import LEVEL, Role, Tree, is_stored
from nnxconv.tree import Key, Literal

_KEYS_ENCODER = "k"
"""What the encoder of keys is called beside that of queries, of which it is an average (MoCo)."""


@dataclass(frozen=True)
class Found:
    """The states of a tree, and the role of every leaf in it.

    `root` is its outline, and `tops` are its optimizers.
    """

    root: Node
    tops: tuple[Node, ...]
    places: tuple[Place, ...]
    roles: Mapping[Key, Role]

    def keys(self) -> Iterator[Key]:
        """Where everything stands that has been found."""
        yield from (top.key for top in self.tops)
        for place in self.places:
            yield from place.keys()


def find(tree: Tree, items: Collection[str] = ()) -> Found:
    """The states of a tree, and the role of every leaf in it.

    Where the names at the root are `items` of a step, each has states of its own; what one item
    has of another's parameters is no copy.
    """
    if TUNIX_ITEMS[0] in items:
        items = ()
    root = outline(tree)
    repeats = repeats_in(root)
    tops = find_optimizers(root, repeats)
    finder = _Finder(tree, root, repeats, tops, items)
    places = finder.places()
    return Found(root, tops.nodes, places, roles_of(tree, tops, places))


class _Finder:
    """One tree, and what has been found in it so far."""

    def __init__(
        self, tree: Tree, root: Node, repeats: Repeats, tops: Tops, items: Collection[str]
    ) -> None:
        self.items = items
        self.tree = tree
        self.root = root
        self.repeats = repeats
        self.tops = tops
        self.nodes = {node.key: node for node in walk(root)}
        self.by_kid: dict[str, list[Node]] | None = None
        self.in_tops = {key for top in tops.nodes for key in _keys_below(top)}
        self.top_keys = {top.key for top in tops.nodes}
        self.named = NamedStates(tree, self.in_tops, items)
        self.above_tops = {key[:n] for key in self.top_keys for n in range(len(key) + 1)}

    # --- states with an optimizer ------------------------------------------------------------

    def places(self) -> tuple[Place, ...]:
        """Every state of the tree."""
        found = self._with_optimizers()
        claimed = set(self.in_tops)
        places = self._with_far_copies(self._completed(found, claimed), claimed)
        further = list(self.named.places(self.root, claimed, places))
        places += self._completed(further, claimed)
        return tuple(self._with_far_copies(places, claimed))

    def _with_optimizers(self) -> list[Place]:
        """Parameters and the optimizers that follow them."""
        partners: dict[Key, list[tuple[Node, Partner]]] = defaultdict(list)
        paired = self._paired()
        for top in self.tops.nodes:
            for own, partner in self._apart(top, paired[top.key]):
                partners[partner.whole.key].append((own, partner))
        places = []
        for whole, found in partners.items():
            optimizers = tuple(dict.fromkeys(top.key for top, _ in found))
            parts = {p.moments.key: p.part.key for _, p in found}
            inside = tuple(self._copies_inside(whole, set(parts.values())))
            at = common([whole, *optimizers])
            open_ = {p.part.key: p.rivals for _, p in found if p.rivals}
            places.append(Place(at, whole, optimizers, parts, copies=inside, rivals=open_))
        return with_lone_optimizers(places, self.tops, self.nodes)

    def _paired(self) -> Mapping[Key, Sequence[Partner]]:
        """The parameters of each optimizer's moments; those that names tell go first."""
        taken: set[Key] = set()
        paired: dict[Key, Sequence[Partner]] = {}
        moments = {top.key: tuple(self._moments(top)) for top in self.tops.nodes}
        is_told = True
        while len(paired) < len(moments):
            was_told, is_told, known = is_told, False, frozenset(taken)
            for top in self.tops.nodes:
                if top.key in paired:
                    continue
                found = [self._partner(one, top, taken, known) for one in moments[top.key]]
                mine = [partner for partner in found if partner is not None]
                if was_told and any(partner.rivals for partner in mine):
                    continue
                paired[top.key] = mine
                taken |= {partner.part.key for partner in mine}
                is_told = True
        return paired

    def _apart(self, top: Node, mine: Sequence[Partner]) -> Iterator[tuple[Node, Partner]]:
        """Whose optimizer's each tree of moments is: of a list of optimizers, that in the list."""
        size = len(top.key)
        mine = in_turn(mine, size)
        by_kid: dict[str | int, set[Key]] = defaultdict(set)
        for partner in mine:
            by_kid[partner.moments.key[size]].add(partner.whole.key)
        is_list = len(by_kid) > 1 and are_apart(by_kid.values())
        for partner in mine:
            yield top.kids[partner.moments.key[size]] if is_list else top, partner

    def _moments(self, node: Node) -> Iterator[Node]:
        """The outermost trees in an optimizer's state that may have the parameters' paths."""
        if not node.trainable or node.value() is not None:
            return
        is_elements = node.key[:-1] in self.tops.elements and node.key != ()
        is_called_so = node.name in MOMENTS and (is_elements or node.name in UNMISTAKABLE)
        if is_called_so or (self._has_twin(node) and not node.is_sequence):
            yield node
            return
        for kid in node.kids.values():
            yield from self._moments(kid)

    def _has_twin(self, node: Node) -> bool:
        """True when parameters outside of all optimizers may be what a tree repeats."""
        if node.key in self.top_keys or node.key in self.tops.elements:
            return False
        return any(twin.key not in self.in_tops for twin in self.repeats.get(node.paths, ()))

    def _partner(
        self, moments: Node, top: Node, taken: Collection[Key], known: Collection[Key]
    ) -> Partner | None:
        """The parameters that moments repeat; those `known` to be others' are no rivals of them."""
        twins = [n for n in self.repeats.get(moments.paths, ()) if n.key not in self.in_tops]
        found = twins or self._holding(moments)
        found = [node for node in found if top.key[: len(node.key)] != node.key]
        if not found:
            return None
        same = [node for node in found if node.shapes == moments.shapes] or found
        part = min(same, key=lambda node: self._rank(node, moments, top, taken))
        ranks = {node.key: self._rank(node, moments, top, known) for node in same}
        rivals = tuple(
            key
            for key, rank in ranks.items()
            if rank == ranks[part.key] and not overlap(key, part.key) and key != part.key
        )
        return Partner(moments, part, self._whole(part, top), rivals)

    def _rank(
        self, node: Node, moments: Node, top: Node, taken: Collection[Key]
    ) -> tuple[object, ...]:
        """The likeliest parameters of some moments come first."""
        size = len(common([node.key, top.key]))
        own = node.key[size:]
        alike = len(words(own) & words(moments.key[size:]))
        alike += 1 if first_number(own) == first_number(moments.key[size:]) else 0
        is_short = is_abbreviated(own, top.key[size:])
        is_usual = any(str(part) in PARAMETERS for part in own)
        names_them = bool(words(own) & set(PARAMETERS))
        likely = (not is_usual, not names_them, _KEYS_ENCODER in words(own))
        return (is_copys(own), -size, -alike, not is_short, *likely, node.key in taken, len(own))

    def _holding(self, moments: Node) -> list[Node]:
        """The subtrees that have every path of the moments, which are masked in part."""
        if self.by_kid is None:
            self.by_kid = defaultdict(list)
            for node in self.nodes.values():
                if node.trainable and node.key not in self.in_tops:
                    for name in node.kids:
                        self.by_kid[str(name)].append(node)
        wanted = moments.core()
        first = next((n for n, kid in wanted.kids.items() if kid.trainable), None)
        if first is None:
            return []
        return [node for node in self.by_kid[str(first)] if holds(node, wanted)]

    def _whole(self, part: Node, top: Node) -> Node:
        """The parameters that a part belongs to: what is usually called so."""
        if part.name in PARAMETERS:
            return part
        floor = len(common([part.key, top.key]))
        for size in range(len(part.key) - 1, floor, -1):
            above = self.nodes[part.key[:size]]
            own = self.nodes[part.key[: size + 1]]
            if self._is_pair(above, own) or _has_copies_alone(above, own):
                break
            if above.name in PARAMETERS and above.key not in self.above_tops:
                return above
        return part

    def _is_pair(self, node: Node, first: Node) -> bool:
        """True for parameters and other variables, as Haiku's `init` returns them."""
        rest = rest_of(node, self.tree)
        return rest is not None and rest[0] is first

    def _copies_inside(self, whole: Key, parts: Collection[Key]) -> Iterator[Key]:
        """Second copies beside the parts of some parameters, such as `params/target`."""
        for part in parts:
            for size in range(len(whole), len(part)):
                own = self.nodes[part[: size + 1]]
                for kid in self.nodes[part[:size]].trees():
                    is_trained = any(key[: len(kid.key)] == kid.key for key in parts)
                    if not is_trained and is_copys(kid.key[-1:]) and kid.shapes == own.shapes:
                        yield kid.key

    # --- what belongs to a state -------------------------------------------------------------

    def _completed(self, places: Sequence[Place], claimed: set[Key]) -> list[Place]:
        """The states with what stands around their parameters."""
        shared = {
            place.at for place in places if any(p is not place and p.at == place.at for p in places)
        }
        places = [replace(p, at=p.params) if p.at in shared else p for p in places]
        for place in places:
            claimed.update(_keys_below(self.nodes[place.params]))
            claimed.update(place.params[:size] for size in range(len(place.at), len(place.params)))
        done = []
        for place in places:
            is_around = place.at != place.params  # else its parts stand among those of others
            done.append(self._surroundings(place, claimed) if is_around else place)
        return done

    def _surroundings(self, place: Place, claimed: set[Key]) -> Place:
        """A state with its step, RNGs, other variables and copies."""
        params = self.nodes[place.params]
        spine = self.above_tops | {place.params[:n] for n in range(len(place.params) + 1)}
        step: Key | None = None
        sorted_out: dict[str, list[Key]] = defaultdict(list)
        counts = any(is_counting(self.nodes[key]) for key in place.optimizers)
        lone = the_number(self.nodes[place.at]) if place.optimizers else None
        for above in (place.params[:n] for n in range(len(place.at), len(place.params))):
            for kid in self.nodes[above].kids.values():
                if kid.key in place.rest or kid.key in claimed or kid.key in spine:
                    continue
                kind = self._kind(kid, params, is_inner=above != place.at)
                if kid is lone:
                    kind = "step"
                if kind == "step" and step is None and not counts:
                    step = kid.key
                elif kind != "step":
                    sorted_out[kind].append(kid.key)
                if kind != "other":
                    claimed.update(_keys_below(kid))
        return replace(
            place,
            optimizers=(*place.optimizers, *sorted_out["optimizer"]),
            step=step,
            variables=(*place.variables, *sorted_out["variables"]),
            rngs=tuple(sorted_out["rng"]),
            copies=(*place.copies, *sorted_out["copy"]),
        )

    def _kind(self, node: Node, params: Node, *, is_inner: bool) -> str:
        """What a subtree beside parameters is."""
        value = node.value()
        if value is not None:
            if is_optimizers(node.name) and isinstance(value, Literal) and not value.value:
                return "optimizer"
            if node.name in STEPS and is_integer(value):
                return "step"
            return "rng" if is_key(node) else "other"
        if not node.kids:
            return "other"
        if is_rng_tree(node, self.tree):
            return "rng"
        if node.trainable and is_copy(node, params) and node.name not in COLLECTIONS:
            return "other" if _has_numbers_beside(node) else "copy"
        if is_inner or node.name in COLLECTIONS or is_in_modules(node, params, self.tree):
            return "variables" if has_arrays(node) else "other"
        return "other"

    # --- second copies elsewhere --------------------------------------------------------------

    def _with_far_copies(self, places: list[Place], claimed: set[Key]) -> list[Place]:
        """The states with copies of their parameters that stand far from them."""
        for number, place in enumerate(places):
            params = self.nodes[place.params]
            far = []
            for twin in self.repeats.get(params.paths, ()):
                top = _outermost_alike(twin, self.nodes)
                if top.key in claimed or twin.shapes != params.shapes:
                    continue
                if self.items and top.key[:1] != place.params[:1]:
                    continue
                if any(top.key == p.at or top.key == p.params for p in places):
                    continue
                if any(key[: len(top.key)] == top.key for key in _keys_of(places)):
                    continue
                far.append(top.key)
                claimed.update(_keys_below(top))
            if far:
                places[number] = replace(place, copies=(*place.copies, *dict.fromkeys(far)))
        return places


def _has_copies_alone(node: Node, own: Node) -> bool:
    """True where all that stands beside some parameters is a second copy: `online`, `target`."""
    others = [kid for kid in node.trees() if kid is not own and kid.trainable]
    return bool(others) and all(is_copys((k.name,)) and k.shapes == own.shapes for k in others)


def _keys_below(node: Node) -> Iterator[Key]:
    yield node.key
    for kid in node.kids.values():
        yield from _keys_below(kid)


def _keys_of(places: Iterable[Place]) -> Iterator[Key]:
    for place in places:
        yield place.params
        yield from place.optimizers


def _outermost_alike(node: Node, nodes: Mapping[Key, Node]) -> Node:
    """The outermost subtree that has nothing trainable but this one, below a `params` level."""
    while node.key and nodes[node.key[:-1]].paths == node.paths:
        above = nodes[node.key[:-1]]
        if _has_numbers_beside(above):
            break
        node = above
    return node


def _has_numbers_beside(node: Node) -> bool:
    """True for a level of `params` that has numbers beside it, such as a decay and a count."""
    inner = node.kids.get(LEVEL)
    if inner is None or not inner.trainable or inner.value() is not None:
        return False
    return any(kid.leaf is not None and is_stored(kid.leaf) for kid in node.kids.values())
