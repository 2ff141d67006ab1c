"""What a checkpoint's names may do to a terminal: nothing."""

import numpy as np
import pytest

from nnxconv.cli.output import printable
from tests.support import checkpoints
from tests.support.command import run

RED = "\x1b[31mred\x1b[0m"

# text, and what is shown
SHOWN = {
    "plain words stay": ("3 of 4 arrays differ\n  at x", "3 of 4 arrays differ\n  at x"),
    "letters of any script stay": ("層 größe", "層 größe"),
    "escape sequences": (RED, "\\x1b[31mred\\x1b[0m"),
    "carriage return and bell": ("a\rb\a", "a\\rb\\x07"),
    "text direction": ("a\u202eb", "a\\u202eb"),
    "half a surrogate pair": ("\ud800", "\\ud800"),
    "line separator": ("a\u2028b", "a\\u2028b"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_terminal_would_obey_is_escaped(name):
    text, shown = SHOWN[name]
    assert printable(text) == shown


@pytest.fixture
def source(tmp_path):
    """A checkpoint with a parameter of a malicious name."""
    kernels = {name: {"kernel": np.ones((2, 2), np.float32)} for name in (RED, "a\rb")}
    return checkpoints.save_item(tmp_path / "in", {"params": {"params": kernels}, "opt_state": {}})


def test_what_a_step_has_beside_its_parameters_is_left_out_by_name(tmp_path):
    weights = {"dense": {"kernel": np.ones((2, 3), np.float32)}}
    tree = {"params": weights, "ema_params": weights, "opt_state": {}, "step": np.int32(3)}
    item = checkpoints.save_item(tmp_path / "in", {**tree, "epoch": np.int32(1)})
    shown = run("convert", item, tmp_path / "out", "--to", "nnx", "--params_only").stdout
    assert "\n  left out  ema_params.dense.kernel, epoch (--params_only)\n" in shown


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "IN", "--tree"],
        ["inspect", "IN", "--json"],
        ["convert", "IN", "OUT", "--dry_run"],
        ["convert", "IN", "OUT", "--dry_run", "--json"],
        ["compare", "IN", "IN", "--verbose"],
    ],
    ids=" ".join,
)
def test_names_cannot_steer_the_terminal(words, source, tmp_path):
    places = {"IN": source, "OUT": tmp_path / "out"}
    outcome = run(*(places.get(word, word) for word in words))
    text = outcome.stdout + outcome.stderr
    assert "31mred" in text
    assert "\x1b" not in text
    assert "\r" not in text
