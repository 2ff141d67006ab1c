"""Every row of the README's table from situation to command: the command runs, and does it."""

import re
import shlex
from pathlib import Path

import flax.serialization
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import nnxconv
from tests.layouts import test_adapters, test_tunix
from tests.support import checkpoints, hugging_face, model_pairs, models, pax, peft
from tests.support.command import run

README = Path(__file__).parents[2] / "README.md"
TX = optax.adamw(optax.constant_schedule(1e-3))

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")


def rows():
    """What stands in the last column of the table: commands, lines of Python, or a link."""
    table = README.read_text().partition("## I have ... and want ...")[2].partition("\n## ")[0]
    return [line.split(" | ")[-1].strip("| ") for line in table.splitlines() if "| " in line][1:]


def pair():
    """A Linen run, and the NNX model of another name that goes on with it."""
    linen, batch = model_pairs.PAIRS["mlp"].linen(), model_pairs.PAIRS["mlp"].batch
    return models.linen_state(linen, TX, batch(0)[0])


def nnx_optimizer_of_flax_0_10():
    """`nnx.Optimizer` held the model: `{model, opt_state, step}`."""
    tree = checkpoints.nnx_state()
    return {"model": tree["model"], **tree["optimizer"]}


CHECKPOINTS = {
    "ckpt": checkpoints.linen,
    "linen_ckpt": checkpoints.linen,
    "axis0_ckpt": lambda: checkpoints.linen(axis=0),
    "maxtext_ckpt": checkpoints.maxtext,
    "nnx_ckpt": checkpoints.nnx_pure,
    "flax_0_10_ckpt": nnx_optimizer_of_flax_0_10,
    "variables": lambda: {"params": checkpoints.weights()},
    "linen_model": pair,
    "bundle_ckpt": lambda: {"state": checkpoints.linen(), "config": {"width": 16}, "epoch": 3},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The README's checkpoints, under the names that it gives them; only `out` is written."""
    root = tmp_path_factory.mktemp("readme")
    for name, tree in CHECKPOINTS.items():
        models.save(root / name, tree())
    test_adapters.saved(root / "lora_ckpt", is_stacked=False)
    test_tunix.save(root / "tunix_ckpt", *test_tunix.trained())
    pax.write(root / "pax_ckpt", pax.leaves())
    sizes = hugging_face.Sizes()
    arrays = hugging_face.arrays_of("qwen3", sizes)
    hugging_face.save_folder(root / "hf_model", "qwen3", sizes, arrays)
    nnxconv.convert(str(root / "hf_model"), str(root / "qwen3_ckpt"), to="maxtext")
    peft.save_adapter(root / "peft_adapter", peft.factors_of("qwen3", sizes))
    adapted = checkpoints.linen()
    module = adapted["params"]["params"]["decoder"]["layers_1"]["mlp"]["wi"]
    module["lora_a"] = {"kernel": np.ones((16, 2), np.float32)}
    module["lora_b"] = {"kernel": np.ones((2, 32), np.float32)}
    models.save(root / "adapted_ckpt", adapted)
    text = flax.serialization.to_bytes(checkpoints.weights())
    (root / "flax_model.msgpack").write_bytes(text)
    (root / "train_model.py").write_text(
        "from tests.support.model_pairs import abstract_mlp as abstract_model\n"
    )
    return root


@pytest.fixture
def here(directory, tmp_path, monkeypatch):
    """A working directory with all of them, and with the rules that `match` finds."""
    for path in directory.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    nnxconv.match("linen_model", model_pairs.abstract_mlp(), output="rules.toml")


COMMANDS = [row.strip("`") for row in rows() if row.startswith("`nnxconv ")]
PYTHON = [row.strip("`") for row in rows() if row.startswith("`") and "nnxconv." in row]


def test_every_row_is_tried():
    links = [row for row in rows() if row.startswith("[")]
    assert len(COMMANDS) + len(PYTHON) + len(links) == len(rows()) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_does_what_its_row_says(command, here):
    words = shlex.split(command)[1:]
    if "--output" in words:
        Path("rules.toml").unlink()
    outcome = run(*words)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    if "out" not in words or "--dry_run" in words:
        assert not Path("out").exists()
        return
    found = nnxconv.inspect("out").understood
    assert found is not None
    if "--to" in words:
        to = words[words.index("--to") + 1]
        assert found.layout == {"hf": "safetensors"}.get(to, to)
    stacked = {"--scan_layers": True, "--no-scan_layers": False, "--layer_axis": True}
    for option in stacked.keys() & set(words):
        text = run("inspect", "out").stdout
        assert ("stacked on axis 1" in text) == stacked[option], text


@pytest.mark.parametrize("code", PYTHON)
def test_a_line_of_python_does_what_its_row_says(code, here):
    model = model_pairs.NnxMlp(rngs=nnx.Rngs(1))
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    params = {"params": checkpoints.weights(layers=3)}
    fresh = TrainState.create(apply_fn=None, params=params, tx=TX)
    names = {"nnxconv": nnxconv, "model": model, "optimizer": optimizer, "train_state": fresh}
    exec(f"result = {code}" if "train_state =" not in code else code, names)
    if "load_into" in code:
        expected = pair().params["params"]["Dense_0"]["kernel"]
        assert np.array_equal(model.hidden[0].kernel[...], expected)
    elif "open" in code:
        assert np.array_equal(names["result"], checkpoints.weights()["embed"]["embedding"][:16])
    else:
        assert (names["train_state"].step, fresh.step) == (7, 0)


def test_the_names_of_checkpoints_are_those_of_the_table():
    used = set(re.findall(r"\b(\w*ckpt|variables|linen_model)\b", "\n".join(COMMANDS + PYTHON)))
    assert used == {
        *CHECKPOINTS,
        "lora_ckpt",
        "tunix_ckpt",
        "pax_ckpt",
        "qwen3_ckpt",
        "adapted_ckpt",
    }
