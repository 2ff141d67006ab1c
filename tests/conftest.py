"""Eight simulated CPU devices, and the shared checkpoints where they are there."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import pytest

REPOSITORY = Path(__file__).parent.parent


def conformance_root() -> Path:
    """Where checkpoints that MaxText and paxml wrote may lie."""
    return Path(os.environ.get("NNXCONV_CONFORMANCE", REPOSITORY.parent / "shared" / "checkpoints"))


@pytest.fixture(scope="session")
def conformance() -> Path:
    """Checkpoints that other programs wrote; the test is skipped where there are none."""
    root = conformance_root()
    if not root.is_dir():
        pytest.skip(f"no conformance checkpoints: {root} is not there (NNXCONV_CONFORMANCE)")
    return root
