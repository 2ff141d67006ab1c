"""The key that somebody meant who spelt it in another way, and arrays under other names."""

import re
from collections.abc import Iterable

from nnxconv.tree.array_notation import notation
from nnxconv.tree.keys import Key, spell
from nnxconv.tree.views import Leaf, Literal

_NUMBERS = re.compile(r"\d+|\{[^}]*\}")
_SIGNS = re.compile(r"[\W_]+")


def same_letters(text: str, keys: Iterable[Key]) -> str | None:
    """The key, or the beginning of one, of the same letters as `text`; None where there is none.

    Signs are left out, a glob's stars among them (what stands before a leading one is, too);
    numbers and the places of a pattern, such as `{i}`, are all alike, and so are `params.params`
    and `params`.

    >>> same_letters("layers_{i}.up", [("layers", 0, "up", "kernel"), ("norm", "scale")])
    'layers[0].up'
    """
    heads = dict.fromkeys(key[:length] for key in keys for length in range(1, len(key) + 1))
    wanted = _squeezed(text)
    for head in heads:
        for start in range(len(head) if text.startswith("*") else 1):
            if _squeezed(spell(head[start:])) == wanted:
                return spell(head)
    return None


def _squeezed(text: str) -> str:
    """Its letters, with one digit for each number."""
    return _SIGNS.sub("", _NUMBERS.sub("0", text.replace("params.params.", "params.")))


def fits_no_key(text: str, keys: Iterable[Key]) -> str:
    """What is said of a pattern that fits none of these keys."""
    meant = same_letters(text, keys)
    return f"`{text}` fits no key" + (f"; one is spelt `{meant}`" if meant else "")


def may_be_renamed(only_a: Iterable[Leaf], only_b: Iterable[Leaf]) -> bool:
    """True when some array that one tree alone has is of the shape of one that the other has."""
    a, b = (
        {notation(leaf) for leaf in leaves if not isinstance(leaf, Literal) and leaf.shape}
        for leaves in (only_a, only_b)
    )
    return not a.isdisjoint(b)
