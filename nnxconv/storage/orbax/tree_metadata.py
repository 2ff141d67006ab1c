"""The tree that an item's `_METADATA` describes: keys, and the kinds of their values."""

from collections.abc import Mapping, Sequence
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
    entries = [_entry(entry) for entry in metadata.values()]
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
    kinds: dict[Key, type] = {}
    for key in keys:
        if len(key) > MOST_LEVELS:
            raise ValueError(f"a key has {len(key):,} parts")
        if any(isinstance(part, int) and part < 0 for part in key):
            raise ValueError(f"`{spell(key)}` has a negative index")
        for length in reversed(range(len(key))):
            above, kind = key[:length], type(key[length])
            if above in known:
                raise ValueError(f"`{spell(key)}` stands within another leaf")
            if kinds.setdefault(above, kind) is not kind:
                raise ValueError(f"`{spell(key)}`: names and indices stand side by side")


def _entry(entry: Mapping[str, Any]) -> tuple[Key, str]:
    key = tuple(_part(part["key"], part["key_type"]) for part in entry["key_metadata"])
    kind = entry["value_metadata"]["value_type"]
    if not isinstance(kind, str):
        raise ValueError(f"`{spell(key)}` has a value type that is no text")
    return key, kind


def _part(name: Any, kind: int) -> str | int:
    """A part of a key; JSON may hold anything."""
    if type(name) not in (str, int):
        raise ValueError(f"a key has a part that is neither a name nor a number: {str(name)[:40]}")
    if len(str(name)) > _LONGEST_NAME:
        raise ValueError(f"a key has a part of {len(str(name)):,} characters: {str(name)[:40]}")
    return int(name) if kind == _SEQUENCE else str(name)
