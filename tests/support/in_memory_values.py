"""The values of a generated pair, for a search that pairs leaves by them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnxconv.matching.fingerprints import Fingerprint, fingerprint
from nnxconv.matching.generalise import Move
from nnxconv.renaming import apply_steps
from nnxconv.tree import Key, View
from tests.support.generated_pairs import GeneratedPair


@dataclass(frozen=True)
class InMemoryValues:
    """Both sides of a pair, and their leaves as views."""

    pair: GeneratedPair
    source: Mapping[Key, View]
    template: Mapping[Key, View]

    def fingerprints(
        self, source: Sequence[Key], template: Sequence[Key], dtype: str | None
    ) -> tuple[Mapping[Key, Fingerprint], Mapping[Key, Fingerprint]]:
        """What leaves of both sides hold."""
        here = {key: self.pair.source.evaluated(self.source[key]) for key in source}
        there = {key: self.pair.template.evaluated(self.template[key]) for key in template}
        return _held(here, dtype), _held(there, dtype)

    def holding(self, moves: Sequence[Move], dtype: str | None) -> list[bool]:
        """Of each move, whether it makes the template's values of the source's."""
        return [self._holds(move, dtype) for move in moves]

    def _holds(self, move: Move, dtype: str | None) -> bool:
        views = [self.source[key] for key in move.sources]
        made = apply_steps(move.steps, views, len(move.targets))
        wanted = [self.pair.template.evaluated(self.template[key]) for key in move.targets]
        found = [self.pair.source.evaluated(view) for view in made]
        return all(
            np.array_equal(_cast(a, dtype), _cast(b, dtype))
            for a, b in zip(found, wanted, strict=True)
        )


def _cast(values: np.ndarray, dtype: str | None) -> np.ndarray:
    return values.astype(np.float32).astype(np.dtype(dtype or "float32"))


def _held(arrays: Mapping[Key, np.ndarray], dtype: str | None) -> dict[Key, Fingerprint]:
    return {key: fingerprint(_cast(values, dtype)) for key, values in arrays.items()}
