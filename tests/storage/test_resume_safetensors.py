"""`--resume` with safetensors as the target: ranges that are filled stay as they are."""

from pathlib import Path
from typing import Any

import pytest

import nnxconv
from nnxconv.errors import BadInput, with_notes
from nnxconv.running import Event
from nnxconv.storage.resume import Journal
from nnxconv.storage.resume.journal import Unit
from tests.support.hugging_face import Sizes, arrays_of, save_folder

SIZES = Sizes(64, 4, 2, 16, 128, 300, 3, 1)
KEPT = ".orbax-checkpoint-tmp-resume"

# kind: the source, the target's name, options
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "copies": ("hf", "out", {"to": "safetensors", "shard_size": "150kB"}),
    "one file": ("hf", "out.safetensors", {"to": "safetensors"}),
    "blocks": ("maxtext", "out", {"to": "hf", "shard_size": "150kB", "max_memory": "1MiB"}),
    "casts": ("hf", "out", {"to": "safetensors", "dtype": "bfloat16", "max_memory": "1MiB"}),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """A folder of Hugging Face, and what MaxText has of it, stacked."""
    root = tmp_path_factory.mktemp("resume")
    hf = save_folder(root / "hf", "llama", SIZES, arrays_of("llama", SIZES))
    nnxconv.convert(str(hf), str(root / "maxtext"), to="maxtext", scan_layers=True)
    return {"hf": hf, "maxtext": root / "maxtext"}


class Stopped(Exception):
    pass


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else path.iterdir()
    return {file.name: file.read_bytes() for file in files}


def convert(kind: str, sources: dict[str, Path], target: Path, **more) -> nnxconv.Result:
    name, _, options = KINDS[kind]
    config = {"config": str(sources["hf"])} if options["to"] == "hf" else {}
    return nnxconv.convert(str(sources[name]), str(target), **{**options, **config, **more})


def units(target: Path) -> list[Unit]:
    """What the journal of an interrupted run says."""
    journal = target.with_name(target.name + KEPT) / "0" / "journal"
    found = [Unit.from_line(line) for line in journal.read_text().splitlines(keepends=True)]
    return [unit for unit in found if unit is not None]


def interrupt(
    kind: str, sources: dict[str, Path], target: Path, monkeypatch, after: int = 9, **more
) -> Stopped:
    """Lets a conversion fail when it has written so many ranges."""
    left = [after]
    enter = Journal.enter_range

    def stop(self, name, stamp):
        enter(self, name, stamp)
        left[0] -= 1
        if left[0] <= 0:
            raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped) as caught:
        patch.setattr(Journal, "enter_range", stop)
        convert(kind, sources, target, resume=True, **more)
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_filled_is_verified_and_not_filled_again(kind, sources, tmp_path, monkeypatch):
    convert(kind, sources, tmp_path / "wanted" / KINDS[kind][1])
    target = tmp_path / KINDS[kind][1]
    error = interrupt(kind, sources, target, monkeypatch)
    kept = target.with_name(target.name + KEPT)
    assert with_notes("", error) == (
        f"\n\nkept: `{kept}` has what is finished; the same command with `--resume` goes on with it"
    )
    assert [path.name for path in tmp_path.iterdir() if path.name != "wanted"] == [kept.name]
    done = {unit.name for unit in units(target)}
    entered: list[str] = []
    enter = Journal.enter_range

    def watched(self, name, stamp):
        entered.append(name)
        enter(self, name, stamp)

    monkeypatch.setattr(Journal, "enter_range", watched)
    result = convert(kind, sources, target, resume=True)
    assert result.moved is not None
    assert "an interrupted run was continued" in result.moved.notes[-1]
    assert len(done) >= 9
    assert not done & set(entered)
    assert content(target) == content(tmp_path / "wanted" / target.name)
    assert {path.name for path in tmp_path.iterdir()} == {"wanted", target.name}


def test_a_range_that_is_not_as_it_was_is_filled_again(sources, tmp_path, monkeypatch):
    convert("blocks", sources, tmp_path / "wanted")
    target = tmp_path / "out"
    interrupt("blocks", sources, target, monkeypatch)
    work = tmp_path / f"out{KEPT}" / "0" / "work"
    for file in work.iterdir():
        file.write_bytes(bytes(file.stat().st_size))
    result = convert("blocks", sources, target, resume=True, verify=True)
    assert result.moved is not None
    assert "is not as the interrupted run wrote it" in result.moved.notes[0]
    assert content(target) == content(tmp_path / "wanted")


@pytest.mark.parametrize("more", [{"shard_size": "1MB"}, {"dtype": "bfloat16"}])
def test_another_conversion_does_not_go_on_with_it(more, sources, tmp_path, monkeypatch):
    target = tmp_path / "out"
    interrupt("copies", sources, target, monkeypatch)
    with pytest.raises(BadInput) as refused:
        convert("copies", sources, target, resume=True, **more)
    [option] = more
    was = KINDS["copies"][2].get(option, "not given")
    assert f"`--{option}` was {was}, and is {more[option]}" in refused.value.render()
    convert("copies", sources, target, **more)  # without it, the work is kept aside


def test_an_old_folder_stays_until_the_new_one_is_complete(sources, tmp_path, monkeypatch):
    target = tmp_path / "out"
    convert("copies", sources, target)
    (target / "README.md").write_text("kept")
    before = content(target)
    more: dict[str, Any] = {"dtype": "bfloat16", "overwrite": True}
    interrupt("copies", sources, target, monkeypatch, **more)
    assert content(target) == before
    convert("copies", sources, target, resume=True, **more)
    convert("copies", sources, tmp_path / "wanted", dtype="bfloat16")
    wanted = content(tmp_path / "wanted") | {"README.md": b"kept"}
    assert content(target) == wanted


def test_progress_counts_what_is_there_already(sources, tmp_path, monkeypatch):
    interrupt("blocks", sources, tmp_path / "out", monkeypatch)
    events: list[Event] = []
    convert("blocks", sources, tmp_path / "out", resume=True, watch=events.append)
    last = events[-1]
    assert (last.arrays, last.done_bytes) == (last.total_arrays, last.total_bytes)
