"""Where checkpoints that other programs wrote may lie: beside the repository, in `shared/`.

`NNXCONV_CONFORMANCE` names the folder of the checkpoints; `cases` is its sibling. Tests reach them
by the fixtures `conformance` and `conformance_cases`, which skip what cannot run without.
"""

import os
from pathlib import Path

import pytest

VARIABLE = "NNXCONV_CONFORMANCE"
BESIDE = Path(__file__).parents[3] / "shared" / "checkpoints"


def checkpoints() -> Path:
    """The folder of the checkpoints, whether it is there or not."""
    return Path(os.environ.get(VARIABLE, BESIDE))


def cases() -> Path:
    """The folder of what is smaller than the checkpoint of a model, whether it is there or not."""
    return checkpoints().parent / "cases"


def found(folder: Path) -> Path:
    """The folder; the test is skipped where it is not there."""
    if not folder.is_dir():
        pytest.skip(f"no conformance checkpoints: {folder} is not there ({VARIABLE})")
    return folder
