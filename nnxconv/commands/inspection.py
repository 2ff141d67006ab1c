"""What a checkpoint is, from its metadata alone (and its step, which is one number)."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnxconv.layouts import Survey, Understood
from nnxconv.state import Amount, Role, TrainState, Tree, children, ledger_of, parameter_trees
from nnxconv.storage.zarr import ArrayFormat, compressor
from nnxconv.tree import Key, Literal, dtype_of, size_bytes

if TYPE_CHECKING:
    from nnxconv.storage.orbax import Item


@dataclass(frozen=True)
class Part:
    """How much a part of a checkpoint holds; `arrays` counts them as stored."""

    arrays: int
    elements: int
    nbytes: int


@dataclass(frozen=True)
class ChainElement:
    """One element of the optimizer's chain: its names, and which of them follow the parameters."""

    place: str
    names: tuple[str, ...]
    moments: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """Everything that `inspect` shows.

    Attributes:
      item: the opened item, with its tree and formats.
      survey: its states, what is around them, and the role of every leaf.
      understood: the meaning of its main state; None where there is none.
      step: the number of steps done, where the checkpoint says; several of replicated states.
      parts: sizes of the top-level parts, of the state when it is understood, else of the tree.
      chain: the optimizer's elements.
      dtypes: number of arrays of each element type.
      chunks: number of arrays by how they are stored: whole or in how many chunks.
      compressors: number of arrays by compressor.
      processes: names of the databases that the writing processes left.
      shardings: partition spec and mesh by array name, as the writer saved them.
      custom_metadata: of the step and of the item.
      choice: how the step was chosen, where there were several.
    """

    item: "Item"
    survey: Survey
    understood: Understood | None
    step: int | tuple[int, ...] | None
    parts: Mapping[str, Part]
    chain: Sequence[ChainElement]
    dtypes: Mapping[str, int]
    chunks: Mapping[str, int]
    compressors: Mapping[str, int]
    processes: Sequence[str]
    shardings: Mapping[str, Mapping[str, Any]]
    custom_metadata: Mapping[str, Any]
    choice: str = ""

    @property
    def ledger(self) -> Mapping[Role, Amount]:
        """What the leaves of each role add up to."""
        return ledger_of(self.survey.tree, self.survey.roles)

    @property
    def is_one_at_the_root(self) -> bool:
        """True for a single state that stands at the root."""
        return len(self.survey.states) == 1 and not self.survey.states[0].at

    @property
    def problem(self) -> str:
        """Why there is no state, where there is none."""
        problem = self.survey.problem
        return "" if problem is None else problem.message


def main_state(survey: Survey) -> Understood | None:
    """The state at the root, or else the first one."""
    at_root = [one.understood for one in survey.states if not one.at]
    return next(iter([*at_root, *(one.understood for one in survey.states)]), None)


def sizes_of(tree: Tree) -> dict[str, Part]:
    """Sizes by the first name of each key."""
    parts: dict[str, Part] = {}
    for key, leaf in tree.items():
        if isinstance(leaf, Literal):
            continue
        name = str(key[0]) if key else ""
        old = parts.get(name, Part(0, 0, 0))
        elements = math.prod(leaf.shape)
        parts[name] = Part(old.arrays + 1, old.elements + elements, old.nbytes + size_bytes(leaf))
    return parts


def chain_of(state: TrainState) -> list[ChainElement]:
    """The elements of the optimizer's chain, nested ones by their path."""
    opt_state = state.opt_state or {}
    moments = parameter_trees(opt_state, state.params)
    elements: dict[Key, None] = {}
    for key in opt_state:
        prefix = next((key[:n] for n in range(len(key)) if key[:n] in moments), key)
        elements[prefix[:-1]] = None
    return [
        ChainElement(
            "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip("."),
            tuple(str(name) for name in children(opt_state, place)),
            tuple(str(prefix[-1]) for prefix in moments if prefix[:-1] == place),
        )
        for place in elements
    ]


def dtypes_of(tree: Tree) -> Counter[str]:
    """How many arrays there are of each element type."""
    return Counter(dtype_of(leaf) for leaf in tree.values() if not isinstance(leaf, Literal))


def chunks_of(formats: Mapping[str, ArrayFormat]) -> Counter[str]:
    """How many arrays are stored whole, and how many in how many chunks."""
    return Counter(_chunking(array) for array in formats.values())


def _chunking(array: ArrayFormat) -> str:
    count = math.prod(
        -(-size // max(1, chunk)) for size, chunk in zip(array.shape, array.chunks, strict=True)
    )
    return "whole" if count <= 1 else f"in {count:,} chunks"


def compressors_of(formats: Mapping[str, ArrayFormat]) -> Counter[str]:
    """How many arrays are compressed by what."""
    return Counter(compressor(array) for array in formats.values())
