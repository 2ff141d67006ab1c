"""Load a checkpoint of any layout straight into live or abstract JAX values."""

import logging
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from nnxconv.boundary import plainly
from nnxconv.bundles import Wanted
from nnxconv.conversion import Options, understand
from nnxconv.events import Watcher, ignore
from nnxconv.fetch import fetch
from nnxconv.fitting import fit
from nnxconv.live import (
    is_abstract,
    place,
    refuse_wide,
    regions_of,
    template_of,
    update,
    variables,
)
from nnxconv.opening import open_checkpoint
from nnxconv.sizes import parse_bytes
from nnxconv.storage.unchanged import refuse_changed
from nnxconv.views import Source

if TYPE_CHECKING:
    from flax import nnx  # noqa: TID251  for the type checker alone

Like = TypeVar("Like")
Note = Callable[[str], None]


def log(text: str) -> None:
    """Tells the logger `nnxconv` what is kept from `like` or left out."""
    logging.getLogger("nnxconv").warning(text)


@plainly
def load(
    path: str | os.PathLike[str],
    *,
    like: Like,
    without: Iterable[str] = (),
    cast: bool = False,
    from_: str | None = None,
    layer_axis: int | None = None,
    layer_group: Iterable[str] = (),
    step: int | None = None,
    max_memory: int | str = "2GiB",
    allow_uncommitted: bool = False,
    watch: Watcher = ignore,
    note: Note = log,
) -> Like:
    """Loads a checkpoint of any layout as `like` has it: its structure, its layers, its shardings.

    ```python
    state = nnxconv.load("linen_ckpt", like=nnx.state(model))
    train_state = nnxconv.load("nnx_ckpt", like=jax.eval_shape(create_train_state))
    ```

    Every stored chunk is read once, and only chunks of which `like` places a part on this process.
    RNG state that the checkpoint does not have is kept from `like`, and the optimizer state and
    step are left out where `like` has none; `note` is told.

    Args:
      path: an item directory, a step, or a root of steps; it is only read.
      like: an `nnx.State`, `nnx.Module`, flax `TrainState` or mapping of variables, whose leaves
        are arrays, numbers or `jax.ShapeDtypeStruct`s, with or without shardings.
      without: parts that are not loaded, so that `like` keeps its own: `aux`, `aux.rngs`,
        `opt_state`, `step`.
      cast: read floats in the float types of `like`, and integers in its integer types; otherwise
        another type is a mismatch.
      from_: the checkpoint's layout, where it cannot be recognised.
      layer_axis: where stacks have their layers whose shapes do not tell.
      layer_group: further names of layers, besides `layers`, `dense_layers`, `moe_layers`.
      step: which step of a root.
      max_memory: bytes, or a text such as `2GiB`, that blocks in flight may take, besides the
        arrays that are loaded.
      allow_uncommitted: read a checkpoint in a bucket that has no `commit_success.txt`.
      watch: is called with an `Event` after each block of work.
      note: is called with a line for all that is kept from `like` or left out; by default it is
        logged as a warning of the logger `nnxconv`.

    Returns:
      What `like` is, with the values of the checkpoint; `like` itself is as it was.

    Raises:
      Mismatch: leaves are missing, unexpected, or of another shape or type; all are listed.
      PlanError: a chunk does not fit in `max_memory`.
      NnxconvError: the checkpoint cannot be read, or `like` is none of what is listed above.
    """
    options = Options(
        from_=from_,
        layer_axis=layer_axis,
        layer_group=tuple(layer_group),
        without=tuple(without),
    )
    budget = parse_bytes(max_memory)
    template = template_of(like)
    sources = {key: leaf for key, leaf in template.tree.items() if isinstance(leaf, Source)}
    refuse_wide(template.leaves, sources)
    _, item, found = open_checkpoint(
        os.fspath(path), step, options, allow_uncommitted=allow_uncommitted
    )
    fitted = fit(
        found,
        understand(template.tree, custom_metadata={}, layer_axis=layer_axis, where="`like`"),
        without=options.without,
        casts=cast,
        abstract={sources[key].name for key in sources if is_abstract(template.leaves[key])},
    )
    wanted = [
        Wanted(key, view, regions_of(template.leaves[key], sources[key]))
        for key, view in fitted.views.items()
    ]
    filled = dict(template.leaves)
    for index, arrays in fetch(wanted, {item.path.as_posix(): item}, budget, watch):
        key, regions = wanted[index].key, wanted[index].regions
        filled[key] = place(template.leaves[key], sources[key], regions, arrays)
    refuse_changed([item])
    for text in fitted.notes:
        note(text)
    return template.rebuild(filled)


@plainly
def load_into(
    model: "nnx.Module",
    path: str | os.PathLike[str],
    *,
    optimizer: "nnx.Optimizer[Any] | None" = None,
    without: Iterable[str] = (),
    cast: bool = False,
    from_: str | None = None,
    layer_axis: int | None = None,
    layer_group: Iterable[str] = (),
    step: int | None = None,
    max_memory: int | str = "2GiB",
    allow_uncommitted: bool = False,
    watch: Watcher = ignore,
    note: Note = log,
) -> None:
    """Loads a checkpoint of any layout into a live NNX model, and its optimizer, in place.

    ```python
    nnxconv.load_into(model, "linen_ckpt", optimizer=optimizer)
    ```

    Nothing changes before everything is read, so that for a moment there are both old and new
    values; where that is too much, give `load` an abstract `like`.

    Args:
      model: its variables are updated.
      path: an item directory, a step, or a root of steps; it is only read.
      optimizer: is updated too, its step included.
      without: parts that are not loaded, so that model and optimizer keep their own: `aux`,
        `aux.rngs`, `opt_state`, `step`.
      cast: read floats in the float types of the model, and integers in its integer types;
        otherwise another type is a mismatch.
      from_: the checkpoint's layout, where it cannot be recognised.
      layer_axis: where stacks have their layers whose shapes do not tell.
      layer_group: further names of layers, besides `layers`, `dense_layers`, `moe_layers`.
      step: which step of a root.
      max_memory: bytes, or a text such as `2GiB`, that blocks in flight may take, besides the
        arrays that are loaded.
      allow_uncommitted: read a checkpoint in a bucket that has no `commit_success.txt`.
      watch: is called with an `Event` after each block of work.
      note: is called with a line for all that is kept from `like` or left out; by default it is
        logged as a warning of the logger `nnxconv`.

    Raises:
      Mismatch: leaves are missing, unexpected, or of another shape or type; all are listed, and
        model and optimizer are as they were.
      PlanError: a chunk does not fit in `max_memory`.
      NnxconvError: the checkpoint cannot be read.
    """
    live: dict[str, Any] = {"model": model}
    if optimizer is not None:
        live["optimizer"] = optimizer
    loaded = load(
        path,
        like={name: variables(one) for name, one in live.items()},
        without=without,
        cast=cast,
        from_=from_,
        layer_axis=layer_axis,
        layer_group=layer_group,
        step=step,
        max_memory=max_memory,
        allow_uncommitted=allow_uncommitted,
        watch=watch,
        note=note,
    )
    for name, one in live.items():
        update(one, loaded[name])
