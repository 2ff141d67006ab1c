"""Checkpoints and stored trees that other programs wrote; they lie beside the repository, or not.

`NNXCONV_CONFORMANCE` names the folder of the checkpoints; `cases` is its sibling. The fixtures
`conformance` and `conformance_cases` skip their tests where the folder is not there.
"""

import os
from pathlib import Path

import pytest

from tests.support.places import REPOSITORY

VARIABLE = "NNXCONV_CONFORMANCE"


def checkpoints() -> Path:
    """The folder of the checkpoints, whether it is there or not."""
    return Path(os.environ.get(VARIABLE, REPOSITORY.parent / "shared" / "checkpoints"))


def cases() -> Path:
    """The folder of the stored trees that are smaller than a checkpoint of a whole model."""
    return checkpoints().parent / "cases"


def there(folder: Path) -> Path:
    """The folder; the test is skipped where it is not there."""
    if not folder.is_dir():
        pytest.skip(f"no conformance checkpoints: {folder} is not there ({VARIABLE})")
    return folder
