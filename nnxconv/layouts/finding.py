"""Training states in any tree: which parameters there are, and what belongs to them.

Optimizer states come first, then the parameters that they repeat; where there is no optimizer,
parameters are told by the names that they, and what is around them, usually have.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nnxconv.layouts.names import TUNIX_ITEMS
from nnxconv.layouts.optimizers import Repeats, Tops, find_optimizers, repeats_in, walk
from nnxconv.layouts.outline import Node, is_floating, is_integer, is_number, outline
from nnxconv.layouts.parts import NAMED_COLLECTIONS, is_rng, is_rng_array
from nnxconv.layouts.vocabulary import (
    COLLECTIONS,
    MOMENTS,
    PARAMETERS,
    STEPS,
    UNMISTAKABLE,
    WEAK,
    is_copys,
    is_optimizers,
    is_rngs,
    is_weights,
    words,
)
from nnxconv.state import LEVEL, Role, Tree
from nnxconv.tree import Key, Literal, prng_impl_of

_ROOTS = ("params", "model", TUNIX_ITEMS[0])
"""What layouts call parameters beside which the rest of a state stands."""


@dataclass(frozen=True)
class Place:
    """Where the parts of one training state stand, all by keys of the whole tree.

    Attributes:
      at: the key that has all of it below; that of the parameters where others stand there too.
      params: the subtree of the parameters.
      optimizers: the optimizer states that follow them.
      parts: for each tree of moments, the part of the parameters that it has the paths of.
      step: the number of steps done.
      variables: what else belongs to the model, by subtree.
      rngs: RNG state.
      copies: second copies of the parameters.
      rest: further subtrees that have the model's other variables at the parameters' paths.
    """

    at: Key
    params: Key
    optimizers: tuple[Key, ...] = ()
    parts: Mapping[Key, Key] = field(default_factory=dict)
    step: Key | None = None
    variables: tuple[Key, ...] = ()
    rngs: tuple[Key, ...] = ()
    copies: tuple[Key, ...] = ()
    rest: tuple[Key, ...] = ()


@dataclass(frozen=True)
class Found:
    """The states of a tree, and the role of every leaf in it; `root` is its outline."""

    root: Node
    places: tuple[Place, ...]
    roles: Mapping[Key, Role]


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
    return Found(root, places, finder.roles(places))


@dataclass(frozen=True)
class _Partner:
    """The parameters that a tree of moments repeats."""

    moments: Node
    part: Node
    whole: Node


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

    # --- states with an optimizer ------------------------------------------------------------

    def places(self) -> tuple[Place, ...]:
        found = self._with_optimizers()
        claimed = set(self.in_tops)
        places = self._completed(found, claimed)
        further = list(self._by_names(self.root, claimed, places))
        places += self._completed(further, claimed)
        return tuple(self._with_far_copies(places, claimed))

    def _with_optimizers(self) -> list[Place]:
        """Parameters and the optimizers that follow them."""
        partners: dict[Key, list[tuple[Node, _Partner]]] = defaultdict(list)
        taken: set[Key] = set()
        for top in self.tops.nodes:
            mine = [p for m in self._moments(top) if (p := self._partner(m, top, taken))]
            for partner in mine:
                taken.add(partner.part.key)
                partners[partner.whole.key].append((top, partner))
        places = []
        for whole, found in partners.items():
            optimizers = tuple(dict.fromkeys(top.key for top, _ in found))
            parts = {p.moments.key: p.part.key for _, p in found}
            places.append(Place(_common([whole, *optimizers]), whole, optimizers, parts))
        return _with_sgd(places, self.tops, self.nodes)

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
        if any(node.key == top.key for top in self.tops.nodes) or node.key in self.tops.elements:
            return False
        return any(twin.key not in self.in_tops for twin in self.repeats.get(node.paths, ()))

    def _partner(self, moments: Node, top: Node, taken: Collection[Key]) -> _Partner | None:
        twins = [n for n in self.repeats.get(moments.paths, ()) if n.key not in self.in_tops]
        found = twins or self._holding(moments)
        found = [node for node in found if top.key[: len(node.key)] != node.key]
        if not found:
            return None
        same = [node for node in found if node.shapes == moments.shapes] or found
        part = min(same, key=lambda node: self._rank(node, moments, top, taken))
        return _Partner(moments, part, self._whole(part, top))

    def _rank(
        self, node: Node, moments: Node, top: Node, taken: Collection[Key]
    ) -> tuple[object, ...]:
        """The likeliest parameters of some moments come first."""
        common = _common([node.key, top.key])
        own = node.key[len(common) :]
        alike = len(words(own) & words(moments.key[len(common) :]))
        is_usual = any(str(part) in PARAMETERS for part in own)
        return (is_copys(own), -len(common), -alike, not is_usual, node.key in taken, len(own))

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
        return [node for node in self.by_kid[str(first)] if _holds(node, wanted)]

    def _whole(self, part: Node, top: Node) -> Node:
        """The parameters that a part belongs to: what is usually called so."""
        if part.name in PARAMETERS:
            return part
        floor = len(_common([part.key, top.key]))
        for size in range(len(part.key) - 1, floor, -1):
            above = self.nodes[part.key[:size]]
            if above.name in PARAMETERS and not any(
                top.key[:size] == above.key for top in self.tops.nodes
            ):
                return above
        return part

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
            complete = self._surroundings(place, claimed) if place.at != place.params else place
            if place.at == place.params:
                complete = self._spread(place, claimed)
            done.append(complete)
        return done

    def _surroundings(self, place: Place, claimed: set[Key]) -> Place:
        """A state with its step, RNGs, other variables and copies."""
        params = self.nodes[place.params]
        tops = (top.key for top in self.tops.nodes)
        spine = {key[:n] for key in (place.params, *tops) for n in range(len(key) + 1)}
        step: Key | None = None
        sorted_out: dict[str, list[Key]] = defaultdict(list)
        for above in (place.params[:n] for n in range(len(place.at), len(place.params))):
            for kid in self.nodes[above].kids.values():
                if kid.key in place.rest or kid.key in claimed or kid.key in spine:
                    continue
                kind = self._kind(kid, params, is_inner=above != place.at)
                if kind == "step" and step is None:
                    step = kid.key
                elif kind != "step":
                    sorted_out[kind].append(kid.key)
                if kind != "other":
                    claimed.update(_keys_below(kid))
        return replace(
            place,
            optimizers=(*place.optimizers, *sorted_out["optimizer"]),
            step=step,
            variables=tuple(sorted_out["variables"]),
            rngs=tuple(sorted_out["rng"]),
            copies=tuple(sorted_out["copy"]),
        )

    def _spread(self, place: Place, claimed: set[Key]) -> Place:
        """A state whose parts stand among those of others: only its optimizers are its own."""
        return place

    def _kind(self, node: Node, params: Node, *, is_inner: bool) -> str:
        """What a subtree beside parameters is."""
        value = node.value()
        if value is not None:
            if is_optimizers(node.name) and isinstance(value, Literal) and not value.value:
                return "optimizer"
            if node.name in STEPS and is_integer(value):
                return "step"
            return "rng" if _is_key(node) else "other"
        if not node.kids:
            return "other"
        if _is_rng_tree(node, self.tree):
            return "rng"
        if node.trainable and _is_copy(node, params):
            return "copy"
        if is_inner or node.name in COLLECTIONS or _is_in_modules(node, params):
            return "variables" if _has_arrays(node) else "other"
        return "other"

    # --- states without an optimizer ---------------------------------------------------------

    def _by_names(self, node: Node, claimed: set[Key], known: Sequence[Place]) -> Iterator[Place]:
        """Parameters that no optimizer follows, by what they are called."""
        if node.key in claimed and node.key in self.in_tops:
            return
        if self.items and not node.key:
            for kid in node.kids.values():
                yield from self._by_item(kid, claimed, known)
            return
        free = [k for k in node.kids.values() if k.key not in claimed and k.leaf is None]
        called = [k for k in free if k.name in PARAMETERS and k.trainable and not node.is_sequence]
        called = [k for k in called if _is_plausible(k) and not _is_module(k, free)]
        if called and not any(place.at == node.key for place in known):
            kid = min(called, key=lambda k: PARAMETERS.index(k.name))
            below = kid.kids.get(LEVEL)
            if below is not None and below.trainable and kid.name != LEVEL:
                yield Place(kid.key, below.core().key)
            else:
                at = node.key if kid.name in _ROOTS else kid.key
                yield Place(at, _core_of(kid).key)
            others = [k for k in free if k is not kid]
        else:
            rest = _rest_of(node)
            if rest is not None:
                yield Place(node.key, rest[0].key, rest=tuple(k.key for k in rest[1:]))
                return
            others = free
        below = [
            place
            for kid in others
            if kid.key not in claimed
            for place in self._by_names(kid, claimed, known)
        ]
        if called or below or known or node.key or not _is_bare(node, self.tree):
            yield from below
        else:
            yield Place(node.key, node.key)

    def _by_item(self, item: Node, claimed: set[Key], known: Sequence[Place]) -> Iterator[Place]:
        """The parameters in one item of a step, which may be all of it."""
        if item.key in claimed:
            return
        found = list(self._by_names(item, claimed, known))
        if not found and _is_plausible(item) and _is_bare(item, self.tree):
            found = [Place(item.key, item.key)]
        yield from found

    # --- second copies elsewhere, and roles --------------------------------------------------

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

    def roles(self, places: Sequence[Place]) -> dict[Key, Role]:
        """The role of every leaf."""
        roles: dict[Key, Role] = {}
        regions: dict[Key, Role] = dict.fromkeys((top.key for top in self.tops.nodes), "optimizer")
        for place in places:
            regions[place.params] = "parameters"
            regions |= dict.fromkeys((*place.variables, *place.copies, *place.rest), "variables")
            regions |= dict.fromkeys(place.rngs, "rng")
            if place.step is not None:
                regions[place.step] = "step"
        for key in self.tree:
            sizes = (size for size in range(len(key), -1, -1) if key[:size] in regions)
            role = regions.get(key[: next(sizes, len(key))], "other")
            roles[key] = self._own_role(key, role)
        return roles

    def _own_role(self, key: Key, role: Role) -> Role:
        """The role of a leaf by what it is, within a region of some role."""
        leaf = self.tree[key]
        bare = key[:-1] if key[-1:] == ("value",) else key
        if role == "optimizer":
            return "step" if self._is_optimizers_step(bare) else role
        if isinstance(leaf, Literal):
            return role
        if prng_impl_of(leaf) is not None or (bare and _is_stream(bare, key, self.tree)):
            return "rng"
        if role == "parameters":
            if str(bare[-1:][0] if bare else "") in NAMED_COLLECTIONS:
                return "variables"
            return role
        if role == "other" and bare:
            if _is_key(self.nodes_or_leaf(key)):
                return "rng"
            if any(str(part) in ("batch_stats",) for part in bare) and is_floating(leaf):
                return "variables"
        return role

    def nodes_or_leaf(self, key: Key) -> Node:
        """The leaf at a key as a node."""
        return Node(key, {}, self.tree[key])

    def _is_optimizers_step(self, key: Key) -> bool:
        """True for the step that an `nnx.Optimizer` counts."""
        return key[-1] == "step" and any(
            key[:-1] == top.key and ("opt_state" in top.kids or len(top.kids) == 1)
            for top in self.tops.nodes
        )


def _with_sgd(places: list[Place], tops: Tops, nodes: Mapping[Key, Node]) -> list[Place]:
    """The states with optimizers that keep no moments, which stand beside the parameters."""
    used = {key for place in places for key in place.optimizers}
    lone = [top for top in tops.nodes if top.key not in used and top.key]
    done = []
    for place in places:
        mine = [t.key for t in lone if t.key[:-1] == place.at and place.at != place.params]
        lone = [t for t in lone if t.key not in mine]
        done.append(replace(place, optimizers=(*place.optimizers, *mine)))
    for top in lone:
        above = nodes[top.key[:-1]]
        called = [k for k in above.kids.values() if k.name in PARAMETERS and k.trainable]
        if called and not any(p.params[: len(k.key)] == k.key for p in done for k in called):
            core = _core_of(called[0])
            done.append(Place(above.key, core.key, (top.key,)))
    return done


def _core_of(node: Node) -> Node:
    """Where the weights stand below something that is called `params`: below `params/params`."""
    below = node.kids.get(LEVEL)
    return below.core() if below is not None and below.trainable and not below.value() else node


def _keys_below(node: Node) -> Iterator[Key]:
    yield node.key
    for kid in node.kids.values():
        yield from _keys_below(kid)


def _keys_of(places: Iterable[Place]) -> Iterator[Key]:
    for place in places:
        yield place.params
        yield from place.optimizers


def _common(keys: Sequence[Key]) -> Key:
    """The longest key that all these begin with."""
    first, *others = keys
    size = 0
    while all(key[: size + 1] == first[: size + 1] for key in others) and size < len(first):
        size += 1
    return first[:size]


def _holds(node: Node, wanted: Node) -> bool:
    """True when a subtree has every path of another that could be a parameter's."""
    if wanted.value() is not None or not wanted.kids:
        return node.value() is not None
    names = {str(name): kid for name, kid in node.kids.items()}
    return all(
        str(name) in names and _holds(names[str(name)], kid)
        for name, kid in wanted.kids.items()
        if kid.trainable
    )


