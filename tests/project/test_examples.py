"""What lies in `examples/` runs, and does what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nnxconv
from tests.support.trees import shape_tree, values

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"
ITEM = Path("2", "default")
ENVIRONMENT = {
    "PYTHONPATH": str(REPOSITORY),
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling these models takes longer than running them
}


def run(script: str, *arguments: str) -> str:
    """The output of an example, run in a process of its own as a user would.

    Warnings are errors there, but where a set of old versions says which are none.
    """
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment = {"PYTHONWARNINGS": "error"} | environment
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        env=environment | ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.full
def test_training_goes_on_in_nnx_with_the_losses_of_linen():
    lines = run("train_linen_continue_in_nnx.py").splitlines()
    before, after = lines[:5], lines[5:]
    assert all(re.fullmatch(r"step \d  linen \d\.\d{5}", line) for line in before)
    losses = [re.fullmatch(r"step \d  linen (\S+)  nnx (\S+)", line).groups() for line in after]
    assert len(losses) == 5
    linen, nnx = np.array(losses, dtype=float).T
    np.testing.assert_allclose(nnx, linen, atol=2e-5)
    assert linen[-1] < linen[0]


def both_losses(text: str, other: str) -> tuple[np.ndarray, np.ndarray]:
    """The losses of the run that was not moved, and those of the other one at the same steps."""
    losses = re.findall(rf"^step \d  linen (\S+)  {other} (\S+)$", text, re.M)
    linen, moved = np.array(losses, dtype=float).T
    return linen, moved


@pytest.mark.full
def test_a_linen_model_is_loaded_into_an_nnx_model_of_other_names_and_goes_on():
    text = run("load_into_nnx.py")
    linen, nnx = both_losses(text, "nnx")
    assert len(nnx) == 5
    np.testing.assert_allclose(nnx, linen, atol=2e-5)
    assert '"LayerNorm_{i}" = "blocks.{i}.norm"' in text
    last = text.splitlines()[-1]
    assert re.fullmatch(r"<params\.head\.kernel  f32\[32,16\]>  norm \d\.\d+", last)


@pytest.mark.full
def test_a_maxtext_run_goes_to_nnx_and_back_with_its_losses():
    text = run("maxtext_there_and_back.py")
    for other in ("nnx", "back in linen"):
        linen, moved = both_losses(text, other)
        assert len(moved) == 3
        np.testing.assert_allclose(moved, linen, atol=2e-5)
    assert [line for line in text.splitlines() if not line.startswith("step")] == [
        "nnx-pure: model, optimizer",
        "maxtext: nnx_aux, opt_state, params, step",
        "linen: opt_state, params, step",
        *(f"<params.decoder.layers[{i}].mlp.wo.kernel  bf16[64,32]>" for i in range(3)),
    ]


@pytest.mark.full
def test_recognisable_moments_tell_whether_they_are_beside_their_parameters():
    assert run("recognisable_moments.py").splitlines() == [
        *(
            f"{name}: 54 moments belong to their parameters, 0 do not"
            for name in ("linen", "nnx", "nnx-pure", "back")
        ),
        "restored: all moments are there",
        "swapped: 30 moments belong to their parameters, 24 do not",
        "first: opt_state[1][0].mu.layers[0].attention.key.kernel",
    ]


@pytest.mark.full
def test_the_small_checkpoint_is_the_one_that_its_script_makes(tmp_path):
    run("make_linen_checkpoint.py", str(tmp_path / "made"))
    committed = EXAMPLES / "linen_checkpoint" / ITEM
    assert shape_tree(tmp_path / "made" / ITEM) == shape_tree(committed)
    made = values(tmp_path / "made" / ITEM)
    for path, value in values(committed).items():  # other processors round otherwise
        np.testing.assert_allclose(made[path], value, atol=5e-3, err_msg="/".join(path))


def test_the_small_checkpoint_is_small():
    files = [path for path in (EXAMPLES / "linen_checkpoint").rglob("*") if path.is_file()]
    assert len(files) < 25
    assert sum(path.stat().st_size for path in files) < 250 * 1024


def test_the_small_checkpoint_converts_without_options_and_comes_back(tmp_path):
    source = EXAMPLES / "linen_checkpoint"
    there = nnxconv.convert(str(source), str(tmp_path / "nnx"))
    assert there.conversion.layout == "nnx"
    kernel = values(tmp_path / "nnx" / ITEM)[("model", "layers", "up", "kernel", "value")]
    assert kernel.shape == (16, 3, 32)
    nnxconv.convert(str(tmp_path / "nnx"), str(tmp_path / "back"))
    assert shape_tree(tmp_path / "back" / ITEM) == shape_tree(source / ITEM)
    before, after = values(source / ITEM), values(tmp_path / "back" / ITEM)
    assert all(before[path].tobytes() == after[path].tobytes() for path in before)
