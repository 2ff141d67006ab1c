"""Small checkpoints in known layouts, built from a few readable lines and saved with Orbax.

```
save_item(path, linen())                       path/_METADATA
save_step(path, linen())                       path/items/_METADATA, path/_CHECKPOINT_METADATA
save_root(path, {1: linen(), 2: linen()})      path/1/items/_METADATA, path/2/...
```
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from tests.support import saved

SHAPES = {"mlp": {"wi": {"kernel": (16, 32)}, "wo": {"kernel": (32, 16)}}, "norm": {"scale": (16,)}}
"""The parameters of one layer."""

Tree = dict[str, Any]


def values(shape: tuple[int, ...], seed: int = 0, dtype: str = "float32") -> np.ndarray:
    """Numbers that no compressor makes smaller."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def weights(layers: int = 3, *, axis: int | None = None, spelling: str = "layers_{}") -> Tree:
    """An embedding and layers: apart, or stacked along `axis`."""
    apart = [_layer(seed=10 * index) for index in range(layers)]
    decoder: Tree = {"norm": {"scale": values((16,), 1)}}
    if axis is None:
        for index, layer in enumerate(apart):
            _put(decoder, spelling.format(index).split("/"), layer)
    else:
        decoder["layers"] = stacked(apart, axis)
    return {"embed": {"embedding": values((64, 16), 2)}, "decoder": decoder}


def linen(layers: int = 3, *, axis: int | None = None, step: int = 7) -> Tree:
    """What flax's `TrainState` with `optax.adamw` saves."""
    params = {"params": weights(layers, axis=axis)}
    adam = {"count": np.int32(step), "mu": params, "nu": _map(np.square, params)}
    optimizer = [adam, None, {"count": np.int32(step)}]
    return {"step": np.asarray(step, np.int32), "params": params, "opt_state": _arrays(optimizer)}


def linen_with(kernels: Sequence[np.ndarray], *, axis: int | None = None) -> Tree:
    """`linen` with a layer for each of these kernels, and moments equal to the parameters."""
    tree = linen(len(kernels), axis=axis)
    params = tree["params"]["params"]
    if axis is None:
        for index, kernel in enumerate(kernels):
            params["decoder"][f"layers_{index}"]["mlp"]["wi"]["kernel"] = kernel
    else:
        params["decoder"]["layers"]["mlp"]["wi"]["kernel"] = np.stack(kernels, axis)
    moments = {name: {"params": params} for name in ("mu", "nu")}
    adam, *others = tree["opt_state"]
    return {**tree, "opt_state": [{**adam, **moments}, *others]}


def maxtext(layers: int = 3, *, axis: int | None = 1, step: int = 7) -> Tree:
    """What MaxText saves with `pure_nnx`: the Linen layout and, beside it, `nnx_aux`."""
    rngs = {"params": {"count": np.uint32(3), "key": np.arange(2, dtype=np.uint32)}}
    aux = {"model": {"decoder": {"dropout": {"rngs": rngs}}}}
    return {**linen(layers, axis=axis, step=step), "nnx_aux": _arrays(aux)}


def nnx_pure(layers: int = 3, *, axis: int | None = None, step: int = 7) -> Tree:
    """What `nnx.to_pure_dict` gives for a model and an `nnx.Optimizer` with `optax.adamw`."""
    model = weights(layers, axis=axis, spelling="layers/{}")
    adam = {"count": np.int32(step), "mu": model, "nu": _map(np.square, model)}
    chain = {"0": adam, "2": {"count": np.int32(step)}}
    return _arrays({"model": model, "optimizer": {"step": np.uint32(step), "opt_state": chain}})


def nnx(layers: int = 3, *, axis: int | None = None, step: int = 7) -> Tree:
    """The `nnx` layout: weights wrapped in `value`, the optimizer's containers those of Linen."""
    tree = nnx_pure(layers, axis=axis, step=step)
    chain = tree["optimizer"]["opt_state"]
    optimizer = {**tree["optimizer"], "opt_state": [chain["0"], None, chain["2"]]}
    return {"model": wrapped(tree["model"]), "optimizer": optimizer}


def nnx_state(layers: int = 3, *, axis: int | None = None, step: int = 7) -> Tree:
    """What `nnx.state(...)` saves: every leaf wrapped in `value`."""
    return wrapped(nnx_pure(layers, axis=axis, step=step))


