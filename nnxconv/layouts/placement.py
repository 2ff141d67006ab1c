"""Where a state stands in a tree: which keys of the tree are which keys of a known layout."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nnxconv.layouts.form import claim, key_of, mapping, pairs
from nnxconv.tree import Key


@dataclass(frozen=True)
class Placement:
    """Prefixes of a tree's keys, and what they are in the layout; the longest that fits decides.

    Attributes:
      moves: prefixes in the tree, and in the layout.
      apart: by collection, the prefix in the tree under which its variables stand, where the
        layout has them among the parameters: `nnx.split` takes a model apart so.

    >>> place = Placement(((("opt",), ("opt_state",)), (("net",), ("params",))))
    >>> place.inward(("net", "w")), place.outward(("opt_state", 0, "count"))
    (('params', 'w'), ('opt', 0, 'count'))
    """

    moves: tuple[tuple[Key, Key], ...] = (((), ()),)
    apart: tuple[tuple[str, Key], ...] = ()

    @property
    def is_plain(self) -> bool:
        """True where the whole tree is in the layout."""
        return self.moves == (((), ()),) and not self.apart

    @property
    def stands(self) -> tuple[Key, ...]:
        """The prefixes in the tree."""
        return (*(old for old, _ in self.moves), *(old for _, old in self.apart))

    def inward(self, key: Key) -> Key | None:
        """A key of the tree as the layout has it; None for what stands elsewhere."""
        return self._into.moved(key)

    def outward(self, key: Key) -> Key:
        """A key of the layout as the tree has it."""
        moved = self._back.moved(key)
        return key if moved is None else moved

    @cached_property
    def _into(self) -> "_Moves":
        return _Moves(dict(self.moves) | {old: self.shared for _, old in self.apart})

    @cached_property
    def _back(self) -> "_Moves":
        return _Moves({new: old for old, new in self.moves})

    @property
    def shared(self) -> Key:
        """Where the layout has the variables that stand apart in the tree: in the model."""
        return ("model",)

    def gathered(self, keys: Iterable[Key]) -> dict[Key, Key] | None:
        """These keys of the tree by those of the layout; None where that cannot be undone."""
        if self.is_plain:
            own = list(keys)
            return dict(zip(own, own, strict=True))
        found: dict[Key, Key] = {}
        for key in keys:
            inner = self.inward(key)
            if inner is None or inner in found:
                return None
            if not self.apart and self.outward(inner) != key:
                return None
            found[inner] = key
        return found

    def spread(self, keys: Iterable[Key], collections: Mapping[Key, str]) -> dict[Key, Key]:
        """For each key of the layout, the key in the tree; `collections` has those of variables."""
        homes = dict(self.apart)
        found: dict[Key, Key] = {}
        for key in keys:
            home = homes.get(collections.get(key, ""))
            if home is not None and key[:1] == self.shared:
                found[key] = (*home, *key[1:])
            else:
                found[key] = self.outward(key)
        return found

    def to_json(self) -> dict[str, Any]:
        """The placement as JSON values."""
        return {
            "moves": [[list(old), list(new)] for old, new in self.moves],
            "apart": [[name, list(old)] for name, old in self.apart],
        }

    @classmethod
    def from_json(cls, record: Any) -> "Placement":
        """The inverse of `to_json`.

        Raises:
          ValueError: it is not what `to_json` writes.
        """
        record = mapping("placement", record)
        moves = tuple(
            (key_of("moves", old), key_of("moves", new))
            for old, new in pairs("moves", record.get("moves", []))
        )
        apart = pairs("apart", record.get("apart", []))
        claim("apart", all(isinstance(name, str) for name, _ in apart))
        return cls(moves, tuple((name, key_of("apart", old)) for name, old in apart))


def at_key(key: Key) -> Placement:
    """The placement of a layout's tree that stands under a key."""
    return Placement(((key, ()),))


class _Moves:
    """Prefixes, and what stands in their place; the longest that a key has decides."""

    def __init__(self, moves: Mapping[Key, Key]) -> None:
        self._moves = moves
        self._sizes = sorted({len(old) for old in moves}, reverse=True)

    def moved(self, key: Key) -> Key | None:
        """The key under another prefix; None for one that begins with none of them."""
        for size in self._sizes:
            new = self._moves.get(key[:size])
            if new is not None:
                return new + key[size:]
        return None
