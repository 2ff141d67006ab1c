"""The result of `convert`, for people."""

from collections import Counter
from collections.abc import Iterator, Sequence

from nnxconv.commands.result import Result
from nnxconv.layouts import Conversion, restoring_converted
from nnxconv.render.wording import arranged, describe, moments_of
from nnxconv.state import LayerGroup, Tree, scales_of
from nnxconv.storage.transfer import Moved
from nnxconv.tree import (
    Key,
    Literal,
    View,
    counted,
    dtype_of,
    first_source,
    format_bytes,
    notation,
    size_bytes,
    spell,
)


def conversion_text(result: Result) -> str:
    """What was recognised and done, in a few lines; with a dry run, the plan array by array."""
    plan = result.plan
    lines = [_headline(result)]
    lines += [f"  {name:<9} {text}" for name, text in _rows(result)]
    if result.is_dry_run:
        lines += ["", *_plan_rows(result), "", f"{_totals(result)}; {_predicted(result)}"]
    else:
        lines.append(_totals(result))
        lines.append(
            f"{format_bytes(plan.total_bytes)} in {result.seconds:.2f} s{_by(result)};"
            f" peak memory {format_bytes(result.peak_memory_bytes)}"
        )
        line = restoring_converted(result.whole, result.target_path)
        lines += ["", f"restore with: {line}"] if line else []
    return "\n".join(lines)


def _headline(result: Result) -> str:
    states = result.whole.states
    if not states:
        verb = "would write" if result.is_dry_run else "wrote"
        return f"{verb} the tree as it is: none of the layouts that nnxconv knows"
    first = states[0].conversion
    if result.deed is not None:
        bare, past = result.deed
        return f"{f'would {bare}' if result.is_dry_run else past}: {first.layout}"
    verb = "would convert" if result.is_dry_run else "converted"
    told = f"{verb} {first.source.layout} to {first.layout}"
    return told if len(states) == 1 else f"{told}: {counted(len(states), 'state')}"


def _by(result: Result) -> str:
    """` by 4 processes`, whose first one's memory is told."""
    return f" by {result.processes} processes" if result.processes > 1 else ""


def _totals(result: Result) -> str:
    """`1,520 arrays renamed, 41.2 GiB copied as 12 files; 21 rewritten, 3.1 MiB`."""
    plan, texts = result.plan, []
    for done, arrays in (("renamed", plan.renamed), ("rewritten", plan.rewritten)):
        if arrays:
            nbytes = sum(size_bytes(array.view) for array in arrays)
            how = _as_files(result) if done == "renamed" and result.is_dry_run else ""
            texts.append(f"{counted(len(arrays), 'array')} {done}, {format_bytes(nbytes)}{how}")
    return "; ".join(texts) or "no arrays"


def _as_files(result: Result) -> str:
    """` copied as 12 files and 3 chunks`."""
    transfers = result.transfers
    counts = [(len(transfers.files), "file"), (len(transfers.values), "chunk")]
    told = " and ".join(counted(count, noun) for count, noun in counts if count)
    return f" {'linked' if transfers.is_linked else 'copied'} as {told}" if told else ""


def _predicted(result: Result) -> str:
    peak = format_bytes(result.predicted_peak_bytes)
    return f"predicted peak {peak} besides the program itself"


def _rows(result: Result) -> Iterator[tuple[str, str]]:
    chosen = f" ({result.source_choice})" if result.source_choice else ""
    yield "source", result.source_path + chosen
    yield "target", result.target_path
    for part in result.whole.states:
        if part.located.at or len(result.whole.states) > 1:
            yield "state", spell(part.located.at) or "at the root"
        yield from _state_rows(part.conversion)
    for part in result.whole.parts:
        if part.is_copy:
            name = spell(part.located.at)
            stays = "its types" if result.deed is None else "its values"
            yield "copy", f"{name}: arranged as the parameters, {stays} as they were"
    yield from _account_rows(result)
    for name in result.extra_files:
        yield "beside", name
    if result.compression is not None:
        told = f"{result.compression} for {counted(len(result.plan.rewritten), 'rewritten array')}"
        kept = counted(len(result.plan.renamed), "renamed array")
        yield "chunks", f"{told}; {kept} as compressed as before"
    if result.moved is not None:
        yield from _moved(result.moved)
    if result.is_verified:
        yield "verified", "read back and compared with the source before it was committed"


