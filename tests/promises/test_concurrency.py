"""Others at work: a second conversion to the same target, and a program that writes the source."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import nnxconv
from nnxconv.errors import BadInput, DamagedCheckpoint
from tests.support import checkpoints
from tests.support.safety import UNFINISHED, refusal, snapshot

pytestmark = pytest.mark.trust

COMMAND = [sys.executable, "-c", "from nnxconv.cli import main; main()", "convert"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("concurrency")
    for name, use_ocdbt in (("ocdbt", True), ("plain", False)):
        checkpoints.save_item(root / name, checkpoints.linen(), use_ocdbt=use_ocdbt)
        other = checkpoints.linen(step=8)
        checkpoints.save_item(root / f"{name}_new", other, use_ocdbt=use_ocdbt)
    return root


@pytest.fixture(params=["ocdbt", "plain"])
def source(saved, tmp_path, request) -> Path:
    return shutil.copytree(saved / request.param, tmp_path / "in")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def is_same(a: Path, b: Path) -> bool:
    return nnxconv.compare(str(a), str(b), compare_values=True, compare_only="all").is_match


@pytest.mark.sample(2)
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_while_one_conversion_writes_a_target_another_one_says_so_and_harms_nothing(
    overwrite, source, tmp_path
):
    target = tmp_path / "out"
    if overwrite:
        checkpoints.save_item(target, checkpoints.nnx(2))
    told = []

    def second(event):
        if not told:
            with pytest.raises(BadInput) as caught:
                nnxconv.convert(str(source), str(target), to="linen", overwrite=overwrite)
            told.append(refusal(caught.value, tmp_path))

    nnxconv.convert(str(source), str(target), to="nnx-pure", overwrite=overwrite, watch=second)
    assert told == [
        "error: another conversion is writing `$/out`\n\n"
        "hint: wait until it is done, or choose another target"
    ]
    assert is_same(source, target)
    assert not any(UNFINISHED in name for name in names_in(tmp_path))


@pytest.mark.sample(1)
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["new", "overwrite"])
def test_of_two_commands_at_once_one_wins_at_least_and_the_target_is_whole(
    overwrite, source, tmp_path
):
    target = tmp_path / "out"
    words = [*COMMAND, str(source), str(target), "--to", "nnx-pure", *overwrite]
    both = [
        subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XLA_FLAGS": ""},
        )
        for _ in range(2)
    ]
    messages = [process.communicate(timeout=120)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 2], [0, 0] if overwrite else [0, 2]), messages
    for process, message in zip(both, messages, strict=True):
        said = ("another conversion is writing" in message) or ("exists" in message)
        assert said == (process.returncode == 2)
        assert "Traceback" not in message
    assert is_same(source, target)
    assert names_in(tmp_path) == ["in", "out"]


def test_a_target_that_somebody_else_writes_meanwhile_is_not_replaced(source, saved, tmp_path):
    target = tmp_path / "out"
    theirs = {}

    def meanwhile(event):
        if not theirs:
            shutil.copytree(saved / "ocdbt_new", target)
            theirs.update(snapshot(target))

    with pytest.raises(BadInput) as caught:
        nnxconv.convert(str(source), str(target), to="nnx-pure", watch=meanwhile)
    assert refusal(caught.value, tmp_path) == (
        "error: `$/out` exists: another program has just written it\n\n"
        "hint: add `--overwrite` to replace it"
    )
    assert snapshot(target) == theirs
    assert names_in(tmp_path) == ["in", "out"]


def test_a_lock_that_a_kill_left_is_no_obstacle(source, tmp_path):
    (tmp_path / f"out{UNFINISHED}-lock").touch()
    nnxconv.convert(str(source), str(tmp_path / "out"), to="nnx-pure")
    assert names_in(tmp_path) == ["in", "out"]


def test_threads_may_write_to_two_targets_at_once(source, tmp_path):
    names = ["a", "b"]
    work = [
        threading.Thread(
            target=nnxconv.convert,
            args=(str(source), str(tmp_path / name)),
            kwargs={"to": "nnx-pure"},
        )
        for name in names
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert all(is_same(source, tmp_path / name) for name in names)


# A source that changes


def replaced(source: Path, saved: Path) -> None:
    """What Orbax does with `force=True`: the old one goes, and a new one takes its name."""
    new = next(p for p in saved.iterdir() if p.name == _kind(source) + "_new")
    shutil.rmtree(source)
    shutil.copytree(new, source)


def _kind(source: Path) -> str:
    return "ocdbt" if (source / "manifest.ocdbt").exists() else "plain"


def rewritten(source: Path, saved: Path) -> None:
    """Every file is written anew in its place, as a copy does."""
    for file in [path for path in source.rglob("*") if path.is_file()]:
        content = file.read_bytes()
        fresh = file.with_name("fresh")
        fresh.write_bytes(content)
        fresh.replace(file)


def removed(source: Path, saved: Path) -> None:
    shutil.rmtree(source)


CHANGES = {change.__name__: change for change in (replaced, rewritten, removed)}


@pytest.mark.sample(3)
@pytest.mark.parametrize("options", [{"to": "linen"}, {"to": "nnx-pure", "scan_layers": True}])
@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_while_it_is_converted_is_refused(
    change, options, source, saved, tmp_path
):
    done = []

    def meanwhile(event):
        if not done:
            done.append(CHANGES[change](source, saved))

    with pytest.raises((DamagedCheckpoint, OSError)) as caught:
        nnxconv.convert(
            str(source), str(tmp_path / "out"), watch=meanwhile, max_memory="64KiB", **options
        )
    assert done
    if isinstance(caught.value, DamagedCheckpoint):
        assert str(source) in caught.value.render()
    else:
        assert str(source) in str(caught.value.filename)
    assert not (tmp_path / "out").exists()
    assert set(names_in(tmp_path)) <= {"in"}


@pytest.mark.parametrize("read", ["compare", "checksum", "load"])
def test_what_was_read_of_a_source_that_changed_is_not_given_out(read, source, saved, tmp_path):
    done = []

    def meanwhile(event):
        if not done:
            done.append(rewritten(source, saved))

    def run() -> object:
        if read == "compare":
            other = str(saved / _kind(source))
            return nnxconv.compare(str(source), other, compare_values=True, watch=meanwhile)
        if read == "checksum":
            return nnxconv.write_checksums(str(source), watch=meanwhile)
        like = {"params": checkpoints.weights()}
        without = ("opt_state", "step")
        return nnxconv.load(str(source), like=like, without=without, watch=meanwhile)

    with pytest.raises(DamagedCheckpoint, match="was changed while it was read"):
        run()
    assert done
    assert not Path(f"{source}.checksums.json").exists()


def test_the_refusal_names_what_has_changed(source, tmp_path):
    def meanwhile(event):
        (source / "more").write_text("x")
        os.utime(source / "_METADATA", (1, 1))

    with pytest.raises(DamagedCheckpoint) as caught:
        nnxconv.convert(str(source), str(tmp_path / "out"), to="linen", watch=meanwhile)
    assert refusal(caught.value, tmp_path) == (
        "error: the checkpoint was changed while it was read\n"
        "  at $/in\n"
        "  `_METADATA` is another one\n"
        "  `more` is new\n\n"
        "hint: try again when the program that writes it is done"
    )


def test_a_target_is_not_visible_while_it_is_written(source, tmp_path):
    root = tmp_path / "steps"
    seen = []

    def look(event):
        seen.append([path.name for path in root.iterdir() if UNFINISHED not in path.name])

    nnxconv.convert(str(source), str(root / "7"), to="nnx-pure", watch=look)
    assert seen
    assert not any(seen)
    assert [path.name for path in root.iterdir()] == ["7"]