def _holds_alike(node: Node, wanted: Node) -> bool:
    """The same, with the shapes as well."""
    a, b = node.value(), wanted.value()
    if b is not None:
        return (
            a is not None
            and not isinstance(a, Literal)
            and not isinstance(b, Literal)
            and a.shape == b.shape
        )
    names = {str(name): kid for name, kid in node.kids.items()}
    return all(
        str(name) in names and _holds_alike(names[str(name)], kid)
        for name, kid in wanted.kids.items()
        if kid.trainable
    )


def _is_copy(node: Node, params: Node) -> bool:
    """True for the same tree, or a part of it, with the same shapes."""
    if node.shapes == params.shapes:
        return True
    core = node.core()
    inner = core.kids.get(LEVEL)
    if inner is not None and inner.trainable and inner.shapes == params.shapes:
        return True
    return bool(core.trees()) and core.trainable > 0 and _holds_alike(params, core)


def _outermost_alike(node: Node, nodes: Mapping[Key, Node]) -> Node:
    """The outermost subtree that has nothing trainable but this one, below a `params` level."""
    while node.key and nodes[node.key[:-1]].paths == node.paths:
        node = nodes[node.key[:-1]]
    return node


def _is_key(node: Node) -> bool:
    """True for a PRNG key, typed or raw."""
    value = node.value()
    if value is None or isinstance(value, Literal):
        return False
    if prng_impl_of(value) is not None:
        return True
    return is_rng_array(value) and (is_rngs(_bare_name(node)) or value.shape in ((2,), (4,)))


