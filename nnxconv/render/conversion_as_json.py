"""The result of `convert`, for programs."""

from typing import Any

from nnxconv.commands.result import Result
from nnxconv.layouts import Conversion, restoring_converted
from nnxconv.render.wording import arranged, describe, moments_of
from nnxconv.state import LayerGroup
from nnxconv.storage.transfer import Moved
from nnxconv.tree import notation, spell


def conversion_json(result: Result) -> dict[str, Any]:
    """Everything about a conversion as JSON values."""
    plan, account = result.plan, result.account
    left_out = account.left_out or {}
    return {
        **_meaning_json(result),
        "dry_run": result.is_dry_run,
        "states": [
            {
                "at": spell(part.located.at),
                "from": part.conversion.source.layout,
                "to": part.conversion.layout,
                "copy_of": None if part.located.copy_of is None else spell(part.located.copy_of),
            }
            for part in result.whole.parts
        ],
        "leaves": account.total,
        "converted": len(account.converted),
        "kept": [spell(key) for key in account.kept],
        "left_out": [spell(key) for key in left_out],
        "reasons": {spell(key): reason for key, reason in left_out.items()},
        "beside": list(result.extra_files),
        "arrays": len(plan.arrays),
        "renamed": len(plan.renamed),
        "rewritten": len(plan.rewritten),
        "moved": None if result.moved is None else _moved_json(result.moved),
        "bytes": plan.total_bytes,
        "predicted_peak_bytes": result.predicted_peak_bytes,
        "peak_memory_bytes": result.peak_memory_bytes,
        "compression": _compression_json(result),
        "verified": result.is_verified,
        "processes": result.processes,
        "seconds": round(result.seconds, 3),
        "plan": [
            {"to": spell(a.key), "array": notation(a.view), "how": a.how, "why": a.why}
            | {"from": describe(a.view)}
            for a in plan.arrays
        ],
    }


def _meaning_json(result: Result) -> dict[str, Any]:
    """What the source and its first state are; of a tree without a state, its container alone."""
    conversion = result.whole.conversion
    source = None if conversion is None else conversion.source
    return {
        "source": {
            "path": result.source_path,
            "layout": None if source is None else source.layout,
            "evidence": [] if source is None else list(source.evidence),
            "decided": [] if source is None else list(source.notes),
        },
        "rename": [] if source is None else list(source.renamed),
        "target": {
            "path": result.target_path,
            "layout": None if conversion is None else conversion.layout,
            "restore": restoring_converted(result.whole, result.target_path) or None,
        },
        "layers": []
        if conversion is None
        else [_layers_json(conversion, group) for group in conversion.source.groups],
        "moments": [] if conversion is None else moments_of(conversion),
        "taken_from_like": []
        if conversion is None
        else [spell(("aux", *key)) for key in conversion.taken],
        "assumed": [] if conversion is None else list(conversion.assumed),
    }


def _compression_json(result: Result) -> dict[str, Any] | None:
    """What new chunks were asked to have, and how many arrays keep what they had."""
    if result.compression is None:
        return None
    return {"new": result.compression, "kept": len(result.plan.renamed)}


def _moved_json(moved: Moved) -> dict[str, Any]:
    return {
        "copied_files": moved.copied_files,
        "linked_files": moved.linked_files,
        "copied_chunks": moved.copied_chunks,
        "bytes": moved.nbytes,
        "notes": moved.notes,
    }


def _layers_json(conversion: Conversion, group: LayerGroup) -> dict[str, Any]:
    return {
        "group": spell(group.key),
        "count": len(group.indices) or None,
        "before": arranged(group.arrangement),
        "after": arranged(conversion.arrangements[group.key]),
    }
