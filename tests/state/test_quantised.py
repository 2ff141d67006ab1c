"""Quantised weights: scales have layers on axis 0, are never cast, and may be multiplied in."""

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnxconv
from nnxconv.errors import BadInput
from nnxconv.state import scales_of
from nnxconv.tree import Dequantize, Source, compute, operand_regions
from tests.support import checkpoints


def source(name, shape, dtype="float32"):
    return Source(name, shape, dtype, shape)


def test_a_scale_is_beside_an_array_that_is_quantised():
    tree = {
        ("a", "kernel"): source("k", (4, 6), "float8_e4m3fn"),
        ("a", "kernel_scale"): source("s", (1, 6)),
        ("b", "kernel"): source("l", (4, 6), "bfloat16"),
        ("b", "kernel_scale"): source("t", (1, 6)),
        ("c", "weight"): source("m", (4, 6), "int8"),
        ("c", "weight_scale_inv"): source("u", (1, 1)),
        ("norm", "layer_scale"): source("v", (6,)),
    }
    assert scales_of(tree) == {
        ("a", "kernel_scale"): ("a", "kernel"),
        ("c", "weight_scale_inv"): ("c", "weight"),
    }


def quantised(layers, scale, dtype="float8_e4m3fn"):
    """Weights of which every layer has a quantised kernel, its scales and a norm."""
    random = np.random.default_rng(0)
    every = []
    for _ in range(layers):
        kernel = (random.standard_normal((16, 32)) * 8).astype(dtype_called(dtype))
        factors = random.uniform(0.5, 2, scale).astype(np.float32)
        norm = random.standard_normal(16).astype(np.float32)
        every.append({"mlp": {"kernel": kernel, "kernel_scale": factors}, "norm": {"scale": norm}})
    return every


