"""Eight simulated CPU devices, and the shared checkpoints where they are there."""

import os
from collections import Counter
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
    """Leaves tests that are marked `trust(only=True)` to runs that ask for them."""
    if "trust" in config.option.markexpr:
        return
    left = [item for item in items if any(m.kwargs for m in item.iter_markers("trust"))]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what tests of `trust` have recorded, and how many there were in each file."""
    if "trust" not in terminalreporter.config.option.markexpr:
        return
    passed = Counter[str]()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            passed[report.nodeid.partition("::")[0]] += outcome == "passed"
            for name, text in report.user_properties:
                if name == "figures":
                    terminalreporter.section(report.nodeid.rpartition("::")[2], "-")
                    terminalreporter.write_line(str(text))
    terminalreporter.section("tests that passed", "-")
    for file, count in passed.items():
        terminalreporter.write_line(f"{count:>5,}  {file}")