def _state_rows(conversion: Conversion) -> Iterator[tuple[str, str]]:
    """What was recognised and done in one state."""
    yield "known by", "; ".join(conversion.source.evidence)
    for note in conversion.source.notes:
        yield "decided", note
    for text in conversion.source.renamed:
        yield "renamed", text
    for group in conversion.source.groups:
        yield "layers", _layers_text(conversion, group)
    moments = moments_of(conversion)
    if moments:
        yield "moments", f"{', '.join(moments)}: arranged as the parameters"
    step = _step(conversion)
    if step:
        yield "step", step
    for text in _left_out(conversion):
        yield "left out", text
    if conversion.taken:
        yield "from like", f"{counted(len(conversion.taken), 'array')} of aux"
    if conversion.uncast:
        yield "types", f"{counted(len(conversion.uncast), 'array')} not cast: {_uncast(conversion)}"
    for text in conversion.assumed:
        yield "assumed", text


def _uncast(conversion: Conversion) -> str:
    """What stays as it is: `2 float8_e4m3fn, 2 scales`."""
    params = conversion.state.params
    scales = scales_of(params)
    kinds = Counter(
        "scales" if key in scales else dtype_of(leaf)
        for key in conversion.uncast
        if not isinstance(leaf := params[key], Literal)
    )
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


_FEW = 6
"""So many keys are named; of more, what they stand in."""


def _account_rows(result: Result) -> Iterator[tuple[str, str]]:
    """What is around the states: kept, or left out by name; and the sum of all leaves."""
    account = result.account
    told = {why for part in result.whole.states for why in part.conversion.left_out.values()}
    own = {key for part in result.whole.states for key in part.located.stored.values()}
    if account.kept and result.whole.parts:
        yield "kept", _named(account.kept)
    left = account.left_out or {}
    gone = {
        key: why
        for key, why in left.items()
        if key not in own or key in account.elsewhere or why not in told
    }
    for why in dict.fromkeys(gone.values()):
        yield "left out", f"{_named([k for k, reason in gone.items() if reason == why])} ({why})"
    yield "leaves", _sum(result)


def _named(keys: Sequence[Key]) -> str:
    """A few keys by name; of many, how many there are below each name at the root."""
    if len(keys) <= _FEW:
        return ", ".join(map(spell, keys))
    below = Counter(spell(key[:1]) for key in keys)
    return ", ".join(f"{counted(n, 'leaf', 'leaves')} of {name}" for name, n in below.items())


def _sum(result: Result) -> str:
    """`31 = 28 converted + 2 kept as they are + 1 left out`."""
    account = result.account
    parts = [
        (len(account.converted), "converted"),
        (len(account.kept), "kept as they are"),
        (len(account.left_out or {}), "left out"),
    ]
    told = " + ".join(f"{count:,} {name}" for count, name in parts if count)
    return f"{account.total:,} = {told}" if told else "none"


def _moved(moved: Moved) -> Iterator[tuple[str, str]]:
    """How encoded chunks got to the target."""
    counts = [
        (moved.copied_files, "file", "copied"),
        (moved.linked_files, "file", "linked"),
        (moved.copied_chunks, "chunk", "copied"),
    ]
    told = [f"{counted(count, noun)} {done}" for count, noun, done in counts if count]
    if told:
        yield "moved", f"{', '.join(told)}: {format_bytes(moved.nbytes)} as they are"
    for note in moved.notes:
        yield "", note


def _layers_text(conversion: Conversion, group: LayerGroup) -> str:
    before = arranged(group.arrangement)
    after = arranged(conversion.arrangements[group.key])
    count = counted(len(group.indices), "layer") if group.indices else "layers"
    change = f"{before}, left so" if before == after else f"{before} -> {after}"
    return f"{spell(group.key)}: {count}, {change}"


def _step(conversion: Conversion) -> str:
    """Where the step was and is, when it has moved or changed its type."""

    def found(step: View | None, tree: Tree) -> str | None:
        same = (
            key
            for key, leaf in tree.items()
            if step and not isinstance(leaf, Literal) and _stored_as(leaf) == _stored_as(step)
        )
        key: Key = next(same, ("step",))
        return f"{'/'.join(map(str, key))} {notation(tree[key])}" if key in tree else None

    before = found(conversion.source.state.step, conversion.source.tree)
    after = found(conversion.state.step, conversion.tree)
    if after is None or before == after:
        return ""
    return f"{before or 'none'} -> {after}"


def _stored_as(view: View) -> tuple[str, str]:
    source = first_source(view)
    return source.store, source.name


def _left_out(conversion: Conversion) -> Iterator[str]:
    kinds = Counter((spell(key[:2]), why) for key, why in conversion.left_out.items())
    for (part, why), count in kinds.items():
        yield f"{counted(count, 'array')} of {part} ({why})" if part != "step" else f"step ({why})"


def _plan_rows(result: Result) -> Iterator[str]:
    rows = [
        (spell(a.key), notation(a.view), a.how, describe(a.view) + (f": {a.why}" if a.why else ""))
        for a in result.plan.arrays
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[3]])
