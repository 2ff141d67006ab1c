"""Too few open files, too little memory, and places that may not be written or read.

Each command runs in a process of its own that has been given less than it may want; root, whom no
permission stops, becomes somebody who has no name.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nnxconv
from nnxconv.errors import PlanError
from nnxconv.running import cgroup
from nnxconv.running import memory as limits
from tests.support import checkpoints
from tests.support.safety import snapshot

pytestmark = pytest.mark.trust

GIB = 2**30
NOBODY = 54321
"""A user that has no name, as in many containers."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """Small checkpoints, and one whose conversion takes some memory."""
    root = tmp_path_factory.mktemp("resources")
    checkpoints.save_item(root / "ocdbt", checkpoints.linen(8))
    checkpoints.save_item(root / "plain", checkpoints.linen(8), use_ocdbt=False)
    large = checkpoints.linen(2)
    for index in range(4):
        kernel = checkpoints.values((32, 1024, 512), index)
        large["params"]["params"][f"large_{index}"] = kernel
    checkpoints.save_item(root / "large", large, chunk_bytes=2**22)
    return root


BECOME_NOBODY = f"""
import importlib.metadata, importlib.resources, os, pkgutil, unicodedata
import numpy.ma, rich.console, rich.progress
import nnxconv
for module in pkgutil.walk_packages(nnxconv.__path__, "nnxconv."):
    importlib.import_module(module.name)
nnxconv.layouts.layouts()  # what other packages announce is read once
if os.getuid() == 0:
    os.setgid({NOBODY})
    os.setuid({NOBODY})
"""
"""What is imported before comes from places that only root may read, perhaps."""


def limited(name: str, value: int) -> str:
    """Code that sets a limit of this process."""
    return f"import resource; resource.setrlimit(resource.{name}, ({value}, {value}))"


def command(*words: object, before: str = "") -> subprocess.CompletedProcess:
    """Runs the command in a process that has run other code before."""
    return subprocess.run(
        [sys.executable, "-c", f"{before}\nfrom nnxconv.cli import main; main()", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "XLA_FLAGS": ""},
        check=False,
    )


def opened_to_all(path: Path) -> Path:
    """Lets anybody reach the directories above a path that are the test's own."""
    for folder in (path, *path.parents):
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o055)
    return path


@pytest.mark.full
@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain", ["--to", "linen"]),
        pytest.param(
            "plain", ["--to", "nnx-pure", "--scan_layers"], marks=pytest.mark.trust(only=True)
        ),
        pytest.param("ocdbt", ["--to", "linen"], marks=pytest.mark.trust(only=True)),
        pytest.param(
            "ocdbt", ["--to", "nnx-pure", "--scan_layers"], marks=pytest.mark.trust(only=True)
        ),
    ],
)
def test_64_open_files_are_enough(name, options, sources, tmp_path):
    target = tmp_path / "out"
    done = command("convert", sources / name, target, *options, before=limited("RLIMIT_NOFILE", 64))
    assert done.returncode == 0, done.stderr
    same = nnxconv.compare(
        str(sources / name), str(target), compare_values=True, compare_only="all"
    )
    assert same.is_match


def test_too_few_open_files_are_one_message_and_leave_nothing(sources, tmp_path):
    before = snapshot(sources)
    done = command(
        "convert",
        sources / "plain",
        tmp_path / "out",
        "--to",
        "nnx-pure",
        before=limited("RLIMIT_NOFILE", 12),
    )
    assert done.returncode == 2, done.stderr
    assert "Too many open files" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert snapshot(sources) == before


