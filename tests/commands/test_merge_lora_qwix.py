"""`merge-lora` against qwix: a live model with adapters says what the merged one says.

`NNXCONV_QWIX` names the Python of an environment with qwix, which needs no nnxconv.
"""

import os
import subprocess

import flax
import numpy as np
import pytest
from flax import nnx

import nnxconv
from tests.support import checkpoints, qwix_models

PYTHON = os.environ.get("NNXCONV_QWIX", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="`NNXCONV_QWIX` names no Python with qwix")

TOLERANCE = 2e-5
"""Of the largest logit, in float32: adapters apart and merged are added in another order."""


@pytest.fixture(scope="module")
def witness(tmp_path_factory):
    """Arrays by path, those of adapters included, and what qwix' own model says of a batch."""
    target = tmp_path_factory.mktemp("qwix") / "live.npz"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    environment["JAX_PLATFORMS"] = "cpu"
    words = [PYTHON, qwix_models.__file__, target]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(target) as file:
        arrays = dict(file)
    return arrays, arrays.pop("said")


# how a program keeps a leaf in its checkpoint
FORMS = {
    "pure": lambda path, value: (path, value),
    "state": lambda path, value: ((*path, "value"), value),
}


def saved(path, arrays, form) -> str:
    keyed = dict(FORMS[form](tuple(name.split("/")), value) for name, value in arrays.items())
    return str(checkpoints.save_item(path, flax.traverse_util.unflatten_dict(keyed)))


@pytest.mark.parametrize("are_apart", [False, True], ids=["one tree", "two"])
@pytest.mark.parametrize("form", FORMS)
def test_a_merged_model_says_what_qwix_says(form, are_apart, witness, tmp_path):
    arrays, said = witness
    base = adapter = saved(tmp_path / "both", arrays, form)
    if are_apart:
        factors = {name: value for name, value in arrays.items() if "_lora_" in name}
        plain = {name: value for name, value in arrays.items() if name not in factors}
        base = saved(tmp_path / "base", plain, form)
        adapter = saved(tmp_path / "adapter", factors, form)
    merged = str(tmp_path / "merged")
    nnxconv.merge_lora(base, adapter, merged, alpha=qwix_models.ALPHA, verify=True)
    model = qwix_models.Model(nnx.Rngs(9))
    nnxconv.load_into(model, merged)
    furthest = np.abs(model(qwix_models.batch()) - said).max()
    assert furthest <= TOLERANCE * np.abs(said).max()


def test_the_adapters_are_not_for_nothing(witness, tmp_path):
    arrays, said = witness
    plain = {name: value for name, value in arrays.items() if "_lora_" not in name}
    model = qwix_models.Model(nnx.Rngs(9))
    nnxconv.load_into(model, saved(tmp_path / "plain", plain, "pure"))
    assert np.abs(model(qwix_models.batch()) - said).max() > 0.1
