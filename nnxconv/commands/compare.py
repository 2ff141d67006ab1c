"""`compare`: do two checkpoints, of whatever layouts, hold the same model?"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from nnxconv.commands.boundary import plainly
from nnxconv.commands.families import described
from nnxconv.commands.hugging_face import one_sided
from nnxconv.commands.opening import Opened, open_checkpoint
from nnxconv.commands.options import documented
from nnxconv.comparing import (
    Report,
    Scope,
    Selection,
    Side,
    Tolerance,
    agree_on_layers,
    around,
    coupled,
    join_layers,
    line_up,
    select,
    value_findings,
)
from nnxconv.errors import BadInput
from nnxconv.layouts import Options, Survey
from nnxconv.renaming import (
    HuggingFaceFamily,
    Rules,
    asked_rules,
    follow,
    from_hugging_face,
    renamed_tree,
    with_variables,
)
from nnxconv.running import Watcher, ignore, share_one_heap
from nnxconv.state import (
    Family,
    LayerGroup,
    TrainState,
    Tree,
    dequantised,
    scales_of,
    under,
)
from nnxconv.tree import Key, Leaf, fits_no_key, matches, parse_bytes, spell


@plainly
@documented
def compare(
    ckpt_path_1: str,
    ckpt_path_2: str,
    *,
    rename: str | Rules | None = None,
    rename_back: str | Rules | None = None,
    compare_values: bool = False,
    atol: float = 1e-5,
    rtol: float = 1e-5,
    equal_nan: bool = True,
    compare_only: Scope = "params",
    ignore_rngs: bool = True,
    ignore_dtype: bool = False,
    dequantize: bool = False,
    filter: Iterable[str] = (),  # noqa: A002
    exclude: Iterable[str] = (),
    layer_group: Iterable[str] = (),
    family: str | Family | None = None,
    at: str | None = None,
    at_b: str | None = None,
    max_memory: int | str = "2GiB",
    allow_uncommitted: bool = False,
    distributed: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    watch: Watcher = ignore,
) -> Report:
    """Says whether two checkpoints, of whatever layouts, hold the same model.

    Returns:
      A report that counts, renders itself and owns the exit code.

    Raises:
      NnxconvError: one of the two cannot be read, or they cannot be compared.
    """
    from nnxconv.comparing import compare_values as read_both
    from nnxconv.running.cluster import joined
    from nnxconv.storage.files import read_text
    from nnxconv.storage.orbax import refuse_changed

    started = time.monotonic()
    share_one_heap()
    tolerance = _tolerance(atol, rtol, equal_nan)
    with joined(distributed, coordinator_address, num_processes, process_id) as team:
        rules = asked_rules(rename, rename_back, read_text)
        how = Options(at=at, layer_group=tuple(layer_group), family=described(family))
        how_b = how if at_b is None else replace(how, at=at_b)
        open_side = partial(_open, allow_uncommitted=allow_uncommitted, is_read=compare_values)
        opened_a, opened_b = open_side(ckpt_path_1, how), open_side(ckpt_path_2, how_b)
        item_a, item_b = opened_a.item, opened_b.item
        wanted = Selection(compare_only, ignore_rngs, ignore_dtype, tuple(filter), tuple(exclude))
        families = (None, None) if rules is not None else one_sided(opened_a, opened_b)
        both = _lined_up(opened_a.survey, opened_b.survey, rules, wanted, dequantize, families)
        both.refuse_nothing(wanted.filter)
        findings, common = line_up(both.a, both.b, ignore_dtype=ignore_dtype)
        values = None
        if compare_values:
            items = item_a.stores | item_b.stores
            pairs = join_layers(common, both.groups)
            values = read_both(pairs, items, tolerance, parse_bytes(max_memory), team, watch)
            refuse_changed(items.values())
            findings += value_findings(common, values.statistics, values.scalars)
        return Report(
            Side(str(item_a.path), both.layouts[0]),
            Side(str(item_b.path), both.layouts[1]),
            findings,
            {**both.b, **both.a},
            tolerance,
            compare_values,
            ignores_dtype=ignore_dtype,
            layer_groups=both.layer_groups,
            statistics={} if values is None else values.statistics,
            ignored=both.ignored_a | both.ignored_b,
            notes=_choices(a=opened_a, b=opened_b),
            read_bytes=0 if values is None else values.read_bytes,
            equal_chunk_bytes=0 if values is None else values.equal_chunk_bytes,
            seconds=time.monotonic() - started,
            process=team.number,
        )


def _tolerance(atol: float, rtol: float, equal_nan: bool) -> Tolerance:
    """How much values may differ.

    Raises:
      BadInput: not at all is 0; below, or `nan`, means nothing.
    """
    for name, value in (("atol", atol), ("rtol", rtol)):
        if not value >= 0:
            raise BadInput(f"`--{name} {value:g}` is no number from 0 on")
    return Tolerance(atol, rtol, equal_nan)


def _open(path: str, how: Options, *, allow_uncommitted: bool, is_read: bool) -> Opened:
    return open_checkpoint(
        path, None, how, has_step=False, allow_uncommitted=allow_uncommitted, is_read=is_read
    )


def _choices(**sides: Opened) -> list[str]:
    """Which step of which side was taken, where there were several."""
    return [
        f"{side}: {opened.item.path}, {opened.location.choice}"
        for side, opened in sides.items()
        if opened.location.choice
    ]


@dataclass
class _Both:
    """The leaves of both sides, selected, and the layer groups that they have."""

    layouts: tuple[str, str]
    a: dict[Key, Leaf] = field(default_factory=dict)
    b: dict[Key, Leaf] = field(default_factory=dict)
    ignored_a: Counter[str] = field(default_factory=Counter)
    ignored_b: Counter[str] = field(default_factory=Counter)
    groups: list[LayerGroup] = field(default_factory=list)
    aside: list[Key] = field(default_factory=list)

    @property
    def layer_groups(self) -> tuple[Key, ...]:
        """Where layers are stacked or apart on either side, each place once."""
        return tuple(dict.fromkeys(group.key for group in self.groups))

    def refuse_nothing(self, globs: Sequence[str]) -> None:
        """Refuses a comparison of no key at all, with the keys that `--filter` may have meant.

        Raises:
          BadInput: nothing is selected on either side.
        """
        if self.a or self.b:
            return
        raise BadInput(
            "there is nothing to compare: no key is selected",
            details=[
                *(f"{count:,} left aside by {why}" for why, count in self.ignored_a.items()),
                *(
                    f"--filter: {fits_no_key(glob, self.aside)}"
                    for glob in globs
                    if not any(matches(spell(key), glob) for key in self.aside)
                ),
            ],
            hint="`nnxconv inspect PATH --tree` lists the keys",
        )


def _lined_up(
    a: Survey,
    b: Survey,
    rules: Rules | None,
    selection: Selection,
    dequantize: bool,
    families: tuple[HuggingFaceFamily | None, HuggingFaceFamily | None],
) -> _Both:
    """The leaves of both sides: state by state, or as they are stored where there is none."""
    both = _Both((a.layout, b.layout))
    couples = coupled(a, b)
    if not couples:
        tree = a.tree if rules is None else renamed_tree(a.tree, rules)
        _take(both, (), tree, b.tree, replace(selection, compare_only="all"))
        return both
    for couple in couples:
        left, right = (
            side if family is None else from_hugging_face(side, family, Options())
            for side, family in zip((couple.a, couple.b), families, strict=True)
        )
        if (
            selection.compare_only == "params"
            and rules
            and any(rule.computes for rule in rules.rules)
        ):
            left = replace(left, state=replace(left.state, opt_state=None))  # no rules for moments
        left, _ = follow(left, rules, None, Options(params_only=selection.compare_only == "params"))
        left, right = agree_on_layers(left, right)
        for family in filter(None, families):
            names = family.rules.inverse()
            left, right = with_variables(left, names), with_variables(right, names)
        states = [left.state, right.state]
        if dequantize:
            states = [_dequantised(state) for state in states]
        _take(both, couple.head, *(state.leaves() for state in states), selection)
        both.groups += [
            replace(group, key=(*couple.head, *group.key))
            for group in (*left.groups, *right.groups)
        ]
    (left, aside_a), (right, aside_b) = (
        around(side, ignore_rngs=selection.ignore_rngs) for side in (a, b)
    )
    _take(both, (), left, right, selection)
    both.ignored_a += aside_a
    both.ignored_b += aside_b
    return both


def _dequantised(state: TrainState) -> TrainState:
    return dequantised(state, None)[0] if scales_of(state.params) else state


def _take(both: _Both, head: Key, a: Tree, b: Tree, selection: Selection) -> None:
    for leaves, side, ignored in ((a, both.a, both.ignored_a), (b, both.b, both.ignored_b)):
        chosen, aside = select(leaves, selection)
        side |= under(head, chosen)
        both.aside += [key for key in leaves if key not in chosen]
        ignored.update(aside)