def _bare_name(node: Node) -> str:
    key = node.key[:-1] if node.key[-1:] == ("value",) else node.key
    return str(key[-1]) if key else ""


def _is_stream(bare: Key, key: Key, tree: Tree) -> bool:
    """True for the count and key of an RNG stream, wrapped or not."""
    if bare[-1] not in ("count", "key"):
        return False
    names = {(*bare[:-1], name): (*bare[:-1], name, *key[len(bare) :]) for name in ("count", "key")}
    around = {new: tree[old] for new, old in names.items() if old in tree}
    return is_rng(bare, around)


def _is_rng_tree(node: Node, tree: Tree) -> bool:
    """True for keys and RNG streams, and nothing else."""
    leaves = [leaf for leaf in node.leaves() if not isinstance(leaf.leaf, Literal)]
    return bool(leaves) and all(
        _is_key(leaf)
        or _is_stream(leaf.key[:-1] if leaf.key[-1] == "value" else leaf.key, leaf.key, tree)
        for leaf in leaves
    )


def _has_arrays(node: Node) -> bool:
    return any(
        not isinstance(leaf.leaf, Literal) and not is_number(leaf.leaf) for leaf in node.leaves()
    )


def _is_in_modules(node: Node, params: Node) -> bool:
    """True for variables under the names of modules: of each, the first one is the model's."""
    names = {str(name) for name, kid in params.kids.items() if kid.leaf is None}
    trees = node.trees()
    return (
        bool(trees) and len(trees) == len(node.kids) and all(_within(t.name, names) for t in trees)
    )


