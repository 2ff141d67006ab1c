"""A tree as modules: the leaves below one key, over all layers, and the scope in which they stand.

A *scope* is what is repeated: the layers of a decoder, the blocks of a stage; or else the whole
tree. A module stands in the innermost scope around it; modules of one scope that differ in their
layer only are one *module family*. Names that hold whole paths (`model.layers.0.mlp.w`) are read as
paths.

>>> from nnxconv.tree import Source
>>> w = Source("w", (4, 4), "float32", (4, 4))
>>> keys = [("h", str(i), *name, "kernel") for i in (0, 1) for name in (("attn", "q"), ("fc1",))]
>>> found = modules_of({("params", *key): w for key in keys})
>>> [str(module) for module in found], found[0].scope.count
(['h.#.attn.q', 'h.#.fc1'], 2)
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import chain
from typing import NamedTuple, TypeAlias

from nnxconv.tree import Key, Leaf, Literal, Shape, dtype_of, in_order, notation, short_dtype

Numbers: TypeAlias = tuple[int, ...]
Path: TypeAlias = tuple[str, ...]
NUMBER = re.compile(r"(0|[1-9][0-9]*)")
_SEPARATOR = re.compile(r"[./]|(?<=[0-9])_(?=[A-Za-z])")
"""Between the names in a name: `layers.0.mlp`, `net/~/linear_1`, `h_0_attn`."""
_NO_SCOPE = re.compile(r"\w*(attn|attention|mha|norm)[_-]?#", re.IGNORECASE)
"""What is numbered within a layer: `attn1` and `attn2` are two modules, and no two layers."""
_LAYER = re.compile(r"(x_)?(layers?|blocks?|h|(en|de)coder_?(block|layer)|resblocks?)?[_-]?#")
"""What a layer is called, even where there is only one."""
_SAME_CONTENT = 0.6
"""How much of all their content the members of a scope have, on the average."""

MAIN, BIAS, MEAN, VAR = "main", "bias", "mean", "var"
_NAMES = {
    MAIN: (
        *("kernel", "weight", "w", "weights", "embedding", "embeddings", "emb_var"),
        *("scale", "gamma", "g", ""),
    ),
    BIAS: ("bias", "b", "beta", "offset"),
    MEAN: ("mean", "running_mean", "moving_mean"),
    VAR: ("var", "running_var", "moving_var", "moving_variance"),
}
"""What leaves are called, of several in one module the first."""
_SLOT_OF = {name: slot for slot, names in _NAMES.items() for name in names}
_JOINED = re.compile(r"(.+)_(kernel|weight|bias)")
"""A leaf's name that says what it is, and whose: `in_proj_weight`."""


@dataclass(frozen=True)
class Scope:
    """What is repeated, with numbers for each of its members; the whole tree has one member.

    Attributes:
      path: the names around it; `#` is the number of a member.
      members: the numbers of the members, in order.
    """

    path: Path
    members: tuple[Numbers, ...]

    @property
    def count(self) -> int:
        """How many members it has."""
        return len(self.members)

    def __str__(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True)
class Slot:
    """One leaf of a module, in every member of the scope that has it.

    Attributes:
      name: `kernel`, `weight`, ...; empty for an array that stands at the module's own key.
      collection: `params`, or the name of another one.
      keys: by member, without the collection.
      leaves: in the same order.
      ranks: the places of these members among all of the scope.
    """

    name: str
    collection: str
    keys: tuple[Key, ...]
    leaves: tuple[Leaf, ...] = field(repr=False)
    ranks: tuple[int, ...]

    @cached_property
    def shapes(self) -> tuple[Shape, ...] | None:
        """The shape in each member; None when one is no array."""
        shapes = [leaf.shape for leaf in self.leaves if not isinstance(leaf, Literal)]
        return tuple(shapes) if len(shapes) == len(self.leaves) else None

    @cached_property
    def size(self) -> Hashable:
        """What a slot and its counterpart have in common whatever the steps between them."""
        sizes: Hashable = self.leaves
        if self.shapes is not None:
            sizes = tuple(math.prod(shape) for shape in self.shapes)
        return self.collection, self.ranks, sizes, tuple(map(_kind, self.leaves))

    @property
    def told(self) -> str:
        """`f32[16,16] × 3`, or each shape."""
        shapes = list(dict.fromkeys(notation(leaf) for leaf in self.leaves))
        told = ", ".join(shapes[:4]) + (f" and {len(shapes) - 4} more" if len(shapes) > 4 else "")
        return told + (f" × {len(self.leaves)}" if len(shapes) == 1 < len(self.leaves) else "")


