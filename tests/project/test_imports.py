"""`import nnxconv` and the help stay light: nothing heavy is loaded before it is needed."""

import ast
import subprocess
import sys

import pytest

HEAVY = ("jax", "tensorstore", "orbax", "etils", "numpy", "ml_dtypes", "flax", "gcsfs", "rich")


def loaded_by(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after the code."""
    listing = f"; import sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code + listing], capture_output=True, text=True, check=True
    )
    return set(ast.literal_eval(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code", ["import nnxconv", "import nnxconv.cli"])
def test_an_import_loads_nothing_heavy(code):
    assert loaded_by(code) == set()


def test_the_help_loads_nothing_heavy():
    code = "import sys; from nnxconv.cli import main; sys.argv = ['nnxconv', 'convert', '--help']"
    loaded = loaded_by(f"{code}\ntry:\n    main()\nexcept SystemExit:\n    pass\n0")
    assert loaded == set()


def test_what_is_heavy_would_be_seen():
    assert "tensorstore" in loaded_by("import nnxconv, nnxconv.storage.orbax.reading")
    assert {"jax", "orbax"} <= loaded_by("import nnxconv.storage.orbax.saving")
