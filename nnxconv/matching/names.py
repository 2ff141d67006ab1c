"""How alike two module paths are, by the words in them.

>>> likeness(("transformer", "h", "0", "attn", "q_proj", "kernel"),
...          ("layers", 0, "attention", "query", "kernel"))
1.0
>>> likeness(("LayerNorm_0", "scale"), ("query", "kernel"))
0.0
"""

import re
from collections.abc import Iterable

from nnxconv.tree import Key

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SYNONYMS = {
    "attention": "attn mha selfattention",
    "bias": "beta b",
    "conv": "convolution",
    "down": "",
    "embed": "embedding embedder embeddings wte",
    "head": "classifier logits classes lm",
    "key": "k",
    "kernel": "weight weights w",
    "linear": "dense fc",
    "mlp": "ffn ff feedforward",
    "norm": "ln layernorm bn batchnorm rmsnorm",
    "out": "o output",
    "position": "pos positional wpe posembed",
    "query": "q",
    "scale": "gamma",
    "token": "tokens tok",
    "value": "v",
}
_CANONICAL = {word: name for name, words in _SYNONYMS.items() for word in words.split()}
_SAY_NOTHING = re.compile(
    "layers?|blocks?|h|module|encoder|decoder|encoderblock|transformer|model|body|c|proj"
    "|projection|multi|dot|product|self|list|batch|d|x"
)
"""What many modules are called, or a part of it."""
_LEAF_NAMES = {"kernel", "bias", "scale", "embedding", "mean", "var"}


def words(names: Iterable[str | int]) -> frozenset[str]:
    """The words in some names that tell what they are, each in one spelling.

    >>> sorted(words(("MultiHeadDotProductAttention_0", "q_proj")))
    ['attention', 'query']
    """
    found = [str(word).lower() for name in names for word in _WORD.findall(str(name))]
    told = [_CANONICAL.get(word, word) for word in found if not _SAY_NOTHING.fullmatch(word)]
    return frozenset(told) - ({"head"} if "attention" in told else set())


def likeness(a: Key, b: Key) -> float:
    """From 0, nothing in common, to 1: the last names count as much as all others together."""
    last = _shared(words(a[-1:]), words(b[-1:]))
    return (last + _shared(words(a[:-1]), words(b[:-1]))) / 2


def can_be_same(a: Key, b: Key) -> bool:
    """False for two different ones of the names that flax itself gives to leaves."""
    return not {a[-1], b[-1]} <= _LEAF_NAMES or a[-1] == b[-1]


def _shared(a: frozenset[str], b: frozenset[str]) -> float:
    if not a and not b:
        return 1.0
    return len(a & b) / len(a | b)
