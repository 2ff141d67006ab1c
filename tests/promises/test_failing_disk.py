"""A disk on which nothing can be written any more: an error, and nothing is left.

Every tenth write of each command in turn is the first that fails, with `pytest -m trust`: because
the disk is full, and because it is broken. Of commands that write little, every write is. Reading,
and removing files, goes on.
"""

import errno
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from nnxconv.commands.checksum import check_checksums, write_checksums
from tests.support import checkpoints
from tests.support.forked import Commands, commands
from tests.support.safety import contents, leftovers

pytestmark = pytest.mark.trust

STEP = 10
REARRANGED = ("--to", "nnx-pure", "--scan_layers")
TENSORS = ("--to", "safetensors", "--without", "opt_state", "--without", "step")

# kind: the command, with SOURCE, OLD and TARGET for paths
KINDS = {
    "copy": ("convert", "SOURCE", "TARGET"),
    "link": ("convert", "SOURCE", "TARGET", "--transfer", "link"),
    "rewrite": ("convert", "SOURCE", "TARGET", *REARRANGED),
    "overwrite": ("convert", "SOURCE", "TARGET", *REARRANGED, "--overwrite"),
    "verify": ("convert", "SOURCE", "TARGET", *REARRANGED, "--verify"),
    "resume": ("convert", "SOURCE", "TARGET", *REARRANGED, "--resume"),
    "safetensors": ("convert", "SOURCE", "TARGET", *TENSORS),
    "average": ("average", "SOURCE", "SOURCE", "TARGET"),
    "checksum": ("checksum", "SOURCE", "--manifest", "TARGET"),
    "match": ("match", "SOURCE", "OLD", "--output", "TARGET"),
    "report": ("compare", "SOURCE", "OLD", "--report", "TARGET.html"),
    "data": ("compare", "SOURCE", "OLD", "--report", "TARGET.json"),
}


@dataclass(frozen=True)
class Place:
    """A disk that can be made to fail, and checkpoints on another one."""

    run: Commands
    root: Path
    disk: Path

    def fresh(self, kind: str) -> dict[str, bytes]:
        """What is on the disk before a run: an old target, where one is to be replaced."""
        shutil.rmtree(self.disk, ignore_errors=True)
        self.disk.mkdir()
        if kind == "overwrite":
            shutil.copytree(self.root / "old", self.disk / "out")
        return contents(self.disk)

    def words(self, kind: str, container: str) -> list[str]:
        """The command."""
        named = {"SOURCE": self.root / container, "OLD": self.root / "old"}
        target = str(self.disk / "out")
        return [str(named.get(w, w)).replace("TARGET", target) for w in KINDS[kind]]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("failing")
    checkpoints.save_item(root / "ocdbt", checkpoints.linen())
    checkpoints.save_item(root / "plain", checkpoints.linen(), use_ocdbt=False)
    checkpoints.save_item(root / "old", checkpoints.nnx(2))
    write_checksums(str(root / "ocdbt"), manifest=str(root / "manifest.json"))
    with commands(root, failing=root / "disk") as run:
        yield Place(run, root, root / "disk")


MESSAGE = re.compile(r"error: .+\n(  .+\n)*(\nhint: .+\n)?(\nkept: .+\n)?")


def fails(place: Place, kind: str, container: str, first: int, error: int) -> str:
    """One run that may write so often: what it said in its first line, or nothing if that was all.

    Where work is kept, it is gone on with, on a disk that has been mended.
    """
    before = place.fresh(kind)
    words = place.words(kind, container)
    (ended,) = place.run([words], fails_at=first, error=error)
    if ended.writes <= first:
        return ""
    assert ended.exit_code == 2, (first, ended)
    assert MESSAGE.fullmatch(ended.stderr), (first, ended.stderr)
    assert str(place.disk) in ended.stderr, (first, ended.stderr)
    after = contents(place.disk)
    if "kept:" in ended.stderr:
        goes_on(place, words)
    else:
        assert after == before, (first, ended.stderr, sorted(after))
        assert not leftovers(place.disk)
    return ended.stderr.splitlines()[0]


def goes_on(place: Place, words: list[str]) -> None:
    """The same command ends what was begun."""
    (ended,) = place.run([words])
    assert (ended.exit_code, ended.stderr) == (0, "")
    out = str(place.disk / "out")
    assert check_checksums(out, manifest=str(place.root / "manifest.json")).is_match
    assert not leftovers(place.disk)


def writes_of(place: Place, kind: str, container: str) -> int:
    """How often a run writes that nothing stops."""
    place.fresh(kind)
    (ended,) = place.run([place.words(kind, container)], fails_at=10**9)
    assert ended.exit_code in (0, 1), ended.stderr
    return ended.writes


@pytest.mark.trust(only=True)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
@pytest.mark.parametrize("container", ["ocdbt", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_tenth_write_fails(kind, container, error, place, record_property):
    before = contents(place.root / container)
    count = writes_of(place, kind, container)
    step = STEP if count > 4 * STEP else 1
    told = Counter(fails(place, kind, container, n, error) for n in range(0, count, step))
    assert contents(place.root / container) == before
    record_property("figures", f"{told.total() - told['']} runs failed, of {count} writes each")


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fails_in_the_middle_is_an_error_and_nothing_is_left(kind, place):
    middle = writes_of(place, kind, "ocdbt") // 2
    assert fails(place, kind, "ocdbt", middle, errno.ENOSPC)


@pytest.mark.full
def test_a_disk_that_is_full_though_bytes_are_free_is_told_as_that(place):
    middle = writes_of(place, "rewrite", "ocdbt") // 2
    place.fresh("rewrite")
    (ended,) = place.run([place.words("rewrite", "ocdbt")], fails_at=middle, error=errno.EDQUOT)
    assert re.fullmatch(
        r"error: the file system is full, or the user's share of it\n"
        rf"  at {re.escape(str(place.disk))}\n"
        r"  the target needs about [0-9.]+ MiB, and [0-9.]+ [GT]iB are free: a quota, or a limit on"
        r" the number of files, may be reached\n\n"
        r"hint: `quota` and `df -i` show them; or choose a target on another file system\n",
        ended.stderr,
    )
