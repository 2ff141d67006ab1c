"""Two runs against one target, begun within a millisecond: one wins, the other says why.

50 times for each of 4 sets of options with `pytest -m trust`, 3 times in the full run.
"""

import re
import shutil
from collections import Counter

import pytest

from nnxconv.commands.checksum import check_checksums, write_checksums
from tests.support import checkpoints
from tests.support.forked import commands

pytestmark = pytest.mark.trust

ATTEMPTS = 50
BUSY = (
    r"error: another (conversion|run with `--resume`) is writing `\$/out`\n\n"
    r"hint: wait until it (is done|has ended), or choose another target\n"
)
LATE = (
    r"error: `\$/out` exists(: another program has just written it)?\n\n"
    r"hint: add `--overwrite` to replace it\n"
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A checkpoint and its manifest, and an older one that may be replaced."""
    root = tmp_path_factory.mktemp("races")
    checkpoints.save_item(root / "source", checkpoints.linen())
    checkpoints.save_item(root / "old", checkpoints.nnx(2))
    write_checksums(str(root / "source"), manifest=str(root / "manifest.json"))
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with commands(tmp_path_factory.mktemp("output")) as run:
        yield run


def race(run, sources, folder, options):
    """One race: what both said, and how far apart they began, in seconds."""
    folder.mkdir()
    target = folder / "out"
    if "--overwrite" in options:
        shutil.copytree(sources / "old", target)
    words = ["convert", sources / "source", target, "--to", "nnx-pure", *options]
    both = sorted(run([words, words]), key=lambda ended: ended.exit_code)
    loser = both[1]
    told = loser.stderr.replace(str(folder), "$")
    assert (both[0].exit_code, both[0].stderr) == (0, "")
    if loser.exit_code == 0:  # the second one replaced what the first had written
        assert "--overwrite" in options
        outcome = "both, one after the other"
    else:
        assert loser.exit_code == 2
        assert re.fullmatch(BUSY if "--overwrite" in options else f"{BUSY}|{LATE}", told), told
        outcome = "one"
    checked = check_checksums(str(target), manifest=str(sources / "manifest.json"))
    assert checked.is_match, checked.problems
    assert [path.name for path in folder.iterdir()] == ["out"]
    return outcome, abs(both[0].late - both[1].late)


OPTIONS = [(), ("--overwrite",), ("--resume",), ("--overwrite", "--resume")]


@pytest.mark.trust(only=True)
@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_one_of_two_wins(options, run, sources, tmp_path, record_property):
    ended = [race(run, sources, tmp_path / str(n), options) for n in range(ATTEMPTS)]
    outcomes = Counter(outcome for outcome, _ in ended)
    within = sum(apart < 1e-3 for _, apart in ended)
    told = ", ".join(f"{count} times {outcome}" for outcome, count in sorted(outcomes.items()))
    record_property("figures", f"won by {told}; {within} began within a millisecond")
    assert outcomes["one"] > 0


@pytest.mark.full
def test_one_of_two_wins_each_time(run, sources, tmp_path):
    for number in range(3):
        race(run, sources, tmp_path / str(number), ())
