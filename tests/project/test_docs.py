"""README and docs/: every command and program in them runs, and what they name is there."""

import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import nnxconv
from nnxconv.layouts import CODECS
from tests.project.test_readme import TX, pair
from tests.support import checkpoints, hugging_face, model_pairs, models, pax, peft
from tests.support.command import run

REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"
DOCS = sorted(REPOSITORY.glob("docs/*.md"))
PROSE = [README, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md", *DOCS]

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")

# Commands


def nnx_mlp():
    """An NNX model with the architecture of `pair`, and its optimizer."""
    model = model_pairs.NnxMlp(rngs=nnx.Rngs(1))
    return model, nnx.Optimizer(model, TX, wrt=nnx.Param)


def latent_attention():
    """A model with multi-head latent attention."""
    made = np.random.default_rng(0)
    layers = {
        f"layers_{n}": {
            "self_attention": {
                "wq_b": {"kernel": made.normal(size=(5, 4, 12)).astype("float32")},
                "wkv_b": {"kernel": made.normal(size=(7, 4, 14)).astype("float32")},
            }
        }
        for n in range(2)
    }
    return {"step": np.int32(1), "params": {"params": {"decoder": layers}}, "opt_state": {}}


def adapters():
    """Factors of rank 2 for the kernels of an MLP."""
    ones = {"lora_a": {"kernel": np.ones((16, 2), np.float32)}}
    ones["lora_b"] = {"kernel": np.ones((2, 32), np.float32)}
    layers = {f"layers_{n}": {"mlp": {"wi": ones}} for n in range(3)}
    return {"params": {"params": {"decoder": layers}}}


def replicated():
    """What `flax.jax_utils.replicate` makes of a small state, on eight devices."""
    kernel = np.zeros((8, 2, 3), np.float32)
    return {
        "step": np.full(8, 9, np.int32),
        "params": {"dense": {"kernel": kernel}},
        "opt_state": [{"trace": {"dense": {"kernel": kernel}}}, None],
    }


def weights():
    """Weights of an MLP of two layers, under the names of Flax."""
    made = np.random.default_rng(0)
    sizes = {"Dense_0": (8, 16), "Dense_1": (16, 16), "Dense_2": (16, 4)}
    return {
        "params": {
            name: {
                "kernel": made.normal(size=size).astype("float32"),
                "bias": made.normal(size=size[1]).astype("float32"),
            }
            for name, size in sizes.items()
        }
    }


def converted_by_another_tool():
    """The same under other names, each kernel transposed."""
    names = {"Dense_0": "enter", "Dense_1": "hidden", "Dense_2": "leave"}
    return {
        "params": {
            names[name]: {"weight": module["kernel"].T.copy(), "shift": module["bias"]}
            for name, module in weights()["params"].items()
        }
    }


def heads(*names):
    """A trunk with two heads of one shape."""
    shapes = {"trunk": (4, 8), **dict.fromkeys(names, (8, 2))}
    return {
        "params": {name: {"kernel": np.zeros(shape, "float32")} for name, shape in shapes.items()}
    }


Trees = Mapping[str, Callable[[], Any]]
CHECKPOINTS: Mapping[str, Trees] = {
    "any-tree.md": {
        "bundle/10": lambda: {"state": checkpoints.linen(), "config": {"width": 16}, "epoch": 3},
        "ema/10": lambda: (tree := checkpoints.linen()) | {"ema_params": tree["params"]},
        "gan/10": lambda: {
            "generator": checkpoints.linen(),
            "discriminator": checkpoints.linen(2),
        },
        "replicas/10": replicated,
        "data/10": lambda: {"images": {"mean": np.zeros(3)}, "labels": np.arange(10)},
    },
    "arithmetic.md": {
        **dict.fromkeys(("run_a/1000", "run_a/2000", "run_b/1000"), checkpoints.linen),
        "deepseek/1000": latent_attention,
        "base/1000": checkpoints.linen,
        "lora/1000": adapters,
    },
    "checksum.md": {"ckpt/1000": checkpoints.linen, "nnx_ckpt/1000": checkpoints.nnx_pure},
    "compare.md": dict.fromkeys(("before", "after", "a", "b"), checkpoints.linen),
    "convert.md": {"SRC": checkpoints.linen},
    "gcs.md": {"linen/4000": checkpoints.linen},
    "gpt3-from-paxml.md": {},
    "hugging-face.md": {"linen_ckpt": checkpoints.linen},
    "many-machines.md": {},
    "match.md": {
        "linen_ckpt": pair,
        "nnx_ckpt": lambda: models.nnx_states(*nnx_mlp()),
        "linen_params": weights,
        "by_another_tool": converted_by_another_tool,
        "two_heads": lambda: heads("policy", "value"),
        "other_heads": lambda: heads("first", "second"),
    },
    "rename.md": {"linen_ckpt": pair, "nnx_ckpt": lambda: models.nnx_states(*nnx_mlp())},
    "resume.md": {"SRC": checkpoints.nnx_pure},
}
"""The checkpoints that a page's commands read, under the names that they have there."""


def commands(page: Path) -> list[list[str]]:
    """The words of each `nnxconv ...` on the page, without comments and variables before it."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), re.S)
    lines = re.findall(r"^\$ (?:\w+=\S+ )?nnxconv (.*)$", "\n".join(blocks), re.M)
    return [shlex.split(line, comments=True) for line in lines]


def sessions(page: Path) -> list[tuple[str, str]]:
    """The commands of a page, each with the output that is shown below it, if any."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), re.S)
    return re.findall(r"^\$ nnxconv (.*)\n((?:(?!\$ ).*\n)*)", "".join(blocks), re.M)


@pytest.fixture
def here(request, tmp_path, monkeypatch):
    """A working directory with the checkpoints of the page."""
    for name, tree in CHECKPOINTS[request.param].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        models.save(tmp_path / name, tree())
    monkeypatch.chdir(tmp_path)
    return REPOSITORY / "docs" / request.param


def of(*pages: str):
    """Runs a test in the working directory of each page."""
    return pytest.mark.parametrize("here", pages, indirect=True)


def check_each_is_done(page: Path) -> None:
    """Runs the page's commands in their order; those that write find no target of their name."""
    assert commands(page)
    for words in commands(page):
        if words[0] in ("convert", "gpt3-from-paxml"):
            shutil.rmtree(words[2], ignore_errors=True)
        outcome = run(*words)
        assert (outcome.exit_code, outcome.stderr) == (0, ""), words


def test_every_page_with_commands_is_tried():
    with_commands = {page.name for page in DOCS if commands(page)}
    assert with_commands == CHECKPOINTS.keys()


@of("any-tree.md", "checksum.md", "compare.md", "convert.md", "rename.md", "resume.md")
def test_commands_do_what_they_say(here):
    check_each_is_done(here)


@of("match.md")
def test_commands_that_match_print_what_is_shown(here):
    Path("train").mkdir()
    Path("train/model.py").write_text(
        "from tests.support.model_pairs import abstract_mlp as abstract_state\n"
    )
    for command, shown in sessions(here):
        outcome = run(*shlex.split(command))
        assert outcome.exit_code == (1 if "or  second" in outcome.stdout else 0), command
        if shown:
            assert outcome.stdout == shown, command


@of("gpt3-from-paxml.md")
def test_commands_that_read_a_checkpoint_of_pax(here):
    pax.write(Path("checkpoints/checkpoint_00004000"), pax.leaves())
    check_each_is_done(here)


@of("arithmetic.md")
def test_commands_that_compute(here):
    layers = {f"decoder/layers_{n}/self_attention/max_logits": np.full(4, 200.0) for n in range(2)}
    np.savez("logits.npz", **layers)
    check_each_is_done(here)


@of("hugging-face.md")
def test_commands_that_read_and_write_other_containers(here):
    arrays = hugging_face.arrays_of("qwen3", hugging_face.Sizes())
    hugging_face.save_folder(Path("hf_model"), "qwen3", hugging_face.Sizes(), arrays)
    factors = peft.factors_of("qwen3", hugging_face.Sizes())
    peft.save_adapter(Path("peft_adapter"), factors)
    Path("flax_run").mkdir()
    tree = checkpoints.linen()
    for step in (200, 300):
        text = flax.serialization.to_bytes({**tree, "step": step})
        Path(f"flax_run/checkpoint_{step}").write_bytes(text)
    np.savez("weights.npz", **{"dense/kernel": np.ones((2, 3)), "dense/bias": np.ones(3)})
    Path("model.safetensors").unlink(missing_ok=True)
    check_each_is_done(here)
    [program] = programs(here)
    sizes = hugging_face.Sizes()
    model = hugging_face.nnx_model("qwen3", sizes)
    exec(program, {"model": model})
    wanted = hugging_face.maxtext_of("qwen3", sizes, arrays)["decoder/layers_2/mlp/wo/kernel"]
    assert np.array_equal(model.decoder.layers[2].mlp.wo.kernel[...], wanted)


@of("gcs.md")
def test_commands_that_name_a_bucket(here, storage):
    storage.put(Path("linen/4000"), "out/linen/4000")
    assert commands(here)
    for words in commands(here):
        outcome = run(*(word.replace("gs://runs", storage.path("out")) for word in words))
        assert (outcome.exit_code, outcome.stderr) == (0, ""), words


@of("many-machines.md")
def test_commands_of_several_processes_have_these_options(here):
    assert commands(here)
    for words in commands(here):
        assert run(*words, "--help").exit_code == 0, words


# Programs


def programs(page: Path) -> list[str]:
    """The blocks of Python on a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


FUNCTIONS, LOADING = programs(REPOSITORY / "docs/python.md")


def test_the_functions_run_as_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models.save(tmp_path / "linen_ckpt", pair())
    pax.write(Path("checkpoints/checkpoint_00004000"), pax.leaves())
    names: dict[str, Any] = {"nnx": nnx, "MyModel": model_pairs.NnxMlp}
    exec(FUNCTIONS, names)
    assert (names["report"].is_match, names["found"].understood.layout) == (True, "nnx-pure")
    assert names["proposal"].is_complete
    assert nnxconv.inspect("out").understood.layout == "linen"


def test_loading_runs_as_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained, optimizer = nnx_mlp()
    models.save(tmp_path / "linen_ckpt", models.nnx_states(trained, optimizer))
    models.save(tmp_path / "nnx_ckpt", checkpoints.nnx_pure())
    models.save(tmp_path / "ckpt", checkpoints.linen(layers=4))

    def create():
        params = {"params": checkpoints.weights(layers=3)}
        return TrainState.create(apply_fn=None, params=params, tx=TX)

    model = model_pairs.NnxMlp(rngs=nnx.Rngs(2))
    names: dict[str, Any] = {
        "nnxconv": nnxconv,
        "nnx": nnx,
        "jax": jax,
        "model": model,
        "optimizer": nnx.Optimizer(model, TX, wrt=nnx.Param),
        "create": create,
        "train_state": create(),
    }
    exec(LOADING, names)
    assert np.array_equal(model.hidden[0].kernel[...], trained.hidden[0].kernel[...])
    assert names["train_state"].step == 7
    assert names["tree"]["params.decoder.layers[3].mlp.wi.kernel"].shape == (16, 32)


def test_a_part_of_a_model_is_loaded_as_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Lora(nnx.Module):
        def __init__(self) -> None:
            self.a = nnx.Param(np.ones((2, 1), np.float32))

    class Encoder(nnx.Module):
        def __init__(self) -> None:
            self.kernel = nnx.Param(np.zeros((2, 3), np.float32))
            self.lora = Lora()

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.encoder = Encoder()
            self.head = nnx.Linear(3, 5, rngs=nnx.Rngs(0))

    kernel = np.ones((2, 3), np.float32)
    params = {
        "encoder": {"kernel": kernel},
        "decoder": {"kernel": kernel},
        "head": {"kernel": np.ones((3, 4), np.float32), "bias": np.ones(4, np.float32)},
    }
    models.save(tmp_path / "pretrained", {"params": params})
    [program] = programs(REPOSITORY / "docs/any-tree.md")
    model = Model()
    names: dict[str, Any] = {"nnxconv": nnxconv, "model": model}
    exec(program, names)
    assert np.array_equal(model.encoder.kernel[...], kernel)
    done = names["done"]
    assert (done.missing, done.unexpected) == (
        ("params.encoder.lora.a",),
        ("params.decoder.kernel",),
    )
    assert done.mismatched == ("params.head.bias", "params.head.kernel")


def test_a_live_state_is_clipped_as_shown():
    params = {"params": latent_attention()["params"]["params"]}
    sown = {"self_attention": {"max_logits": (np.full((2, 4), 400, np.float32),)}}
    kernel = params["params"]["decoder"]["layers_0"]["self_attention"]["wq_b"]["kernel"]
    [program] = programs(REPOSITORY / "docs/arithmetic.md")
    names: dict[str, Any] = {
        "nnxconv": nnxconv,
        "state": params,
        "intermediates": {"decoder": {f"layers_{n}": sown for n in range(2)}},
        "config": {"qk_nope_head_dim": 8},
    }
    exec(program, names)
    clipped = names["state"]["params"]["decoder"]["layers_0"]["self_attention"]["wq_b"]["kernel"]
    np.testing.assert_allclose(clipped[..., :8], kernel[..., :8] / 2, rtol=1e-6)
    np.testing.assert_allclose(clipped[..., 8:], kernel[..., 8:] / 4, rtol=1e-6)


def test_every_program_is_tried():
    assert [page.name for page in [*DOCS, README] if programs(page)] == [
        "any-tree.md",
        "arithmetic.md",
        "hugging-face.md",
        "python.md",
    ]


# What is named


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_links_and_paths_lead_to_files(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", re.sub(r"```.*?```", "", text, flags=re.S))
    assert [link for link in links if not (page.parent / link).exists()] == []
    paths = re.findall(r"`((?:tests|examples|nnxconv|docs)/[\w/.-]+)`", text)
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


def test_links_to_headings_lead_to_one():
    for page in PROSE:
        for path, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)]+)\)", page.read_text()):
            target = page.parent / path if path else page
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            spelled = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in spelled, (page.name, anchor)


def test_readme_is_short():
    assert len(README.read_bytes()) <= 12_000


def test_readme_leads_to_every_page():
    assert [page.name for page in DOCS if f"(docs/{page.name})" not in README.read_text()] == []


def test_the_api_has_every_public_name():
    text = (REPOSITORY / "docs/api.md").read_text()
    assert sorted(re.findall(r"^::: nnxconv\.(\w+)$", text, re.M)) == sorted(nnxconv.__all__)


@pytest.mark.parametrize("page", [README, REPOSITORY / "docs/layouts.md"], ids=lambda p: p.name)
def test_the_table_of_layouts_has_all_of_them(page):
    rows = page.read_text().partition("| `--to` |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", rows, re.M)) == sorted(CODECS)
