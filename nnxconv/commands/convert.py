"""`convert`: a checkpoint in another layout."""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from nnxconv.commands.boundary import plainly
from nnxconv.commands.carrying_out import Way, carry_out
from nnxconv.commands.families import described
from nnxconv.commands.hugging_face import Crossing, crossing, refuse_unnamed
from nnxconv.commands.opening import Opened, open_checkpoint
from nnxconv.commands.options import documented
from nnxconv.commands.places import Places, places_of
from nnxconv.commands.result import Result
from nnxconv.layouts import (
    ITEMS,
    Conversion,
    Direction,
    Located,
    Options,
    Survey,
    Understood,
    Whole,
    account,
    convert_copies,
    convert_tree,
    join,
    one_state,
    refuse_missing_parts,
    refuse_rivals,
    unchanged,
)
from nnxconv.planning import Transfer
from nnxconv.renaming import Rules, asked_rules, follow, renamed, renamed_tree
from nnxconv.running import Watcher, ignore, share_one_heap
from nnxconv.state import Family, refuse_left_apart, refuse_left_stacked

if TYPE_CHECKING:
    from nnxconv.storage.orbax import Location


@plainly
@documented
def convert(
    source_path: str,
    target_path: str,
    *,
    direction: Direction = "auto",
    to: str | None = None,
    from_: str | None = None,
    scan_layers: bool | None = None,
    layer_axis: int | None = None,
    layer_group: Iterable[str] = (),
    family: str | Family | None = None,
    without: Iterable[str] = (),
    like: str | None = None,
    rename: str | Rules | None = None,
    rename_back: str | Rules | None = None,
    config: str | None = None,
    strict: bool = False,
    params_only: bool = False,
    dtype: str | None = None,
    at: str | None = None,
    drop: Iterable[str] = (),
    params_from: str | None = None,
    replica: int | None = None,
    dequantize: bool = False,
    step: str | float | None = None,
    max_memory: int | str = "2GiB",
    overwrite: bool = False,
    dry_run: bool = False,
    verify: bool = False,
    transfer: Transfer = "copy",
    shard_size: int | str = "5GB",
    compression: str | None = None,
    resume: bool = False,
    allow_uncommitted: bool = False,
    distributed: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    watch: Watcher = ignore,
) -> Result:
    """Converts a checkpoint from one layout to another.

    Raises:
      NnxconvError: the input cannot be converted as asked; source and target are as they were.
    """
    from nnxconv.running.cluster import joined
    from nnxconv.storage.files import read_text

    started = time.monotonic()
    share_one_heap()
    options = Options(direction=direction, to=to, from_=from_, scan_layers=scan_layers)
    options = replace(options, layer_axis=layer_axis, layer_group=tuple(layer_group))
    options = replace(options, family=described(family), without=tuple(without))
    options = replace(options, strict=strict, params_only=params_only, dtype=dtype, at=at)
    options = replace(options, drop=tuple(drop), params_from=params_from, replica=replica)
    options = replace(options, dequantize=dequantize)
    way = Way(max_memory=max_memory, overwrite=overwrite, dry_run=dry_run, verify=verify)
    way = replace(way, transfer=transfer, resume=resume, shard_size=shard_size)
    way = replace(way, compression=compression, watch=watch)
    with joined(distributed, coordinator_address, num_processes, process_id) as team:
        opened = open_checkpoint(
            source_path, step, options, allow_uncommitted=allow_uncommitted, is_read=True
        )
        options, cross = crossing(options, rename, config, opened)
        rules = asked_rules(None if cross else rename, rename_back, read_text)
        if cross is None and rules is None and like is None:
            refuse_unnamed(options, opened)
        item = opened.item
        template = None if like is None else _template(like, options)
        located = None if template is None else one_state(template.survey, "`--like`")
        whole = converted(opened.survey, options, located, rules, cross)
        return carry_out(
            whole,
            _places(source_path, target_path, opened, template, whole, cross),
            replace(way, team=team),
            account=account(item.tree, opened.chosen, whole),
            custom_metadata=item.custom_metadata,
            options=_told(
                options, way, like=like, rename=rename, rename_back=rename_back, step=step
            ),
            started=started,
        )


