"""Pax GPT-3 checkpoints as paxml writes them, and the MaxText trees that they must become.

```
checkpoints/checkpoint_00000005/                                 write(path, leaves())
├── metadata/metadata                                            not in version 0
└── state/                                                       not in version 0
    ├── step/.zarray, 0
    ├── mdl_vars.params.lm.final_ln.bias/.zarray, 0
    ├── opt_states_0.no_prefix_2.m.params.lm.final_ln.bias/...
    └── ...                                                      57 leaves in all
```

A leaf is a Zarr v2 array in a directory of its dotted name. Sizes are letters here, as in the
tables of the format: D embedding, N heads, H head dim, F mlp, V vocabulary, P positions, L layers.
"""

import base64
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

Leaves = dict[str, np.ndarray]
Tree = dict[str, Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a GPT-3, and three for queries, keys and values."""

    D: int
    N: int
    H: int
    F: int
    V: int
    P: int
    L: int

    def shape(self, dimensions: str) -> Shape:
        """The shape of an array, such as `(5, 3, 16, 2, 7)` for `L3DNH`."""
        return tuple(3 if letter == "3" else getattr(self, letter) for letter in dimensions)


SMALL = Sizes(D=16, N=2, H=7, F=28, V=41, P=22, L=5)
"""All different, none of them 3 and D not N times H: only so can a test see a swapped axis.

In the model of 175 billion parameters L equals N and D equals N times H, so nothing but values
tells a right axis from a wrong one.
"""

SIZES_175B = Sizes(D=12288, N=96, H=128, F=49152, V=50304, P=16384, L=96)
SIZES_52K = Sizes(D=16, N=2, H=8, F=64, V=1024, P=2048, L=1)

LAYERS = "lm.transformer.repeat.sub.x_layers_0."

PARAMETERS = {
    "lm.softmax.logits_ffn.linear.w": "DV",
    "lm.position_emb.emb_var": "PD",
    "lm.final_ln.scale": "D",
    "lm.final_ln.bias": "D",
    LAYERS + "layer_norm.scale": "LD",
    LAYERS + "layer_norm.bias": "LD",
    LAYERS + "ff_layer.layer_norm.scale": "LD",
    LAYERS + "ff_layer.layer_norm.bias": "LD",
    LAYERS + "self_attention.combined_qkv.w": "L3DNH",
    LAYERS + "self_attention.combined_qkv.b": "L3NH",
    LAYERS + "self_attention.post.w": "LDNH",
    LAYERS + "self_attention.post.b": "LD",
    LAYERS + "ff_layer.ffn_layer1.linear.w": "LDF",
    LAYERS + "ff_layer.ffn_layer1.bias.b": "LF",
    LAYERS + "ff_layer.ffn_layer2.linear.w": "LFD",
    LAYERS + "ff_layer.ffn_layer2.bias.b": "LD",
}
"""The 16 parameters, and what their dimensions are."""

CHUNKS_175B: dict[str, Shape] = {
    "lm.softmax.logits_ffn.linear.w": (192, 2096),
    "lm.position_emb.emb_var": (256, 512),
    LAYERS + "self_attention.combined_qkv.w": (96, 3, 192, 4, 128),
    LAYERS + "self_attention.post.w": (96, 192, 4, 128),
    LAYERS + "ff_layer.ffn_layer1.linear.w": (96, 192, 2048),
    LAYERS + "ff_layer.ffn_layer2.linear.w": (96, 2048, 192),
}
"""The chunks of the published checkpoint, which are the shards of 64 by 24 chips."""

COMPRESSORS: dict[str | None, Any] = {
    None: None,
    "gzip": {"id": "gzip", "level": 1},
    "zlib": {"id": "zlib", "level": 1},
    "zstd": {"id": "zstd", "level": 1},
    "blosc": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0},
}


def cut(sizes: Sizes, **lengths: int) -> dict[str, Shape]:
    """Chunks of every parameter, so long in the dimensions that are named, whole in the others."""
    return {
        name: tuple(
            lengths.get(letter, size)
            for letter, size in zip(letters, sizes.shape(letters), strict=True)
        )
        for name, letters in PARAMETERS.items()
    }


def variable(parameter: str) -> str:
    """The leaf of a parameter."""
    return f"mdl_vars.params.{parameter}"


def moment(name: str, parameter: str, layers: int) -> str:
    """The leaf of a parameter's moment, `m` or `v`; Adam is element 2 of the chain."""
    return f"opt_states_0.{_prefix(parameter, layers)}_2.{name}.params.{parameter}"


def leaf_dimensions(layers: int) -> dict[str, str]:
    """All 57 leaves of a checkpoint of so many layers, and what their dimensions are."""
    counts = {f"opt_states_0.no_prefix_{i}.count": "" for i in range(4)}
    counts |= {f"opt_states_0.p#{layers}#i-1_{i}.count": "L" for i in range(4)}
    variables = {variable(name): dims for name, dims in PARAMETERS.items()}
    moments = {
        moment(kind, name, layers): dims for kind in "mv" for name, dims in PARAMETERS.items()
    }
    return {"step": "", **counts, **variables, **moments}


def leaf_dtype(leaf: str) -> str:
    """The element type, as Zarr spells it."""
    if leaf == "step":
        return "<u4"
    return "<i4" if leaf.endswith(".count") else "<f4"


def leaves(sizes: Sizes = SMALL, *, step: int = 5) -> Leaves:
    """Every leaf as it is without padding.

    No float comes twice in the whole checkpoint, and none is 0, which is what padding and missing
    chunks read as.
    """
    found = {}
    start = 1
    for leaf, dimensions in leaf_dimensions(sizes.L).items():
        shape = sizes.shape(dimensions)
        if leaf_dtype(leaf) == "<f4":
            count = math.prod(shape)
            numbers = np.arange(start, start + count, dtype=np.float32)
            found[leaf] = (numbers / 2**16).reshape(shape)
            start += count
        else:
            found[leaf] = np.full(shape, step, leaf_dtype(leaf))
    assert start < 2**24, "float32 does not tell larger numbers apart"
    return found


def write(
    path: Path,
    values: Mapping[str, np.ndarray] | None = None,
    *,
    version: str = "1.1",
    compressor: str | None = "zstd",
    chunks: Mapping[str, Shape] | None = None,
    padded: Mapping[str, int] | None = None,
) -> Path:
    """Writes a checkpoint under `path/checkpoints`, and gives its step directory.

    Args:
      path: is made, if need be.
      values: those of `leaves()`, or what a test made of them.
      version: `0`: leaves in the step directory. `1.0`: in `state`, with a version in `metadata`.
        `1.1`: the shapes without padding there as well.
      compressor: a key of `COMPRESSORS`.
      chunks: of parameters, and so of their moments; other arrays are one chunk.
      padded: letters of dimensions, and the size that zeros bring them to.
    """
    values = leaves() if values is None else values
    directory, state = _directories(path, version, int(values["step"]))
    for leaf, array in values.items():
        filled = _padded(leaf, array, padded or {})
        of_leaf = _chunks(leaf, filled.shape, chunks or {})
        store = _create(_kvstore(state / leaf), filled.shape, filled.dtype.str, of_leaf, compressor)
        store.write(filled).result()
    if version != "0":
        shapes = {leaf: array.shape for leaf, array in values.items()}
        _write_metadata(directory, version, shapes)
        _write_shardings(state, values)
    return directory


def write_ocdbt(path: Path, values: Mapping[str, np.ndarray] | None = None) -> Path:
    """Writes a checkpoint of version 1.2: all leaves in one key-value store, under other names."""
    values = leaves() if values is None else values
    directory, state = _directories(path, "1.2", int(values["step"]))
    for leaf, array in values.items():
        name = re.sub(r"^opt_states_0\.(no_prefix|p#[^_]*)_", r"opt_states.0.\1.", leaf)
        kvstore = {"driver": "ocdbt", "base": _kvstore(state), "path": f"{name}/"}
        _create(kvstore, array.shape, array.dtype.str, array.shape, "zstd").write(array).result()
    (state / "checkpoint").write_bytes(b"")
    _write_metadata(directory, "1.2", {leaf: array.shape for leaf, array in values.items()})
    return directory


def write_only_metadata(
    path: Path,
    sizes: Sizes = SIZES_175B,
    *,
    chunks: Mapping[str, Shape] | None = None,
    version: str = "1.1",
) -> Path:
    """Writes a checkpoint that has every leaf's `.zarray`, and not one chunk."""
    directory, state = _directories(path, version, 4000)
    dimensions = leaf_dimensions(sizes.L)
    for leaf, letters in dimensions.items():
        shape = sizes.shape(letters)
        of_leaf = _chunks(leaf, shape, CHUNKS_175B if chunks is None else chunks)
        _create(_kvstore(state / leaf), shape, leaf_dtype(leaf), of_leaf, "gzip")
    if version != "0":
        shapes = {leaf: sizes.shape(letters) for leaf, letters in dimensions.items()}
        _write_metadata(directory, version, shapes)
    return directory


def write_noise(
    path: Path,
    sizes: Sizes,
    *,
    chunks: Mapping[str, Shape],
    compressor: str | None = None,
    step: int = 3,
) -> Path:
    """Writes a checkpoint of any size, chunk by chunk, of bits that no compressor makes smaller."""
    directory, state = _directories(path, "1.1", step)
    dimensions = leaf_dimensions(sizes.L)
    random = np.random.default_rng(0)
    for leaf, letters in dimensions.items():
        shape, dtype = sizes.shape(letters), leaf_dtype(leaf)
        of_leaf = _chunks(leaf, shape, chunks)
        store = _create(_kvstore(state / leaf), shape, dtype, of_leaf, compressor)
        for region in _regions(shape, of_leaf):
            part = tuple(s.stop - s.start for s in region)
            if dtype == "<f4":
                bits = random.integers(2**32, size=part, dtype=np.uint32)
                store[region].write(bits.view(np.float32)).result()
            else:
                store[region].write(np.full(part, step, dtype)).result()
    shapes = {leaf: sizes.shape(letters) for leaf, letters in dimensions.items()}
    _write_metadata(directory, "1.1", shapes)
    return directory


def state_bytes(sizes: Sizes) -> int:
    """Bytes of the parameters, two moments each, one step and one count; all elements have four."""
    parameters = sum(math.prod(sizes.shape(dimensions)) for dimensions in PARAMETERS.values())
    return 4 * (3 * parameters + 2)


def read(directory: Path) -> Leaves:
    """Every array of a step directory, with its padding."""
    state = directory / "state" if (directory / "state").is_dir() else directory
    return {
        child.name: np.asarray(_open(child).read().result())
        for child in sorted(state.iterdir())
        if (child / ".zarray").is_file()
    }


# What MaxText needs

OUTSIDE = {
    "lm.softmax.logits_ffn.linear.w": (("token_embedder", "embedding"), (1, 0)),
    "lm.position_emb.emb_var": (("decoder", "position_embedder", "embedding"), (0, 1)),
    "lm.final_ln.scale": (("decoder", "decoder_norm", "scale"), (0,)),
    "lm.final_ln.bias": (("decoder", "decoder_norm", "bias"), (0,)),
}
"""Paths and orders of axes."""

INSIDE = {
    "layer_norm.scale": (("pre_self_attention_norm", "scale"), (1, 0)),
    "layer_norm.bias": (("pre_self_attention_norm", "bias"), (1, 0)),
    "ff_layer.layer_norm.scale": (("mlp", "mlp_layer_norm", "scale"), (1, 0)),
    "ff_layer.layer_norm.bias": (("mlp", "mlp_layer_norm", "bias"), (1, 0)),
    "self_attention.combined_qkv.w": (
        ("self_attention", "qkv_proj", "kernel"),
        (2, 0, 1, 3, 4),
    ),
    "self_attention.combined_qkv.b": (("self_attention", "qkv_proj", "bias"), (1, 0, 2, 3)),
    "self_attention.post.w": (("self_attention", "out", "kernel"), (2, 0, 3, 1)),
    "self_attention.post.b": (("self_attention", "out", "bias"), (1, 0)),
    "ff_layer.ffn_layer1.linear.w": (("mlp", "wi", "kernel"), (1, 0, 2)),
    "ff_layer.ffn_layer1.bias.b": (("mlp", "wi", "bias"), (1, 0)),
    "ff_layer.ffn_layer2.linear.w": (("mlp", "wo", "kernel"), (1, 0, 2)),
    "ff_layer.ffn_layer2.bias.b": (("mlp", "wo", "bias"), (1, 0)),
}
"""Paths within the layers, and orders of axes that put the layers on axis 1."""


def weights(values: Mapping[str, np.ndarray]) -> Leaves:
    """The parameters by name."""
    return {name: values[variable(name)] for name in PARAMETERS}


def moments(values: Mapping[str, np.ndarray], kind: str) -> Leaves:
    """The moments `m` or `v` by the names of their parameters."""
    layers = len(values[variable(LAYERS + "layer_norm.bias")])
    return {name: values[moment(kind, name, layers)] for name in PARAMETERS}


def maxtext_params(
    parameters: Mapping[str, np.ndarray],
    *,
    fused: bool = True,
    scan: bool = True,
    axis: int = 1,
    spelling: str = "layers_{}",
) -> Tree:
    """MaxText's parameters, as they lie under `params/params`."""
    tree: Tree = {}
    for name, (path, order) in OUTSIDE.items():
        _put(tree, path, np.transpose(parameters[name], order))
    for path, array in _inside(parameters, fused):
        if scan:
            _put(tree, ("decoder", "layers", *path), np.moveaxis(array, 1, axis))
        else:
            for layer in range(array.shape[1]):
                within = (*spelling.format(layer).split("/"), *path)
                _put(tree, ("decoder", *within), array[:, layer])
    return tree


def expected(
    values: Mapping[str, np.ndarray],
    *,
    to: str = "linen",
    fused: bool = True,
    scan: bool = True,
    axis: int = 1,
    optimizer: str = "adam_pax",
    b1: float = 0.9,
    b2: float = 0.95,
) -> Tree:
    """The whole tree of a layout, optimizer and step included."""
    is_linen = to in ("linen", "maxtext")
    spelling = "layers_{}" if is_linen else "layers/{}"

    def params(parameters: Leaves) -> Tree:
        return maxtext_params(parameters, fused=fused, scan=scan, axis=axis, spelling=spelling)

    step = int(values["step"])
    m, v = moments(values, "m"), moments(values, "v")
    if optimizer == "adamw":
        m, v = scaled(m, 1 - b1**step), scaled(v, 1 - b2**step)
    model, mu, nu = params(weights(values)), params(m), params(v)
    if is_linen:
        model, mu, nu = {"params": model}, {"params": mu}, {"params": nu}
    count = np.asarray(step, np.int32)
    adam: Any = {"count": count, "mu": mu, "nu": nu}
    if optimizer == "adamw":
        is_mapping = to in ("nnx-pure", "nnx-state")
        adam = {"0": adam, "2": {"count": count}} if is_mapping else [adam, None, {"count": count}]
    if is_linen:
        return {"step": count, "params": model, "opt_state": adam}
    tree: Tree = {"step": np.asarray(step, np.uint32), "opt_state": adam}
    match to:
        case "nnx-pure":
            return {"model": model, "optimizer": tree}
        case "nnx-state":
            return {"model": wrapped(model), "optimizer": wrapped(tree)}
        case _:
            return {"model": wrapped(model), "optimizer": tree}


def scaled(parameters: Leaves, factor: float) -> Leaves:
    """Every array times a number, in float32 at the end."""
    return {
        name: (array.astype(np.float64) * factor).astype(np.float32)
        for name, array in parameters.items()
    }


def wrapped(tree: Any) -> Any:
    """The tree with every leaf `x` as `{"value": x}`."""
    if isinstance(tree, dict):
        return {name: wrapped(branch) for name, branch in tree.items()}
    return {"value": tree}


def flat(tree: Any, path: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], Any]:
    """Paths to leaves; numbers are places in a sequence, and an empty container is a leaf."""
    branches: Any = ()
    if isinstance(tree, dict):
        branches = tree.items()
    elif isinstance(tree, list | tuple):
        branches = enumerate(tree)
    found: dict[tuple[str | int, ...], Any] = {}
    for name, branch in branches:
        found |= flat(branch, (*path, name))
    return found or {path: tree}


