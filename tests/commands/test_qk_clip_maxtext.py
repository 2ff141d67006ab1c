"""`qk_clip` and `qk-clip` against MaxText's own functions, where an environment has MaxText.

`NNXCONV_MAXTEXT` names the Python of an environment with MaxText 0.2.5, which needs no nnxconv.
"""

import os
import subprocess

import flax
import numpy as np
import pytest
from flax import nnx

import nnxconv
from tests.support import checkpoints

PYTHON = os.environ.get("NNXCONV_MAXTEXT", "")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="`NNXCONV_MAXTEXT` names no Python of an environment with MaxText"
)

HEADS, NOPE, ROPE, VALUE = 16, 8, 4, 6
LAYERS, THRESHOLD = 3, 100.0
CONFIG = {"attention_type": "mla", "qk_nope_head_dim": NOPE, "qk_clip_threshold": THRESHOLD}

WITNESS = f"""
import sys
from types import SimpleNamespace
import flax, jax.numpy as jnp, numpy as np
from flax import nnx
from maxtext.utils.qk_clip_utils import apply_qk_clip, apply_qk_clip_nnx

form, source, target = sys.argv[1:]
tree = flax.traverse_util.unflatten_dict(
    {{tuple(k.split("/")): jnp.asarray(v) for k, v in np.load(source).items()}})
config = SimpleNamespace(**{CONFIG!r})

class State(SimpleNamespace):
    def replace(self, **new):
        return State(**new)

class Node(nnx.Module):
    def __init__(self, tree):
        for k, v in tree.items():
            setattr(self, k, Node(v) if isinstance(v, dict) else nnx.Param(v))

def tuples(tree):
    return {{k: tuples(v) if isinstance(v, dict) else (v,) for k, v in tree.items()}}

if form == "linen":
    done = apply_qk_clip(
        State(params=tree["params"]), {{"intermediates": tuples(tree["sown"])}}, config).params
else:
    state = apply_qk_clip_nnx(
        SimpleNamespace(model=Node(tree["params"])), tuples(tree["sown"]), config)
    done = nnx.to_pure_dict(nnx.state(state.model))
np.savez(target, **{{"/".join(k): v for k, v in flax.traverse_util.flatten_dict(done).items()}})
"""


def layer(seed, queries, leading=()):
    """The kernels of one layer, or of several on axis 1."""
    made = np.random.default_rng(seed)

    def kernel(rank, *rest):
        return {"kernel": made.normal(size=(rank, *leading, *rest)).astype("float32")}

    attention = {
        queries: kernel(5, HEADS, NOPE + ROPE),
        "wkv_b": kernel(7, HEADS, NOPE + VALUE),
        "out": kernel(HEADS, VALUE, 5),
    }
    return {"self_attention": attention}


def maxima(seed, *shape):
    return np.random.default_rng(seed).uniform(20, 900, (*shape, HEADS)).astype("float32")


def model(queries, is_stacked, form):
    """Parameters of a decoder, and the largest logits of its attention, shape (batch, heads)."""
    if is_stacked:
        # MaxText has one scale for all layers: the same maxima in each make the two comparable
        params = {"layers": layer(0, queries, (LAYERS,))}
        logits = {"layers": np.stack([maxima(0, 4)] * LAYERS)}
    else:
        params = {f"layers_{n}": layer(n, queries) for n in range(LAYERS)}
        logits = {f"layers_{n}": maxima(n, 2, 4) for n in range(LAYERS)}

    def sown(values):
        record = {"max_logits": values}
        return {"self_attention": {"attention_op": record} if form == "nnx" else record}

    return {"decoder": params}, {"decoder": {k: sown(v) for k, v in logits.items()}}


def flat(tree):
    return {"/".join(k): v for k, v in flax.traverse_util.flatten_dict(tree).items()}


def by_maxtext(tmp_path, form, params, sown):
    """What MaxText makes of parameters."""
    np.savez(tmp_path / "in.npz", **flat({"params": params, "sown": sown}))
    words = [PYTHON, "-c", WITNESS, form, tmp_path / "in.npz", tmp_path / "out.npz"]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    environment["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path / "out.npz") as file:
        return dict(file)


class Node(nnx.Module):
    """A module with the names of a tree."""

    def __init__(self, tree):
        for name, value in tree.items():
            setattr(self, name, Node(value) if isinstance(value, dict) else nnx.Param(value))


def live(form, params, sown):
    """What the live function makes of them."""
    if form == "linen":
        done = nnxconv.qk_clip({"params": params}, sown, config=CONFIG, layer_axis=1)
        return flat(done["params"])
    module = nnxconv.qk_clip(Node(params), sown, config=CONFIG, layer_axis=1)
    return flat(nnx.to_pure_dict(nnx.state(module)))


def as_file(tmp_path, params, sown):
    """What the command makes of them, with layers on axis 1 as they were."""
    tree = {"params": {"params": params}, "step": np.int32(0), "opt_state": {}}
    source = str(checkpoints.save_item(tmp_path / "a", tree))
    np.savez(tmp_path / "logits.npz", **flat(sown))
    nnxconv.qk_clip_checkpoint(
        source,
        str(tmp_path / "b"),
        max_logits=str(tmp_path / "logits.npz"),
        threshold=THRESHOLD,
        qk_nope_head_dim=NOPE,
    )
    return flat(checkpoints.restore(tmp_path / "b")["params"]["params"])


@pytest.mark.parametrize("form", ["linen", "nnx"])
@pytest.mark.parametrize("is_stacked", [False, True])
def test_checkpoints_and_live_states_are_what_maxtext_makes_of_them(tmp_path, form, is_stacked):
    params, sown = model("wq_b", is_stacked, form)
    wanted = by_maxtext(tmp_path, form, params, sown)
    before = flat(params)
    assert sum(not np.array_equal(before[key], wanted[key]) for key in before) in (2, 2 * LAYERS)
    for found in (as_file(tmp_path, params, sown), live(form, params, sown)):
        assert found.keys() == wanted.keys()
        for key, values in wanted.items():
            assert np.asarray(found[key]).tobytes() == values.tobytes(), key


@pytest.mark.parametrize("form", ["linen", "nnx"])
def test_without_q_lora_maxtext_clips_the_keys_alone(tmp_path, form):
    params, sown = model("query", False, form)
    wanted = by_maxtext(tmp_path, form, params, sown)
    before = flat(params)
    for found in (as_file(tmp_path, params, sown), live(form, params, sown)):
        for key, values in wanted.items():
            is_same = np.asarray(found[key]).tobytes() == values.tobytes()
            assert is_same == ("/query/" not in key), key
            assert np.array_equal(values, before[key]) == ("/wkv_b/" not in key), key


def test_maxtext_has_one_scale_for_all_stacked_layers(tmp_path):
    params, sown = model("wq_b", True, "linen")
    attention = sown["decoder"]["layers"]["self_attention"]
    attention["max_logits"] = maxima(1, LAYERS, 4)
    each = by_maxtext(tmp_path, "linen", params, sown)
    attention["max_logits"] = np.stack([attention["max_logits"].max((0, 1))[None]] * LAYERS)
    for key, values in live("linen", params, sown).items():
        assert np.asarray(values).tobytes() == each[key].tobytes(), key