def _within(name: str, names: Collection[str]) -> bool:
    """True for a module, and for a name with slashes (Haiku's) that starts with one."""
    parts = name.split("/")
    return any("/".join(parts[:size]) in names for size in range(1, len(parts) + 1))


def _is_module(node: Node, others: Sequence[Node]) -> bool:
    """True for a module called `model`, which has modules of the same model beside it."""
    if node.name == LEVEL:
        return False
    beside = (kid for kid in others if kid is not node and not is_copys(kid.key[-1:]))
    return any(
        kid.trainable
        and kid.name not in PARAMETERS
        and not _is_copy(kid, node.core())
        and any(leaf.trainable and is_weights(_bare_name(leaf)) for leaf in kid.leaves())
        for kid in beside
    )


def _is_plausible(node: Node) -> bool:
    """True when a subtree holds arrays of floats, and no settings or texts."""
    floats = strangers = 0
    for leaf in node.leaves():
        if isinstance(leaf.leaf, Literal):
            strangers += leaf.leaf.kind in ("string", "scalar")
        elif leaf.trainable:
            floats += 1
        elif is_number(leaf.leaf):
            strangers += 1
    return floats > 0 and not strangers


def _is_bare(root: Node, tree: Tree) -> bool:
    """True for parameters alone at the root, by their names and types."""
    if any(isinstance(name, int) for name in root.kids) or not _is_plausible(root):
        return False
    named = 0
    for leaf in root.leaves():
        if isinstance(leaf.leaf, Literal):
            continue
        if leaf.trainable:
            name = _bare_name(leaf)
            is_matrix = len(leaf.leaf.shape) > 1 if leaf.leaf is not None else False
            named += is_weights(name) and (name not in WEAK or is_matrix)
        elif is_integer(leaf.leaf) and not _is_models(leaf, tree):
            return False
    return named > 0


def _is_models(leaf: Node, tree: Tree) -> bool:
    """True for integers that models have: RNG state, an index of a cache, quantised weights."""
    key = leaf.key[:-1] if leaf.key[-1] == "value" else leaf.key
    name = str(key[-1])
    is_weight = is_weights(name) or name.startswith("q")
    return (
        _is_stream(key, leaf.key, tree) or _is_key(leaf) or name in NAMED_COLLECTIONS or is_weight
    )


def _rest_of(node: Node) -> list[Node] | None:
    """The elements of a sequence that are one model, as `nnx.split` takes it apart by type."""
    if not node.kids or not all(isinstance(name, int) for name in node.kids):
        return None
    first, *others = node.kids.values()
    if not others or not first.trees() or not _is_plausible(first):
        return None
    if any(kid.leaf is not None or kid.trainable or not kid.kids for kid in others):
        return None
    return [first, *others] if all(_is_in_modules(kid, first) for kid in others) else None