def test_a_limit_of_addresses_is_told_with_numbers_before_anything_is_written(sources, tmp_path):
    done = command(
        "convert",
        sources / "large",
        tmp_path / "out",
        "--dtype",
        "bfloat16",
        before=limited("RLIMIT_AS", 5 * GIB // 4),
    )
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(
        r"error: the plan needs [0-9.]+ MiB of memory besides the program's 1\.0 GiB, but"
        r" `ulimit -v` is 1\.2 GiB\n\n"
        r"hint: raise that limit, or plan with a smaller `--max_memory`\n",
        done.stderr,
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.trust(only=True)
def test_what_the_message_advises_helps(sources, tmp_path):
    done = command(
        "convert",
        sources / "large",
        tmp_path / "out",
        "--dtype",
        "bfloat16",
        "--max_memory",
        "64MiB",
        before=limited("RLIMIT_AS", 5 * GIB // 4),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_too_few_addresses_for_the_program_itself_are_told(sources, tmp_path):
    done = command("inspect", sources / "ocdbt", before=limited("RLIMIT_AS", GIB // 2))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: the program needs 1.0 GiB of addresses, but `ulimit -v` is 512.0 MiB\n\n"
        "hint: raise that limit\n"
    )


def stands_in(groups, monkeypatch):
    """Has this process in the group `job/task` of such a folder."""
    (groups / "cgroup").write_text("1:name=x:/other\n0::/job/task\n")
    monkeypatch.setattr(cgroup, "_OWN_GROUP", groups / "cgroup")
    monkeypatch.setattr(cgroup, "_GROUPS", groups)


@pytest.mark.parametrize(
    ("quota", "allowed"), [("max 100000", 3), ("150000 100000", 2), ("500 1000", 1)]
)
def test_blocks_are_worked_on_by_as_many_threads_as_processors_may_be_used(
    quota, allowed, tmp_path, monkeypatch
):
    own = tmp_path / "job" / "task"
    own.mkdir(parents=True)
    (tmp_path / "job" / "cpu.max").write_text(f"{quota}\n")
    stands_in(tmp_path, monkeypatch)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5})
    assert cgroup.processors() == allowed


@pytest.mark.parametrize("needed", [GIB, 2 * GIB])
def test_the_limit_of_a_cgroup_counts_and_that_of_those_around_it(needed, tmp_path, monkeypatch):
    own = tmp_path / "job" / "task"
    own.mkdir(parents=True)
    (own / "memory.max").write_text("max\n")
    (tmp_path / "job" / "memory.max").write_text(f"{3 * GIB // 2}\n")
    stands_in(tmp_path, monkeypatch)
    if needed == GIB:
        limits.check_memory(needed)
        return
    with pytest.raises(PlanError) as caught:
        limits.check_memory(needed)
    assert caught.value.render() == (
        "error: the plan needs 2.0 GiB of memory besides the program's 300.0 MiB, but the limit of"
        " the cgroup is 1.5 GiB\n\n"
        "hint: raise that limit, or plan with a smaller `--max_memory`"
    )


@pytest.fixture
def source(sources, tmp_path) -> Path:
    return shutil.copytree(sources / "ocdbt", opened_to_all(tmp_path) / "in")


def test_a_target_in_a_place_that_may_not_be_written_is_one_message(source, tmp_path):
    place = tmp_path / "theirs"
    place.mkdir(mode=0o755)
    if os.getuid() != 0:
        place.chmod(0o555)
    before = snapshot(tmp_path)
    done = command("convert", source, place / "out", before=BECOME_NOBODY)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: Permission denied\n  at ")
    assert str(place) in done.stderr
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    [
        "d",
        *(
            pytest.param(n, marks=pytest.mark.trust(only=True))
            for n in ("_METADATA", "manifest.ocdbt")
        ),
    ],
)
def test_a_source_that_may_not_be_read_is_one_message(name, source, tmp_path):
    (source / name).chmod(0o000)
    before = snapshot(source) if os.getuid() == 0 else None
    (tmp_path / "new").mkdir()
    (tmp_path / "new").chmod(0o777)
    done = command("convert", source, tmp_path / "new" / "out", before=BECOME_NOBODY)
    (source / name).chmod(0o755)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert name in done.stderr or "ermission" in done.stderr
    assert list((tmp_path / "new").iterdir()) == []
    (source / name).chmod(0o000)
    assert before is None or snapshot(source) == before
    (source / name).chmod(0o755)


@pytest.mark.trust(only=True)
def test_files_of_an_owner_without_a_name_are_converted(source, tmp_path):
    if os.getuid() != 0:
        pytest.skip("only root may give files away")
    for path in (source, *source.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    for transfer in ("copy", "link"):
        done = command(
            "convert",
            source,
            tmp_path / transfer,
            "--to",
            "linen",
            "--transfer",
            transfer,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_a_person_without_a_name_converts(source, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new").chmod(0o777)
    target = tmp_path / "new" / "out"
    done = command("convert", source, target, "--to", "linen", before=BECOME_NOBODY)
    assert (done.returncode, done.stderr) == (0, "")
    assert checkpoints.restore(target)["step"] == 7
