"""Where a training state stands in a tree of any kind."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from nnxconv.tree import Key


@dataclass(frozen=True)
class Place:
    """Where the parts of one training state stand, all by keys of the whole tree.

    Attributes:
      at: the key that has all of it below; that of the parameters where others stand there too.
      params: the subtree of the parameters.
      optimizers: the optimizer states that follow them.
      parts: for each tree of moments, the part of the parameters that it has the paths of.
      step: the number of steps done.
      variables: what else belongs to the model, by subtree.
      rngs: RNG state.
      copies: second copies of the parameters.
      rest: further subtrees that have the model's other variables at the parameters' paths.
      rivals: for each part, others that its optimizer may follow as well, by all that names tell.
    """

    at: Key
    params: Key
    optimizers: tuple[Key, ...] = ()
    parts: Mapping[Key, Key] = field(default_factory=dict)
    step: Key | None = None
    variables: tuple[Key, ...] = ()
    rngs: tuple[Key, ...] = ()
    copies: tuple[Key, ...] = ()
    rest: tuple[Key, ...] = ()
    rivals: Mapping[Key, tuple[Key, ...]] = field(default_factory=dict)

    def keys(self) -> Iterator[Key]:
        """Where all of it stands."""
        yield from (self.at, self.params, *self.optimizers, *self.parts, *self.parts.values())
        yield from (*self.variables, *self.rngs, *self.copies, *self.rest)
        if self.step is not None:
            yield self.step