def wrapped(tree: Any) -> Any:
    """The tree with every leaf `x` as `{"value": x}`."""
    return _map(lambda leaf: {"value": leaf}, tree)


def save_item(
    path: Path,
    tree: Tree,
    *,
    use_ocdbt: bool = True,
    use_zarr3: bool = False,
    chunk_bytes: int | None = None,
    custom_metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Saves one item directory."""

    def save(path: Path) -> None:
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)
        _save(handler, path, _arguments(tree, chunk_bytes, custom_metadata), None)

    options = (use_ocdbt, use_zarr3, chunk_bytes, custom_metadata)
    return saved.once(path, ("item", tree, options), save)


def save_step(
    path: Path,
    tree: Tree,
    *,
    item: str = "items",
    extra: Mapping[str, Any] | None = None,
    use_ocdbt: bool = True,
    use_zarr3: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Saves a step: the tree as `item`, and `extra` as further items in JSON."""
    others = dict(extra or {})

    def save(path: Path) -> None:
        handlers: dict[str, Any] = {name: ocp.JsonCheckpointHandler() for name in others}
        handlers[item] = ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)
        arguments = {name: ocp.args.JsonSave(content) for name, content in others.items()}
        arguments[item] = _arguments(tree)
        handler = ocp.CompositeCheckpointHandler(**handlers)
        _save(handler, path, ocp.args.Composite(**arguments), custom_metadata)

    options = (item, others, use_ocdbt, use_zarr3, custom_metadata)
    return saved.once(path, ("step", tree, options), save)


def save_root(path: Path, steps: Mapping[int, Tree], **options: Any) -> Path:
    """Saves numeric steps as `CheckpointManager` does; options are those of `save_step`."""
    for step, tree in steps.items():
        save_step(path / str(step), tree, **options)
    return path


def save_with_manager(path: Path, steps: Mapping[int, Tree]) -> Path:
    """Saves steps with `CheckpointManager` itself, whose item is called `default`."""
    with ocp.CheckpointManager(path) as manager:
        for step, tree in steps.items():
            manager.save(step, args=ocp.args.PyTreeSave(tree))
    return path


def restore(item: Path) -> Any:
    """What Orbax reads from an item when it is told nothing."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(item)


def array_keys(item: Path) -> dict[str, str]:
    """The keys of an item's key-value store, by the array's name: one key of metadata each."""
    metadata = json.loads((item / "_METADATA").read_text())
    base = {"driver": "file", "path": f"{item.resolve()}/"}
    spec = {"driver": "ocdbt", "base": base} if metadata["use_ocdbt"] else base
    found = [key.decode() for key in ts.KvStore.open(spec).result().list().result()]
    return {key.rpartition("/")[0]: key for key in found if key.endswith((".zarray", "zarr.json"))}


def _save(handler: Any, path: Path, arguments: Any, custom_metadata: Any) -> None:
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(path, args=arguments, custom_metadata=custom_metadata)
    finally:
        logger.setLevel(level)


def _arguments(
    tree: Tree, chunk_bytes: int | None = None, custom_metadata: Mapping[str, Any] | None = None
) -> Any:
    chunked = ocp.SaveArgs(chunk_byte_size=chunk_bytes)
    save_args = None if chunk_bytes is None else _map(lambda _: chunked, tree)
    custom = dict(custom_metadata) if custom_metadata else None
    return ocp.args.PyTreeSave(tree, save_args=save_args, custom_metadata=custom)


def _layer(seed: int) -> Tree:
    return _map(lambda shape: values(shape, seed + len(shape)), SHAPES)


def stacked(layers: Sequence[Tree], axis: int) -> Tree:
    """Layers as one tree, stacked on an axis, or on the last of what has fewer."""
    return _map(lambda *parts: np.stack(parts, min(axis, parts[0].ndim)), *layers)


def _put(tree: Tree, path: list[str], leaf: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf


def _arrays(tree: Any) -> Any:
    return _map(lambda leaf: leaf if leaf is None else np.asarray(leaf), tree)


def _map(function: Any, tree: Any, *others: Any) -> Any:
    """The tree with `function` applied to its leaves; tuples are shapes, so they are leaves."""
    if isinstance(tree, dict):
        return {k: _map(function, v, *(other[k] for other in others)) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_map(function, *parts) for parts in zip(tree, *others, strict=True)]
    return function(tree, *others)
