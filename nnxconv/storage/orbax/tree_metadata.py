"""The tree that an item's `_METADATA` describes: keys, and the kinds of their values."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from nnxconv.tree import Key, spell

_SEQUENCE = 1
_LONGEST_NAME = 2**16


def tree_entries(metadata: Mapping[str, Any]) -> list[tuple[Key, str]]:
    """The key of every leaf, and its value type, in their order.

    Raises:
      KeyError, TypeError, AttributeError, OverflowError: an entry is not what Orbax writes.
      ValueError: the keys are no tree.
    """
    known: dict[str, str] = {}
    entries = [_entry(entry, known) for entry in metadata.values()]
    check_tree([key for key, _ in entries])
    return entries


MOST_LEVELS = 64
"""Of a tree; those of models have about ten."""


def check_tree(keys: Sequence[Key]) -> None:
    """Refuses keys of which one is another's beginning, or which are no tree for another reason.

    Raises:
      ValueError: there are such keys, or one of too many parts.
    """
    known = set(keys)
    if len(known) < len(keys):
        raise ValueError("a leaf stands there twice")
    parts = set(chain.from_iterable(keys))
    negative = {part for part in parts if isinstance(part, int) and part < 0}
    kinds: dict[Key, type] = {}
    for key in keys:
        if len(key) > MOST_LEVELS:
            raise ValueError(f"a key has {len(key):,} parts")
        if not negative.isdisjoint(key):
            raise ValueError(f"`{spell(key)}` has a negative index")
        for length in reversed(range(len(key))):
            above, kind = key[:length], type(key[length])
            if above in known:
                raise ValueError(f"`{spell(key)}` stands within another leaf")
            seen = kinds.get(above)
            if seen is kind:
                break  # and so is all above it
            if seen is not None:
                raise ValueError(f"`{spell(key)}`: names and indices stand side by side")
            kinds[above] = kind


def _entry(entry: Mapping[str, Any], known: dict[str, str]) -> tuple[Key, str]:
    """A leaf's key and value type; of equal names, which JSON has again and again, one is kept."""
    parts: list[str | int] = []
    for part in entry["key_metadata"]:
        name, is_index = part["key"], part["key_type"] == _SEQUENCE
        if type(name) is str and not is_index and len(name) <= _LONGEST_NAME:
            parts.append(known.setdefault(name, name))
        else:
            parts.append(_part(name, is_index=is_index))
    kind = entry["value_metadata"]["value_type"]
    if not isinstance(kind, str):
        raise ValueError(f"`{spell(tuple(parts))}` has a value type that is no text")
    return tuple(parts), known.setdefault(kind, kind)


def _part(name: Any, *, is_index: bool) -> str | int:
    """A part of a key; JSON may hold anything."""
    if type(name) not in (str, int):
        raise ValueError(f"a key has a part that is neither a name nor a number: {str(name)[:40]}")
    if len(str(name)) > _LONGEST_NAME:
        raise ValueError(f"a key has a part of {len(str(name)):,} characters: {str(name)[:40]}")
    return int(name) if is_index else str(name)
