"""`merge-lora`: weights plus a product of low rank, as programs name, shape and stack it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import nnxconv
from nnxconv.errors import BadInput
from tests.support import checkpoints, models
from tests.support.command import run

RANK, ALPHA, LAYERS = 2, 3.0, 3
MADE = np.random.default_rng(0)


def array(*shape):
    return MADE.standard_normal(shape).astype(np.float32)


# weights, and the two factors: shape of each
FORMS = {
    "a matrix": ((6, 8), (6, RANK), (RANK, 8)),
    "a query with heads": ((6, 4, 5), (6, RANK), (RANK, 4, 5)),
    "an output with heads": ((4, 5, 6), (4, 5, RANK), (RANK, 6)),
    "einsum with heads first": ((4, 6, 5), (4, 6, RANK), (4, RANK, 5)),
    "query, key and value in one": ((3, 4, 6, 5), (3, 4, 6, RANK), (3, 4, RANK, 5)),
    "heads together": ((6, 4, 5), (6, RANK), (RANK, 20)),
}


def product(w, a, b):
    """`a @ b` in the shape of `w`, by a loop over leading axes that both have."""
    batch = a.ndim + b.ndim - 2 - w.ndim
    if a.ndim == b.ndim == 2 and w.ndim > 2:
        return (a @ b).reshape(w.shape)
    if batch <= 0:
        return np.tensordot(a, b, 1)
    return np.stack([product(w[0], x, y) for x, y in zip(a, b, strict=True)])


def maxtext(weights, a, b):
    return {"kernel": weights}, {"lora_a": {"kernel": a}, "lora_b": {"kernel": b}}


def qwix(weights, a, b):
    return {"w": weights}, {"w_lora_a": a, "w_lora_b": b}


def openpi(weights, a, b):
    return {"w": weights}, {"lora_a": a, "lora_b": b}


def of_flax(weights, a, b):
    return {"kernel": weights}, {"lora": {"lora_a": a, "lora_b": b}}


NAMES = [maxtext, qwix, openpi, of_flax]


def stacked(layers, axis):
    return jax.tree.map(lambda *x: np.stack(x, min(axis, x[0].ndim)), *layers)


def trees(names, form, *, base=None, adapter=None):
    """A base and its adapter, each stacked on an axis or apart; and the layers' merged weights."""
    every = [[array(*shape) for shape in FORMS[form]] for _ in range(LAYERS)]
    bases, adapters = zip(*(names(*one) for one in every), strict=True)
    bases = [{"attn": one, "norm": {"scale": array(5)}} for one in bases]
    adapters = [{"attn": one} for one in adapters]

    def arranged(layers, axis):
        if axis is not None:
            return {"params": {"params": {"decoder": {"layers": stacked(layers, axis)}}}}
        apart = {f"layers_{n}": one for n, one in enumerate(layers)}
        return {"params": {"params": {"decoder": apart}}}

    wanted = [w + np.float32(ALPHA / RANK) * product(w, a, b) for w, a, b in every]
    return arranged(bases, base), arranged(adapters, adapter), wanted, every


def weights_of(path):
    """The weights of each layer in a merged checkpoint."""
    found = nnxconv.open(str(path), layer_axis=1)
    keys = [key for key in found if ".attn." in key]
    assert len(keys) == LAYERS
    return [np.asarray(found[key]) for key in keys]


