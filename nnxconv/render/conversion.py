"""The result of `convert`, for people and for programs."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from nnxconv.commands.result import Result
from nnxconv.layouts import Conversion
from nnxconv.state import Apart, Arrangement, Blocks, LayerGroup, Tree, parameter_trees
from nnxconv.storage.transfer import Moved
from nnxconv.tree import (
    Cast,
    Concat,
    Formula,
    Key,
    Literal,
    Part,
    Scaled,
    Slot,
    Source,
    Stack,
    View,
    counted,
    first_source,
    format_bytes,
    notation,
    size_bytes,
    spell,
)
from nnxconv.tree import Moved as MovedView


def conversion_json(result: Result) -> dict[str, Any]:
    """Everything about a conversion as JSON values."""
    conversion, plan = result.conversion, result.plan
    return {
        "source": {
            "path": result.source_path,
            "layout": conversion.source.layout,
            "evidence": list(conversion.source.evidence),
            "decided": list(conversion.source.notes),
        },
        "rename": list(conversion.source.renamed),
        "target": {"path": result.target_path, "layout": conversion.layout},
        "dry_run": result.is_dry_run,
        "layers": [_layers_json(conversion, group) for group in conversion.source.groups],
        "moments": _moments(conversion),
        "left_out": {spell(key): reason for key, reason in conversion.left_out.items()},
        "taken_from_like": [spell(("aux", *key)) for key in conversion.taken],
        "assumed": list(conversion.assumed),
        "beside": list(result.extra_files),
        "arrays": len(plan.arrays),
        "renamed": len(plan.renamed),
        "rewritten": len(plan.rewritten),
        "moved": None if result.moved is None else _moved_json(result.moved),
        "bytes": plan.total_bytes,
        "predicted_peak_bytes": result.predicted_peak_bytes,
        "peak_memory_bytes": result.peak_memory_bytes,
        "verified": result.is_verified,
        "processes": result.processes,
        "seconds": round(result.seconds, 3),
        "plan": [
            {"to": spell(a.key), "array": notation(a.view), "how": a.how, "why": a.why}
            | {"from": describe(a.view)}
            for a in plan.arrays
        ],
    }


def _moved_json(moved: Moved) -> dict[str, Any]:
    return {
        "copied_files": moved.copied_files,
        "linked_files": moved.linked_files,
        "copied_chunks": moved.copied_chunks,
        "bytes": moved.nbytes,
        "notes": moved.notes,
    }


def conversion_text(result: Result) -> str:
    """What was recognised and done, in a few lines; with a dry run, the plan array by array."""
    conversion, plan = result.conversion, result.plan
    verb = "would convert" if result.is_dry_run else "converted"
    lines = [f"{verb} {conversion.source.layout} to {conversion.layout}"]
    lines += [f"  {name:<9} {text}" for name, text in _rows(result)]
    if result.is_dry_run:
        lines += ["", *_plan_rows(result), "", f"{_totals(result)}; {_predicted(result)}"]
    else:
        lines.append(_totals(result))
        lines.append(
            f"{format_bytes(plan.total_bytes)} in {result.seconds:.2f} s{_by(result)};"
            f" peak memory {format_bytes(result.peak_memory_bytes)}"
        )
    return "\n".join(lines)


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
    conversion = result.conversion
    yield "source", result.source_path
    yield "target", result.target_path
    yield "known by", "; ".join(conversion.source.evidence)
    for note in conversion.source.notes:
        yield "decided", note
    for text in conversion.source.renamed:
        yield "renamed", text
    for group in conversion.source.groups:
        yield "layers", _layers_text(conversion, group)
    moments = _moments(conversion)
    if moments:
        yield "moments", f"{', '.join(moments)}: arranged as the parameters"
    step = _step(conversion)
    if step:
        yield "step", step
    for text in _left_out(conversion):
        yield "left out", text
    if conversion.taken:
        yield "from like", f"{counted(len(conversion.taken), 'array')} of aux"
    for text in conversion.assumed:
        yield "assumed", text
    for name in result.extra_files:
        yield "beside", name
    if result.moved is not None:
        yield from _moved(result.moved)
    if result.is_verified:
        yield "verified", "read back and compared with the source before it was committed"


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


def arranged(arrangement: Arrangement | None) -> str:
    """How a layer group is arranged, in words."""
    if arrangement is None:
        return "stacked"
    if isinstance(arrangement, Apart):
        return "apart as name_0" if arrangement.spelling == "suffix" else "apart as name/0"
    blocks = f" in blocks of {arrangement.period}" if isinstance(arrangement, Blocks) else ""
    return f"stacked on axis {arrangement.axis}{blocks}"


def _layers_json(conversion: Conversion, group: LayerGroup) -> dict[str, Any]:
    return {
        "group": spell(group.key),
        "count": len(group.indices) or None,
        "before": arranged(group.arrangement),
        "after": arranged(conversion.arrangements[group.key]),
    }


def _moments(conversion: Conversion) -> list[str]:
    state = conversion.state
    trees = parameter_trees(state.opt_state or {}, state.params)
    return [spell(("opt_state", *prefix)) for prefix in trees]


def _step(conversion: Conversion) -> str:
    """Where the step was and is, when it has moved or changed its type."""

    def found(step: View | None, tree: Tree) -> str | None:
        same = (
            key
            for key, leaf in tree.items()
            if step and not isinstance(leaf, Literal) and first_source(leaf) == first_source(step)
        )
        key: Key = next(same, ("step",))
        return f"{'/'.join(map(str, key))} {notation(tree[key])}" if key in tree else None

    before = found(conversion.source.state.step, conversion.source.tree)
    after = found(conversion.state.step, conversion.tree)
    return "" if before == after else f"{before or 'none'} -> {after or 'none'}"


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


def describe(view: View) -> str:
    """How a view is made, in words.

    >>> describe(Slot(Source("w", (16, 3), "float32", (16, 3)), 1, 2))
    'w, slot 2 of axis 1'
    """
    match view:
        case Source(name=name):
            return name
        case Slot(of, axis, index):
            return f"{describe(of)}, slot {index} of axis {axis}"
        case Part(of, axis, start, stop):
            return f"{describe(of)}, {start} to {stop} of axis {axis}"
        case MovedView(of, source, target):
            return f"{describe(of)}, axis {source} moved to {target}"
        case Scaled(of, factor):
            return f"{describe(of)}, times {factor:.6g}"
        case Cast(of, dtype):
            return f"{describe(of)}, as {dtype}"
        case Stack(items, axis):
            first, last = describe(items[0]), describe(items[-1])
            return f"{first} to {last}, stacked on axis {axis}"
        case Formula(operation, operands):
            return f"{describe(operands[0])}, {operation}"
        case Concat(items, axis):
            if len(items) > 4:
                ends = describe(items[0]), describe(items[-1])
                return f"{ends[0]} to {ends[1]}, end to end on axis {axis}"
            return f"{' and '.join(map(describe, items))}, end to end on axis {axis}"
