"""`kill -9` of a conversion that reads or writes safetensors: a whole target or none.

The moments are drawn from the whole time that such a conversion takes undisturbed, as for Orbax in
`test_kill`.
"""

import random
import shutil
import signal
import statistics
from pathlib import Path
from typing import Any

import pytest

import nnxconv
from tests.promises.test_kill import FEW, KILLS, UNFINISHED, snapshot
from tests.support.hugging_face import Sizes, arrays_of, save_folder
from tests.support.kills import Server, serving

pytestmark = pytest.mark.trust

SIZES = Sizes(512, 8, 4, 64, 2048, 2000, 3, 1)
"""50 MB."""

# kind: which source, the name of the target, options
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "names only": ("hf", "out", {"to": "safetensors", "shard_size": "8MB"}),
    "one file": ("hf", "out.safetensors", {"to": "safetensors"}),
    "replaced": ("hf", "out", {"to": "safetensors", "shard_size": "8MB", "overwrite": True}),
    "to maxtext": ("hf", "out", {"to": "maxtext", "scan_layers": True}),
    "back": ("maxtext", "out", {"to": "hf"}),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """A folder of Hugging Face, and what MaxText has of it."""
    root = tmp_path_factory.mktemp("kill")
    arrays = arrays_of("llama", SIZES)
    hf = save_folder(root / "hf", "llama", SIZES, arrays)
    nnxconv.convert(str(hf), str(root / "maxtext"), to="maxtext", scan_layers=True)
    return {"hf": hf, "maxtext": root / "maxtext"}


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


def content(path: Path) -> dict[str, bytes] | None:
    """What a folder of safetensors, or one file, holds; None where nothing is."""
    if path.is_file():
        return {path.name: path.read_bytes()}
    return {file.name: file.read_bytes() for file in path.iterdir()} if path.exists() else None


def is_whole(path: Path, wanted: dict[str, bytes], source: Path) -> bool:
    """True where a target is all that it should be; one of Orbax is compared by its values."""
    if not (path / "_METADATA").exists():
        return content(path) == wanted
    return nnxconv.compare(str(source), str(path), compare_values=True, atol=0, rtol=0).is_match


def removed(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def undisturbed(
    server: Server, source: Path, target: Path, options
) -> tuple[dict[str, bytes], float]:
    """What is written, and how many seconds it takes."""
    times = []
    for _ in range(3):
        removed(target)
        status, seconds = server.convert(source, target, None, **options)
        assert status == 0
        times.append(seconds)
    found = {} if (target / "_METADATA").exists() else content(target)
    return found or {}, statistics.median(times)


@pytest.mark.sample(2)
@pytest.mark.parametrize("kills", [FEW, pytest.param(KILLS, marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_any_moment_leaves_the_source_and_a_whole_target_or_none(
    kind, kills, server, sources, tmp_path, record_property
):
    name, where, options = KINDS[kind]
    if options["to"] == "hf":
        options = {**options, "config": str(sources["hf"])}
    source, target = sources[name], tmp_path / where
    before = {name: snapshot(path) for name, path in sources.items()}
    wanted, duration = undisturbed(server, source, target, options)
    drawn = random.Random(kind)
    hits, found_unfinished = 0, 0
    for _ in range(3 * kills):
        if not options.get("overwrite"):
            removed(target)
        status, _ = server.convert(source, target, drawn.uniform(0, duration), **options)
        assert status in (0, -signal.SIGKILL)
        assert {name: snapshot(path) for name, path in sources.items()} == before
        if status == 0 or options.get("overwrite") or target.exists():
            assert is_whole(target, wanted, source)
        hits += status != 0
        found_unfinished += any(UNFINISHED in path.name for path in tmp_path.iterdir())
        if hits == kills:
            break
    assert hits == kills
    told = f"{hits} kills, of which {found_unfinished} left an unfinished directory"
    record_property("figures", told)
    if not options.get("overwrite"):
        removed(target)
    assert server.convert(source, target, None, **options)[0] == 0
    assert is_whole(target, wanted, source)
    assert [path.name for path in tmp_path.iterdir()] == [where]


@pytest.mark.sample(2)
@pytest.mark.parametrize("kills", [FEW, pytest.param(KILLS, marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", ["names only", "one file", "replaced", "back"])
def test_a_killed_run_with_resume_goes_on_to_the_same_bytes(
    kind, kills, server, sources, tmp_path, record_property
):
    name, where, options = KINDS[kind]
    if options["to"] == "hf":
        options = {**options, "config": str(sources["hf"])}
    options = {**options, "resume": True, "max_memory": "16MiB"}
    source, target = sources[name], tmp_path / where
    wanted, duration = undisturbed(server, source, target, options)
    drawn = random.Random(f"{kind} resumed")
    hits, went_on = 0, 0
    while hits < kills:
        if not options.get("overwrite"):
            removed(target)
        status = -1
        for _ in range(3):
            moment = drawn.uniform(0, duration)
            status, _ = server.convert(source, target, moment, **options)
            assert status in (0, -signal.SIGKILL)
            hits += status != 0
            went_on += (tmp_path / f"{where}.orbax-checkpoint-tmp-resume").exists()
            if status == 0 or (target.exists() and not options.get("overwrite")):
                break
        if status != 0 and (options.get("overwrite") or not target.exists()):
            assert server.convert(source, target, None, **options)[0] == 0
        assert is_whole(target, wanted, source)
    record_property("figures", f"{hits} kills, after {went_on} of which work was kept")
    again = {**options, "overwrite": True}
    assert server.convert(source, target, None, **again)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == [where]