def _template(like: str, options: Options) -> Opened:
    return open_checkpoint(
        like, None, Options(layer_group=options.layer_group, family=options.family), is_read=True
    )


def _places(
    source_path: str,
    target_path: str,
    source: Opened,
    template: Opened | None,
    whole: Whole,
    cross: Crossing | None,
) -> Places:
    """Where is read and written; the target lies as the source does, unless its layout says."""
    custom = source.location.custom_metadata
    if whole.scan_layers is not None:
        custom["scan_layers"] = whole.scan_layers
    places = places_of(
        source_path,
        target_path,
        source,
        {} if template is None else template.item.stores,
        whole.layout,
        is_split=whole.layout in ITEMS or _is_in_items(whole, source.location),
        files=None if cross is None else cross.files,
    )
    return replace(places, target=replace(places.target, custom_metadata=custom))


def converted(
    survey: Survey,
    options: Options,
    template: Located | None,
    rules: Rules | None,
    cross: Crossing | None = None,
) -> Whole:
    """The target's tree: each state and its copies converted, the rest kept.

    Raises:
      NnxconvError: it cannot be converted as asked.
    """
    if not survey.states:
        return _as_it_is(survey, options, template, rules)
    states = survey.states
    refuse_rivals(states)
    refuse_missing_parts(
        options.without,
        [one.understood.state for one in states],
        [copy.at for copy in survey.copies],
    )
    if options.params_only or template is not None or rules is not None or cross is not None:
        needs = "`--params_only`" if options.params_only else "this conversion"
        main = one_state(survey, needs, "--at", instead=options.params_from)
        states = (main,) if options.params_only else states
    has_layers = any(one.understood.groups for one in states)
    found: list[tuple[Located, Conversion]] = []
    for located in states:
        like = None if template is None else template.understood
        source = located.understood if cross is None else cross.source(located.understood, options)
        source, like = follow(source, rules, like, options)
        if rules is None and like is None and options.scan_layers is False:
            refuse_left_stacked(source.state, source.groups)
        if rules is None and like is None and options.scan_layers and not has_layers:
            refuse_left_apart(source.state)
        if cross is not None and like is None:
            conversion = cross.converted(source, options)
        else:
            conversion = convert_tree(source, options, like)
        found.append((located, conversion))
        if not options.params_only:
            found += convert_copies(survey, located, conversion, _renaming(rules))
    found.sort(key=lambda pair: pair[0].copy_of is not None)
    return join(survey, found, options, template)


def _renaming(rules: Rules | None) -> Callable[[Understood, Options], Understood] | None:
    """How second copies get the names of the parameters, of which they may have some alone."""
    if rules is None:
        return None
    some = tuple(replace(rule, is_optional=True) for rule in rules.rules)
    return lambda source, options: renamed(source, Rules(some, name=rules.name), options)


def _as_it_is(
    survey: Survey, options: Options, template: Located | None, rules: Rules | None
) -> Whole:
    """A tree without a state in another container, its leaves renamed where there are rules.

    Raises:
      UnknownLayout: what is asked for needs to know what the tree means.
    """
    means_something = replace(options, at=None, drop=(), replica=None)
    if template is not None or means_something != Options():
        assert survey.problem is not None
        raise survey.problem
    if rules is None:
        return unchanged(survey)
    return unchanged(replace(survey, tree=renamed_tree(survey.tree, rules)), survey.tree)


def _is_in_items(whole: Whole, location: "Location") -> bool:
    """True where the target's tree is several items of a step, as the source's is."""
    names = {folder.path.name for folder in location.joined}
    return (
        bool(names)
        and {key[0] for key in whole.tree} <= names
        and (all(part.located.at for part in whole.parts))
    )


def _told(options: Options, way: Way, **others: Any) -> dict[str, Any]:
    """Options by the names that they have on the command; rules that are no file are called so."""
    told = {name.rstrip("_"): value for name, value in asdict(options).items()} | others
    told["family"] = None if options.family is None else options.family.name
    told |= {"max_memory": way.max_memory, "transfer": way.transfer}
    told |= {"compression": way.compression, "shard_size": way.shard_size}
    return {n: "rules" if isinstance(value, Rules) else value for n, value in told.items()}