def _inside(
    parameters: Mapping[str, np.ndarray], fused: bool
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """The arrays within the layers, the layers on axis 1."""
    for name, (path, order) in INSIDE.items():
        array = parameters[LAYERS + name]
        if path[1] == "qkv_proj" and not fused:
            for index, part in enumerate(("query", "key", "value")):
                yield ("self_attention", part, path[2]), np.moveaxis(array[:, index], 0, 1)
        else:
            yield path, np.transpose(array, order)


def _put(tree: Tree, path: tuple[str, ...], leaf: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf


# Files


def _prefix(parameter: str, layers: int) -> str:
    return f"p#{layers}#i-1" if parameter.startswith(LAYERS) else "no_prefix"


def _directories(path: Path, version: str, step: int) -> tuple[Path, Path]:
    directory = path / "checkpoints" / f"checkpoint_{step:08d}"
    state = directory if version == "0" else directory / "state"
    state.mkdir(parents=True)
    return directory, state


def _parameter(leaf: str) -> str | None:
    """The parameter that a leaf is, or is a moment of."""
    _, found, name = leaf.partition(".params.")
    return name if found else None


def _padded(leaf: str, array: np.ndarray, padded: Mapping[str, int]) -> np.ndarray:
    """The array with zeros at the end of its dimensions; those of an unknown leaf are left."""
    letters = PARAMETERS.get(_parameter(leaf) or "", "").ljust(array.ndim)
    sizes = zip(letters, array.shape, strict=True)
    more = [(0, padded.get(letter, size) - size) for letter, size in sizes]
    return np.pad(array, more) if more else array


def _chunks(leaf: str, shape: Shape, chunks: Mapping[str, Shape]) -> Shape:
    wanted = chunks.get(_parameter(leaf) or "", shape)
    return tuple(min(chunk, size) for chunk, size in zip(wanted, shape, strict=True))


def _regions(shape: Shape, chunks: Shape) -> Iterator[tuple[slice, ...]]:
    ranges: list[list[slice]] = [
        [slice(start, min(start + chunk, size)) for start in range(0, size, chunk)]
        for size, chunk in zip(shape, chunks, strict=True)
    ]
    yield from itertools.product(*ranges)


def _create(
    kvstore: Any, shape: Shape, dtype: str, chunks: Shape, compressor: str | None
) -> ts.TensorStore:
    """A new array; every chunk that is written to it is stored, be it all zeros."""
    metadata = {
        "shape": shape,
        "chunks": chunks,
        "dtype": dtype,
        "compressor": COMPRESSORS[compressor],
        "dimension_separator": ".",
        "fill_value": None,
        "filters": None,
        "order": "C",
    }
    spec = {"driver": "zarr", "kvstore": kvstore, "metadata": metadata}
    options: Any = {"create": True, "context": _unsynced()}
    return ts.open({**spec, "store_data_equal_to_fill_value": True}, **options).result()


def _open(path: Path) -> ts.TensorStore:
    spec = {"driver": "zarr", "kvstore": _kvstore(path), "fill_missing_data_reads": False}
    return ts.open(spec).result()


def _kvstore(path: Path) -> Any:
    return {"driver": "file", "path": f"{path.resolve()}/"}


def _unsynced() -> ts.Context:
    """Tests need no `fsync`."""
    return ts.Context({"file_io_sync": False})


def _write_metadata(directory: Path, version: str, shapes: Mapping[str, Shape]) -> None:
    """Version 1.1 has the shapes without padding, of the parameters alone."""
    metadata: Tree = {"version": float(version)}
    if version != "1.0":
        described: Tree = {}
        for leaf, shape in shapes.items():
            if leaf.startswith("mdl_vars."):
                _put(described, tuple(leaf.split(".")), _described(shape))
        metadata["train_state_metadata"] = described
    (directory / "metadata").mkdir()
    (directory / "metadata" / "metadata").write_text(json.dumps(metadata))


def _described(shape: Shape) -> Any:
    return {
        "_array_metadata_tag": True,
        "dtype": "float32",
        "is_optax_masked_node": False,
        "unpadded_shape": list(shape),
    }


def _write_shardings(state: Path, values: Mapping[str, np.ndarray]) -> None:
    """A file that is no leaf, as newer versions of Orbax put it beside them."""
    device = json.dumps({"sharding_type": "SingleDeviceSharding", "device_str": "TFRT_CPU_0"})
    names = (base64.b64encode(leaf.encode()).decode() for leaf in values)
    (state / "_sharding").write_text(json.dumps(dict.fromkeys(names, device)))
