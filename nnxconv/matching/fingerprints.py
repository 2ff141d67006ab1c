"""What an array holds, whatever the order of its elements: numbers that add up over its parts.

Each element's bits are mixed to 32 bits, and the mixed ones are added; so are the bits as they are.
Zeros add nothing, so that padding with zeros changes the count alone; -0 is no zero.

>>> a = np.arange(6, dtype=np.float32).reshape(2, 3)
>>> fingerprint(a) == fingerprint(a.T), fingerprint(a) == fingerprint(a + 1)
(True, False)
>>> fingerprint(a[:, :1]) + fingerprint(a[:, 1:]) == fingerprint(a)
True
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

_STRIDE = 2**15
"""How many elements are mixed at once, so that they stay in the processor's cache."""
_WRAP = 2**64 - 1
_FIRST, _SECOND = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
"""Factors of MurmurHash3's finaliser for 32 bits, which maps every number to another one."""


@dataclass(frozen=True)
class Fingerprint:
    """Of the elements of an array, or of several.

    Attributes:
      count: how many there are.
      nonzero: how many are not zero.
      mixed: the sum of their mixed bits, modulo 2**64.
      plain: the sum of their bits, modulo 2**64.
      first: the mixed bits of one of them.
    """

    count: int = 0
    nonzero: int = 0
    mixed: int = 0
    plain: int = 0
    first: int = field(default=0, compare=False)

    def __add__(self, other: "Fingerprint") -> "Fingerprint":
        mixed = (self.mixed + other.mixed) & _WRAP
        plain = (self.plain + other.plain) & _WRAP
        first = self.first if self.count else other.first
        counts = self.count + other.count, self.nonzero + other.nonzero
        return Fingerprint(*counts, mixed, plain, first)

    @property
    def content(self) -> tuple[int, int, int]:
        """What is the same with more zeros, and with less."""
        return self.nonzero, self.mixed, self.plain

    @property
    def is_constant(self) -> bool:
        """True when all elements are the same."""
        return self.nonzero in (0, self.count) and self.mixed == self.count * self.first & _WRAP


NOTHING = Fingerprint()


def fingerprint(values: np.ndarray) -> Fingerprint:
    """The fingerprint of an array of any element type."""
    found = NOTHING
    for bits in _words(values):
        mixed = _mixed(bits)
        found += Fingerprint(
            len(bits),
            int(np.count_nonzero(bits)),
            int(mixed.sum(dtype=np.uint64)),
            int(bits.sum(dtype=np.uint64)),
            int(mixed[0]),
        )
    return found


def _words(values: np.ndarray) -> Iterator[np.ndarray]:
    """The elements as 32 bits each, some at a time; of longer ones both halves are mixed."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.dtype.byteorder == ">":
        flat = flat.astype(flat.dtype.newbyteorder("<"))
    size = flat.itemsize
    bits = flat.view(np.dtype(f"uint{8 * min(size, 4)}"))
    halves = max(1, size // 4)
    for start in range(0, len(bits), _STRIDE * halves):
        some = bits[start : start + _STRIDE * halves].astype(np.uint32, copy=False)
        yield some if halves == 1 else _folded(some.reshape(-1, halves))


def _folded(words: np.ndarray) -> np.ndarray:
    """Several words for each element as one; zeros stay zero."""
    folded = words[:, 0].copy()
    for place in range(1, words.shape[1]):
        folded = _mixed(folded) ^ words[:, place]
    return folded


def _mixed(bits: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3; zero stays zero."""
    shifted = bits >> np.uint32(16)
    mixed = bits ^ shifted
    np.multiply(mixed, _FIRST, out=mixed)
    np.right_shift(mixed, np.uint32(13), out=shifted)
    np.bitwise_xor(mixed, shifted, out=mixed)
    np.multiply(mixed, _SECOND, out=mixed)
    np.right_shift(mixed, np.uint32(16), out=shifted)
    np.bitwise_xor(mixed, shifted, out=mixed)
    return mixed
