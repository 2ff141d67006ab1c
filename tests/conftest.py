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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves tests that are marked `trust` to runs that ask for them."""
    if "trust" in config.option.markexpr:
        return
    asked = [item for item in items if item.get_closest_marker("trust") is None]
    if len(asked) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(asked)])
        items[:] = asked


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the figures that tests have recorded, in runs of `trust`."""
    if "trust" not in terminalreporter.config.option.markexpr:
        return
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, text in report.user_properties:
                if name == "figures":
                    terminalreporter.section(report.nodeid.rpartition("::")[2], "-")
                    terminalreporter.write_line(str(text))
