"""`import nnxconv` and the help stay light: nothing heavy is loaded before it is needed."""

import ast
import subprocess
import sys

import pytest

from tests.support.checkpoints import linen, save_root

HEAVY = ("jax", "tensorstore", "orbax", "etils", "numpy", "ml_dtypes", "flax", "gcsfs", "rich")


def loaded_by(code: str, packages: tuple[str, ...] = HEAVY) -> set[str]:
    """The packages that a fresh interpreter has loaded after the code, of those asked for."""
    listing = f"; import sys; print([m for m in {packages!r} if m in sys.modules])"
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
    assert {"jax", "orbax"} <= loaded_by("import nnxconv, orbax.checkpoint")


ALWAYS = ("jax", "jaxlib", "orbax", "flax", "gcsfs", "fsspec", "aiohttp", "rich")


@pytest.fixture(scope="module")
def linen_checkpoint(tmp_path_factory):
    return save_root(tmp_path_factory.mktemp("imports") / "linen", {7: linen()})


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "command",
    [
        "nnxconv convert SRC OUT/nnx",
        "nnxconv convert SRC OUT/unstacked --to nnx-pure --transfer link --resume --no-scan_layers",
        "nnxconv convert SRC OUT/bfloat16 --to linen --params_only --dtype bfloat16",
        "nnxconv inspect SRC",
        "nnxconv inspect SRC --json",
        "nnxconv compare SRC SRC",
        "nnxconv checksum SRC",
        "nnxconv match SRC SRC",
    ],
)
def test_a_command_on_a_disk_loads_what_it_needs(command, linen_checkpoint, tmp_path):
    command = command.replace("SRC", str(linen_checkpoint)).replace("OUT", str(tmp_path))
    code = f"import sys; from nnxconv.cli import main; sys.argv = {command.split()!r}"
    code += "\ntry:\n    main()"
    ends = "except SystemExit as end:\n    assert end.code in (0, None)\n0"
    assert loaded_by(f"{code}\n{ends}", ALWAYS) == set()
