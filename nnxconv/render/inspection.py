"""What `inspect` found, for people and for programs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nnxconv.commands.inspection import ChainElement, Inspection
from nnxconv.layouts import RECORD, Located, replicas_of, restoring, unsure_of
from nnxconv.render.wording import arranged
from nnxconv.storage.orbax import array_name
from nnxconv.tree import (
    Key,
    Literal,
    Source,
    counted,
    format_bytes,
    in_order,
    matches,
    notation,
    spell,
)


def inspection_json(found: Inspection) -> dict[str, Any]:
    """Everything about a checkpoint as JSON values, its whole tree included."""
    understood = found.understood
    return {
        "path": str(found.item.path),
        "layout": None if understood is None else understood.codec.name,
        "evidence": [] if understood is None else list(understood.evidence),
        "decided": [] if understood is None else list(understood.notes),
        "problem": found.problem or None,
        "container": {
            "kind": _container(found).partition(",")[0] if found.item.is_raw else "orbax",
            "ocdbt": found.item.use_ocdbt,
            "zarr_format": 3 if found.item.use_zarr3 else 2,
            "processes": list(found.processes),
            "compressors": dict(found.compressors),
            "chunks": dict(found.chunks),
        },
        "states": [_state_json(found, located) for located in found.survey.states],
        "ledger": {
            role: {"leaves": amount.leaves, "bytes": amount.nbytes}
            for role, amount in found.ledger.items()
        },
        "restore": restoring(found.survey, str(found.item.path)) or None,
        "step": found.step if not isinstance(found.step, tuple) else list(found.step),
        "layers": [] if understood is None else [_layers_json(g) for g in understood.groups],
        "parts": {
            name: {"arrays": part.arrays, "elements": part.elements, "bytes": part.nbytes}
            for name, part in found.parts.items()
        },
        "optimizer": [
            {"place": e.place, "names": list(e.names), "moments": list(e.moments)}
            for e in found.chain
        ],
        "dtypes": dict(found.dtypes),
        "custom_metadata": dict(found.custom_metadata),
        "shardings": {name: dict(sharding) for name, sharding in found.shardings.items()},
        "tree": [
            {"key": list(key), "array": notation(leaf), "value_type": found.item.value_types[key]}
            | ({"chunks": list(leaf.chunks)} if isinstance(leaf, Source) else {})
            for key, leaf in found.item.tree.items()
        ],
    }


def _state_json(found: Inspection, located: Located) -> dict[str, Any]:
    """One state: where it stands, what it is, and how many arrays of parameters it has."""
    roles = found.survey.roles
    stored = located.stored.values()
    return {
        "at": spell(located.at),
        "layout": located.understood.layout,
        "parameters": sum(roles[key] == "parameters" for key in stored),
        "evidence": list(located.understood.evidence),
        "unsure": unsure_of([located]),
        "replicas": replicas_of(located.understood.as_stored) or None,
        "copies": [spell(c.at) for c in found.survey.copies if c.copy_of == located.at],
    }


def _layers_json(group: Any) -> dict[str, Any]:
    return {
        "group": spell(group.key),
        "count": len(group.indices) or None,
        "arrangement": arranged(group.arrangement),
        "problem": group.problem or None,
    }


def inspection_text(
    found: Inspection,
    *,
    tree: bool = False,
    depth: int | None = None,
    filters: Sequence[str] = (),
    shardings: bool = False,
) -> str:
    """What a person wants to know before converting; the tree and shardings where asked for."""
    lines = [str(found.item.path) + (f" ({found.choice})" if found.choice else "")]
    lines += [f"  {name:<10} {text}" for name, text in _rows(found)]
    if tree or depth is not None or (filters and not shardings):
        lines += ["", *_tree_rows(found, depth, filters)]
    if shardings:
        lines += ["", *_sharding_rows(found, filters)]
    return "\n".join(lines)


def _ledger_rows(found: Inspection) -> Iterator[tuple[str, str]]:
    """Leaves and bytes of each role; their sum is what Orbax counts."""
    told = [(str(role), a.leaves, a.nbytes) for role, a in found.ledger.items() if a.leaves]
    told.append(("together", sum(row[1] for row in told), sum(row[2] for row in told)))
    rows = [(name, counted(n, "leaf", "leaves"), format_bytes(size)) for name, n, size in told]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for place, (name, leaves, size) in enumerate(rows):
        text = f"{name:<{widths[0]}}  {leaves:>{widths[1]}}  {size:>{widths[2]}}"
        yield "" if place else "roles", text


def _rows(found: Inspection) -> Iterator[tuple[str, str]]:
    understood = found.understood
    if understood is None:
        yield from _unknown_rows(found)
    elif found.is_one_at_the_root:
        yield "layout", f"{understood.codec.name}: {'; '.join(understood.evidence)}"
        for note in understood.notes:
            yield "", note
    else:
        for located in found.survey.states:
            one = located.understood
            at = spell(located.at) or "at the root"
            yield "state", f"{at}: {one.codec.name}: {'; '.join(one.evidence)}"
    for text in unsure_of(found.survey.states):
        yield "unsure", text
    yield from _diloco_rows(found)
    for copy in found.survey.copies:
        of = f" of `{spell(copy.copy_of)}`" if copy.copy_of else ""
        yield "copy", f"{spell(copy.at)}: a second copy of the parameters{of}"
    yield "container", _container(found)
    if not found.item.is_raw:
        yield "stored", f"{_counted(found.chunks)}; compressed by {_counted(found.compressors)}"
    if found.processes:
        yield "written by", ", ".join(found.processes)
    if isinstance(found.step, tuple):
        yield (
            "step",
            ", ".join(f"{step:,}" for step in dict.fromkeys(found.step))
            + (f" in {len(found.step)} replicas"),
        )
    elif found.step is not None:
        yield "step", f"{found.step:,}"
    replicas = replicas_of(understood.as_stored) if understood else 0
    for group in understood.groups if understood else ():
        count = f"{counted(len(group.indices), 'layer')}, " if group.indices else ""
        each = f", in each of {counted(replicas, 'replica')}" if replicas else ""
        yield "layers", f"{spell(group.key)}: {count}{arranged(group.arrangement)}{each}"
        if group.problem and not replicas:
            yield "", group.problem
    for name, part in found.parts.items():
        if name != "step":
            size = format_bytes(part.nbytes)
            elements = counted(part.elements, "element")
            yield name, f"{counted(part.arrays, 'array')}, {elements}, {size}"
    for element in found.chain:
        yield "optimizer", _element(element)
    yield from _ledger_rows(found)
    yield "types", _counted(found.dtypes)
    for name, value in found.custom_metadata.items():
        if name == RECORD:
            yield "converted", f"by nnxconv, from {', '.join(_layouts_in(value))}"
        else:
            yield "metadata", f"{name} = {_short(value)}"
    line = restoring(found.survey, str(found.item.path))
    if line:
        yield "restore", line


def _diloco_rows(found: Inspection) -> Iterator[tuple[str, str]]:
    """What the parts of a run of DiLoCo are: one outer state, and replicas that train by turns."""
    for located in found.survey.states:
        count = replicas_of(located.understood.as_stored)
        if located.at[-1:] == ("inner_state",) and count:
            here = spell(located.at)
            yield "DiLoCo", "the weights and their optimizer at the root are the outer ones"
            yield "", f"`{here}` is {counted(count, 'inner replica')}: `--at {here} --replica 0`"


def _layouts_in(record: Mapping[str, Any]) -> list[str]:
    """The layouts that a record names, of each of its states; each once."""
    records = [one.get("record", {}) for one in record.get("states", [])] or [record]
    return list(dict.fromkeys(name for one in records for name in one.get("forms", {})))


def _unknown_rows(found: Inspection) -> Iterator[tuple[str, str]]:
    """What the tree is not, and what stands at its root."""
    yield "layout", f"unknown: {found.problem}"
    problem = found.survey.problem
    for detail in () if problem is None else problem.details:
        yield "", detail


def _container(found: Inspection) -> str:
    if found.item.is_raw:
        files = {
            one.metadata["file"] for one in found.item.formats.values() if one.metadata.get("file")
        }
        endings = {".safetensors": "safetensors", ".npz": "npz"}
        kind = endings.get(f".{next(iter(files), '').rpartition('.')[2]}", "msgpack")
        return f"{kind}, {counted(len(files), 'file')}"
    kind = "OCDBT" if found.item.use_ocdbt else "a directory per array"
    return f"{kind}, zarr{3 if found.item.use_zarr3 else 2}"


def _counted(counts: Mapping[str, int]) -> str:
    """`28 whole, 2 in 4 chunks`: the commonest first."""
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{count:,} {name}" for name, count in ordered) or "nothing"


def _element(element: ChainElement) -> str:
    others = [name for name in element.names if name not in element.moments]
    told = [*others, *(f"{name} (follows the parameters)" for name in element.moments)]
    return f"{element.place or 'state'}: {', '.join(told)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _tree_rows(found: Inspection, depth: int | None, filters: Sequence[str]) -> Iterator[str]:
    """One line per leaf as stored, or per subtree below `depth`."""
    rows: dict[str, str] = {}
    counts: dict[str, int] = {}
    for key in in_order(found.item.tree):
        name = spell(key)
        if filters and not any(matches(name, glob) for glob in filters):
            continue
        if depth is not None and len(key) > depth:
            name = spell(key[:depth])
            counts[name] = counts.get(name, 0) + 1
            rows[name] = "1 leaf" if counts[name] == 1 else f"{counts[name]:,} leaves"
        else:
            rows[name] = _stored(found, key)
    width = max(map(len, rows), default=0)
    for name, text in rows.items():
        yield f"{name:<{width}}  {text}"


def _stored(found: Inspection, key: Key) -> str:
    """Type and shape, and the shape of the chunks where there are several."""
    leaf = found.item.tree[key]
    if not isinstance(leaf, Source) or leaf.chunks == leaf.shape:
        return notation(leaf)
    return f"{notation(leaf)} in chunks of [{','.join(map(str, leaf.chunks))}]"


def _sharding_rows(found: Inspection, filters: Sequence[str]) -> Iterator[str]:
    """Mesh and partition spec of every array, as the writer saved them."""
    if not found.shardings:
        yield "no shardings were saved"
        return
    for key in in_order(found.item.tree):
        name = spell(key)
        if isinstance(found.item.tree[key], Literal):
            continue
        if filters and not any(matches(name, glob) for glob in filters):
            continue
        sharding = found.shardings.get(array_name(key))
        yield f"{name}  {'not saved' if sharding is None else _sharding(sharding)}"


def _sharding(sharding: Mapping[str, Any]) -> str:
    """`P('fsdp', None) on data=2, fsdp=4`: mesh axes of one device are left out."""
    if "partition_spec" not in sharding:
        return str(sharding.get("sharding_type", "unknown"))
    axes = zip(sharding.get("axis_names", ()), sharding.get("shape", ()), strict=False)
    mesh = ", ".join(f"{name}={size}" for name, size in axes if size > 1)
    spec = ", ".join(_axis(part) for part in sharding["partition_spec"])
    return f"P({spec}) on {mesh or 'one device'}"


def _axis(part: Any) -> str:
    if isinstance(part, list):
        return "(" + ", ".join(map(repr, part)) + ")"
    return repr(part)
