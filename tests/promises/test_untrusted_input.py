"""Numbers, rules, recorded logits and working directories that nobody means: one message each."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.support import checkpoints
from tests.support.command import run

pytestmark = pytest.mark.trust


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return checkpoints.save_item(tmp_path_factory.mktemp("input") / "a", checkpoints.linen(2))


# words after SRC DST, and the first line of the message
NUMBERS = [
    (["--max_memory", "9" * 400], f"error: `{'9' * 400}` is not a size"),
    (["--drop", "*"], "error: the new checkpoint would hold no arrays"),
]


@pytest.mark.parametrize(("words", "message"), NUMBERS)
def test_numbers_and_patterns_that_leave_nothing(words, message, saved, tmp_path):
    outcome = run("convert", saved, tmp_path / "new", *words)
    assert (outcome.exit_code, outcome.stderr.splitlines()[0]) == (2, message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["nan", "-1"])
@pytest.mark.parametrize("name", ["atol", "rtol"])
def test_tolerances_are_numbers_from_0_on(name, value, saved):
    outcome = run("compare", saved, saved, "--compare_values", f"--{name}", value)
    told = f"error: `--{name} {value}` is no number from 0 on\n"
    assert (outcome.exit_code, outcome.stderr) == (2, told)


def test_a_path_with_a_character_that_none_has(saved):
    outcome = run("convert", saved, "a\0b")
    assert outcome.exit_code == 2
    assert outcome.stderr.endswith("is no path: it has a character that no file name has\n")


RULES = {
    "nested": ("a = " + "[" * 100_000, "these are no rules: they are nested too deeply"),
    "layers below 0": (
        '[rules]\n"decoder.layers[{i}]" = "decoder.layers[{i-5}]"',
        "`i-5` gives the layer -5, which is below 0",
    ),
    "no text": (b"\xff\xfe", "`$/rules.toml` is no text in UTF-8"),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_that_cannot_be_read(name, saved, tmp_path):
    text, message = RULES[name]
    file = tmp_path / "rules.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    outcome = run("convert", saved, tmp_path / "new", "--rename", file, "--to", "nnx-pure")
    first = outcome.stderr.splitlines()[0].replace(str(tmp_path), "$")
    assert (outcome.exit_code, first) == (2, f"error: {message}")
    assert not (tmp_path / "new").exists()


# Recorded logits

KEY = "decoder/layers_0/self_attention/max_logits"


def logits(value: str) -> bytes:
    path = KEY.split("/")
    return ("".join(f'{{"{part}":' for part in path) + value + "}" * len(path)).encode()


def npz(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def vast(size: int) -> bytes:
    return npz(repr({"descr": "<f4", "fortran_order": False, "shape": (size,)}).encode() + b"\n")


NO_TREE = "error: `$` is not a JSON tree of numbers"
NO_FILE = "error: `$` cannot be read: "
NO_NPZ = "error: `$` is no npz file"
NO_NUMBERS = "error: 1 recorded maximum of `$` are no real numbers"

# file: its bytes, or its array; how the message begins
RECORDED = {
    "nested.json": (b"[" * 100_000 + b"]" * 100_000, NO_TREE),
    "huge.json": (logits("[" + "9" * 400 + "]"), NO_NUMBERS),
    "text.json": (logits('"x"'), NO_NUMBERS),
    "none.json": (logits("null"), NO_NUMBERS),
    "bool.json": (logits("[true]"), NO_NUMBERS),
    "empty.json": (logits("[]"), NO_NUMBERS),
    "ragged.json": (logits("[[1],[1,2]]"), NO_TREE),
    "twice.json": (logits('[1],"max_logits":[900]'), NO_TREE),
    "bytes.json": (b"\xff\xfe\0", "error: `$` is no text in UTF-8"),
    "text.npz": (np.array(["a"]), NO_NUMBERS),
    "complex.npz": (np.array([1j]), NO_NUMBERS),
    "date.npz": (np.array([1], "M8[s]"), NO_NUMBERS),
    "empty.npz": (np.zeros((0, 4)), NO_NUMBERS),
    "object.npz": (np.array([object()]), NO_FILE),
    "zip.npz": (b"PK\x03\x04" + bytes(100), NO_NPZ),
    "nothing.npz": (b"", NO_NPZ),
    "vast.npz": (vast(10**18), NO_FILE),
    "nested.npz": (npz(b"-" * 5000 + b"1\n"), NO_FILE),
}


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_logits_that_are_none(name, saved, tmp_path):
    content, message = RECORDED[name]
    file = tmp_path / name
    if isinstance(content, np.ndarray):
        np.savez(file, **{KEY: content})
    elif name in ("vast.npz", "nested.npz"):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(f"{KEY}.npy", content)
    else:
        file.write_bytes(content)
    model = {"self_attention": {"wkv_b": {"kernel": np.ones((5, 1, 12), "float32")}}}
    tree = {"params": {"params": {"decoder": {"layers_0": model}}}, "step": 1, "opt_state": {}}
    source = checkpoints.save_item(tmp_path / "a", tree)
    words = ("--max_logits", file, "--threshold", 1, "--qk_nope_head_dim", 8)
    outcome = run("qk-clip", source, tmp_path / "new", *words)
    assert outcome.exit_code == 2
    assert outcome.stderr.replace(str(file), "$").startswith(message)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threshold", "nan", "--qk_nope_head_dim", "8"], "`--threshold nan` is not above 0"),
        (["--threshold", "1", "--qk_nope_head_dim=-1"], "`--qk_nope_head_dim -1` is not above 0"),
    ],
)
def test_thresholds_and_sizes_are_above_0(words, message, saved, tmp_path):
    outcome = run("qk-clip", saved, tmp_path / "new", "--max_logits", "x.npz", *words)
    assert (outcome.exit_code, outcome.stderr) == (2, f"error: {message}\n")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "9" * 400])
def test_an_alpha_that_is_no_number_is_refused(value, tmp_path):
    module = {"kernel": np.ones((4, 4), "float32")}
    pair = {"lora_a": {"kernel": np.ones((4, 2))}, "lora_b": {"kernel": np.ones((2, 4))}}
    base = checkpoints.save_item(tmp_path / "base", {"params": {"params": {"mlp": module}}})
    lora = checkpoints.save_item(tmp_path / "l" / "lora", {"params": {"params": {"mlp": pair}}})
    (lora.parent / "adapter_config.json").write_text(f'{{"lora_alpha": {value}}}')
    outcome = run("merge-lora", base, lora, tmp_path / "new")
    told = "nan" if value == "NaN" else "inf"
    assert (outcome.exit_code, outcome.stderr.splitlines()[0]) == (
        2,
        f"error: alpha is {told}, which is no finite number",
    )


# What lies in the working directory

TRAPS = ("json", "numpy", "flax", "jax", "orbax", "tensorstore", "jinja2", "tomllib", "yaml")
TRAPS += ("ml_dtypes", "etils", "gcsfs", "google", "rich", "click", "tensorflow", "msgpack")


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", ["inspect", "report", "rules", "model"])
def test_nothing_in_the_working_directory_is_imported_unless_it_is_named(kind, saved, tmp_path):
    for name in TRAPS:
        (tmp_path / f"{name}.py").write_text("open('trapped', 'w').write(__name__)")
    (tmp_path / "mine.py").write_text(
        "import flax, helper\nfrom flax import nnx\n"
        "def model():\n    return nnx.Linear(2, 3, rngs=nnx.Rngs(0))\n"
    )
    (tmp_path / "helper.py").write_text("")
    words = {
        "inspect": ["inspect", str(saved)],
        "report": ["compare", str(saved), str(saved), "--report", "r.html"],
        "rules": ["match", str(saved), str(saved), "--output", "r.toml"],
        "model": ["match", str(saved), "mine:model"],
    }[kind]
    code = f"import sys; sys.argv[1:] = {words!r}; from nnxconv.cli import main; main()"
    path = os.pathsep.join([str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    assert "gives no model" not in done.stderr
    assert not (tmp_path / "trapped").exists()


def test_the_module_that_is_named_is_that_of_the_working_directory(saved, tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit(0)")
    code = (
        f"import sys; sys.argv[1:] = ['match', {str(saved)!r}, 'mine:model'];"
        " from nnxconv.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        2,
        "error: `mine:model` gives no model: SystemExit: 0\n",
    )
