"""`open`: a checkpoint's shapes now, and its values when they are asked for."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from nnxconv.commands.boundary import in_python
from nnxconv.commands.families import described
from nnxconv.commands.hugging_face import asked_names, under_names
from nnxconv.commands.opening import open_checkpoint
from nnxconv.commands.options import documented
from nnxconv.errors import BadInput
from nnxconv.layouts import Options, Survey, one_state
from nnxconv.planning import Wanted
from nnxconv.renaming import HuggingFaceFamily, Rules, renamed_tree
from nnxconv.running import fetch
from nnxconv.state import Family
from nnxconv.tree import (
    Key,
    Literal,
    Region,
    View,
    dtype_of,
    fits_no_key,
    in_order,
    item_bytes,
    matches,
    notation,
    parse_bytes,
    prng_impl_of,
    spell,
)

if TYPE_CHECKING:
    from nnxconv.storage.orbax import Item


@in_python
@documented
def open(  # noqa: A001
    path: str | os.PathLike[str],
    *,
    rename: str | Rules | None = None,
    rename_back: str | Rules | None = None,
    from_: str | None = None,
    layer_axis: int | None = None,
    layer_group: Iterable[str] = (),
    family: str | Family | None = None,
    step: str | float | None = None,
    at: str | None = None,
    max_memory: int | str = "2GiB",
    allow_uncommitted: bool = False,
) -> "Checkpoint":
    """Opens a checkpoint of any layout in its canonical form; reads no array.

    ```python
    tree = nnxconv.open("ckpt")
    tree["params.decoder.layers[3].mlp.wi.kernel"][:16]
    ```

    Layers are apart in it, whether they are stacked on disk or not, and keys are those that
    `compare` prints. There is nothing to close.

    Raises:
      NnxconvError: there is no checkpoint there, or its layout is not known.
    """
    options = Options(
        from_=from_,
        layer_axis=layer_axis,
        layer_group=tuple(layer_group),
        at=at,
        family=described(family),
    )
    opened = open_checkpoint(os.fspath(path), step, options, allow_uncommitted=allow_uncommitted)
    rules = asked_names(rename, rename_back, opened)
    item, survey = opened.item, opened.survey
    if rules is not None:
        survey = _renamed(survey, rules, options)
    leaves = survey.leaves()
    budget = parse_bytes(max_memory)
    arrays = {
        spell(key): LazyArray(key, leaf, item, budget)
        for key in in_order(leaves)
        if not isinstance(leaf := leaves[key], Literal)
    }
    return Checkpoint(str(item.path), survey.layout, arrays)


def _renamed(survey: Survey, rules: Rules | HuggingFaceFamily, options: Options) -> Survey:
    """The checkpoint under the names that rules give its state, or its keys where it has none."""
    if not survey.states and isinstance(rules, Rules):
        return replace(survey, tree=renamed_tree(survey.tree, rules))
    main = one_state(survey, "`rename`", "at=")
    new = replace(main, understood=under_names(main.understood, rules, options))
    return replace(survey, states=tuple(new if one is main else one for one in survey.states))


@dataclass(frozen=True, eq=False)
class Checkpoint(Mapping[str, "LazyArray"]):
    """A checkpoint in its canonical form: a mapping from keys to arrays that are not read yet.

    Attributes:
      path: the item that holds the arrays.
      layout: on disk: `linen`, `nnx`, `nnx-state`, `nnx-pure` or `maxtext`.
    """

    path: str
    layout: str
    _arrays: Mapping[str, "LazyArray"] = field(repr=False)

    def __getitem__(self, key: str) -> "LazyArray":
        if key not in self._arrays:
            raise KeyError(fits_no_key(key, [array.key for array in self._arrays.values()]))
        return self._arrays[key]

    def __contains__(self, key: object) -> bool:
        return key in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one array."""
        return self[key].shape

    def filter(self, *globs: str) -> "Checkpoint":
        """The same checkpoint with only the keys that one of the globs fits, such as `*.mlp.*`."""
        kept = {
            key: array
            for key, array in self._arrays.items()
            if any(matches(key, glob) for glob in globs)
        }
        return replace(self, _arrays=kept)

    @cached_property
    def step(self) -> int | None:
        """The number of steps done, which is read now; None when the checkpoint does not say."""
        return int(self._arrays["step"].read()) if "step" in self._arrays else None