@pytest.mark.sample(4)
@pytest.mark.parametrize("base", [None, 1])
@pytest.mark.parametrize("adapter", [None, 1])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("names", NAMES, ids=lambda names: names.__name__)
def test_the_product_is_added_and_taken_out_again(names, form, base, adapter, tmp_path):
    tree, other, wanted, every = trees(names, form, base=base, adapter=adapter)
    where = [checkpoints.save_item(tmp_path / n, t) for n, t in (("base", tree), ("ad", other))]
    how = {"alpha": ALPHA, "layer_axis": 1}
    result = nnxconv.merge_lora(*map(str, where), str(tmp_path / "out"), verify=True, **how)
    for found, expected in zip(weights_of(tmp_path / "out"), wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
    assert result.conversion.left_out == {}
    nnxconv.merge_lora(
        str(tmp_path / "out"), str(where[1]), str(tmp_path / "back"), unmerge=True, **how
    )
    for found, (before, _, _) in zip(weights_of(tmp_path / "back"), every, strict=True):
        np.testing.assert_allclose(found, before, rtol=0, atol=4e-6)


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names.__name__)
def test_one_tree_of_both_is_given_twice_and_keeps_no_factor(names, tmp_path):
    w, a, b = (array(*shape) for shape in FORMS["a query with heads"])
    ours, theirs = names(w, a, b)
    tree = {"params": {"params": {"attn": {**ours, **theirs}, "norm": {"scale": array(5)}}}}
    path = str(checkpoints.save_item(tmp_path / "both", tree))
    result = nnxconv.merge_lora(path, path, str(tmp_path / "out"), alpha=ALPHA, rslora=True)
    found = checkpoints.restore(tmp_path / "out")["params"]["params"]
    assert found["attn"].keys() == ours.keys()
    wanted = w + np.float32(ALPHA / np.sqrt(RANK)) * np.tensordot(a, b, 1)
    np.testing.assert_allclose(found["attn"][next(iter(ours))], wanted, rtol=2e-6, atol=2e-6)
    assert set(result.conversion.left_out.values()) == {"added to the weights"}
    assert len(result.conversion.left_out) == 2


def test_an_adapter_of_peft_is_merged_into_a_folder_of_hugging_face(tmp_path):
    w, a, b = array(8, 6), array(RANK, 6), array(8, RANK)
    (tmp_path / "hf").mkdir()
    (tmp_path / "peft").mkdir()
    name = "model.layers.0.self_attn.q_proj"
    save_file({f"{name}.weight": w, "model.norm.weight": array(6)}, tmp_path / "hf/m.safetensors")
    save_file(
        {
            f"base_model.model.{name}.lora_A.weight": a,
            f"base_model.model.{name}.lora_B.weight": b,
        },
        tmp_path / "peft/adapter_model.safetensors",
    )
    told = {"r": RANK, "lora_alpha": 8, "use_rslora": False}
    (tmp_path / "peft/adapter_config.json").write_text(json.dumps(told))
    nnxconv.merge_lora(*(str(tmp_path / name) for name in ("hf", "peft", "out")))
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == {f"{name}.weight", "model.norm.weight"}
    np.testing.assert_allclose(found[f"{name}.weight"], w + 4 * b @ a, rtol=2e-6, atol=2e-6)
    told["r"] = 5
    (tmp_path / "peft/adapter_config.json").write_text(json.dumps(told))
    with pytest.raises(BadInput, match=r"has the rank 2, but `adapter_config\.json` says 5"):
        nnxconv.merge_lora(*(str(tmp_path / name) for name in ("hf", "peft", "other")))


class Adapted(nnx.Module):
    """A model of Flax with adapters of its own."""

    def __init__(self, rngs):
        kernel = nnx.initializers.normal(1.0)
        self.first = nnx.LoRALinear(
            6, 8, lora_rank=RANK, rngs=rngs, a_initializer=kernel, b_initializer=kernel
        )
        self.second = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


class Plain(nnx.Module):
    """The same without them."""

    def __init__(self, rngs):
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.second = nnx.Linear(8, 5, rngs=rngs)

    __call__ = Adapted.__call__


def test_a_model_of_flax_says_the_same_with_adapters_and_without(tmp_path):
    model, x = Adapted(nnx.Rngs(0)), jnp.asarray(array(10, 6))
    path = str(models.save(tmp_path / "adapted", nnx.state(model)) or tmp_path / "adapted")
    nnxconv.merge_lora(path, path, str(tmp_path / "out"), alpha=RANK)  # flax scales by 1
    plain = Plain(nnx.Rngs(1))
    nnxconv.load_into(plain, str(tmp_path / "out"))
    np.testing.assert_allclose(plain(x), model(x), rtol=1e-5, atol=1e-5)


