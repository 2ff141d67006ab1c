"""What people do without nnxconv: restore everything, rearrange it in memory, save it.

python -m tests.benchmarks.eager convert SRC DST unstack|names|bf16|stack_bf16|to_safetensors|pax
python -m tests.benchmarks.eager from_safetensors SRC DST
python -m tests.benchmarks.eager compare A B
"""

import logging
import os
import sys
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from safetensors.numpy import load_file, save_file


def main() -> None:
    """Runs the command."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    command, first, second, *rest = sys.argv[1:]
    with ocp.PyTreeCheckpointer() as checkpointer:
        if command == "from_safetensors":
            checkpointer.save(_absolute(second), _from_file(first))
            return
        if rest == ["pax"]:
            checkpointer.save(_absolute(second), _from_pax(first))
            return
        a = checkpointer.restore(_absolute(first))
        if command == "compare":
            b = checkpointer.restore(_absolute(second))
            print("match" if _all_close(_model(a), _model(b)) else "differ")
        elif rest == ["to_safetensors"]:
            named = {key: np.ascontiguousarray(leaf) for key, leaf in _flat(_model(a))}
            Path(second).mkdir()
            save_file(named, Path(second) / "model.safetensors")
        else:
            checkpointer.save(_absolute(second), _converted(a, rest[0]))


def _absolute(path: str) -> str:
    return path if path.startswith("gs://") else os.path.abspath(path)  # noqa: PTH100


def _model(tree: Any) -> Any:
    """The parameters, their layers apart, without wrappers."""
    if "model" in tree:
        return _apart(_bare(tree["model"]))
    return _apart(tree["params"]["params"])


def _converted(tree: Any, how: str) -> Any:
    if how == "stack_bf16":
        return _converted({"params": {"params": _together(tree["params"]["params"])}}, "bf16")
    if how == "bf16":
        return _wrapped(
            _map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16), tree["params"]["params"])
        )
    arrange = _apart if how == "unstack" else lambda model: model
    model = arrange(tree["params"]["params"])
    if not tree.get("opt_state"):
        return {"model": _wrapped(model), "optimizer": {"step": np.asarray(0, np.uint32)}}
    adam = tree["opt_state"][0]
    moments = {name: arrange(adam[name]["params"]) for name in ("mu", "nu")}
    optimizer = {
        "step": np.asarray(tree["step"], np.uint32),
        "opt_state": [{"count": adam["count"], **moments}, None, None],
    }
    return {"model": _wrapped(model), "optimizer": optimizer}


def _apart(model: Any) -> Any:
    decoder = model.get("decoder", {})
    layers = decoder.get("layers")
    if layers is None or "0" in layers:
        return model
    count = layers["norm"]["scale"].shape[1]
    each = {str(i): _map(lambda x, i=i: np.take(x, i, 1), layers) for i in range(count)}
    return {**model, "decoder": {"layers": each}}


def _together(model: Any) -> Any:
    layers = [model["decoder"][f"layers_{n}"] for n in range(len(model["decoder"]))]
    return {"decoder": {"layers": _stacked(layers)}}


def _stacked(layers: Any) -> Any:
    if isinstance(layers[0], dict):
        return {name: _stacked([layer[name] for layer in layers]) for name in layers[0]}
    return np.stack(layers, 1)


def _from_file(folder: str) -> Any:
    """The tree of one file of safetensors, its names taken apart at their dots."""
    tree: Any = {}
    for name, values in load_file(Path(folder) / "model.safetensors").items():
        *above, last = name.split(".")
        branch = tree
        for part in above:
            branch = branch.setdefault(part, {})
        branch[last] = values
    return {"params": {"params": tree}}


def _from_pax(folder: str) -> Any:
    """Every leaf of a Pax checkpoint, its layers on axis 1."""
    tree = {}
    for file in sorted(Path(folder).rglob(".zarray")):
        kvstore = {"driver": "file", "path": f"{file.parent}/"}
        values = ts.open({"driver": "zarr", "kvstore": kvstore}).result().read().result()
        is_stacked = "repeat" in file.parent.name and values.ndim > 1
        tree[file.parent.name] = (
            np.ascontiguousarray(np.moveaxis(values, 0, 1)) if is_stacked else values
        )
    return tree


def _flat(tree: Any, above: str = "") -> Any:
    for name, branch in tree.items():
        if isinstance(branch, dict):
            yield from _flat(branch, f"{above}{name}.")
        else:
            yield above + name, branch


def _wrapped(tree: Any) -> Any:
    return _map(lambda leaf: {"value": leaf}, tree)


def _bare(tree: Any) -> Any:
    if isinstance(tree, dict):
        return tree["value"] if set(tree) == {"value"} else {k: _bare(v) for k, v in tree.items()}
    return tree


def _map(function: Any, tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _map(function, branch) for name, branch in tree.items()}
    return function(tree)


def _all_close(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_all_close(a[name], b[name]) for name in a)
    return bool(np.allclose(a, b, atol=1e-5, rtol=1e-5))


if __name__ == "__main__":
    main()