@dataclass(frozen=True, eq=False)
class ModuleFamily:
    """A module, over all members of its scope.

    Attributes:
      scope: where it stands.
      path: its names within the scope.
      slots: its leaves, by what they are: `main` (kernel, weight, scale, embedding, ...), `bias`,
        `mean`, `var`, or else by their name.
    """

    scope: Scope
    path: Path
    slots: Mapping[str, Slot] = field(repr=False)

    @cached_property
    def skeleton(self) -> Path:
        """Its names without their numbers."""
        return tuple(NUMBER.sub("#", name) for name in self.path)

    @cached_property
    def numbers(self) -> Numbers:
        """The numbers in its names."""
        return tuple(int(text) for name in self.path for text in NUMBER.findall(name))

    @cached_property
    def main(self) -> Slot:
        """The leaf by which it is known."""
        return self.slots.get(MAIN) or next(iter(self.slots.values()))

    @property
    def leaf_count(self) -> int:
        """How many leaves it has in all members."""
        return sum(len(slot.keys) for slot in self.slots.values())

    def __str__(self) -> str:
        return ".".join((*self.scope.path, *self.path)) or self.main.name


def _kind(leaf: Leaf) -> str:
    """Floats of every size are alike, and integers: a conversion may cast them."""
    if isinstance(leaf, Literal):
        return leaf.kind
    short = short_dtype(dtype_of(leaf))
    return "f" if short.startswith(("f", "bf")) else short[0]


# --- from keys to modules ---------------------------------------------------------------------


class _Place(NamedTuple):
    """A leaf's key taken apart: its module's names, `#` for numbers; the numbers; its own name."""

    names: Path
    numbers: Numbers
    leaf: str


class _Member(NamedTuple):
    """A leaf as one of its family: which member of the scope has it."""

    numbers: Numbers
    collection: str
    key: Key
    leaf: str


def modules_of(leaves: Mapping[Key, Leaf]) -> list[ModuleFamily]:
    """The modules of a canonical tree, in order; keys are `params...` or `aux.<collection>...`."""
    places = {key: _place(key[1 + (key[0] != "params") :]) for key in leaves}
    repeated = _repeated({(place.names, place.numbers) for place in places.values()})
    inner = {n: _inner_of(n, repeated) for n in {place.names for place in places.values()}}
    scopes: dict[Path, set[Numbers]] = defaultdict(set)
    modules: dict[tuple[Path, Path], list[_Member]] = defaultdict(list)
    for key in in_order(leaves):
        place = places[key]
        size = inner[place.names]
        if size is None:
            scope, numbers, path = _within(place, repeated)
        else:
            scope, numbers, path = place.names[:size], place.numbers, place.names[size:]
        scopes[scope].add(numbers)
        is_param = key[0] == "params"
        collection, bare = ("params", key[1:]) if is_param else (str(key[1]), key[2:])
        modules[scope, path].append(_Member(numbers, collection, bare, place.leaf))
    _include_inner(scopes)
    known = {path: Scope(path, tuple(sorted(members))) for path, members in scopes.items()}
    ranks = {path: {m: rank for rank, m in enumerate(s.members)} for path, s in known.items()}
    return [
        ModuleFamily(known[scope], path, _slots(members, ranks[scope], leaves))
        for (scope, path), members in modules.items()
    ]


def _include_inner(scopes: Mapping[Path, set[Numbers]]) -> None:
    """Adds to scopes the members in which only others within them have modules."""
    for inner, members in scopes.items():
        for end in range(len(inner)):
            outer = inner[:end]
            if outer in scopes:
                depth = sum(name.count("#") for name in outer)
                scopes[outer].update({member[:depth] for member in members})


def names_in(key: Key) -> Path:
    """The names in a key, also those of which a name consists.

    >>> names_in(("net/~/linear_1", "w")), names_in(("layers.0.mlp", "w"))
    (('net', 'linear_1', 'w'), ('layers', '0', 'mlp', 'w'))
    """
    return tuple(chain.from_iterable(map(_names_in, key)))


@lru_cache(maxsize=2**16)
def _names_in(part: str | int) -> Path:
    """The names in one part of a key."""
    return tuple(name for name in _SEPARATOR.split(str(part)) if name not in ("", "~"))


def with_layers_alike(paths: Sequence[Path]) -> Path:
    """Names of one leaf in several layers as one, `#` where their numbers differ.

    >>> with_layers_alike([("h", "0", "fc_1"), ("h", "1", "fc_1")])
    ('h', '#', 'fc_1')
    """
    if len({len(path) for path in paths}) > 1:  # `in_proj_weight` beside `in_proj.weight`
        return paths[0]
    return tuple(
        names[0] if len(set(names)) == 1 else NUMBER.sub("#", names[0])
        for names in zip(*paths, strict=True)
    )


def _place(key: Key) -> _Place:
    *above, last = names_in(key) or ("",)
    own, leaf = _own(last)
    names: list[str] = []
    numbers: list[int] = []
    for name in (*above, *own):
        bare, found = _numbered(name)
        names.append(bare)
        numbers += found
    return _Place(tuple(names), tuple(numbers), leaf)