def base_and(adapter, tmp_path, weights=None):
    weights = array(6, 8) if weights is None else weights
    tree = {"params": {"params": {"q": {"kernel": weights}, "norm": {"scale": array(6)}}}}
    base = checkpoints.save_item(tmp_path / "base", tree)
    other = checkpoints.save_item(tmp_path / "ad", {"params": {"params": adapter}})
    return str(base), str(other), str(tmp_path / "out")


EINSUMS = {
    # weights, first factor, second factor: the product as numpy spells it
    "width first": ((6, 3, 4), (6, RANK), (RANK, 3, 4), "dr,rnh->dnh"),
    "width between": ((3, 6, 4), (6, RANK), (RANK, 3, 4), "dr,rnh->ndh"),
    "width after two": ((2, 3, 6, 4), (6, RANK), (RANK, 2, 3, 4), "dr,rcnh->cndh"),
    "width last": ((2, 5, 6), (6, RANK), (RANK, 2, 5), "fr,rnh->nhf"),
    "heads first": ((3, 4, 6), (3, 4, RANK), (RANK, 6), "nhr,rd->nhd"),
    "experts": ((5, 3, 6, 4), (5, 6, RANK), (5, RANK, 3, 4), "edr,ernh->endh"),
}


@pytest.mark.sample(6)
@pytest.mark.parametrize("layers", [None, 0, 1], ids=["apart", "stacked on 0", "stacked on 1"])
@pytest.mark.parametrize("name", EINSUMS)
def test_factors_of_einsums_are_multiplied_as_the_einsum_does(name, layers, tmp_path):
    *shapes, text = EINSUMS[name]
    w, a, b = ([array(*shape) + n for n in range(3)] for shape in shapes)
    names = ("w", "w_lora_a", "w_lora_b")
    modules = [dict(zip(names, one, strict=True)) for one in zip(w, a, b, strict=True)]
    decoder = {f"layers_{n}": {"q_einsum": one} for n, one in enumerate(modules)}
    if layers is not None:
        whole = {name: np.stack([m[name] for m in modules], layers) for name in names}
        decoder = {"layers": {"q_einsum": whole}}
    tree = {"params": {"params": {"decoder": decoder}}}
    path = str(checkpoints.save_item(tmp_path / "a", tree))
    out = str(tmp_path / "out")
    nnxconv.merge_lora(path, path, out, alpha=RANK, layer_axis=layers, verify=True)
    merged = nnxconv.open(out)
    for n in range(3):
        product = np.einsum(text, a[n].astype("float64"), b[n].astype("float64"))
        key = next(k for k in merged if f"layers[{n}]" in k)
        np.testing.assert_allclose(merged[key][...], w[n] + product, rtol=1e-5, atol=1e-5)


def test_a_product_that_fits_in_two_ways_is_refused(tmp_path):
    paths = base_and(
        {"q": {"kernel_lora_a": array(6, RANK), "kernel_lora_b": array(RANK, 6, 4)}},
        tmp_path,
        array(6, 6, 4),
    )
    with pytest.raises(BadInput) as caught:
        nnxconv.merge_lora(*paths, alpha=1)
    assert caught.value.render() == (
        "error: the adapter fits `q.kernel` in 2 ways\n"
        f"  f32[6,{RANK}] times f32[{RANK},6,4], for f32[6,6,4]: the first factor may be of axis 0"
        " or 1"
    )


PAIR = {"lora_a": {"kernel": array(6, RANK)}, "lora_b": {"kernel": array(RANK, 8)}}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "added 1 adapter to the weights: linen-variables"),
        (("--unmerge",), "took 1 adapter out of the weights: linen-variables"),
        (("--unmerge", "--dry_run"), "would take 1 adapter out of the weights: linen-variables"),
    ],
)
def test_the_first_line_says_what_was_done(words, told, tmp_path):
    done = run("merge-lora", *base_and({"q": PAIR}, tmp_path), "--alpha", "1", *words)
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, told)


