"""What holds for all tests, doctests included: tiers, simulated devices, compilations kept."""

import ast
import gc
import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # read by `import gcsfs`
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
# Compiling the models of the tests takes longer than running them: it is done without optimization,
# and once, whichever process of whichever run needs it. `pytest --cache-clear` forgets it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".pytest_cache/d/jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")

import pytest

from tests.support import tiers

REPOSITORY = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts every test into its tier; those marked `trust(only=True)` wait for `-m trust`."""
    if "trust" in config.option.markexpr:
        return
    left = {item for item in items if any(m.kwargs for m in item.iter_markers("trust"))}
    if left:
        config.hook.pytest_deselected(items=list(left))
        items[:] = [item for item in items if item not in left]
    tiers.assign(items)


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
        about = ast.get_docstring(ast.parse((REPOSITORY / file).read_text())) or ""
        terminalreporter.write_line(f"{count:>5,}  {file}: {about.splitlines()[0]}")


def pytest_collection_finish() -> None:
    """Leaves what tests are made of out of the collections of garbage between them."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Lets a worker of `-n 2` that is done take over what the other has left."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"