@lru_cache(maxsize=2**16)
def _own(last: str) -> tuple[Path, str]:
    """The last name of a key as the last of its module's names, and the leaf's own."""
    if last.lower() in _SLOT_OF:
        return (), last
    joined = _JOINED.fullmatch(last)
    return ((last,), "") if joined is None else ((joined[1],), joined[2])


@lru_cache(maxsize=2**16)
def _numbered(name: str) -> tuple[str, Numbers]:
    """A name with `#` for its numbers, and those."""
    return NUMBER.sub("#", name), tuple(map(int, NUMBER.findall(name)))


def _repeated(modules: Collection[tuple[Path, Numbers]]) -> set[Path]:
    """The names that end in the number of a member of a scope."""
    found: dict[Path, dict[Numbers, set[tuple[Path, Numbers]]]] = defaultdict(
        lambda: defaultdict(set)
    )
    ends = {names: tuple(_scope_ends(names)) for names in {names for names, _ in modules}}
    for names, numbers in modules:
        for path, rest, count in ends[names]:
            found[path][numbers[:count]].add((rest, numbers[count:]))
    return {names for names, members in found.items() if _is_repeated(names[-1], members)}


def _scope_ends(names: Path) -> Iterator[tuple[Path, Path, int]]:
    """The names up to each that a member of a scope may have, what follows, the numbers so far."""
    count = 0
    for place, name in enumerate(names, 1):
        count += name.count("#")
        if name.endswith("#") and not _NO_SCOPE.fullmatch(name):
            yield names[:place], names[place:], count


def _is_repeated(name: str, members: Mapping[Numbers, Collection[tuple[Path, Numbers]]]) -> bool:
    """True for modules of several modules each, alike enough to be layers."""
    if max(len(inside) for inside in members.values()) < 2:
        return False
    siblings = Counter(numbers[:-1] for numbers in members)
    if max(siblings.values()) == 1:
        return _LAYER.fullmatch(name) is not None
    content = [{names for names, _ in inside} for inside in members.values()]
    every = set[Path]().union(*content)
    return sum(map(len, content)) >= _SAME_CONTENT * len(every) * len(content)


def _inner_of(names: Path, repeated: Collection[Path]) -> int | None:
    """How many of the names stand for a scope; None where some numbers are none of its members'."""
    ends = [at for at in range(1, len(names) + 1) if names[:at] in repeated]
    is_open = sum(name.count("#") for name in names) == len(ends)
    return max(ends, default=0) if is_open else None


def _within(place: _Place, repeated: Collection[Path]) -> tuple[Path, Numbers, Path]:
    """The innermost scope around a module, which member it is in, and its names there."""
    shown: list[str] = []
    member: list[int] = []
    numbers = iter(place.numbers)
    inner = 0
    for at, name in enumerate(place.names, 1):
        is_scope = place.names[:at] in repeated
        open_at = name.count("#") - 1 if is_scope else -1
        texts = name.split("#")
        told = texts[0]
        for nth, text in enumerate(texts[1:]):
            number = next(numbers)
            if nth == open_at:
                member.append(number)
            told += ("#" if nth == open_at else str(number)) + text
        shown.append(told)
        inner = at if is_scope else inner
    return tuple(shown[:inner]), tuple(member), tuple(shown[inner:])


def _slots(
    members: Sequence[_Member], ranks: Mapping[Numbers, int], leaves: Mapping[Key, Leaf]
) -> dict[str, Slot]:
    """The leaves of a module by what they are."""
    groups: dict[tuple[str, str], list[_Member]] = defaultdict(list)
    for member in members:
        groups[member.collection, member.leaf].append(member)
    found: dict[str, Slot] = {}
    for collection, name in sorted(groups, key=_precedence):
        some = sorted(groups[collection, name], key=lambda member: ranks[member.numbers])
        slot = _SLOT_OF.get(name.lower(), name)
        if slot in found or (collection != "params" and slot in (MAIN, BIAS)):
            slot = name or collection
        head = ("params",) if collection == "params" else ("aux", collection)
        found[slot] = Slot(
            name,
            collection,
            tuple(member.key for member in some),
            tuple(leaves[*head, *member.key] for member in some),
            tuple(ranks[member.numbers] for member in some),
        )
    return found


def _precedence(group: tuple[str, str]) -> tuple[bool, int, str]:
    collection, name = group
    order = [known for names in _NAMES.values() for known in names]
    lower = name.lower()
    return collection != "params", order.index(lower) if lower in order else len(order), name


def scopes_in(modules: Iterable[ModuleFamily]) -> dict[Path, list[ModuleFamily]]:
    """The modules of each scope."""
    found: dict[Path, list[ModuleFamily]] = defaultdict(list)
    for module in modules:
        found[module.scope.path].append(module)
    return found