def test_moments_of_the_factors_go_with_them(tmp_path):
    class Module(nnx.Module):
        def __init__(self, rngs):
            self.adapted = nnx.LoRALinear(6, 5, lora_rank=RANK, rngs=rngs)
            self.head = nnx.Linear(5, 4, rngs=rngs)

    model = Module(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    tree = {"model": nnx.state(model), "optimizer": nnx.state(optimizer)}
    path = str(checkpoints.save_item(tmp_path / "both", tree))
    done = run("merge-lora", path, path, tmp_path / "out", "--alpha", ALPHA, "--verify")
    found = checkpoints.restore(tmp_path / "out")
    mu = found["optimizer"]["opt_state"]["0"]["mu"]
    assert {name: set(mu[name]) for name in mu} == {
        "adapted": {"kernel", "bias"},
        "head": {"kernel", "bias"},
    }
    assert "the rest of the optimizer's state is as it was" in done.stdout
    moments = "4 arrays of opt_state[0] (moments of what was added to the weights)"
    assert moments in done.stdout


def test_an_alpha_that_is_not_the_recorded_one_is_told(tmp_path):
    base, adapter, target = base_and({"q": PAIR}, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 16}')
    done = run("merge-lora", base, adapter, target, "--alpha", 4)
    assert "alpha is 4 as asked, and not 16 as recorded" in done.stdout


REFUSED = {
    "nothing": ({"q": PAIR}, {"alpha": 0}, "alpha is 0, which adds nothing"),
    "less": ({"q": PAIR}, {"alpha": -4}, "alpha is -4, which adds nothing, or takes away"),
    "alpha": ({"q": PAIR}, {}, "alpha is not known"),
    "alone": ({"q": {"lora_a": PAIR["lora_a"]}}, {"alpha": 1}, "1 factor of adapters without"),
    "none": ({"q": {"kernel": array(6, 8)}}, {"alpha": 1}, "there is no adapter"),
    "elsewhere": ({"k": PAIR}, {"alpha": 1}, "the base has no weights for the adapter `k.lora_a"),
    "besides": (
        {"q": {**PAIR, "magnitude": array(8)}},
        {"alpha": 1},
        "the adapter has 1 array besides, which would be lost",
    ),
    "shapes": (
        {"q": {"lora_a": {"kernel": array(7, RANK)}, "lora_b": PAIR["lora_b"]}},
        {"alpha": 1},
        "the adapter does not fit `q.kernel`",
    ),
    "precision": ({"q": PAIR}, {"alpha": 1, "precision": "float16"}, "none of the values"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_guessed_or_lost_is_refused(name, tmp_path):
    adapter, options, message = REFUSED[name]
    paths = base_and(adapter, tmp_path)
    with pytest.raises(BadInput) as refused:
        nnxconv.merge_lora(*paths, **options)
    assert message in refused.value.message
    assert not (tmp_path / "out").exists()


def test_quantised_weights_are_refused_with_what_to_do(tmp_path):
    weights = np.ones((6, 8), np.int8)
    with pytest.raises(BadInput) as refused:
        nnxconv.merge_lora(*base_and({"q": PAIR}, tmp_path, weights), alpha=1)
    assert refused.value.render() == (
        "error: `q.kernel` is quantised: i8[6,8]\n\n"
        "hint: `--dequantize` multiplies such weights with the scales beside them"
    )


@pytest.mark.parametrize("scale_type", ["float32", "bfloat16"])
@pytest.mark.parametrize("is_one_tree", [False, True])
def test_quantised_weights_are_multiplied_and_added_to_if_asked(is_one_tree, scale_type, tmp_path):
    weights = MADE.integers(-100, 100, (6, 8)).astype(np.int8)
    other = MADE.integers(-100, 100, (6, 8)).astype(np.int8)
    scale = array(1, 8).astype(jnp.dtype(scale_type))
    pair = {"lora_a": {"kernel": array(6, RANK)}, "lora_b": {"kernel": array(RANK, 8)}}
    tree = {
        "q": {"kernel": weights, "kernel_scale": scale},
        "o": {"kernel": other, "kernel_scale": scale},
        "norm": {"scale": array(5)},
    }
    adapter = {"q": pair}
    if is_one_tree:
        tree["q"] |= pair
        adapter = tree
    base = checkpoints.save_item(tmp_path / "base", {"params": {"params": tree}})
    lora = base
    if not is_one_tree:
        lora = checkpoints.save_item(tmp_path / "lora", {"params": {"params": adapter}})
    done = nnxconv.merge_lora(
        str(base), str(lora), str(tmp_path / "out"), alpha=ALPHA, dequantize=True, verify=True
    )
    gone = {f"params.{name}.kernel_scale" for name in "qo"}
    gone |= {"params.q.lora_a.kernel", "params.q.lora_b.kernel"} if is_one_tree else set()
    assert {".".join(map(str, key)) for key in done.conversion.left_out} == gone
    kept = nnxconv.open(str(tmp_path / "out"))
    assert list(kept) == ["params.norm.scale", "params.o.kernel", "params.q.kernel"]
    factors = scale.astype(np.float32)
    added = np.float32(ALPHA / RANK) * (pair["lora_a"]["kernel"] @ pair["lora_b"]["kernel"])
    for name, expected in (("q", weights * factors + added), ("o", other * factors)):
        found = kept[f"params.{name}.kernel"][...]
        assert found.dtype.name == scale_type
        wide = found.astype(np.float32)
        exact = expected.astype(found.dtype).astype(np.float32)
        np.testing.assert_allclose(wide, exact, rtol=2**-7 if is_low(found) else 1e-5, atol=1e-5)


def is_low(values):
    return values.dtype.itemsize < 4


def test_weights_that_are_not_quantised_have_nothing_to_multiply(tmp_path):
    with pytest.raises(BadInput, match="there is nothing to dequantise"):
        nnxconv.merge_lora(*base_and({"q": PAIR}, tmp_path), alpha=1, dequantize=True)


def test_stacks_that_shapes_do_not_tell_are_refused_without_an_axis(tmp_path):
    tree, other, _, _ = trees(openpi, "einsum with heads first", base=1, adapter=1)
    where = [checkpoints.save_item(tmp_path / n, t) for n, t in (("base", tree), ("ad", other))]
    with pytest.raises(BadInput) as refused:
        nnxconv.merge_lora(*map(str, where), str(tmp_path / "out"), alpha=ALPHA)
    assert refused.value.hint == "`--layer_axis 0` or `--layer_axis 1` says which it is"


@pytest.mark.parametrize("is_one", [False, True])
def test_base_and_adapter_may_be_subtrees(is_one, tmp_path):
    """Of one checkpoint, which is given twice, or of two."""
    tree, other, wanted, _ = trees(qwix, "a matrix", base=1)
    both = {"model": tree, "lora": other, "critic": checkpoints.linen()}
    base = str(checkpoints.save_item(tmp_path / "base", both))
    adapter = base if is_one else str(checkpoints.save_item(tmp_path / "ad", {"lora": other}))
    with pytest.raises(BadInput) as refused:
        nnxconv.merge_lora(base, adapter, str(tmp_path / "out"), alpha=ALPHA, layer_axis=1)
    assert "`--at " in refused.value.render()
    where = ["--at", "model", "--adapter_at", "lora"]
    how = ["--alpha", ALPHA, "--layer_axis", 1, "--verify"]
    outcome = run("merge-lora", base, adapter, tmp_path / "out", *where, *how)
    assert outcome.exit_code == 0, outcome.stderr
    for found, expected in zip(weights_of(tmp_path / "out"), wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
