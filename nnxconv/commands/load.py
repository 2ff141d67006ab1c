"""`load` and `load_into`: a checkpoint of any layout, straight into live or abstract JAX values."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from nnxconv.commands.boundary import as_arguments, in_python
from nnxconv.commands.opening import open_checkpoint
from nnxconv.commands.options import documented
from nnxconv.layouts import Options, Understood, understand
from nnxconv.loading import (
    fit,
    is_abstract,
    is_bare_optimizer,
    place,
    refuse_wide,
    regions_of,
    surround,
    template_of,
    update,
    variables,
    with_parameters_of,
)
from nnxconv.planning import Wanted
from nnxconv.renaming import Rules, asked_rules, renamed, towards
from nnxconv.running import Watcher, fetch, ignore, share_one_heap
from nnxconv.state import Tree
from nnxconv.storage.orbax import refuse_changed
from nnxconv.tree import Key, Source, parse_bytes

if TYPE_CHECKING:
    from flax import nnx  # noqa: TID251  for the type checker alone

Like = TypeVar("Like")
Note = Callable[[str], None]


def log(text: str) -> None:
    """Tells the logger `nnxconv` what is kept from `like` or left out."""
    logging.getLogger("nnxconv").warning(text)


@in_python
@documented
def load(
    path: str | os.PathLike[str],
    *,
    like: Like,
    rename: str | Rules | None = None,
    rename_back: str | Rules | None = None,
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

    Returns:
      What `like` is, with the values of the checkpoint; `like` itself is as it was.

    Raises:
      Mismatch: leaves are missing, unexpected, or of another shape or type; all are listed.
      PlanError: a chunk does not fit in `max_memory`.
      NnxconvError: the checkpoint cannot be read, or `like` is none of what is listed above.
    """
    from nnxconv.storage.files import read_text

    share_one_heap()
    options = Options(
        from_=from_,
        layer_axis=layer_axis,
        layer_group=tuple(layer_group),
        without=tuple(without),
    )
    budget = parse_bytes(max_memory)
    rules = asked_rules(rename, rename_back, read_text)
    template = template_of(like)
    sources = {key: leaf for key, leaf in template.tree.items() if isinstance(leaf, Source)}
    refuse_wide(template.leaves, sources)
    _, item, found = open_checkpoint(
        os.fspath(path), step, options, allow_uncommitted=allow_uncommitted, is_read=True
    )
    found, wanted, own = _sides(like, template.tree, found, rules, options)
    fitted = fit(
        found,
        wanted,
        without=options.without,
        casts=cast,
        abstract={sources[key].name for key in sources if is_abstract(template.leaves[key])},
    )
    arrays = [
        Wanted(own[key], view, regions_of(template.leaves[own[key]], sources[own[key]]))
        for key, view in fitted.views.items()
        if key in own
    ]
    filled = dict(template.leaves)
    for index, parts in fetch(arrays, item.stores, budget, watch):
        key, regions = arrays[index].key, arrays[index].regions
        filled[key] = place(template.leaves[key], sources[key], regions, parts)
    refuse_changed(item.stores.values())
    for text in (*(found.renamed if rules is None else ()), *fitted.notes):
        note(as_arguments(text))
    return template.rebuild(filled)


def _sides(
    like: Any, tree: Tree, found: Understood, rules: Rules | None, options: Options
) -> tuple[Understood, Understood, Mapping[Key, Key]]:
    """The checkpoint under the names of `like`, and `like`, with the keys that its leaves have."""
    if rules is not None:
        found = renamed(found, rules, options)
    if isinstance(like, tuple) or is_bare_optimizer(tree):
        around = surround(tree, found, options.layer_axis)
        return with_parameters_of(found, around.understood), around.understood, around.own
    wanted = understand(tree, custom_metadata={}, layer_axis=options.layer_axis, where="`like`")
    if rules is None:
        found, wanted = towards(found, wanted, options)
    return found, wanted, {key: key for key in tree}


@in_python
@documented
def load_into(
    model: "nnx.Module",
    path: str | os.PathLike[str],
    *,
    optimizer: "nnx.Optimizer[Any] | None" = None,
    rename: str | Rules | None = None,
    rename_back: str | Rules | None = None,
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
        rename=rename,
        rename_back=rename_back,
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
