"""Keys: where a leaf stands in a tree, and the one way to spell it.

A key is a tuple of names (mapping keys) and ints (sequence or layer indices):

>>> spell(("params", "decoder", "layers", 3, "mlp", "wi", "kernel"))
'params.decoder.layers[3].mlp.wi.kernel'
>>> spell(("params", "a.b", "0"))
'params["a.b"]["0"]'
"""

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain
from typing import TypeAlias

Key: TypeAlias = tuple[str | int, ...]

_PLAIN_NAME = re.compile(r"[^\W\d][\w-]*")


def spell(key: Key) -> str:
    """The key as text; names that are not plain words are quoted in brackets."""
    return "".join(map(_spelled, key)).removeprefix(".")


@lru_cache(maxsize=2**16)
def _spelled(part: str | int) -> str:
    """A part of a key below others; most trees have few that differ."""
    if isinstance(part, str) and _PLAIN_NAME.fullmatch(part):
        return f".{part}"
    return f"[{json.dumps(part)}]"


def sort_key(key: Key) -> tuple[tuple[bool, int, str], ...]:
    """Orders keys by name, and layers and sequence elements by number."""
    return tuple((isinstance(p, str), p if isinstance(p, int) else 0, str(p)) for p in key)


def in_order(keys: Iterable[Key]) -> list[Key]:
    """The keys in the order in which they are shown."""
    keys = list(keys)
    parts = sorted(set(chain.from_iterable(keys)), key=lambda part: sort_key((part,)))
    rank = {part: place for place, part in enumerate(parts)}.__getitem__
    return sorted(keys, key=lambda key: tuple(map(rank, key)))


def is_digits(part: str | int) -> bool:
    """True for a mapping key that spells a non-negative int, such as `"12"`."""
    if not isinstance(part, str) or not part.isdecimal() or not part.isascii():
        return False
    return part == "0" or part[0] != "0"
