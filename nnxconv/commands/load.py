"""`load` and `load_into`: a checkpoint of any layout, straight into live or abstract JAX values."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from nnxconv.commands.boundary import as_arguments, in_python
from nnxconv.commands.families import described
from nnxconv.commands.hugging_face import asked_names, under_names
from nnxconv.commands.opening import open_checkpoint
from nnxconv.commands.options import documented
from nnxconv.layouts import Options, Survey, SurveyOptions, Understood, one_state, survey
from nnxconv.loading import (
    Lenient,
    Loaded,
    Template,
    beside,
    fit,
    is_abstract,
    is_bare_optimizer,
    place,
    refuse_wide,
    regions_of,
    same_leaves,
    surround,
    template_of,
    texts,
    update,
    variables,
    views,
    with_parameters_of,
)
from nnxconv.planning import Wanted
from nnxconv.renaming import HuggingFaceFamily, Rules, towards
from nnxconv.running import Watcher, fetch, ignore, share_one_heap
from nnxconv.state import Family, Tree
from nnxconv.storage.orbax import refuse_changed
from nnxconv.tree import Key, Source, View, parse_bytes, spell

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
    family: str | Family | None = None,
    step: str | float | None = None,
    at: str | None = None,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    mismatched: Iterable[str] = (),
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
    options = Options(
        from_=from_,
        layer_axis=layer_axis,
        layer_group=tuple(layer_group),
        without=tuple(without),
        at=at,
        family=described(family),
    )
    lenient = Lenient(tuple(missing), tuple(unexpected), tuple(mismatched))
    way = _Way(options, lenient, cast, parse_bytes(max_memory), watch, note)
    return _loaded(os.fspath(path), like, step, rename, rename_back, allow_uncommitted, way)[0]


@dataclass(frozen=True)
class _Way:
    """How something is loaded."""

    options: Options
    lenient: Lenient
    casts: bool
    max_memory: int
    watch: Watcher
    note: Note


def _loaded(
    path: str,
    like: Like,
    step: str | float | None,
    rename: str | Rules | None,
    rename_back: str | Rules | None,
    allow_uncommitted: bool,
    way: _Way,
) -> tuple[Like, Loaded]:
    """What `like` is with the values of a checkpoint, and which differences were accepted."""
    share_one_heap()
    template = template_of(like)
    sources = {key: leaf for key, leaf in template.tree.items() if isinstance(leaf, Source)}
    refuse_wide(template.leaves, sources)
    opened = open_checkpoint(
        path, step, way.options, allow_uncommitted=allow_uncommitted, is_read=True
    )
    rules = asked_names(rename, rename_back, opened)
    filled = dict(template.leaves)
    tree = opened.survey.tree
    pairs = None if rules is not None or way.options.without else same_leaves(template, tree)
    if pairs is not None:
        filled |= texts(template, tree, pairs)
        wanted, notes, loaded = views(tree, pairs), (), Loaded()
    else:
        template.refuse_strangers()
        wanted, notes, loaded = _fitted(like, template, opened.survey, rules, way)
    arrays = [
        Wanted(key, view, regions_of(template.leaves[key], sources[key]))
        for key, view in wanted.items()
    ]
    for index, parts in fetch(arrays, opened.item.stores, way.max_memory, way.watch):
        key, regions = arrays[index].key, arrays[index].regions
        filled[key] = place(template.leaves[key], sources[key], regions, parts)
    refuse_changed(opened.item.stores.values())
    for text in notes:
        way.note(as_arguments(text))
    return template.rebuild(filled), loaded


def _fitted(
    like: Any, template: Template, there: Survey, rules: Rules | HuggingFaceFamily | None, way: _Way
) -> tuple[dict[Key, View], tuple[str, ...], Loaded]:
    """The views of a checkpoint's state by key of `like`, and what is kept or left out."""
    found = one_state(there, "`load`", "at=").understood
    found, wanted, own = _sides(like, template.tree, found, rules, way.options)
    fitted = fit(
        found,
        wanted,
        without=way.options.without,
        casts=way.casts,
        abstract={
            leaf.name
            for key, leaf in template.tree.items()
            if isinstance(leaf, Source) and is_abstract(template.leaves[key])
        },
        lenient=way.lenient,
    )
    by_key = {own[key]: view for key, view in fitted.views.items() if key in own}
    rest = beside(template, set(own.values()), there.tree, way.lenient)
    told = found.renamed if rules is None else ()
    missing = (*fitted.loaded.missing, *map(spell, rest.missing))
    loaded = replace(fitted.loaded, missing=missing)
    return by_key | rest.views, (*told, *fitted.notes, *rest.notes), loaded


def _sides(
    like: Any,
    tree: Tree,
    found: Understood,
    rules: Rules | HuggingFaceFamily | None,
    options: Options,
) -> tuple[Understood, Understood, Mapping[Key, Key]]:
    """The checkpoint under the names of `like`, and `like`, with the keys that its leaves have."""
    if rules is not None:
        found = under_names(found, rules, options)
    if isinstance(like, tuple) or is_bare_optimizer(tree):
        around = surround(tree, found, options.layer_axis, options.family)
        return with_parameters_of(found, around.understood), around.understood, around.own
    how = SurveyOptions(layer_axis=options.layer_axis, family=options.family, where="`like`")
    located = one_state(survey(tree, how), "`like`")
    wanted = located.understood
    if rules is None:
        found, wanted = towards(found, wanted, options)
    return found, wanted, located.stored


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
    family: str | Family | None = None,
    step: str | float | None = None,
    at: str | None = None,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    mismatched: Iterable[str] = (),
    max_memory: int | str = "2GiB",
    allow_uncommitted: bool = False,
    watch: Watcher = ignore,
    note: Note = log,
) -> Loaded:
    """Loads a checkpoint of any layout into a live NNX model, and its optimizer, in place.

    ```python
    nnxconv.load_into(model, "linen_ckpt", optimizer=optimizer)
    ```

    Nothing changes before everything is read, so that for a moment there are both old and new
    values; where that is too much, give `load` an abstract `like`.

    Returns:
      Which keys were not loaded, where `missing`, `unexpected` or `mismatched` allow it.

    Raises:
      Mismatch: leaves are missing, unexpected, or of another shape or type; all are listed, and
        model and optimizer are as they were.
      PlanError: a chunk does not fit in `max_memory`.
      NnxconvError: the checkpoint cannot be read.
    """
    live: dict[str, Any] = {"model": model}
    if optimizer is not None:
        live["optimizer"] = optimizer
    options = Options(
        from_=from_,
        layer_axis=layer_axis,
        layer_group=tuple(layer_group),
        without=tuple(without),
        at=at,
        family=described(family),
    )
    lenient = Lenient(tuple(missing), tuple(unexpected), tuple(mismatched))
    way = _Way(options, lenient, cast, parse_bytes(max_memory), watch, note)
    like = {name: variables(one) for name, one in live.items()}
    loaded, done = _loaded(os.fspath(path), like, step, rename, rename_back, allow_uncommitted, way)
    for name, one in live.items():
        update(one, loaded[name])
    return done