def dtype_called(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def stacked(every, scale_axis=0):
    def stack(*path, axis):
        arrays = []
        for layer in every:
            for name in path:
                layer = layer[name]
            arrays.append(layer)
        return np.stack(arrays, axis)

    mlp = {
        "kernel": stack("mlp", "kernel", axis=1),
        "kernel_scale": stack("mlp", "kernel_scale", axis=scale_axis),
    }
    return {"mlp": mlp, "norm": {"scale": stack("norm", "scale", axis=1)}}


def saved(path, layers):
    rest = {"embedder": {"embedding": np.ones((64, 16), np.float32)}}
    return checkpoints.save_item(path, {"params": {"params": {"decoder": layers, **rest}}})


def stored(path):
    """Shapes and types by key, as Orbax restores them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(checkpoints.restore(path))
    return {
        tuple(part.key for part in key): (leaf.shape, leaf.dtype)
        for key, leaf in leaves
        if key[0].key == "params"
    }


SCALES = [(1, 32), (16, 1), (1, 1), (32,), (1,), (2, 4)]


@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_scales_are_stacked_on_axis_0_and_taken_apart_again(tmp_path, scale):
    every = quantised(3, scale)
    apart = saved(tmp_path / "apart", {f"layers_{i}": layer for i, layer in enumerate(every)})
    whole = saved(tmp_path / "whole", {"layers": stacked(every)})
    for there, back, scan in ((apart, whole, True), (whole, apart, False)):
        out = tmp_path / f"out-{scan}"
        nnxconv.convert(str(there), str(out), to="linen", scan_layers=scan)
        assert stored(out) == stored(back)
        assert nnxconv.compare(str(out), str(back), compare_values=True, atol=0, rtol=0).is_match


def test_scales_on_the_axis_of_the_parameters_are_taken_apart_and_come_back(tmp_path):
    every = quantised(3, (2, 4))
    apart = saved(tmp_path / "apart", {f"layers_{i}": layer for i, layer in enumerate(every)})
    whole = saved(tmp_path / "whole", {"layers": stacked(every, scale_axis=1)})
    for there, back in ((apart, whole), (whole, apart)):
        out = tmp_path / f"like-{back.name}"
        nnxconv.convert(str(there), str(out), like=str(back))
        assert stored(out) == stored(back)
        assert nnxconv.compare(str(out), str(back), compare_values=True, atol=0, rtol=0).is_match
    out = tmp_path / "asked"
    nnxconv.convert(str(whole), str(out), to="linen", scan_layers=False)
    assert stored(out) == stored(apart)


def test_scales_with_moments_are_stacked_as_the_parameters_are(tmp_path):
    every = quantised(3, (2, 4))
    apart = {"decoder": {f"layers_{i}": layer for i, layer in enumerate(every)}}
    whole = {"decoder": {"layers": stacked(every, scale_axis=1)}}
    paths = []
    for name, params in (("apart", {"params": apart}), ("whole", {"params": whole})):
        adam = {"count": np.int32(2), "mu": params, "nu": params}
        tree = {"step": np.int32(2), "params": params, "opt_state": [adam]}
        paths.append(checkpoints.save_item(tmp_path / name, tree))
    out = tmp_path / "out"
    nnxconv.convert(str(paths[0]), str(out), to="linen", scan_layers=True)
    assert stored(out) == stored(paths[1])


@pytest.mark.sample(10)
@pytest.mark.parametrize("stacks", [False, True])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "int4"])
@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_dequantised_weights_are_the_products_with_their_scales(tmp_path, scale, dtype, stacks):
    every = quantised(3, scale, dtype)
    layers = {f"layers_{i}": layer for i, layer in enumerate(every)}
    path = saved(tmp_path / "quantised", {"layers": stacked(every)} if stacks else layers)
    out = tmp_path / "out"
    nnxconv.convert(
        str(path), str(out), to="linen", scan_layers=False, dequantize=True, dtype="bfloat16"
    )
    arrays = checkpoints.restore(out)["params"]["params"]["decoder"]
    for i, layer in enumerate(every):
        mlp = arrays[f"layers_{i}"]["mlp"]
        assert mlp.keys() == {"kernel"}
        kernel, factors = (layer["mlp"][n] for n in ("kernel", "kernel_scale"))
        if factors.shape == (2, 4):
            factors = np.repeat(np.repeat(factors, 8, 0), 8, 1)
        wanted = (kernel.astype(np.float32) * factors).astype(dtype_called("bfloat16"))
        np.testing.assert_array_equal(np.asarray(mlp["kernel"]), wanted)
    same = {"compare_values": True, "dequantize": True, "ignore_dtype": True, "rtol": 2**-8}
    assert nnxconv.compare(str(path), str(out), **same).is_match


def test_a_type_is_given_to_neither_quantised_weights_nor_their_scales(tmp_path):
    path = saved(tmp_path / "quantised", {"layers_0": quantised(1, (1, 32))[0]})
    result = nnxconv.convert(str(path), str(tmp_path / "out"), to="linen", dtype="bfloat16")
    types = {
        "/".join(path[2:]): str(dtype) for path, (_, dtype) in stored(tmp_path / "out").items()
    }
    assert types == {
        "decoder/layers_0/mlp/kernel": "float8_e4m3fn",
        "decoder/layers_0/mlp/kernel_scale": "float32",
        "decoder/layers_0/norm/scale": "bfloat16",
        "embedder/embedding": "bfloat16",
    }
    assert len(result.conversion.uncast) == 2


def test_what_is_not_quantised_cannot_be_dequantised(tmp_path):
    path = checkpoints.save_item(tmp_path / "a", checkpoints.linen())
    with pytest.raises(BadInput, match="there is nothing to dequantise"):
        nnxconv.convert(str(path), str(tmp_path / "out"), dequantize=True)
    assert not (tmp_path / "out").exists()


def test_scales_that_fit_no_blocks_are_refused_with_both_shapes(tmp_path):
    path = saved(tmp_path / "a", {"layers_0": quantised(1, (5, 3))[0]})
    with pytest.raises(BadInput) as refused:
        nnxconv.convert(str(path), str(tmp_path / "out"), to="linen", dequantize=True)
    assert refused.value.render() == (
        "error: `decoder.layers[0].mlp.kernel_scale` does not fit `decoder.layers[0].mlp.kernel`\n"
        "  f32[5,3] for f8_e4m3fn[16,32]: no blocks of one size"
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(100, 300), st.integers(100, 300), st.data())
def test_blocks_of_128_may_be_cut_off_at_the_end(rows, columns, data):
    shape, counts = (rows, columns), (-(-rows // 128), -(-columns // 128))
    operation = Dequantize((128, 128))
    if all(size % count for size, count in zip(shape, counts, strict=True)):
        assert Dequantize.of(shape, counts) == operation
    random = np.random.default_rng(0)
    w, s = (random.standard_normal(size).astype(np.float32) for size in (shape, counts))
    whole = w * np.repeat(np.repeat(s, 128, 0)[:rows], 128, 1)[:, :columns]
    starts = [data.draw(st.integers(0, size - 1)) for size in shape]
    region = tuple(
        slice(start, data.draw(st.integers(start + 1, size)))
        for start, size in zip(starts, shape, strict=True)
    )
    wanted = operand_regions(operation, (shape, counts), region)
    parts = [array[where] for array, where in zip((w, s), wanted, strict=True)]
    np.testing.assert_array_equal(compute(operation, parts, region, "float32"), whole[region])