@dataclass(frozen=True, eq=False)
class LazyArray:
    """An array of a checkpoint, which is read when it is indexed or made a numpy array.

    Typed PRNG keys are their key data: uint32 with a last axis.
    """

    key: Key
    _view: View = field(repr=False)
    _item: "Item" = field(repr=False)
    _max_memory: int = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its axes."""
        return self._view.shape

    @property
    def ndim(self) -> int:
        """The number of its axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of its elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def dtype(self) -> np.dtype:
        """Type of its elements."""
        return np.dtype(dtype_of(self._view))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array in memory."""
        return self.size * item_bytes(self.dtype.name)

    @property
    def prng_impl(self) -> str | None:
        """The implementation of typed PRNG keys; None for every other array."""
        return prng_impl_of(self._view)

    def read(self) -> np.ndarray:
        """All of its values.

        Raises:
          DamagedCheckpoint: a chunk is missing or cannot be decoded.
          PlanError: a chunk does not fit in the memory that `open` was given.
        """
        return self[...]

    @in_python
    def __getitem__(self, index: Any) -> np.ndarray:
        """The values at integers and slices, as numpy has it; reads the chunks they lie in."""
        region, rest = _split(index, self.shape, spell(self.key))
        wanted = [Wanted(self.key, self._view, (region,))]
        [(_, [values])] = fetch(wanted, self._item.stores, self._max_memory)
        return values[rest]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(f"`{spell(self.key)}` cannot be had without reading a copy")
        values = self.read()
        return values if dtype is None else values.astype(dtype, copy=False)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a number has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<{spell(self.key)}  {notation(self._view)}>"


def _split(index: Any, shape: tuple[int, ...], where: str) -> tuple[Region, tuple[Any, ...]]:
    """The region to read, and the index that makes of it what was asked for.

    >>> _split((1, slice(None, None, -2)), (3, 10), "x")
    ((slice(1, 2, None), slice(1, 10, None)), (0, slice(None, None, -2)))
    """
    given = _whole_index(index, shape, where)
    region: list[slice] = []
    rest: list[Any] = []
    for part, size in zip(given, shape, strict=True):
        if isinstance(part, slice):
            chosen = range(*part.indices(size))
            low, high = (min(chosen), max(chosen) + 1) if chosen else (0, 0)
            region.append(slice(low, high))
            rest.append(slice(None, None, chosen.step))
        else:
            place = range(size)[part]
            region.append(slice(place, place + 1))
            rest.append(0)
    return tuple(region), tuple(rest)


def _whole_index(index: Any, shape: tuple[int, ...], where: str) -> tuple[Any, ...]:
    """The index with an entry for every axis.

    Raises:
      BadInput: it has more entries than there are axes, or something else than numbers and slices.
    """
    parts = index if isinstance(index, tuple) else (index,)
    if not all(part is ... or _is_plain(part) for part in parts):
        raise BadInput(
            "a stored array is indexed by numbers and slices only",
            where=where,
            hint="`.read()` gives a numpy array, which takes every index",
        )
    if not any(part is ... for part in parts):
        parts = (*parts, ...)
    missing = len(shape) - (len(parts) - 1)
    if missing < 0:
        raise IndexError(f"{len(parts) - 1} indices for the {len(shape)} axes of `{where}`")
    place = next(place for place, part in enumerate(parts) if part is ...)
    return (*parts[:place], *[slice(None)] * missing, *parts[place + 1 :])


def _is_plain(part: Any) -> bool:
    return isinstance(part, int | np.integer | slice) and not isinstance(part, bool)
