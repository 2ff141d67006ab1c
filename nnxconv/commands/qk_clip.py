"""`qk-clip`: attention weights of a checkpoint, scaled down where logits grew too large."""

import json
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from typing import Literal as OneOf

import numpy as np

from nnxconv.commands.boundary import plainly
from nnxconv.commands.carrying_out import Way
from nnxconv.commands.computing import opened, write_computed
from nnxconv.commands.options import documented
from nnxconv.commands.result import Result
from nnxconv.errors import BadInput
from nnxconv.layouts import Options
from nnxconv.running import Watcher, ignore, share_one_heap
from nnxconv.state import LOGITS, attention_modules, clip, logits_of, refuse_infinite
from nnxconv.tree import Key, Source, counted, spell


@plainly
@documented
def qk_clip_checkpoint(
    source_path: str,
    target_path: str,
    *,
    max_logits: str,
    threshold: float,
    qk_nope_head_dim: int,
    missing: OneOf["error", "keep"] = "error",
    precision: str = "float32",
    step: int | None = None,
    at: str | None = None,
    max_memory: int | str = "2GiB",
    compression: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    verify: bool = False,
    resume: bool = False,
    allow_uncommitted: bool = False,
    watch: Watcher = ignore,
) -> Result:
    """Clips the queries and keys of multi-head latent attention, head by head.

    Kernels of layers in which no logit exceeds the threshold are taken over as they are, and so is
    everything else, the optimizer's moments included. `state.qk_clip` has the formula.

    Returns:
      What was done, as `convert` returns it.

    Raises:
      BadInput: attention is not multi-head latent, a layer has no recorded logits, or sizes do not
        fit.
    """
    started = time.monotonic()
    share_one_heap()
    check_numbers(threshold, qk_nope_head_dim)
    source = opened(source_path, step, how=Options(at=at), allow_uncommitted=allow_uncommitted)
    state = source.understood.state
    modules = attention_modules(state.params)
    logits = logits_of(modules, read_logits(max_logits))
    refuse_infinite(logits)
    without = without_logits(modules, logits, missing, max_logits)
    params, changed = clip(state.params, logits, threshold, qk_nope_head_dim, precision)
    kernels = counted(len(changed), "kernel")
    notes = [
        f"{kernels} of {counted(len(modules), 'layer')} clipped to {threshold:g}",
        "the optimizer's moments are as they are",
    ]
    if without:
        notes.append(f"no recorded logits, as they are: {', '.join(without)}")
    way = Way(max_memory, overwrite, dry_run, verify, resume=resume, watch=watch)
    way = replace(way, compression=compression)
    return write_computed(
        source,
        replace(state, params=params),
        [],
        target_path,
        way,
        deed=(f"clip {kernels}", f"clipped {kernels}"),
        notes=notes if state.opt_state is not None else [n for n in notes if "moments" not in n],
        options={"max_logits": max_logits, "threshold": threshold, "nope": qk_nope_head_dim}
        | {"at": at},
        started=started,
    )


def check_numbers(threshold: float, nope: int) -> None:
    """Refuses a threshold and a size that make no sense.

    Raises:
      BadInput: one does not.
    """
    if not threshold > 0:
        raise BadInput(f"`--threshold {threshold:g}` is not above 0")
    if nope < 1:
        raise BadInput(f"`--qk_nope_head_dim {nope}` is not above 0")


def without_logits(
    modules: Sequence[Key], logits: Mapping[Key, np.ndarray], missing: str, where: str
) -> list[str]:
    """The modules that have no recorded logits.

    Raises:
      BadInput: there are some, and `missing` is not `keep`.
    """
    without = [spell(module) for module in modules if module not in logits]
    if without and missing != "keep":
        raise BadInput(
            f"{counted(len(without), 'layer')} of {len(modules)} have no recorded logits",
            where=where,
            details=without,
            hint="`--missing keep` leaves them as they are",
        )
    return without


def read_logits(path: str) -> dict[Key, np.ndarray]:
    """The largest logits that a run recorded, by path: of a `.npz`, a `.json`, or an Orbax item.

    Raises:
      BadInput: there are none, or they cannot be read.
    """
    if path.endswith(".npz"):
        found = _of_npz(path)
    elif path.endswith(".json"):
        found = _of_json(path)
    else:
        found = _of_item(path)
    logits = {key: values for key, values in found.items() if LOGITS in key}
    if not logits:
        raise BadInput(f"`{path}` has no `{LOGITS}`")
    others = [key for key, values in logits.items() if not _is_numeric(values)]
    if others:
        raise BadInput(
            f"{counted(len(others), 'recorded maximum', 'recorded maxima')} of `{path}` are no"
            " real numbers",
            details=[f"{spell(key)}  {logits[key].dtype}, {logits[key].shape}" for key in others],
        )
    return logits


def _is_numeric(values: np.ndarray) -> bool:
    """True for real numbers, at least one."""
    return values.size > 0 and (values.dtype.kind in "fiu" or values.dtype.name == "bfloat16")


def _of_npz(path: str) -> dict[Key, np.ndarray]:
    if not Path(path).exists():
        raise BadInput(f"`{path}` does not exist")
    if not zipfile.is_zipfile(path):
        raise BadInput(f"`{path}` is no npz file")
    try:
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {_path(name): file[name] for name in file.files if LOGITS in name}
    except (*_NO_NPZ, zlib.error) as error:
        raise BadInput(f"`{path}` cannot be read: {error}") from error


_NO_NPZ = (
    *(OSError, ValueError, EOFError, SyntaxError, zipfile.BadZipFile, AttributeError, TypeError),
    *(NotImplementedError, RuntimeError, MemoryError, RecursionError),
)
"""What numpy raises for files that it did not write."""


def _path(name: str) -> Key:
    """The parts of a dotted or slashed name."""
    return tuple(name.replace("/", ".").split("."))


def _of_json(path: str) -> dict[Key, np.ndarray]:
    from nnxconv.storage.files import read_text

    text = read_text(path)
    if text is None:
        raise BadInput(f"`{path}` does not exist")
    try:
        return _nested(json.loads(text, object_pairs_hook=_without_doubles), ())
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadInput(f"`{path}` is not a JSON tree of numbers") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _nested(value: Any, path: Key) -> dict[Key, np.ndarray]:
    """Arrays of a tree of mappings; lists of numbers are arrays."""
    if isinstance(value, Mapping):
        return {k: v for name, one in value.items() for k, v in _nested(one, (*path, name)).items()}
    values = np.array(value)
    return {path: values.astype(np.float32) if values.dtype.kind in "fiu" else values}


def _of_item(path: str) -> dict[Key, np.ndarray]:
    from nnxconv.storage import run
    from nnxconv.storage.orbax import Reader, locate, open_item

    item = open_item(locate(path, None, has_step=False), is_read=True)
    reader = Reader(item.stores)
    return {
        key: run(reader.read(leaf, tuple(slice(0, size) for size in leaf.shape)))
        for key, leaf in item.tree.items()
        if isinstance(leaf, Source) and LOGITS in key
    }
